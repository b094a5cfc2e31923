"Odd rows are counted under their reason or refused with file, line and rule; nothing is half-written."

import pyarrow as pa
import pytest

from twotower.base.errors import InputError, SettingError
from twotower.base.files import read_json
from twotower.base.tables import ITEM_FEATURES
from twotower.prep import prepare_files
from twotower.runs.run import SUMMARY
from twotower.runs.settings import PrepSettings

HEAD = 'product_url,reviewer_id,stars,reviewed_at\n'
GOOD = ''.join(f'https://shop/{v},u{u},{5 - v % 3},2024-01-0{v}T00:00:00Z\n' for u in range(1, 4) for v in range(1, 6))
MASTER = pa.Table.from_pylist(
    [
        {'video_id': f'v{v}', 'product_url': f'https://shop/{v}', 'content_id': f'c{v}', 'tags': ['t']}
        for v in range(1, 6)
    ],
    pa.schema([*(f for f in ITEM_FEATURES if f.name != 'popularity'), pa.field('content_id', pa.string())]),
)
CONFIG = {
    'mode': 'reviews', 'input': 'reviews.csv', 'decisions_csv': '', 'time_zone': 'UTC', 'max_invalid_share': 0.0, 'min_stars': 4.0,
    'max_negative_stars': 2.0, 'neg_per_pos': 1, 'val_ratio': 0.2, 'split_by': 'user', 'seed': 0, 'max_history': 100, 'memory_limit': '',
    'snapshot_inputs': False,
}  # fmt: skip


@pytest.fixture
def prepare(home):
    def run(content: str | bytes, **settings) -> dict:
        (home / 'reviews.csv').write_bytes(content if isinstance(content, bytes) else content.encode())
        summary = prepare_files(home / 'prep', MASTER, PrepSettings(**CONFIG | settings))
        assert read_json(home / 'prep' / SUMMARY) == summary
        counts = summary['sources'][settings.get('mode', 'reviews')]
        left_out = sum(counts['invalid'].values()) + counts['unmatched'] + counts['skipped']
        left_out += counts['duplicates'] + counts['overruled']
        assert counts['rows_in'] == counts['used'] + left_out  # every row is accounted for
        return counts

    return run


REFUSED = {
    'missing column': ('product_url,stars\na,5\n', r'reviews\.csv line 1: column reviewer_id or user_id is missing; the file has'),
    'stars out of range': (HEAD + GOOD + 'https://shop/1,u9,9,\n', r'reviews\.csv line 17: stars is 9, must be 0\.5 to 5 \(1 of 16 rows'),
    'stars not a number': (HEAD + 'https://shop/1,u9,good,\n', r'line 2: stars is good, must be 0\.5 to 5'),
    'no stars': (HEAD + 'https://shop/1,u9,,\n', r'line 2: stars is empty'),
    'no user': (HEAD + 'https://shop/1,"  ",5,\n', r'line 2: user_id is .*must not be empty'),
    'no date': (HEAD + 'https://shop/1,u1,5,31/12/2024\n', r'line 2: created_at is 31/12/2024, must be a date such as'),
    'line after a quoted newline': (HEAD + '"https://shop/1\n",u1,5,\nhttps://shop/1,u1,0,\n', r'line 4: stars is 0'),
    'empty file': ('', r'reviews\.csv is empty'),
    'only a header': (HEAD, r'has a header but no rows'),
    'invalid UTF-8': (HEAD.encode() + b'https://shop/1,u\xff,5,\n', r'line 2: invalid encoding'),
    'column too many': (HEAD + 'https://shop/1,u1,5,,x\n', r'line 2: too many columns'),
    'quote never closed': (HEAD + GOOD + '"https://shop/1,u1,5,\n', r'a quote is opened and never closed'),
    'only unknown URLs': (HEAD + 'https://other/1,u1,5,\n', r'no like is left to learn from'),
}  # fmt: skip


@pytest.mark.parametrize(('content', 'message'), REFUSED.values(), ids=REFUSED)
def test_refused(prepare, home, content, message):
    with pytest.raises(InputError, match=message):
        prepare(content)
    assert [p.name for p in home.iterdir()] == ['reviews.csv']  # nothing is half-written


HANDLED = {
    'byte order mark': ('\ufeff' + HEAD + GOOD, {}),
    'CRLF': ((HEAD + GOOD).replace('\n', '\r\n'), {}),
    'no newline at the end': ((HEAD + GOOD).rstrip(), {}),
    'quoted comma and newline': (HEAD + GOOD + '"https://other/1,2\n3",u1,5,\n', {'unmatched': 1}),
    'other columns in another order': (
        'note,stars,reviewer_id,product_url\n' + '"a, b",5,u1,https://shop/1\n' * 2,
        {'duplicates': 1},
    ),
    'duplicate row': (HEAD + GOOD + GOOD.splitlines(True)[0], {'duplicates': 1}),
    'rated again': (HEAD + GOOD + 'https://shop/1,u1,1,2025-01-01T00:00:00Z\n', {'duplicates': 1}),
    'unknown product URL': (
        HEAD + GOOD + 'https://other/9,u1,5,\n',
        {'unmatched': 1, 'unmatched_urls': {'https://other/9': 1}},
    ),
    'user with one rating': (HEAD + GOOD + 'https://shop/1,only once,5,\n', {'used': 16}),
}


@pytest.mark.parametrize(('content', 'counts'), HANDLED.values(), ids=HANDLED)
def test_handled_and_counted(prepare, content, counts):
    found = prepare(content)
    assert {name: found[name] for name in counts} == counts
    assert found['invalid'] == {}


def test_invalid_rows_up_to_a_share_are_counted(prepare):
    bad = (
        b'https://shop/1,u9,9,\nhttps://shop/1,u9,x,\nhttps://shop/1,,5,\nhttps://shop/1,u\xff,5,\nhttps://shop/1,u1\n'
    )
    counts = prepare((HEAD + GOOD).encode() + bad, max_invalid_share=0.3)
    assert counts['invalid'] == {
        'stars must be 0.5 to 5': 2, 'user_id must not be empty': 1, 'invalid encoding': 1, 'missing columns': 1,
    }  # fmt: skip


SETTINGS = {
    'mode': ({'mode': 'stars'}, "mode is 'stars', must be one of reviews, explicit"),
    'thresholds': ({'max_negative_stars': 4.0}, 'must be below min_stars'),
    'val_ratio': ({'val_ratio': 0.9}, 'val_ratio is 0.9, must be 0 to 0.5'),
    'split_by': ({'split_by': 'luck'}, "split_by is 'luck', must be one of user, time"),
    'time_zone': ({'time_zone': 'Mars'}, "time_zone is 'Mars'"),
    'input': ({'input': 'none.csv'}, 'none.csv does not exist'),
    'decisions_csv': ({'decisions_csv': 'none.csv'}, 'none.csv does not exist'),
}


@pytest.mark.parametrize(('settings', 'message'), SETTINGS.values(), ids=SETTINGS)
def test_wrong_settings_are_named(prepare, home, settings, message):
    with pytest.raises((SettingError, InputError), match=message):
        prepare(HEAD + GOOD, **settings)
    assert not (home / 'prep').exists()


def test_decisions_win_and_skips_are_counted(prepare, home):
    (home / 'd.csv').write_text('user_id,item_id,decision\nu1,https://shop/1,DISLIKE\nu1,c2,SKIP\nu2,c3,LIKE\n')
    counts = prepare(HEAD + GOOD, decisions_csv='d.csv')
    assert (counts['duplicates'], counts['overruled']) == (0, 2)  # both reviews gave way to decisions
    decisions = read_json(home / 'prep' / SUMMARY)['sources']['decisions']
    assert (decisions['rows_in'], decisions['skipped'], decisions['used']) == (3, 1, 2)


def test_explicit_labels(prepare, home):
    rows = 'product_url,reviewer_id,label\n' + ''.join(
        f'https://shop/{v},u{u},{int(v % 2 == 0 or u == 3)}\n' for u in range(1, 4) for v in range(1, 6)
    )
    assert prepare(rows, mode='explicit', neg_per_pos=2)['used'] == 15
    parts = read_json(home / 'prep' / SUMMARY)['interactions']
    assert parts['train']['dislike'] + parts['val'].get('dislike', 0) == 6
    assert (
        parts['train']['pseudo'] == 1
    )  # only u3, who never dislikes, gets one: the video held out, all that is unseen
