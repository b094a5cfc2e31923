"What a shop says of its users reaches somebody of whom nothing else is known."

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_prep import CONFIG, FILES, HEAD, MASTER, reviews

from twotower.base.errors import InputError
from twotower.base.files import read_json, sha256
from twotower.data.fields import read_users
from twotower.learning.loop import fit
from twotower.learning.training_set import load_prepared
from twotower.model.features import encode
from twotower.model.towers import embed
from twotower.prep import prepare_files
from twotower.runs.run import FIELDS, SUMMARY
from twotower.runs.settings import PrepSettings, TrainSettings

torch.set_num_threads(1)


@pytest.fixture
def prepare(home):
    names = iter(range(10**6))

    def run(rows: list[str], text: str = '', **others) -> Path:
        (home / 'reviews.csv').write_text(HEAD + ''.join(rows))
        (home / 'users.csv').write_text(text)
        folder = home / f'prep{next(names)}'
        config = CONFIG | ({'user_fields': 'users.csv'} if text else {}) | others
        prepare_files(folder, MASTER, PrepSettings(**config))
        return folder

    return run


def shop() -> tuple[list[str], str]:
    "Forty users: those of jp like videos with even numbers, those of us odd ones, each eight of fifteen."
    luck = random.Random(0)
    likes = [f'https://shop/{2 * v + u % 2},u{u},5,2024-01-01\n' for u in range(40) for v in luck.sample(range(15), 8)]
    return likes, 'reviewer_id,country,born\n' + ''.join(f'u{u},{["jp", "us"][u % 2]},{1950 + u}\n' for u in range(39))


def test_a_user_without_a_history_is_shown_what_their_country_likes(prepare):
    likes, users = shop()
    folder = prepare(likes, users, val_ratio=0.0)
    found = read_json(folder / SUMMARY)['user_fields']
    assert found['columns'] == {'country': 'a category of 2 values', 'born': 'a number from 1950 to 1988'}
    assert (found['rows'], found['users'], found['users_without']) == (39, 39, 1)  # of u39 nothing is said
    prepared = load_prepared(folder, TrainSettings())
    assert [(s['name'], s['width']) for s in prepared.encoding['user']['segments'][-2:]] == [
        ('own:country', 2), ('own:born', 16),
    ]  # fmt: skip
    model, _ = fit(prepared.data, TrainSettings(hidden=16, batch_size=20, history_dropout=0.7, warmup=5), epochs=30)
    cold = pa.table({'user_id': ['a', 'b', 'c'], 'own:country': ['jp', 'us', None]})
    vectors = encode(prepared.encoding, 'user', cold)[0]
    assert vectors.toarray().sum(1).tolist() == [1, 1, 0]  # one word each, and zeros
    scores = embed(model.user, vectors) @ embed(model.item, prepared.items).T
    number = np.array([int(v[1:]) for v in prepared.item_ids.to_pylist()])
    even, odd = scores[:, number % 2 == 0].mean(1), scores[:, number % 2 == 1].mean(1)
    assert even[0] - odd[0] > 0.3
    assert odd[1] - even[1] > 0.3
    assert even[0] > even[2]
    assert odd[1] > odd[2]


def test_without_the_setting_every_file_is_the_same_to_the_byte(prepare):
    text = 'user_id,country\n' + ''.join(f'u{u},{["jp", "us"][u % 2]}\n' for u in range(20))
    plain, told = prepare(reviews()), prepare(reviews(), text)
    assert {name: sha256(told / name) for name in FILES} == {name: sha256(plain / name) for name in FILES}
    assert not (plain / FIELDS).exists()
    summary = read_json(told / SUMMARY)
    assert summary.pop('user_fields')['users'] == 20
    assert summary == read_json(plain / SUMMARY)
    without, with_country = (load_prepared(folder, TrainSettings()) for folder in (plain, told))
    width = without.encoding['user']['width']
    assert (with_country.users[:, :width] != without.users).nnz == 0  # fields come behind everything else
    assert with_country.encoding['user']['segments'][:-1] == without.encoding['user']['segments']
    assert with_country.item_ids.equals(without.item_ids)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('reviewer_id\nu1\n', 'users.csv has no column beside reviewer_id: leave user_fields empty, or add one'),
        ('country\njp\n', 'column reviewer_id or user_id is missing; the file has country'),
        ('user_id,country\nu1,jp\nu2,us\nu1,us\n', 'user u1 stands in 2 rows: leave one row for each user'),
        ('user_id,country\nu1,jp\n ,us\n', 'users.csv line 3: user_id is'),
        ('user_id,country\nu1,jp\nu2,us,7\n', 'users.csv line 3: '),
        ('user_id,country\nx1,jp\nx2,us\nx3,us\n', 'it has x1, they have u0. Are these the same ids?'),
        ('user_id,a,A,a\nu1,1,2,3\n', "columns ['a'] appear twice"),
    ],
)
def test_a_file_that_can_not_be_meant_is_refused(prepare, text, said):
    with pytest.raises(InputError) as error:
        prepare(reviews(), text)
    assert said in str(error.value)


def test_columns_that_say_nothing_are_named_and_left_out(prepare):
    folder = prepare(reviews(), 'user_id,mail,shop\n' + ''.join(f'u{u},{u}@x,here\n' for u in range(20)))
    said = read_json(folder / SUMMARY)['user_fields']
    assert said['columns'] == {
        'mail': 'left out: every user has another value', 'shop': 'left out: every value is the same',
    }  # fmt: skip
    assert said['users'] == 20
    plain = load_prepared(prepare(reviews()), TrainSettings()).encoding
    assert load_prepared(folder, TrainSettings()).encoding == plain


FORMS = {
    'users.json': '[{"user_id": "u1", "land": "jp", "n": 1.5}, {"user_id": "u2", "land": null, "n": 2}]',
    'users.jsonl': '{"user_id": "u1", "land": "jp", "n": 1.5}\n{"user_id": "u2", "n": 2}\n',
    'users.tsv': 'User-ID\tland\tn\nu2\tNaN\t2\nu1\tjp\t1.5\n',
    'users.parquet': pa.table({'user_id': ['u1', 'u2'], 'land': ['jp', None], 'n': [1.5, 2]}),
}


@pytest.mark.parametrize('name', FORMS)
def test_users_come_in_every_form_that_reviews_come_in(prepare, home, name):
    if name.endswith('parquet'):
        pq.write_table(FORMS[name], home / name)
    else:
        (home / name).write_text(FORMS[name])
    folder = prepare(reviews(), user_fields=name)
    users = {row['user_id']: row for row in read_users(folder).to_pylist()}
    assert [users[u]['own:n'] for u in ('u1', 'u2', 'u3')] == [1.5, 2, None]
    found = read_json(folder / SUMMARY)['user_fields']
    assert found['columns'] == {'land': 'left out: every value is the same', 'n': 'a number from 1.5 to 2'}
    assert (found['users'], found['users_without']) == (2, 18)


def test_a_value_of_one_user_is_not_in_the_model(prepare):
    text = 'user_id,plan\n' + ''.join(f'u{u},{"free" if u else "the only one who pays"}\n' for u in range(20))
    folder = prepare(reviews(), text)
    assert read_users(folder)['own:plan'][0].as_py() == 'the only one who pays'
    encoding = load_prepared(folder, TrainSettings()).encoding
    assert encoding['vocabularies']['own:plan'] == ['free']
