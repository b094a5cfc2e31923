"The same rows give the same files, every row is accounted for, and the held-out part stays unseen."

import csv
import io
import random
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twotower import prep
from twotower.base.errors import SettingError, TwotowerError
from twotower.base.files import read_json, sha256
from twotower.base.tables import (
    DECISIONS,
    INTERACTIONS,
    ITEM_FEATURES,
    PSEUDO,
    USER_FEATURES,
    VIDEOS,
    as_uuid,
    read_table,
)
from twotower.data import opinions
from twotower.data.columns import REVIEWS
from twotower.data.heads import read_header
from twotower.data.sources import read_source, workspace
from twotower.database.people import load_decisions, load_profiles, save_decisions, save_profiles
from twotower.database.videos import load_videos, save_videos
from twotower.model.features import fit_encoding
from twotower.prep import prepare_files
from twotower.runs.run import ITEMS, SUMMARY, TRAIN, USERS, VAL
from twotower.runs.settings import PrepSettings

HEAD = 'product_url,reviewer_id,stars,reviewed_at\n'
FILES = {TRAIN: INTERACTIONS, VAL: INTERACTIONS, ITEMS: ITEM_FEATURES, USERS: USER_FEATURES}
CONFIG = {
    'mode': 'reviews', 'input': 'reviews.csv', 'decisions_csv': '', 'time_zone': 'UTC', 'max_invalid_share': 0.0, 'min_stars': 4.0,
    'max_negative_stars': 2.0, 'neg_per_pos': 2, 'val_ratio': 0.3, 'split_by': 'user', 'seed': 0, 'max_history': 3, 'memory_limit': '',
    'snapshot_inputs': False,
}  # fmt: skip
MASTER = pa.Table.from_pylist(
    [
        {'video_id': f'v{v}', 'product_url': f'https://shop/{v}', 'content_id': f'c{v}', 'tags': [f't{v % 3}', f't{v % 5}'], 'maker': f'm{v % 2}'}
        for v in range(30)
    ],
    pa.schema([*(f for f in ITEM_FEATURES if f.name != 'popularity'), pa.field('content_id', pa.string())]),
)  # fmt: skip


def reviews(n: int = 300, seed: int = 0) -> list[str]:
    luck = random.Random(seed)
    day = datetime(2024, 1, 1)
    return [
        f'https://shop/{luck.randrange(32)},u{luck.randrange(20)},{luck.randint(1, 5)},{day + timedelta(hours=luck.randrange(2000))}\n'
        for _ in range(n)
    ]


@pytest.fixture
def prepare(home):
    names = iter(range(10**6))

    def run(rows: list[str] | str, **others) -> Path:
        (home / 'reviews.csv').write_text(HEAD + ''.join(rows))
        folder = home / f'prep{next(names)}'
        tables = {name: others.pop(name) for name in ('decisions', 'profiles', 'videos') if name in others}
        prepare_files(folder, tables.pop('videos', MASTER), PrepSettings(**CONFIG | others), **tables)
        return folder

    return run


@pytest.mark.parametrize('split_by', ['user', 'time'])
@pytest.mark.parametrize('threads', [1, 2, 4])
def test_neither_threads_nor_the_order_of_the_rows_matter(prepare, monkeypatch, threads, split_by):
    expected = prepare(reviews(), split_by=split_by)
    shuffled = reviews()
    random.Random(threads).shuffle(shuffled)
    monkeypatch.setattr(prep, 'workspace', partial(workspace, threads=threads))
    found = prepare(shuffled, split_by=split_by)
    assert {name: sha256(found / name) for name in FILES} == {name: sha256(expected / name) for name in FILES}


def test_users_can_be_prepared_in_parts(prepare, monkeypatch):
    expected = prepare(reviews())
    monkeypatch.setattr(opinions.user_ranges, '__defaults__', (20,))  # some fifteen parts
    found = prepare(reviews())
    for name, schema in FILES.items():
        assert read_table(found / name, schema).equals(read_table(expected / name, schema)), name


def test_a_user_alone_is_split_and_drawn_for_as_among_the_others(prepare):
    expected = prepare(reviews())
    alone = prepare([row for row in reviews() if ',u7,' in row])
    for name in (TRAIN, VAL):
        rows = [r for r in read_table(expected / name, INTERACTIONS).to_pylist() if r['user_id'] == 'u7']
        assert read_table(alone / name, INTERACTIONS).to_pylist() == rows


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_was_held_out_could_be_anything(prepare, data):
    rows = {tuple(row.split(',')[:2]): row for row in reviews(120)}  # one opinion for each pair
    before = prepare(rows.values())
    urls = dict(zip(MASTER['video_id'].to_pylist(), MASTER['product_url'].to_pylist(), strict=True))
    held = [
        (urls[r['video_id']], r['user_id'])
        for r in read_table(before / VAL, INTERACTIONS).to_pylist()
        if r['kind'] != PSEUDO
    ]
    stars = data.draw(st.lists(st.integers(1, 5), min_size=len(held), max_size=len(held)))
    for pair, star in zip(held, stars, strict=True):
        rows[pair] = ','.join([*pair, str(star), rows[pair].split(',')[3]])
    after = prepare(rows.values())
    for name in (TRAIN, ITEMS, USERS):
        assert sha256(after / name) == sha256(before / name), name
    assert fitted(after) == fitted(before)


def fitted(folder: Path) -> dict:
    items, users = read_table(folder / ITEMS, ITEM_FEATURES), read_table(folder / USERS, USER_FEATURES)
    return fit_encoding(items, users)


VALID = (
    HEAD
    + 'https://shop/1,u1,5,2024-01-01\nhttps://shop/2,u2,3.5,\n"https://shop/3,a",u3,1,2024-01-01T00:00:00Z\nhttps://shop/4,u4,2,\n'
).encode()
PLAIN = VALID.replace(b'"https://shop/3,a"', b'https://shop/3')
edits = st.lists(
    st.tuples(st.integers(0, len(VALID) - 1), st.sampled_from(['insert', 'delete', 'replace']), st.binary(min_size=1, max_size=3) | st.sampled_from([b'"', b',', b'\n', b'\r', b'\0', b'\xff', b'""', b'\r\n'])),
    max_size=4,
)  # fmt: skip


def mutated(content: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    content = bytearray(content)
    for place, what, new in changes:
        end = place if what == 'insert' else place + 1
        content[place:end] = b'' if what == 'delete' else new
    return bytes(content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([VALID, PLAIN]), edits)
def test_a_damaged_file_is_refused_or_every_row_is_accounted_for(home, content, changes):
    content = mutated(content, changes)
    (home / 'reviews.csv').write_bytes(content)
    with workspace() as con:
        try:
            counts = read_source(con, home / 'reviews.csv', REVIEWS, 'reviews', max_invalid_share=1)
        except TwotowerError:
            return
        found = con.execute("""
            SELECT address.name, person.name, stars
            FROM reviews JOIN reviews_product_url address ON address.code = product_url JOIN reviews_user_id person ON person.code = user_id
        """).fetchall()
    assert counts['rows_in'] == counts['rows_valid'] + sum(counts['invalid'].values())
    assert len(found) == counts['rows_valid']
    if b'"' not in content:  # a quote may swallow lines; without one it is plain what a row is
        text = io.StringIO(content.decode('utf-8-sig', 'replace'), newline='')
        assert counts['rows_in'] == sum(1 for fields in csv.reader(text) if fields) - 1
    for row in untouched_rows(content, home):
        assert row in found, (row, found, counts)


def untouched_rows(content: bytes, home: Path) -> list[tuple]:
    "The rows on lines that no damage has touched, if no quote or carriage return elsewhere can have joined or cut them."
    header, names = read_header(home / 'reviews.csv', REVIEWS)
    original = {line for line in PLAIN.split(b'\n')[1:] if line}
    others = [line for line in content.split(b'\n') if line not in original]
    if len(header) != 4 or any(mark in line for line in others for mark in (b'"', b'\r')):
        return []
    lines = [line.decode().split(',') for line in content.split(b'\n')[1:] if line in original]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    return [(row[names['product_url']], row[names['user_id']], float(row[names['stars']])) for row in rows]


@pytest.mark.parametrize(
    ('time_zone', 'old', 'new', 'fresh'),
    [
        ('UTC', '2024-01-01 00:00:00', '2024-01-31 00:00:00', 1),  # 30 days to the second: outside
        ('UTC', '2024-01-01 00:00:01', '2024-01-31 00:00:00', 2),
        ('Asia/Tokyo', '2024-01-01 09:00:00', '2024-01-31T00:00:00Z', 1),  # nine in Tokyo is midnight in Greenwich
        ('Asia/Tokyo', '2024-01-01 09:00:01', '2024-01-31T00:00:00Z', 2),
        ('UTC', '2024-01-01 09:00:00', '2024-01-31T09:00:00+09:00', 2),
        (
            'America/New_York',
            '2024-03-01 00:00:00',
            '2024-03-31 01:00:00',
            1,
        ),  # a clock put forward makes no day longer
        ('America/New_York', '2024-03-01 00:00:01', '2024-03-31 01:00:00', 2),
    ],
)
def test_thirty_days_end_to_the_second(prepare, time_zone, old, new, fresh):
    rows = f'https://shop/1,u,5,{old}\nhttps://shop/2,u,5,{new}\n'
    folder = prepare(rows, time_zone=time_zone, val_ratio=0.0)
    user = read_table(folder / USERS, USER_FEATURES).to_pylist()[0]
    assert (user['like_count'], user['like_count_30d']) == (2, fresh)


def test_naive_dates_are_stored_as_utc(prepare):
    folder = prepare(
        'https://shop/1,u,5,2024-01-01 08:00:00\nhttps://shop/2,u,5,2024-01-01\n',
        time_zone='Asia/Tokyo',
        val_ratio=0.0,
        neg_per_pos=0,
    )
    times = read_table(folder / TRAIN, INTERACTIONS)['created_at'].to_pylist()
    assert times == [datetime(2023, 12, 31, 23, tzinfo=UTC), datetime(2023, 12, 31, 15, tzinfo=UTC)]


def test_decisions_of_the_database_win(prepare, database):
    columns = dict.fromkeys(VIDEOS.names) | {'tags': [], 'performers': []}
    shop = [columns | {'product_url': f'https://shop/{v}', 'content_id': f'c{v}'} for v in range(6)]
    save_videos(database, pa.Table.from_pylist(shop, VIDEOS))
    ids = {v: as_uuid(f'https://shop/{v}') for v in range(6)}
    stranger = '00000000-0000-4000-8000-000000000001'
    save_profiles(database, ['u1', stranger])
    database.execute("UPDATE profiles SET created_at = '2024-01-01'")
    decided = [('u1', 0, 'dislike', 10), ('u1', 1, 'skip', 10), (stranger, 2, 'like', 11), (stranger, 3, 'like', 10)]
    made = [
        {'user_id': u, 'video_id': ids[v], 'decision_type': d, 'created_at': datetime(2024, 1, day, tzinfo=UTC)}
        for u, v, d, day in decided
    ]
    save_decisions(database, pa.Table.from_pylist(made, DECISIONS))
    folder = prepare(
        'https://shop/0,u1,5,2024-01-12\nhttps://shop/1,u1,5,2024-01-02\nhttps://shop/2,u2,5,2024-01-03\n',
        videos=load_videos(database), decisions=load_decisions(database), profiles=load_profiles(database), val_ratio=0.0, neg_per_pos=0,
    )  # fmt: skip
    kinds = {(r['user_id'], r['video_id']): r['kind'] for r in read_table(folder / TRAIN, INTERACTIONS).to_pylist()}
    assert kinds == {
        ('u1', ids[0]): 'dislike',  # not the later review
        ('u1', ids[1]): 'like',  # a skip says nothing
        ('u2', ids[2]): 'like',
        (stranger, ids[2]): 'like',
        (stranger, ids[3]): 'like',
    }
    sources = read_json(folder / SUMMARY)['sources']
    assert {k: sources['database'][k] for k in ('rows_in', 'skipped', 'used')} == {
        'rows_in': 4,
        'skipped': 1,
        'used': 3,
    }
    assert (sources['reviews']['duplicates'], sources['reviews']['overruled']) == (0, 1)
    days = {r['user_id']: r['signup_days'] for r in read_table(folder / USERS, USER_FEATURES).to_pylist()}
    assert days == {'u1': 10, stranger: 10, 'u2': 8}  # from the profile, else from the first review, to the newest row


def test_rows_that_are_lost_are_an_error(prepare, monkeypatch):
    real = prep.read_source
    monkeypatch.setattr(prep, 'read_source', lambda *args: (counts := real(*args)) | {'rows_in': counts['rows_in'] + 1})
    with pytest.raises(RuntimeError, match='reviews lost rows'):
        prepare(reviews())


def test_a_memory_limit_is_no_wish(prepare):
    with pytest.raises(SettingError, match="memory_limit is '3 apples', must be a size such as 3GB"):
        prepare(reviews(), memory_limit='3 apples')
