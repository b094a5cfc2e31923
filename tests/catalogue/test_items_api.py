"What the door to the item API must hold, against a real HTTP server that speaks its format and can be told to fail."

import itertools
import logging
import random
import traceback
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from shop import KEYS, cut, half_json, hang, hang_up, item, refuse, status, text

from twotower.base.errors import OutsideError, SettingError
from twotower.base.settings import JST
from twotower.base.tables import VIDEOS
from twotower.catalogue import shop as shop_api
from twotower.catalogue.entries import video
from twotower.catalogue.intake import open_client, sync, take_in
from twotower.catalogue.shop import Client, days_back, read_page
from twotower.database.videos import load_videos

TOLD = [form for key in KEYS.values() for form in (key, quote(key, safe=''), key[:8], key[-8:])]
NOW = datetime(2025, 3, 9, 18, 30, tzinfo=UTC)  # 3:30 on the 10th in Japan
MARCH = days_back(0, NOW, '2025-03-01', '2025-03-10')


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ('FANZA_API_ID', 'FANZA_API_AFFILIATE_ID', 'FANZA_LINK_AFFILIATE_ID'):
        monkeypatch.delenv(name, raising=False)


class Watch:
    "A clock that only sleeping moves."

    def __init__(self):
        self.now, self.slept = NOW.timestamp(), []

    def sleep(self, seconds):
        self.now += seconds
        self.slept += [seconds] if seconds else []

    def __call__(self):
        return self.now


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def client(shop, watch):
    keys = {name: SecretStr(key) for name, key in KEYS.items()}
    options = {'base_url': shop.url, 'timeout': 0.3, 'hits': 10, 'sleep': watch.sleep, 'clock': watch}
    with Client(**keys, **options) as client:
        yield client


def listed(conn):
    return {row['content_id']: row for row in load_videos(conn).to_pylist()}


def test_everything_comes_in_and_again_changes_nothing(shop, client, database):
    counts = take_in(database, client, *MARCH)
    assert counts == {
        'start': '2025-03-01T00:00:00',
        'end': '2025-03-10T23:59:59',
        'windows': 1,
        'pages': 5,
        'requests': 5,
        'retries': 0,
        'items': 30,
        'changed': 30,
    }
    found = listed(database)
    assert set(found) == set(shop.items)
    one = found['walk00007']
    assert one['product_url'] == shop.items['walk00007']['URL']
    assert (one['tags'], one['performers'], one['maker']) == (['Outdoors', '散歩'], ['Ann'], 'Park Films')
    assert (one['release_date'], one['duration'], one['price']) == (date(2025, 3, 8), 61.0, 300.0)
    assert (one['source'], one['series']) == ('FANZA/digital/videoa', None)
    assert take_in(database, client, *MARCH) | {'changed': 30} == counts

    shop.list(item(7, day=8, title='A longer walk', volume='01:30:30', iteminfo={'genre': [{'name': 'Rain'}]}))
    assert take_in(database, client, *MARCH)['changed'] == 1
    one = listed(database)['walk00007']
    assert (one['title'], one['duration'], one['tags'], one['performers']) == ('A longer walk', 90.5, ['Rain'], [])


def test_only_the_window_is_asked_for(shop, client, database):
    shop.items.clear()
    edges = [('01', '23:59:59'), ('02', '00:00:00'), ('03', '23:59:59'), ('04', '00:00:00')]
    shop.list(*(item(n, day=int(day), clock=clock) for n, (day, clock) in enumerate(edges)))
    take_in(database, client, *days_back(0, NOW, '2025-03-02', '2025-03-03'))
    assert set(listed(database)) == {'walk00001', 'walk00002'}
    utc = [moment.astimezone(UTC) for moment in days_back(0, NOW, '2025-03-02', '2025-03-03')]
    assert read_page(client, *utc).ids == ['walk00002', 'walk00001']  # the same moments, told otherwise


def test_no_request_goes_beyond_the_ceiling(shop, client, database):
    shop.ceiling, client.ceiling = 12, 12
    shop.list(*(item(n, day=5, clock=f'12:00:{n % 60:02}') for n in range(100, 160)))
    counts = take_in(database, client, *MARCH)
    assert set(listed(database)) == set(shop.items)
    assert counts['windows'] > 5
    assert max(int(query['offset']) for query in shop.asked) <= 12

    shop.list(*(item(n, day=5, clock='13:00:00') for n in range(200, 220)))
    with pytest.raises(OutsideError, match='no more than 12 of the entries of 2025-03-05T13:00:00'):
        take_in(database, client, *MARCH)


def test_the_limits_are_those_of_the_api(shop, client):
    assert (Client.hits, Client.ceiling, Client.base_url) == (100, 50_000, 'https://api.dmm.com/affiliate/v3')
    with pytest.raises(SettingError, match='hits is 101, must be from 6 to 100'):
        Client(client.api_id, client.affiliate_id, hits=101)
    with pytest.raises(OutsideError, match=r'127.0.0.1: 400 BAD REQUEST: .*"offset": "must be from 1 to 50000"'):
        read_page(client, *MARCH, offset=50_001)


@pytest.mark.parametrize('when', [1, 2, 3, 4])
@pytest.mark.parametrize('where', ['top', 'middle', 'end'])
@pytest.mark.parametrize('second', [False, True])
def test_items_that_come_between_two_requests_are_not_missed(shop, client, monkeypatch, when, where, second):
    if second:  # all of one date: the window can't be cut
        shop.items = {key: one | {'date': '2025-03-05 10:00:00'} for key, one in shop.items.items()}
    ordered = sorted((one['date'], key) for key, one in shop.items.items())
    at = ordered[{'top': -1, 'middle': 15, 'end': 0}[where]][0]
    first = {'top': 900, 'middle': 100, 'end': 0}[where]
    new = [item(0, content_id=f'walk{first + n:05}x') | {'date': at} for n in range(7)]
    shop.before[when] = lambda: shop.list(*new)
    found = {key for page in shop_api.pages(client, *MARCH) for key in page.ids}
    assert found == set(shop.items)
    assert len(found) == 37


@pytest.mark.parametrize('when', [1, 2, 3, 4])
@pytest.mark.parametrize('n', [1, 5, 12])
def test_items_that_go_between_two_requests_take_no_other_along(shop, client, when, n):
    gone = sorted(shop.items, key=lambda key: shop.items[key]['date'])[-n:]  # the first of the list, seen by then
    shop.before[when] = lambda: [shop.items.pop(key) for key in gone]
    found = {key for page in shop_api.pages(client, *MARCH) for key in page.ids}
    assert found >= set(shop.items)


@pytest.mark.parametrize('n', [1, 7])  # fewer and more than pages overlap
@pytest.mark.parametrize('second', [False, True])
def test_as_many_come_as_go(shop, client, n, second):
    if second:
        shop.items = {key: one | {'date': '2025-03-05 10:00:00'} for key, one in shop.items.items()}
    ordered = sorted(shop.items, key=lambda key: (shop.items[key]['date'], key))
    last = shop.items[ordered[0]]['date']

    def change():
        for key in ordered[-n:]:
            del shop.items[key]  # on the first page, which has been read
        shop.list(*(item(0, content_id=f'a{k}') | {'date': last} for k in range(n)))  # on the last

    shop.before[1] = change
    found = {key for page in shop_api.pages(client, *MARCH) for key in page.ids}
    assert found >= set(shop.items)


def test_equal_dates_in_another_order_each_time(shop, client):
    shop.items = {key: one | {'date': '2025-03-05 10:00:00'} for key, one in shop.items.items()}
    rng = random.Random(5)

    def deal():
        ids = rng.sample(list(shop.items), len(shop.items))
        shop.rank = {key: n for n, key in enumerate(ids)}

    shop.before = dict.fromkeys(range(400), deal)
    found = {key for page in shop_api.pages(client, *MARCH) for key in page.ids}
    assert found == set(shop.items)


def test_a_list_that_never_holds_still_ends(shop, client):
    numbers = itertools.count(100)
    shop.before = {n: lambda: shop.list(item(next(numbers), day=5, clock='12:00:00')) for n in range(400)}
    with pytest.raises(OutsideError, match='in passes that do not agree, of the entries of 2025-03-05T12:00:00'):
        list(shop_api.pages(client, *MARCH))
    assert len(shop.asked) < 300


def test_a_page_that_fails_leaves_the_earlier_ones(shop, client, database):
    shop.next = [None, None, refuse(403, message='FORBIDDEN')]
    with pytest.raises(OutsideError, match='403 FORBIDDEN'):
        take_in(database, client, *MARCH)
    assert len(listed(database)) == 15
    assert take_in(database, client, *MARCH)['changed'] == 15


@pytest.mark.parametrize(
    'fault',
    [
        status(500),
        status(502),
        status(503),
        status(429),
        hang,
        hang_up,
        cut,
        half_json,
        text(b'<h1>Maintenance', 'text/html'),
    ],
)
def test_passing_faults_are_waited_out(shop, client, watch, fault):
    client.interval = 0
    shop.next = [fault, fault]
    assert len(read_page(client, *MARCH).ids) == 10
    assert (client.retries, client.requests) == (2, 3)
    first, second = watch.slept
    assert 1 <= first <= 2 <= second <= 3  # 1 and 2 s, and up to one more


def test_jitter_differs(shop, client, watch):
    shop.next = [status(500)] * 5
    read_page(client, *MARCH)
    assert len({wait % 1 for wait in watch.slept}) == 5


@pytest.mark.parametrize('fault', [status(500), status(429), hang_up, refuse(200, status=503, message='BUSY')])
def test_patience_ends(shop, client, fault):
    client.attempts = 3
    shop.next = [fault] * 9
    with pytest.raises(OutsideError, match=r'^127.0.0.1: .* \(asked 3 times\): try again later$'):
        read_page(client, *MARCH)
    assert len(shop.asked) == 3


def test_nobody_is_there(client, shop, watch):
    keys = {name: SecretStr(key) for name, key in KEYS.items()}
    with (
        Client(**keys, base_url='http://127.0.0.1:1', sleep=watch.sleep, clock=watch, attempts=2) as client,
        pytest.raises(OutsideError, match=r'127.0.0.1: ConnectError .*refused.*asked 2 times'),
    ):
        read_page(client, *MARCH)


def test_retry_after_is_honoured(shop, client, watch):
    client.interval = 0
    at = format_datetime((NOW + timedelta(seconds=90)).replace(tzinfo=UTC), usegmt=True)
    shop.next = [status(503, Retry_After=at), status(429, Retry_After='30'), status(429, Retry_After='soon')]
    read_page(client, *MARCH)
    date_, seconds, neither = watch.slept
    assert 90 <= date_ <= 91
    assert 30 <= seconds <= 31
    assert 4 <= neither <= 5  # the third attempt

    shop.next = [status(429, Retry_After='301')]
    with pytest.raises(OutsideError, match=r'429 .* wants to be left alone for 301 s'):
        read_page(client, *MARCH)
    assert not shop.next
    assert len(watch.slept) == 3  # not asked again


def test_requests_keep_their_distance(shop, client, watch, database):
    times = []
    shop.before = {n: lambda: times.append(watch.now) for n in range(99)}
    client.interval = 2.5
    shop.next = [None, status(500, Retry_After='0')]
    take_in(database, client, *MARCH)
    assert len(times) == 6
    assert all(b - a >= 2.499 for a, b in itertools.pairwise(times))


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        (
            refuse(400, message='BAD REQUEST', errors={'floor': 'is unknown'}),
            '400 BAD REQUEST: {"floor": "is unknown"}',
        ),
        (refuse(401, message='UNAUTHORIZED'), '401 UNAUTHORIZED'),
        (refuse(404), '404 gave no reason'),
        (refuse(200, status='400', message='BAD REQUEST'), '400 BAD REQUEST'),
        (status(403), '403 answered text/html of 14 bytes without a result in JSON'),
        (status(302, Location='/elsewhere'), '302 answered text/html'),
        (lambda handler: handler.say(200, {'items': []}), 'no status gave no reason'),
        (lambda handler: handler.say(200, {'status': 200}), 'total_count must be a number, and items a list'),
        (refuse(200, total_count=3), 'total_count must be a number, and items a list'),
        (refuse(200, total_count='many', items=[]), 'total_count must be a number'),
        (refuse(200, total_count=1, items=[{'title': 'A walk'}]), "content_id None and title 'A walk': both must"),
        (refuse(200, total_count=1, items=[{'content_id': 'a'}]), "content_id 'a' and title None: both must"),
    ],
)
def test_other_faults_are_final(shop, client, fault, message):
    shop.next = [fault]
    with pytest.raises(OutsideError) as caught:
        read_page(client, *MARCH)
    assert message in str(caught.value)
    assert len(shop.asked) == 1


def everything_said(error):
    "The error as any tool would show it, with all that hangs on it."
    texts, chain = [], [error]
    for one in chain:
        chain += [e for e in (one.__cause__, one.__context__) if e is not None]
        texts += [str(one), repr(one), repr(vars(one)), *traceback.format_exception(one)]
        texts += traceback.TracebackException.from_exception(one, capture_locals=True).format()
    return texts


LEAKY = [
    status(500),
    status(302, Location='/?api_id=' + quote(KEYS['api_id'])),
    hang,
    hang_up,
    cut,
    half_json,
    lambda handler: handler.send(200, handler.path.encode(), Content_Type='text/' + handler.query['affiliate_id']),
    lambda handler: refuse(400, message=f'{handler.path} is wrong', errors=handler.query)(handler),
    lambda handler: refuse(429, message=f'{handler.query}')(handler),
    lambda handler: refuse(400, errors=[f'{handler.query["api_id"][:4]}\n{handler.query["affiliate_id"]}' * 99])(
        handler
    ),
    refuse(200, total_count='many'),
    refuse(200, total_count=1, items=[{}]),
]


def told_by(client):
    "What one failing request says."
    try:
        read_page(client, *MARCH)
    except OutsideError as error:
        return everything_said(error)
    raise AssertionError('it did not fail')


@pytest.mark.parametrize('fault', LEAKY)
def test_nobody_tells_the_keys(shop, client, caplog, capfd, fault):
    caplog.set_level(logging.DEBUG)
    logging.getLogger('httpx').setLevel(logging.DEBUG)
    client.attempts = 2
    shop.next = [fault] * 2
    texts = told_by(client)
    assert KEYS.items() <= shop.asked[0].items()  # they did travel
    texts += [record.getMessage() for record in caplog.records if not record.name.startswith('httpcore')]
    texts += [repr(client), str(client), repr(vars(client)), *capfd.readouterr()]
    assert 'HTTP Request: GET' in ''.join(texts) or fault in (hang, hang_up)
    for text_ in texts:
        assert not [form for form in TOLD if form in text_]


def test_the_lower_library_does_not_tell_either(shop, client, caplog):
    caplog.set_level(logging.DEBUG)
    read_page(client, *MARCH)
    assert any(record.name.startswith('httpcore') for record in caplog.records)
    assert not [form for form in TOLD if form in caplog.text]


def test_sync_is_one_call(shop, database, monkeypatch, home):
    with pytest.raises(SettingError, match='FANZA_API_ID and FANZA_API_AFFILIATE_ID must be set'):
        sync(database)
    monkeypatch.setenv('FANZA_API_ID', KEYS['api_id'])
    with pytest.raises(SettingError, match=r'^FANZA_API_AFFILIATE_ID must be set'):
        open_client()
    (home / '.env').write_text(f'FANZA_API_AFFILIATE_ID={KEYS["affiliate_id"]}\n')
    counts = sync(database, now=NOW, base_url=shop.url, interval=0)
    assert (counts['start'], counts['end']) == ('2025-03-07T00:00:00', '2025-03-10T23:59:59')
    assert counts['changed'] == 12
    assert sync(database, 0, '2025-03-01', '2025-03-01', base_url=shop.url, interval=0)['changed'] == 3
    later = sync(database, base_url=shop.url, interval=0)
    assert (later['start'], later['items'], later['changed']) == ('2025-03-10T00:00:00', 3, 0)  # back to the mark
    with open_client(base_url=shop.url) as client:
        assert not [form for form in TOLD if form in repr(client)]


def test_odd_items_come_in(shop, client, database):
    shop.items.clear()
    odd = [
        {'content_id': 'a', 'title': 'Bare', 'date': '2025-03-05 10:00:00'},
        item(
            1,
            content_id='b',
            title='Nul \0 and half a pair \ud83d',
            volume={'a': 1},
            prices=[],
            iteminfo='none',
            URL='',
        ),
        item(
            2,
            day=2,
            content_id=3,
            title=4,
            volume=75,
            prices={'price': 980},
            iteminfo={'genre': {'name': 'x'}, 'maker': [None]},
        ),
    ]
    shop.items = {str(one['content_id']): one for one in odd}
    assert take_in(database, client, *MARCH)['changed'] == 3
    found = listed(database)
    assert found['a']['product_url'].endswith('/cid=a/')
    assert (found['b']['title'], found['b']['tags']) == ('Nul  and half a pair ?', [])
    assert (found['3']['title'], found['3']['duration'], found['3']['price'], found['3']['maker']) == (
        '4',
        75,
        980,
        None,
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(['name', 'price', 'genre', 'maker']), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {'content_id': st.just('a') | JSON, 'title': st.just('A walk') | JSON},
        optional={key: JSON for key in item(1) if key not in ('content_id', 'title')},
    )
)
def test_any_entry_is_a_row_or_a_named_error(entry):
    try:
        row = video(entry)
    except OutsideError:
        return
    assert pa.Table.from_pylist([row], VIDEOS).num_rows == 1
    assert row['content_id']
    assert row['product_url']
    assert row['title']


def test_japan_has_no_summer_time():
    start, end = days_back(0, datetime(2025, 7, 1, tzinfo=UTC))
    assert start.utcoffset() == end.utcoffset() == JST.utcoffset(None) == timedelta(hours=9)
