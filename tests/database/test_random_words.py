"""A catalogue of random words comes back from the database as it went in, through Arrow and through a CSV file."""

import csv

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_database import videos

from twotower.catalogue.table import load_catalogue
from twotower.database.videos import load_videos, save_videos

# all that PostgreSQL can store: whatever UTF-8 can write, but NUL; and what CSV, COPY and Arrow have a use for
LETTERS = st.characters(exclude_categories=['Cs'], exclude_characters='\0') | st.sampled_from('"\',|;\\\r\n\t{}[] ')
TEXTS = st.text(LETTERS, max_size=12) | st.sampled_from(
    ['', 'NULL', '\\N', '\\.', 'a\n\\.\nb', '\r\n', '"', '{}', 'nan', '\ufeff']
)
WORDS = st.none() | st.lists(TEXTS.filter(bool), max_size=4)
ROWS = st.lists(st.tuples(st.none() | TEXTS, WORDS, WORDS, st.none() | TEXTS), min_size=1, max_size=8)
BOUNDED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def emptied(database):
    database.execute('TRUNCATE videos, tags, performers CASCADE')
    return database


@BOUNDED
@given(ROWS)
def test_a_catalogue_comes_back_as_it_went_in(database, rows):
    titles, tags, performers, makers = map(list, zip(*rows, strict=True))
    table = videos(len(rows), title=titles, tags=tags, performers=performers, maker=makers)
    assert save_videos(emptied(database), table) == len(rows)
    back = load_videos(database).sort_by('product_url')
    table = table.sort_by('product_url')
    for name in ('title', 'maker'):
        assert back[name].to_pylist() == table[name].to_pylist()
    for name in ('tags', 'performers'):
        assert back[name].to_pylist() == [sorted(set(words or [])) for words in table[name].to_pylist()]
    assert save_videos(database, table) == 0


SIGNS = '|｜;；,，、､\t'
PLAIN = st.text(
    st.characters(categories=['L', 'N', 'P', 'S'], exclude_characters=SIGNS + '"[]', max_codepoint=0x2FFF),
    min_size=1,
    max_size=8,
)


@BOUNDED
@given(
    st.lists(st.lists(PLAIN, min_size=2, max_size=4), min_size=1, max_size=6),
    st.sampled_from(['|', ';', ',', '、', '\t', '｜']),
)
def test_words_of_a_file_are_those_of_the_database(database, tmp_path, lists, sign):
    with open(tmp_path / 'videos.csv', 'w', newline='', encoding='utf-8') as file:
        rows = [(f'https://v.example/{i}', sign.join(words)) for i, words in enumerate(lists)]
        csv.writer(file).writerows([('product_url', 'tags'), *rows])
    load_catalogue(tmp_path / 'videos.csv', emptied(database))
    fold = lambda words: sorted({one_word(word) for word in words})  # noqa: E731
    back = {row['product_url']: row['tags'] for row in load_videos(database).to_pylist()}
    assert [fold(back[url]) for url, _ in rows] == [fold(words) for words in lists]


def one_word(word: str) -> str:
    "What all spellings of a word have in common."
    [key] = pa.compute.utf8_lower(pa.compute.utf8_normalize(pa.array([word]), form='NFKC')).to_pylist()
    return key
