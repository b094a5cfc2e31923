"Files of other shops: events, plays, views without a rating, other scales; and an input that is not what it should be."

import pyarrow.parquet as pq
import pytest
from test_prep import CONFIG, FILES, MASTER

from twotower.base.errors import InputError, SettingError
from twotower.base.files import read_json, sha256
from twotower.base.tables import INTERACTIONS, WEIGHTED, read_table
from twotower.learning.training_set import load_prepared
from twotower.prep import prepare_files
from twotower.runs.run import SUMMARY, TRAIN
from twotower.runs.settings import PrepSettings, TrainSettings


@pytest.fixture
def opinions(home):
    "Prepare a file; what became of it: (user, video) to kind and weight."
    names = iter(range(10**6))

    def run(text: str, mode: str = 'reviews', **settings) -> dict:
        (home / 'in.csv').write_text(text)
        folder = home / f'prep{next(names)}'
        config = PrepSettings(
            **CONFIG | {'mode': mode, 'input': 'in.csv', 'val_ratio': 0.0, 'neg_per_pos': 0} | settings
        )
        prepare_files(folder, MASTER, config)
        run.folder = folder
        rows = read_table(folder / TRAIN, WEIGHTED).to_pylist()
        weights = [None if r['weight'] is None else round(r['weight'], 4) for r in rows]
        return {(r['user_id'], r['video_id']): (r['kind'], w) for r, w in zip(rows, weights, strict=True)}

    return run


EVENTS = 'reviewer_id,product_url,event,created_at\n' + ''.join(
    f'u1,v{v},{event},2024-01-{day:02}\n'
    for v, event, day in [
        *((1, 'purchase', 1), (1, 'view', 2), (1, 'view', 3)),
        *((2, 'click', 1), (2, 'click', 2), (2, 'view', 3)),
        *((3, 'view', 1), (4, 'banner', 1)),
    ]
)
MEANS = 'view=seen, click=0.3, purchase=like, *=skip'


@pytest.mark.parametrize('mode', ['reviews', 'explicit'])
def test_a_view_after_a_purchase_takes_the_like_away_only_if_the_newest_counts(opinions, mode):
    assert opinions(EVENTS, mode, event_weights=MEANS, keep='most') == {
        ('u1', 'v1'): ('like', 1), ('u1', 'v2'): ('like', 0.6), ('u1', 'v3'): ('neutral', 1),
    }  # fmt: skip
    newest = EVENTS + 'u1,v5,purchase,2024-01-01\n'
    assert opinions(newest, mode, event_weights=MEANS) == {
        ('u1', f'v{v}'): (kind, 1) for v, kind in ((1, 'neutral'), (2, 'neutral'), (3, 'neutral'), (5, 'like'))
    }
    counts = read_json(opinions.folder / SUMMARY)['sources'][mode]
    assert (counts['rows_in'], counts['skipped'], counts['duplicates'], counts['used']) == (9, 1, 4, 4)


def test_an_event_of_which_nobody_has_said_anything_is_named(opinions):
    with pytest.raises(
        InputError,
        match=r'reviews has rows with an event and no stars: say in event_weights .* banner=seen, click=seen',
    ):
        opinions(EVENTS)
    with pytest.raises(InputError, match=r'event_weights does not say what banner is: add banner=seen'):
        opinions(EVENTS, event_weights='view=seen, click=0.3, purchase=like')
    with pytest.raises(SettingError, match="event_weights has 'view', must be name=what"):
        opinions(EVENTS, event_weights='view')


PLAYS = 'user_id,item_id,weight\nu1,v1,1\nu1,v2,8\nu2,v1,0.5\n'


def test_plays_are_likes_that_weigh_more(opinions):
    assert opinions(PLAYS, 'explicit', unrated='like', use_weights=True) == {
        ('u1', 'v1'): ('like', 1), ('u1', 'v2'): ('like', 8), ('u2', 'v1'): ('like', 0.5),
    }  # fmt: skip
    prepared = load_prepared(opinions.folder, TrainSettings(repeat_weight=0.5))
    assert sorted(prepared.data.weights[prepared.data.kinds > 0].tolist()) == [0.5, 1, 2.5]  # three doublings
    assert opinions(PLAYS, 'explicit', unrated='like')['u1', 'v2'] == ('like', None)  # only if asked for
    assert pq.read_schema(opinions.folder / TRAIN).names == INTERACTIONS.names


def test_rows_that_come_again_are_a_weight(opinions):
    rows = 'user_id,item_id,label\n' + 'u1,v1,1\n' * 3 + 'u1,v2,1\nu1,v2,0\n'
    assert opinions(rows, 'explicit', keep='most') == {('u1', 'v1'): ('like', 3), ('u1', 'v2'): ('like', 1)}


UNRATED = 'user_id,item_id,stars\nu1,v1,5\nu1,v2,0\nu1,v3,\nu1,v4,-1\n'


@pytest.mark.parametrize(('unrated', 'kind'), [('seen', 'neutral'), ('like', 'like'), ('skip', None)])
def test_rows_without_a_rating_are_what_one_says(opinions, unrated, kind):
    others = {('u1', f'v{v}'): (kind, None) for v in (2, 3, 4)} if kind else {}
    assert opinions(UNRATED, unrated=unrated) == {('u1', 'v1'): ('like', None)} | others
    assert read_json(opinions.folder / SUMMARY)['sources']['reviews']['skipped'] == (0 if kind else 3)
    with pytest.raises(InputError, match=r'line 3: stars is 0, must be 0.5 to 5'):
        opinions(UNRATED)


def test_skips_and_seen_labels(opinions):
    rows = 'user_id,item_id,label\nu1,v1,LIKE\nu1,v2,SKIP\nu1,v3,seen\n'
    known = {('u1', 'v1'): ('like', None), ('u1', 'v3'): ('neutral', None)}
    assert opinions(rows, 'explicit') == known
    assert opinions(rows, 'explicit', skips='seen') == known | {('u1', 'v2'): ('neutral', None)}


SCALES = {
    '0 to 2': (range(3), '0..2', [0], [2]),
    '1 to 10': (range(1, 11), '1..10', [1, 2, 3], [8, 9, 10]),
    '-10 to 10': (range(-10, 11, 5), '-10..10', [-10, -5], [5, 10]),
    '0.5 to 4': ([0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4], '0.5..4', [0.5, 1], [3.5, 4]),
    '1 to 5': (range(1, 6), '1..5', [1, 2], [4, 5]),
}


@pytest.mark.parametrize(('stars', 'scale', 'disliked', 'liked'), SCALES.values(), ids=SCALES)
@pytest.mark.parametrize('found', [True, False])
def test_other_scales(opinions, stars, scale, disliked, liked, found):
    rows = 'user_id,item_id,stars\n' + ''.join(f'u1,v{i},{s}\n' for i, s in enumerate(stars))
    opinions(rows, stars_scale='auto' if found else scale, stars_limits='found')
    kept = read_table(opinions.folder / TRAIN, INTERACTIONS).to_pylist()
    assert sorted(r['stars'] for r in kept if r['kind'] == 'dislike') == disliked
    assert sorted(r['stars'] for r in kept if r['kind'] == 'like') == liked
    low = float(scale.split('..')[0])
    with pytest.raises(InputError, match=rf'line 2: stars is {low - 1:g}, must be {scale.replace("..", " to ")}'):
        opinions(rows.replace('stars\n', f'stars\nu1,v9,{low - 1:g}\n'), stars_scale=scale, stars_limits='found')


def test_the_scale_is_said_where_it_leaves_no_like(opinions):
    low = 'user_id,item_id,stars\nu1,v1,1\nu1,v2,2\nu1,v3,3\n'
    with pytest.raises(
        InputError,
        match=r'no like is left to learn from: the stars are from 1 to 3, and min_stars is 4: set min_stars to 3',
    ):
        opinions(low)
    opinions(low + 'u1,v4,4\n')
    told = read_json(opinions.folder / SUMMARY)['notes']
    assert told[0].startswith('stars from 1 to 4: 4 and more are a like (25% of the rows)')
    assert told[1].startswith('likes are the top value only, 4: with min_stars 3 1 rows more would be likes')


GATES = {
    'join': ({'min_join_rate': 0.6}, r'only 50.0% of the rows found their video .* and min_join_rate is 0.6'),
    'dates': ({'max_undated': 0.4}, r'100.0% of the opinions have no date, and max_undated is 0.4'),
    'one kind': ({'max_one_kind': 0.9}, r'100.0% of the opinions are likes, and max_one_kind is 0.9'),
}


@pytest.mark.parametrize(('limits', 'message'), GATES.values(), ids=GATES)
@pytest.mark.fault(
    'an input that is not what it should be: a join that failed, no dates, labels of one kind',
    sees='which gate, its value and limit, and what to do; nothing is trained',
)
def test_an_input_that_fails_a_gate_is_refused(opinions, home, limits, message):
    rows = 'user_id,item_id,stars\n' + ''.join(f'u{i},v{i},5\nu{i},nowhere{i},5\n' for i in range(4))
    opinions(rows)  # by default it passes
    with pytest.raises(InputError, match=message):
        opinions(rows, **limits)
    assert not (home / 'prep1').exists()


def test_a_join_that_fails_is_refused_by_default(opinions):
    rows = 'user_id,item_id,stars\nu1,v1,5\n' + ''.join(f'u1,nowhere{i},5\n' for i in range(99))
    with pytest.raises(
        InputError, match=r'only 1.0% of the rows found their video \(1 of 100\), and min_join_rate is 0.05'
    ):
        opinions(rows)


def test_a_weight_that_nobody_asks_for_changes_nothing(home):
    for name, columns, values in (('plain', '', ''), ('odd', ',weight', ',7')):
        (home / f'{name}.csv').write_text(
            f'user_id,item_id,stars{columns}\n'
            + ''.join(f'u{i % 5},v{i % 29},{1 + i % 5}{values}\n' for i in range(99))
        )
        prepare_files(home / name, MASTER, PrepSettings(**CONFIG | {'input': f'{name}.csv'}))
    assert all(sha256(home / 'plain' / name) == sha256(home / 'odd' / name) for name in FILES)
