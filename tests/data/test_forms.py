"Files as people have them are read, or refused with the row that is wrong."

import csv
import gzip
import io
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twotower.base.errors import InputError, SettingError
from twotower.data.columns import REVIEWS
from twotower.data.sources import read_source, source_files, stream_rows, take_rows, workspace
from twotower.runs.settings import PrepSettings

ROWS = "SELECT address.name, person.name, stars, CAST(epoch(created_at) AS BIGINT) FROM reviews JOIN reviews_product_url address ON address.code = product_url JOIN reviews_user_id person ON person.code = user_id ORDER BY reviews.rowid"  # fmt: skip
TWO = [('a', 'u', 5.0, None), ('b', 'w', 4.5, None)]
DATED = [('a', 'u', 5.0, 881250949), ('b', 'w', 4.5, 891717742)]
OBJECTS = [{'item_id': 'a', 'user_id': 'u', 'stars': 5, 'o': {}}, {'item_id': 'b', 'user_id': 'w', 'stars': 4.5}]
LINES = '\n'.join(map(json.dumps, OBJECTS)).encode()
FORMS = {
    'names of others': ('books.csv', b'ISBN,User-ID,Book-Rating\na,u,5\nb,w,4.5\n', {'columns': 'ISBN=product_url, User-ID=reviewer_id, Book-Rating=stars'}, TWO),
    'semicolons': ('a.csv', b'"item_id";"user_id";"stars"\n"a";"u";"5"\nb;w;4.5\n', {}, TWO),
    'tabs': ('a.tsv', b'item_id\tuser_id\tstars\na\tu\t5\nb\tw\t4.5\n', {}, TWO),
    'places, tabs, seconds': ('u.data', b'u\ta\t5\t881250949\nw\tb\t4.5\t891717742\n', {'columns': '1=user_id,2=item_id,3=stars,4=created_at', 'time_unit': 's'}, DATED),
    'places, double colons, milliseconds': ('r.dat', b'u::a::5::881250949000\nw::b::4.5::891717742000\n', {'columns': '1=user_id,2=item_id,3=stars,4=created_at', 'time_unit': 'ms'}, DATED),
    'sep=': ('a.csv', b'\xef\xbb\xbfsep=;\r\nitem_id;user_id;stars\r\na;u;5\r\nb;w;4.5\r\n', {}, TWO),
    'cp932': ('a.csv', 'item_id,user_id,stars,題\na,u,5,夜の汽車\nb,w,4.5,海\n'.encode('cp932'), {}, TWO),
    'utf-16': ('a.csv', 'item_id,user_id,stars\na,u,5\nb,w,4.5\n'.encode('utf-16'), {}, TWO),
    'gz': ('a.csv.gz', gzip.compress(b'item_id,user_id,stars\na,u,5\nb,w,4.5\n'), {}, TWO),
    'gz by its bytes': ('a.csv', gzip.compress(b'item_id,user_id,stars\na,u,5\nb,w,4.5\n'), {}, TWO),
    'JSON lines': ('a.jsonl', LINES, {}, TWO),
    'packed JSON lines': ('a.json.gz', gzip.compress(LINES), {}, TWO),
    'a JSON array': ('a.json', json.dumps(OBJECTS).encode(), {}, TWO),
    'the index of pandas': ('a.csv', b',item_id,user_id,stars\n0,a,u,5\n1,b,w,4.5\n', {}, TWO),
    'a comma at the end of the header': ('a.csv', b'item_id,user_id,stars,\na,u,5\nb,w,4.5\n', {}, TWO),
    'commas at all ends': ('a.csv', b'item_id,user_id,stars,\na,u,5,\nb,w,4.5,\n', {}, TWO),
    'years': ('a.csv', b'item_id,user_id,stars,created_at\na,u,5,1997\nb,w,4.5,\n', {}, [('a', 'u', 5.0, 852076800), ('b', 'w', 4.5, None)]),
    'decisions as they are in the database': ('a.csv', b'user_id,video_id,rating\nu,a,5\nw,b,4.5\n', {}, TWO),
    'unrated': ('a.csv', b'user_id,item_id,stars\nu,a,0\nw,b,\n', {'unrated': 'seen'}, [('a', 'u', None, None), ('b', 'w', None, None)]),
}  # fmt: skip


@pytest.mark.parametrize(('name', 'content', 'given', 'rows'), FORMS.values(), ids=FORMS)
def test_a_form_is_read_here_and_in_pieces(home, name, content, given, rows):
    (home / name).write_bytes(content)
    [(files, columns)] = source_files(PrepSettings(input=name, **given)).values()
    with workspace() as con:
        counts = read_source(con, files, columns, 'reviews')
        assert sorted(con.execute(ROWS).fetchall(), key=str) == rows  # the order in a table is nobody's
    with workspace() as con:  # as a cluster does
        con.register('pieces', pa.concat_tables([*stream_rows(con, files[0], columns)][:-1]))
        found = take_rows(con, 'pieces', columns, {c.name: c.name for c in columns}, 'reviews')
        assert sorted(con.execute(ROWS).fetchall(), key=str) == rows  # the order in a table is nobody's
    assert {name: counts[name] for name in found} == found


HEAD = b'item_id,user_id,stars\n'
REFUSED = {
    'a workbook': ('a.csv', b'PK\x03\x04...', 'a.csv is a workbook or a zip archive: save the sheet as CSV'),
    'one line, no JSON': ('a.csv', b'x,' * 999_999, 'line 1: is longer than 65,536 signs and begins with x,x,'),
    'one line of numbers': ('a.csv', b'[' + b'1,' * 999_999, 'line 1: is longer than 65,536 signs'),
    'two cases': ('a.csv', b'item_id,user_id,stars,Stars\n', 'columns stars and Stars differ only in case'),
    'a decimal comma': ('a.csv', b'item_id;user_id;stars\na;u;4,5\n', 'line 2: stars is 4,5, must be 0.5 to 5; with a decimal point it is 4.5'),
    'full width': ('a.csv', HEAD + 'a,u,５\n'.encode(), 'line 2: stars is ５, must be 0.5 to 5; in half width it is 5'),
    'mixed line ends': ('a.csv', HEAD + b'a,u,5\r\nb,u,5\n', 'line 2: ends with a carriage return and a line feed, the lines before with a line feed'),
    'a long text before': ('a.csv', HEAD + b'x' * 140_000 + b',u,5\nb,w,4\nc,u,9\n', 'line 4: stars is 9'),
    'a placeholder': ('a.csv', HEAD + b'a,u,5\nb,None,4\n', 'line 3: user_id is None, must not be empty; None is what programs write where there is nobody'),
    'another kind of blank': ('a.csv', HEAD + 'a,u,5\nb,\u200b\u00a0,4\n'.encode(), 'line 3: user_id is .*, must not be empty'),
    'a date to come': ('a.csv', b'item_id,user_id,stars,date,reviewed_at\na,u,5,,2999-01-01\n', 'line 2: created_at is 2999-01-01, must be a date such as .*, from 1900 to tomorrow'),
    'two digits': ('a.csv', b'item_id,user_id,stars,created_at\na,u,5,24-05-01\n', 'line 2: created_at is 24-05-01'),
    'epoch': ('a.csv', b'item_id,user_id,stars,created_at\na,u,5,epoch\n', 'line 2: created_at is epoch'),
    'seconds': ('a.csv', b'item_id,user_id,stars,created_at\na,u,5,881250949\n', 'set time_unit to s'),
    'what a terminal obeys': ('a.csv', HEAD + b'a,u,\x1b[2Jx\n', 'line 2: stars is x, must be'),
    'two meanings': ('a.csv', b'item_id,user_id,rating,score\na,u,5,5\n', 'rating and score may both be stars: say which it is with columns'),
    'no encoding that is certain': ('a.csv', 'item_id,user_id,caf\u00e9\na,u,5\n'.encode('latin-1'), 'line 1: is not UTF-8'),
    'JSON that breaks off': ('a.json', b'[{"item_id": "a", "user_id": "u", "stars": 5}, {"item', 'a.json is not JSON as it should be|can not be read'),
    'a line that is no JSON': ('a.jsonl', LINES + b'\n\n{"item_id"\n', 'a.jsonl line 4: is no JSON object'),
}  # fmt: skip


@pytest.mark.fault(
    'a file of another form than the usual',
    sees='it is read, and what was found is said; or the line, the rule and what to write',
)
@pytest.mark.parametrize(('name', 'content', 'message'), REFUSED.values(), ids=REFUSED)
def test_another_form_is_refused_with_its_line(home, name, content, message):
    (home / name).write_bytes(content)
    with workspace() as con, pytest.raises(InputError, match=message) as caught:
        read_source(con, home / name, REVIEWS, 'reviews')
    assert len(str(caught.value)) < 800
    assert '\x1b' not in str(caught.value)


@pytest.mark.parametrize('stars', [[5.0, np.nan], [np.nan, np.nan, 4.0], [np.inf, 5.0], [5.0, None]])
def test_stars_that_are_no_number_are_invalid(home, stars):
    n = len(stars)
    pq.write_table(pa.table({'item_id': ['a'] * n, 'user_id': ['u'] * n, 'stars': stars}), home / 'a.parquet')
    with workspace() as con:
        counts = read_source(con, home / 'a.parquet', REVIEWS, 'reviews', max_invalid_share=1)
        assert counts['rows_valid'] == 1
        [(kept,)] = con.execute('SELECT stars FROM reviews').fetchall()
    assert kept in (4.0, 5.0)


def test_dates_that_are_none_cost_something_and_that_is_said(home):
    (home / 'a.csv').write_text('item_id,user_id,rating\na,u,5\n')
    with workspace() as con:
        said = read_source(con, home / 'a.csv', REVIEWS, 'reviews')['said']
    assert said[0] == 'rating is read as stars'
    assert said[1].startswith('no column of dates: ')


def test_settings_that_name_no_column_are_refused():
    with pytest.raises(SettingError, match="columns names 'star'"):
        source_files(PrepSettings(input='a.csv', columns='x=star'))
    with pytest.raises(SettingError, match='max_history is -1, must be 0 or more'):
        PrepSettings(max_history=-1)


signs = st.text(st.sampled_from('ab,"\n\r \ufffdé;#\t'), max_size=6)
good = st.tuples(
    signs.map(lambda text: f'v{text}'), signs.map(lambda text: f'u{text}'), st.sampled_from(['5', '0.5', ' 4 ']), signs
)
odd = st.one_of(
    st.tuples(st.just('v'), st.sampled_from(['', ' ', 'null', 'N/A']), st.just('4'), signs),
    st.tuples(st.just('v'), st.just('u'), st.sampled_from(['9', 'x', '', 'nan', '0']), signs),
    st.tuples(st.just('v'), st.just('u')),
    st.tuples(st.just('v'), st.just('u'), st.just('4'), signs, st.just('more'), st.just('')),
    st.tuples(st.just('v\udcff'), st.just('u'), st.just('5'), st.just('')),
)
blank = st.just(())


def records_of(content: bytes) -> dict[int, list[str]]:
    "What Python's own reader makes of a file: the fields of each record, by its first line."
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(content.decode('utf-8', 'surrogateescape'), newline=''))
    found, start = {}, 1
    for fields in reader:
        found[start] = fields
        start = reader.line_num + 1
    return {line: fields for line, fields in found.items() if fields and line > 1}


def is_bad(fields: list[str]) -> bool:
    if len(fields) != 4 or any('\udc80' <= sign <= '\udcff' for field in fields for sign in field):
        return True
    _, user, stars, _ = fields
    return user.strip() in ('', 'null', 'N/A') or stars.strip() not in ('5', '0.5', '4')


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(good, good, odd, blank), min_size=1, max_size=12),
    st.sampled_from(['\n', '\r\n']),
    st.booleans(),
    st.integers(0, 2),
)
def test_every_row_is_used_or_counted_and_every_named_row_is_bad(home, rows, end, all_quoted, long):
    text = io.StringIO(newline='')
    all_quoted = all_quoted or any('\r' in field for fields in rows for field in fields)  # Python leaves it bare
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL)
    for fields in [('item_id', 'user_id', 'stars', 'note'), *rows]:
        writer.writerow(fields) if fields else text.write(end)
    if long == 2:
        writer.writerow(('v' * 140_000, 'u', '5', ''))
    content = text.getvalue().encode('utf-8', 'surrogateescape')
    (home / 'a.csv').write_bytes(content)
    records = records_of(content)
    bad = {line for line, fields in records.items() if is_bad(fields)}
    with workspace() as con:
        if bad:
            with pytest.raises(InputError) as caught:
                read_source(con, home / 'a.csv', REVIEWS, 'reviews')
            assert int(re.search(r'a\.csv line (\d+): ', str(caught.value))[1]) in bad, (str(caught.value), records)
        elif not records:
            with pytest.raises(InputError, match='has a header but no rows'):
                read_source(con, home / 'a.csv', REVIEWS, 'reviews')
            return
        counts = read_source(con, home / 'a.csv', REVIEWS, 'reviews', max_invalid_share=1)
        assert con.execute('SELECT count(*) FROM reviews').fetchall() == [(counts['rows_valid'],)]
    assert counts['rows_in'] == len(records) == counts['rows_valid'] + sum(counts['invalid'].values())
    assert sum(counts['invalid'].values()) == len(bad)


def test_a_float_of_parquet_that_all_others_equal_is_not_taken_for_one_of_them(home):
    "What DuckDB does, for which finiteness is asked in so many words: if this fails, it can go."
    pq.write_table(pa.table({'x': [5.0, np.nan]}), home / 'a.parquet')
    [found] = duckdb.execute(f"SELECT list(isfinite(x)) FROM read_parquet('{home}/a.parquet')").fetchall()
    assert found == ([True, False],)


PAGE = (Path(__file__).parents[2] / 'site' / 'your-data.md').read_text(encoding='utf-8')
EXAMPLES = re.findall(r'^`(\S+)`:\n\n```text\n(.*?)```\n\n```sh\n(.*?)```', PAGE, re.M | re.S)


@pytest.mark.parametrize(('name', 'content', 'command'), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_the_commands_of_the_page_read_what_stands_above_them(home, name, content, command):
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).write_text(content)
    words = shlex.split(command)
    given = dict(word.split('=', 1) for option, word in pairwise(words) if option == '-p')
    [(mode, (files, columns))] = source_files(
        PrepSettings(**{name: yaml.safe_load(text) for name, text in given.items()})
    ).items()
    with workspace() as con:
        counts = read_source(con, files, columns, mode)
    headed = '_id' in content or 'User-ID' in content or 'stars\n' in content
    assert counts['rows_valid'] == len(content.splitlines()) - (headed and not content.startswith('{'))


def test_the_page_has_examples():
    assert len(EXAMPLES) == PAGE.count('```sh') >= 10
