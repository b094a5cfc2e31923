"The definition of the features, against a plain implementation and every kind of dirt."

import math
import unicodedata
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.base.errors import InputError
from twotower.base.tables import ITEM_FEATURES, USER_FEATURES
from twotower.model import features
from twotower.model.features import encode, fit_encoding, pad

# What README.md of examples/node says, in plain Python, one row after the other.


def plain_segment(segment, vocabularies, value):
    "The positions that are not zero, with their values."
    kind = segment['kind']
    if value is None:
        return {}
    if kind in ('multi_hot', 'one_hot'):
        vocabulary = vocabularies[segment['vocabulary']]
        words = {w for w in (value if kind == 'multi_hot' else [value]) if w in vocabulary}
        return {vocabulary.index(w): 1 / math.sqrt(len(words)) for w in words}
    if kind == 'hashed':
        codes = [32, *(ord(c.lower()[0]) for c in unicodedata.normalize('NFKC', value)), 32]
        buckets = set()
        for a, b, c in zip(codes, codes[1:], codes[2:], strict=False):
            h = ((a * 0x9E3779B1 + b) * 0x85EBCA77 + c) * 0xC2B2AE3D % 2**32
            buckets.add((h ^ h >> 16) % segment['width'])
        return {b: 1 / math.sqrt(len(buckets)) for b in buckets}
    if segment['transform'] != 'year':
        if not math.isfinite(value):
            return {}
        x = math.log1p(max(value, 0)) if segment['transform'] == 'log1p' else value
    else:
        x = 1970 + (value - date(1970, 1, 1)).days / 365.2425
    if kind == 'numeric':
        return {0: min(max((x - segment['mean']) / segment['std'], -4), 4)}
    return {sum(edge <= x for edge in segment['edges']): 1}


def plain(encoding, side, rows):
    "Rows of numbers, (len(rows), width)."
    out = np.zeros((len(rows), encoding[side]['width']))
    for i, row in enumerate(rows):
        for s in encoding[side]['segments']:
            for position, value in plain_segment(s, encoding['vocabularies'], row.get(s['column'])).items():
                out[i, s['offset'] + position] = value
    return out


# Rows of every kind

words = st.sampled_from(['drama', 'war', '猫', 'é', '', 'x', 'constructor'])
numbers = st.none() | st.floats(width=32) | st.integers(0, 10**6).map(float)
texts = st.none() | st.text(st.characters(exclude_categories=['Cs', 'Cn']), max_size=8)
some = st.none() | st.lists(st.none() | words, max_size=5)
item_rows = st.lists(
    st.fixed_dictionaries(
        {'video_id': words, 'title': texts, 'tags': some, 'performers': some},
        optional={
            'maker': st.none() | words,
            'source': words,
            'release_date': st.none() | st.dates(),
            'duration': numbers,
            'popularity': st.none() | st.integers(0, 2**31 - 1),
            'price': numbers,
        },
    ),
    max_size=12,
)
ids = st.none() | st.lists(st.none() | words, max_size=5)
user_rows = st.lists(
    st.fixed_dictionaries(
        {'user_id': words, 'recent_positive_video_ids': ids, 'recent_negative_video_ids': ids},
        optional={
            'recent_neutral_video_ids': ids,
            'preferred_tag_ids': some,
            'like_count': st.none() | st.integers(0, 2**31 - 1),
            'positive_ratio_30d': numbers,
            'signup_days': numbers,
        },
    ),
    max_size=12,
)


def items(rows):
    return pa.Table.from_pylist(rows, ITEM_FEATURES)


def users(rows):
    return pa.Table.from_pylist(rows, USER_FEATURES)


FITTED = fit_encoding(
    items(
        [
            {
                'video_id': str(i),
                'title': 't',
                'tags': ['drama', 'war', '猫'][: i % 4],
                'performers': ['é', ''][: i % 3],
                'maker': ['war', None, 'x'][i % 3],
                'source': 'x',
                'release_date': date(1980 + i, 1, 1),
                'duration': i,
                'popularity': i,
                'price': i,
            }
            for i in range(20)
        ]
    ),
    users(
        [
            {
                'user_id': str(i),
                'recent_positive_video_ids': ['drama', '猫'],
                'recent_negative_video_ids': ['x'],
                'like_count': i,
                'positive_ratio_30d': i / 9,
                'signup_days': i,
            }
            for i in range(10)
        ]
    ),
    use_price_feature=True,
    use_title_feature=True,
)


def dense(side, table):
    return encode(FITTED, side, table)[0].toarray()


@settings(deadline=None)
@given(item_rows, user_rows)
def test_sparse_rows_are_what_the_formulas_say(some_items, some_users):
    for side, table, rows in [('item', items(some_items), some_items), ('user', users(some_users), some_users)]:
        rows = table.to_pylist() if rows else []  # as float32, as the table has them
        np.testing.assert_allclose(dense(side, table), plain(FITTED, side, rows), atol=1e-6)


@settings(deadline=None)
@given(item_rows)
def test_words_and_titles_have_length_one_or_none(rows):
    matrix = dense('item', items(rows))
    for s in FITTED['item']['segments']:
        if s['kind'] != 'numeric':
            lengths = np.linalg.norm(matrix[:, s['offset'] : s['offset'] + s['width']], axis=1)
            assert (np.isclose(lengths, 1) | (lengths == 0)).all()
    assert np.abs(matrix).max(initial=0) <= 4


@settings(deadline=None)
@given(item_rows, item_rows, st.randoms(use_true_random=False))
def test_every_row_stands_for_itself(first, second, random):
    both = first + second
    apart = np.vstack([dense('item', items(first)), dense('item', items(second))])
    assert np.array_equal(dense('item', items(both)), apart)
    assert np.array_equal(dense('item', pa.concat_tables([items(first), items(second)])), apart)  # two chunks
    order = random.sample(range(len(both)), len(both))
    assert np.array_equal(dense('item', items(both).take(pa.array(order, pa.int64()))), apart[order])
    half = len(both) // 2
    assert np.array_equal(dense('item', items(both).slice(half)), apart[half:])


@settings(deadline=None, max_examples=50)
@given(user_rows)
def test_blocks_leave_no_trace(rows):
    whole, report = encode(FITTED, 'user', users(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, '_BLOCK', 3)
        pieces, same = encode(FITTED, 'user', users(rows))
    assert (whole != pieces).nnz == 0
    assert whole.shape == pieces.shape
    assert report == same


@settings(deadline=None, max_examples=50)
@given(item_rows, user_rows, st.randoms(use_true_random=False))
def test_fitting_does_not_depend_on_the_order_of_rows(some_items, some_users, random):
    fitted = fit_encoding(items(some_items), users(some_users))
    random.shuffle(some_items)
    random.shuffle(some_users)
    assert fit_encoding(items(some_items), users(some_users)) == fitted


# The same column in other clothes

ROWS = [
    {'video_id': 'v', 'title': '猫 ＡＢ', 'tags': ['drama', None, 'war'], 'maker': 'x', 'duration': 3.0},
    {'video_id': '猫', 'title': None, 'tags': None, 'maker': None, 'duration': None},
    {'video_id': 'drama', 'title': '', 'tags': [], 'maker': 'war', 'duration': 0.0},
]


def dressed(column, type):
    table = items(ROWS)
    values = table[column].cast(type.value_type if pa.types.is_dictionary(type) else type)
    values = values.dictionary_encode() if pa.types.is_dictionary(type) else values
    return table.set_column(table.column_names.index(column), column, values)


@pytest.mark.parametrize(
    ('column', 'type'),
    [
        ('tags', pa.large_list(pa.large_string())),
        ('tags', pa.list_(pa.string_view())),
        ('tags', pa.list_(pa.dictionary(pa.int16(), pa.string()))),
        ('title', pa.large_string()),
        ('title', pa.string_view()),
        ('title', pa.dictionary(pa.int32(), pa.string())),
        ('maker', pa.dictionary(pa.int32(), pa.large_string())),
        ('video_id', pa.large_string()),
        ('duration', pa.int64()),
        ('duration', pa.uint8()),
        ('duration', pa.float64()),
        ('duration', pa.decimal128(10, 2)),
        ('duration', pa.dictionary(pa.int32(), pa.float32())),
    ],
    ids=str,
)
@pytest.mark.parametrize('start', [0, 1])
def test_other_arrow_types_mean_the_same(column, type, start):
    table = dressed(column, type)
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1)])
    for each in (table, pieces):
        assert np.array_equal(dense('item', each.slice(start)), dense('item', items(ROWS[start:])))


@pytest.mark.parametrize(
    'type', [pa.timestamp('ns'), pa.timestamp('s', 'Asia/Tokyo'), pa.date64(), pa.string()], ids=str
)
def test_other_dates_mean_the_same_day(type):
    days = [date(1969, 12, 31), None, date(2000, 2, 29)]
    instants = [d and datetime(d.year, d.month, d.day, 23, tzinfo=UTC) for d in days]
    given = {'timestamp[ns]': [i and i.replace(tzinfo=None) for i in instants], 'timestamp[s, tz=Asia/Tokyo]': instants}
    values = pa.array(given.get(str(type), days if type != pa.string() else [d and str(d) for d in days]), type)
    plain_days = pa.table({'release_date': pa.array(days, pa.date32())})
    assert np.array_equal(dense('item', pa.table({'release_date': values})), dense('item', plain_days))
    assert dense('item', plain_days).any(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_missing(value):
    for column in ('duration', 'price', 'positive_ratio_30d'):
        side = 'user' if column == 'positive_ratio_30d' else 'item'
        assert not dense(side, pa.table({column: [value]})).any()
    fitted = fit_encoding(items([{'duration': d} for d in (1, 2, value)]), users([]))
    assert fitted == fit_encoding(items([{'duration': d} for d in (1, 2, None)]), users([]))


@pytest.mark.parametrize(
    ('column', 'values'),
    [
        ('tags', [1]),
        ('tags', ['drama']),
        ('tags', [[1]]),
        ('tags', [[['drama']]]),
        ('tags', [[b'drama']]),
        ('maker', [1.5]),
        ('maker', [['x']]),
        ('title', [7]),
        ('title', [['x']]),
        ('duration', ['3']),
        ('duration', [[3]]),
        ('duration', [{'minutes': 3}]),
        ('duration', [datetime(2000, 1, 1)]),
        ('release_date', [1999]),
        ('release_date', [True]),
        ('release_date', ['soon']),
        ('release_date', ['2023-02-31']),
    ],
    ids=str,
)
def test_another_kind_of_column_is_refused_by_name(column, values):
    with pytest.raises(InputError, match=f'item column {column} is .*, which can not be '):
        encode(FITTED, 'item', pa.table({column: values}))


def test_nothing_at_all_is_zeros():
    for table in (items([]), pa.table({}), items([]).append_column('mood', pa.array([], pa.string()))):
        assert encode(FITTED, 'item', table)[0].shape == (0, FITTED['item']['width'])
    matrix, report = encode(FITTED, 'item', pa.table({'mood': ['calm', 'wild'], 'tags': pa.nulls(2)}))
    assert (matrix.shape, matrix.nnz) == ((2, FITTED['item']['width']), 0)
    assert report['missing_columns'] == [s['column'] for s in FITTED['item']['segments']]
    empty = {'input_schema_version': 1, 'vocabularies': {}, 'item': {'width': 0, 'segments': []}}
    assert encode(empty, 'item', items(ROWS))[0].shape == (3, 0)


# Versions


def test_a_longer_definition_begins_with_the_older_one():
    added = {'name': 'length', 'column': 'title_length', 'kind': 'numeric', 'transform': 'log1p', 'mean': 0, 'std': 1}
    side = FITTED['item']
    segments = [*side['segments'], added | {'offset': side['width'], 'width': 1}]
    newer = FITTED | {'item': {'width': side['width'] + 1, 'segments': segments}}
    completed, zeros = pad(encode(FITTED, 'item', items(ROWS))[0], side['width'] + 1)
    matrix, report = encode(newer, 'item', items(ROWS))
    assert zeros == 1
    assert (completed != matrix).nnz == 0
    assert 'title_length' in report['missing_columns']


def test_a_definition_that_can_not_be_read_is_refused():
    with pytest.raises(InputError, match='input_schema_version 2, this code knows 1: update twotower'):
        encode(FITTED | {'input_schema_version': 2}, 'item', items(ROWS))
    first, second = FITTED['item']['segments'][:2]
    moved = FITTED | {'item': {'width': 9, 'segments': [first, second | {'offset': 99}]}}
    with pytest.raises(InputError, match='segment tags is at 99, but those before it end at 3'):
        encode(moved, 'item', items(ROWS))
