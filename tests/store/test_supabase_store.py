"""Supabase Storage as it is: it refuses, stumbles, forgets to answer, and remembers what is no longer true."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from storage3 import SyncStorageClient
from storage3.exceptions import StorageApiError
from storage_server import ANON_KEY, PUBLISHABLE_KEY, SECRET_KEY, SERVICE_KEY, Refused, StorageServer, legacy_key

from twotower.base.errors import OutsideError, SettingError
from twotower.store.contract import ExistsError, MissingError
from twotower.store.conversation import storage_url
from twotower.store.opening import open_store
from twotower.store.supabase import SupabaseStore

KEYS = [SECRET_KEY, SERVICE_KEY]
STUMBLES = [429, 500, 502, 503, 504, 544, 'cut', 'half', 'hang']


@pytest.fixture
def server():
    with StorageServer() as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def store(server, pauses) -> SupabaseStore:
    return SupabaseStore(server.url, SECRET_KEY, 'models', timeout=0.4, attempts=4, sleep=pauses.append)


@pytest.fixture
def file(tmp_path):
    def make(content: str | bytes):
        (tmp_path / 'in').write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / 'in'

    return make


def everything(store, file, tmp_path) -> None:
    "Each verb once."
    store.put('a/k', file('1'), create_only=True)
    store.put('a/l', file('22'), create_only=False)
    store.get('a/k', tmp_path / 'out')
    assert ((tmp_path / 'out').read_text(), store.read('a/l')) == ('1', b'22')
    assert store.list('') == {'a/k': 1, 'a/l': 2}
    store.delete(['a/k', 'a/l'])
    assert store.list('') == {}


# the server is a fair copy: what storage3 itself makes of its answers


@pytest.fixture(params=KEYS)
def bucket(request, server):
    headers = {'apikey': request.param, 'Authorization': f'Bearer {request.param}'}
    return SyncStorageClient(storage_url(server.url), headers, http_client=httpx.Client()).from_('models')


def test_storage3_and_the_server_understand_each_other(server, bucket):
    options = {
        'upsert': 'false',
        'content-type': 'application/json',
        'cache-control': '60',
        'metadata': {'sha256': 'x'},
    }
    assert bucket.upload('a/k', b'{"one": 1}\r\n', options).path == 'a/k'
    with pytest.raises(StorageApiError) as conflict:
        bucket.upload('a/k', b'2', options)
    assert (conflict.value.status, conflict.value.code) == ('409', 'Duplicate')
    assert bucket.download('a/k') == b'{"one": 1}\r\n'
    info = bucket.info('a/k')
    assert (info['size'], info['metadata'], info['cache_control']) == (12, {'sha256': 'x'}, 'max-age=60')
    bucket.upload('a/b/c', b'3', {'upsert': 'true'})
    assert [(e['name'], e['id'] is None) for e in bucket.list('a')] == [('b', True), ('k', False)]
    assert [e['name'] for e in bucket.remove(['a/k', 'a/none'])] == ['a/k']
    with pytest.raises(StorageApiError) as missing:
        bucket.info('a/k')
    assert (missing.value.status, missing.value.code) == ('404', 'not_found')
    assert server.objects['a/b/c'].content_type.startswith('text/plain')  # what storage3 says if not told


def test_the_server_behaves_as_the_real_one_was_seen_to(server, bucket):
    for number in range(120):
        bucket.upload(f'many/{number:03}', b'x')
    assert len(bucket.list('many')) == 100
    assert len(bucket.list('many', {'limit': 1000})) == 120
    bucket.upload('k', b'new', {'upsert': 'true', 'headers': {'If-Match': '"something else"'}})  # ignored
    assert bucket.download('k') == b'new'
    bucket.upload('k', b'newer', {'upsert': 'true'})
    assert bucket.download('k') == b'new'  # out of the cache
    assert bucket.download('k', query_params={'v': '2'}) == b'newer'
    server.size_limit = 10
    with pytest.raises(StorageApiError) as large:
        bucket.upload('large', b'x' * 11)
    assert large.value.status == '413'
    assert 'large' not in server.objects


def test_the_server_hides_everything_from_an_anonymous_client(server, bucket):
    bucket.upload('k', b'1')
    for key in (ANON_KEY, PUBLISHABLE_KEY):
        headers = {'apikey': key, 'Authorization': f'Bearer {key}'}
        anonymous = SyncStorageClient(storage_url(server.url), headers, http_client=httpx.Client()).from_('models')
        for status, use in [
            ('403', lambda a=anonymous: a.upload('k2', b'2')),
            ('404', lambda a=anonymous: a.download('k')),
        ]:
            with pytest.raises(StorageApiError) as refused:
                use()
            assert refused.value.status == status
        assert (anonymous.list(), anonymous.remove(['k'])) == ([], [])
    assert list(server.objects) == ['k']


# what is sent


@pytest.mark.parametrize('key', KEYS)
@pytest.mark.parametrize('plain_status', [False, True])
def test_every_verb_with_either_key(server, file, tmp_path, key, plain_status):
    server.plain_status = plain_status
    store = SupabaseStore(server.url, key, 'models', sleep=lambda _: None)
    everything(store, file, tmp_path)
    store.put('k', file('1'), create_only=True)
    with pytest.raises(ExistsError):
        store.put('k', file('1'), create_only=True)
    with pytest.raises(MissingError):
        store.read('none')
    assert all(sent['apikey'] == key for sent in server.sent)


@pytest.mark.parametrize(('create_only', 'age'), [(True, 'max-age=31536000'), (False, 'max-age=0')])
def test_what_never_changes_may_be_cached_for_long(server, store, file, create_only, age):
    for key, kind in [('m.json', 'application/json'), ('m.onnx', 'application/octet-stream')]:
        store.put(key, file('{}'), create_only)
        stored = server.objects[key]
        assert (stored.cache_control, stored.content_type) == (age, kind)
        assert stored.metadata['sha256'] == hashlib.sha256(b'{}').hexdigest()


def test_a_list_has_as_many_pages_as_it_takes(server, store, file):
    store.put('many/000', file('1'), create_only=True)
    for number in range(2345):
        server.objects[f'many/{number:04}'] = server.objects['many/000']
        server.objects[f'many/{number % 3}/deep/{number:04}'] = server.objects['many/000']
    server.objects['many/.emptyFolderPlaceholder'] = server.objects['many/000']
    assert len(store.list('many')) == 2 * 2345 + 1
    assert len(store.list('many/1/deep')) == 782
    store.delete(store.list('many'))
    assert list(server.objects) == ['many/.emptyFolderPlaceholder']


MEASURE = """
import resource, sys
from pathlib import Path
from twotower.store.supabase import SupabaseStore
store = SupabaseStore(sys.argv[1], sys.argv[2], 'models')
store.put('small', Path(sys.argv[3]), create_only=False)
store.get('small', Path(sys.argv[3] + '.out'))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put('large', Path(sys.argv[4]), create_only=True)
store.get('large', Path(sys.argv[4] + '.out'))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_object_is_never_in_memory_as_a_whole(server, tmp_path):
    content = os.urandom(1_000_000) * 48
    (tmp_path / 'small').write_bytes(content[:2_000_000])
    (tmp_path / 'large').write_bytes(content)
    command = [sys.executable, '-c', MEASURE, server.url, SECRET_KEY, tmp_path / 'small', tmp_path / 'large']
    measured = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / 'large.out').read_bytes() == content
    assert int(measured.stdout) < 8_000  # kB


# who may write


@pytest.mark.parametrize('key', [ANON_KEY, PUBLISHABLE_KEY, legacy_key('authenticated'), 'hunter2hunter2'])
@pytest.mark.fault('an anonymous or publishable key is configured', sees='it may not write: take a secret key')
def test_a_key_that_may_not_write_is_refused_before_any_request(server, key):
    with pytest.raises(SettingError, match='SUPABASE_SERVICE_ROLE_KEY') as refused:
        SupabaseStore(server.url, key, 'models')
    assert key not in ''.join(traceback.format_exception(refused.value))
    assert server.requests == []


@pytest.mark.parametrize('key', [SECRET_KEY + '\n', SERVICE_KEY + '\r\n', SECRET_KEY + 'é'])
@pytest.mark.fault('the key was copied with a line break or another stray character', sees='to copy it again')
def test_a_key_that_can_not_be_sent_is_refused_before_any_request(server, key):
    with pytest.raises(SettingError, match='SUPABASE_SERVICE_ROLE_KEY holds a space, a line break or') as refused:
        SupabaseStore(server.url, key, 'models')
    assert key[:-2] not in ''.join(traceback.format_exception(refused.value))
    assert server.requests == []


@pytest.mark.parametrize('status', [400, 500])
def test_a_key_that_the_service_repeats_is_not_shown(server, store, file, monkeypatch, status):
    def repeat(*_):
        raise Refused(status, 'Repeated', 'x' * 190 + SECRET_KEY)  # longer than what is shown of it

    monkeypatch.setattr(server.http.RequestHandlerClass, 'perform', repeat)
    for use in (lambda: store.put('k', file('1'), create_only=True), lambda: store.read('k'), lambda: store.list('')):
        with pytest.raises(OutsideError, match=f'answered {status}') as refused:
            use()
        assert 'sb_secret' not in ''.join(traceback.format_exception(refused.value))


EXPIRED, FOREIGN = legacy_key('service_role', 1.6e9), SERVICE_KEY[:-4] + 'AAAA'


@pytest.mark.parametrize(
    ('key', 'said'),
    [
        (EXPIRED, r'"exp" claim .*valid until 2020-09-13'),
        (FOREIGN, 'Invalid API key'),
        ('sb_secret_revoked', 'Invalid'),
    ],
)
@pytest.mark.fault('the key has expired, was revoked or is of another project', sees='which key is refused, and why')
@pytest.mark.parametrize('gateway', [True, False])
def test_a_refused_key_is_explained_and_not_shown(server, file, tmp_path, pauses, key, said, gateway):
    server.gateway = gateway
    said = said if gateway else '"exp"|signature|Invalid'
    store = SupabaseStore(server.url, key, 'models', sleep=pauses.append)
    for use in (
        lambda: store.put('k', file('1'), create_only=True),
        lambda: store.put('k', file('1'), create_only=False),
        lambda: store.put('k', file(bytes(90_000)), create_only=True),
        lambda: store.get('k', tmp_path / 'out'),
        lambda: store.read('k'),
        lambda: store.list(''),
        lambda: store.delete(['k']),
    ):
        with pytest.raises(SettingError, match=f'refuses the key in SUPABASE_SERVICE_ROLE_KEY .*{said}') as refused:
            use()
        assert key not in ''.join(traceback.format_exception(refused.value))
    assert (pauses, server.objects) == ([], {})  # nothing is asked twice


def test_a_bucket_that_is_not_there_is_explained(server, file):
    store = SupabaseStore(server.url, SECRET_KEY, 'modles', sleep=lambda _: None)
    for use in (
        lambda: store.put('k', file('1'), create_only=True),
        lambda: store.put('k', file('1'), create_only=False),
        lambda: store.read('k'),
        lambda: store.list('two_tower/activations'),
    ):
        with pytest.raises(SettingError, match=r'bucket modles of .* does not exist: create it .private., or name'):
            use()


@pytest.mark.fault('a file is larger than the storage accepts', sees='which file, and where to raise the limit')
def test_too_large_is_explained(server, store, file, pauses):
    server.size_limit = 1000
    with pytest.raises(OutsideError, match=r'k is too large for bucket models .*raise the upload limit'):
        store.put('k', file(bytes(1001)), create_only=True)
    assert (server.objects, pauses) == ({}, [])


def test_an_address_that_leads_elsewhere_is_explained(server, store):
    server.fail(404, 'POST /object/list')
    with pytest.raises(SettingError, match='SUPABASE_URL does not lead to a storage service'):
        store.list('')


def test_a_server_that_is_not_there(pauses):
    with StorageServer() as gone:
        pass
    store = SupabaseStore(gone.url, SECRET_KEY, 'models', attempts=3, sleep=pauses.append)
    with pytest.raises(OutsideError, match=r'ConnectError .*\(asked 3 times\)'):
        store.list('')
    assert len(pauses) == 2


# it stumbles


@pytest.mark.parametrize('how', STUMBLES)
@pytest.mark.fault(
    'the storage answers 429 or 5xx, hangs or cuts the connection', sees='nothing, or that it was asked 6 times'
)
def test_every_verb_survives_a_stumble(server, store, file, tmp_path, how):
    for request in ('POST /object/models', 'GET /object/info', 'GET /object/models', 'POST /object/list', 'DELETE'):
        server.fail(how, request)
    everything(store, file, tmp_path)
    assert not any(fault.left for fault in server.faults if not (how == 'half' and fault.fits == 'GET /object/info'))


@pytest.mark.parametrize('how', [503, 'cut'])
def test_what_never_gets_better_ends(server, store, file, tmp_path, pauses, how):
    server.fail(how, times=999)
    for use in (
        lambda: store.put('k', file('1'), create_only=True),
        lambda: store.get('k', tmp_path / 'out'),
        lambda: store.read('k'),
        lambda: store.list(''),
        lambda: store.delete(['k']),
    ):
        pauses.clear()
        with pytest.raises(OutsideError, match=r'bucket models of 127\.0\.0\.1.*\(asked 4 times\)') as ended:
            use()
        assert SECRET_KEY not in ''.join(traceback.format_exception(ended.value))
        assert len(pauses) == 3
        assert all(0.5 * 2**n <= pause <= 0.5 * 2**n + 0.5 for n, pause in enumerate(pauses))
    assert list(tmp_path.glob('.*')) == []


def test_a_pause_that_is_asked_for_is_made(server, store, pauses):
    server.fail(429, retry_after='7', times=2)
    server.fail(503, retry_after='86400')
    assert store.list('') == {}
    assert pauses == [7, 7, 60]


def test_a_pause_that_is_asked_for_is_made_before_a_download_too(server, store, file, pauses):
    store.put('k', file('1'), create_only=True)
    server.fail(429, 'GET /object/models/k', retry_after='7')
    assert store.read('k') == b'1'
    assert pauses == [7]


@pytest.mark.parametrize('how', ['lost', 'late'])
@pytest.mark.fault('an object is created, but the answer is lost', sees='nothing: the object is known as our own')
def test_an_object_whose_answer_was_lost_is_our_own(server, store, file, how):
    server.fail(how, 'POST /object/models')
    server.fail(how, 'POST /object/move')
    store.put('seq/1', file('mine'), create_only=True)
    assert (server.count('POST /object/models/'), server.count('POST /object/move')) == (2, 1)
    assert list(server.objects) == ['seq/1']
    with pytest.raises(ExistsError):
        store.put('seq/1', file('mine'), create_only=True)  # the same content is not the same upload


@pytest.mark.fault('an answer is lost while another publisher creates the same object', sees='who was first')
def test_an_object_of_somebody_else_is_not_our_own(server, store, file, tmp_path):
    other = SupabaseStore(server.url, SECRET_KEY, 'models', sleep=lambda _: None)
    (tmp_path / 'same').write_text('the same')
    server.fail(lambda: other.put('seq/1', tmp_path / 'same', create_only=True), 'POST /object/move')
    server.fail('cut', 'POST /object/move')  # the other one's first attempt
    server.fail(502, 'POST /object/move')
    with pytest.raises(ExistsError, match='seq/1 is already in'):
        store.put('seq/1', file('the same'), create_only=True)
    assert list(server.objects) == ['seq/1']  # the draft of the one who lost is gone


def test_a_large_object_that_exists_is_not_sent_again(server, store, file):
    path = file(bytes(1_200_000))
    store.put('big', path, create_only=True)
    server.fail('lost', 'POST /object/move')
    store.put('lost', path, create_only=True)  # the second attempt finds it there, as its own
    for key in ('big', 'lost'):
        with pytest.raises(ExistsError):
            store.put(key, path, create_only=True)
    assert server.count('POST /object/models/') == 2


@pytest.mark.fault('a run is uploaded again, after a kill or by mistake', sees='nothing: it is looked for, not sent')
@pytest.mark.parametrize('size', [1, 21_000, 706_000, 5_000_000])
def test_a_repeat_runs_into_no_time_out(server, store, file, pauses, size):
    path = file(bytes(size))
    store.put('run/x', path, create_only=True)
    before = server.count('POST /object/models/')
    for _ in range(3):
        with pytest.raises(ExistsError):
            store.put('run/x', path, create_only=True)
        assert store.list('run') == {'run/x': size}
    assert server.count('POST /object/models/') - before == (3 if size == 1 else 0)
    assert pauses == []  # no request ran into its time-out


def test_after_an_early_refusal_a_connection_is_of_no_use(server):
    "What the real one does to a client that sends what is there: the reason for looking first."
    body = {'file': ('k', bytes(706_000), 'text/plain')}
    headers = {'apikey': SECRET_KEY, 'Authorization': f'Bearer {SECRET_KEY}'}
    with httpx.Client(headers=headers, timeout=0.5, base_url=storage_url(server.url)) as client:
        assert client.post('object/models/k', files=body).status_code == 200
        refused = client.post('object/models/k', files=body)
        assert (refused.status_code, refused.json()['statusCode']) == (400, '409')
        with pytest.raises(httpx.ReadTimeout):
            client.post('object/list/models', json={'prefix': ''})


@pytest.mark.fault('a file is larger than the bucket allows', sees='the limit, before anything is sent')
def test_a_file_above_the_limit_of_the_bucket_is_not_sent(server, store, file):
    server.bucket_limit = 30_000
    for create_only in (True, False):
        with pytest.raises(OutsideError, match=r'k is too large for .* 30001 bytes, must be at most 30000.*raise'):
            store.put('k', file(bytes(30_001)), create_only)
    store.put('k', file(bytes(30_000)), create_only=True)
    assert server.count('POST /object/models/') == 1


@pytest.mark.fault('a gateway answers one request with a page of HTML, or cuts an answer short', sees='nothing')
@pytest.mark.parametrize('how', ['html 401', 'html 403', 'html 404', 'html 200', 'json cut'])
def test_one_stray_answer_means_nothing(server, store, file, tmp_path, how):
    for request in ('POST /object/models', 'POST /object/move', 'GET /object', 'POST /object/list', 'DELETE'):
        server.fail(how, request)
    everything(store, file, tmp_path)
    assert not any(fault.left for fault in server.faults)


def test_two_stray_answers_in_a_row_are_told(server, store):
    for how, says in [('html 403', 'a page that is not of the storage service'), ('html 200', 'not understood')]:
        server.fail(how, times=2)
        with pytest.raises((SettingError, OutsideError), match=says):
            store.list('')


def test_a_url_that_is_no_storage_is_told(server, store, file, monkeypatch):
    for answer in ({'message': 'Not Found'}, {'error': 'no such page'}):
        monkeypatch.setattr(server.http.RequestHandlerClass, 'serve', lambda self, a=answer: self.answer_json(404, a))
        for use in (lambda: store.read('k'), lambda: store.list(''), lambda: store.put('k', file(''), True)):
            with pytest.raises(SettingError, match='SUPABASE_URL does not lead to a storage service'):
                use()


def test_a_download_that_is_larger_than_it_says_is_ended(server, store, file, tmp_path):
    store.put('k', file(bytes(100)), create_only=True)
    endless = b'x' * 40_000_000
    server.fail(lambda: setattr(server.objects['k'], 'content', endless), 'GET /object/models/k')
    store = SupabaseStore(server.url, SECRET_KEY, 'models', attempts=1)
    with pytest.raises(OutsideError, match=r'k came damaged .*must be'):
        store.get('k', tmp_path / 'out')
    with pytest.raises(OutsideError, match='40000000 bytes, must be at most'):
        store.read('k')


def test_drafts_of_killed_processes_are_swept_after_a_day(server, store, file):
    store.put('k', file('1'), create_only=True)
    for name, age in [('old', 90_000), ('new', 3600)]:
        server.objects[f'.drafts/{name}'] = dataclasses.replace(server.objects['k'], created=time.time() - age)
    assert (store.list(''), store.sweep(), store.sweep()) == ({'k': 1}, 1, 0)
    assert sorted(server.objects) == ['.drafts/new', 'k']


# what arrives is not what was put


@pytest.mark.parametrize('how', ['short', 'altered', 'half', 'cut', 'hang', 404])
@pytest.mark.fault('a download arrives cut short or altered', sees='nothing, or what arrived and what it must be')
def test_a_damaged_download_is_asked_for_again(server, store, file, tmp_path, how):
    content = os.urandom(300_000)
    store.put('k', file(content), create_only=True)
    for use in (lambda: store.read('k'), lambda: store.get('k', tmp_path / 'out')):
        server.fail(how, 'GET /object/models/k')
        found = use()
        assert (tmp_path / 'out').read_bytes() if found is None else found == content


@pytest.mark.parametrize('how', ['short', 'altered'])
def test_a_download_that_stays_damaged_is_refused(server, store, file, tmp_path, how):
    store.put('k', file('content'), create_only=True)
    (tmp_path / 'out').write_text('old')
    server.fail(how, 'GET /object/models/k', times=999)
    for use in (lambda: store.read('k'), lambda: store.get('k', tmp_path / 'out')):
        with pytest.raises(OutsideError, match=r'k came damaged or out of an old state .*must be .*asked 4 times'):
            use()
    assert (tmp_path / 'out').read_text() == 'old'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in', 'out']


@pytest.mark.fault('the cache serves an object as it was a minute ago', sees='nothing: the cache is passed by')
def test_an_overwritten_object_is_read_as_it_is_now(server, store, file, tmp_path):
    for text in ('one', 'two', '2.5', 'three'):
        store.put('latest', file(text), create_only=False)
        store.get('latest', tmp_path / 'out')
        assert (store.read('latest').decode(), (tmp_path / 'out').read_text()) == (text, text)


def test_an_object_put_by_other_means_can_be_read(server, store, file):
    store.put('k', file('content'), create_only=True)
    server.objects['k'].metadata = None
    assert store.read('k') == b'content'
    server.fail('short', 'GET /object/models/k')
    assert store.read('k') == b'content'  # its size is known


def test_an_answer_that_makes_no_sense(server, store, file, monkeypatch):
    monkeypatch.setattr(server.http.RequestHandlerClass, 'perform', lambda *_: {'unexpected': 1})
    for use in (lambda: store.put('k', file('1'), create_only=True), lambda: store.list('')):
        with pytest.raises(OutsideError, match=r'gave an answer that is not understood: \w+; see that'):
            use()
    assert len(server.requests) == 4  # once more, since a gateway may have stumbled, and no oftener


def test_an_answer_whose_compression_is_broken_is_asked_for_again(server, store, file, monkeypatch):
    store.put('k', file('1'), create_only=True)
    sound, odd = server.http.RequestHandlerClass.answer, [{'Content-Encoding': 'gzip'}]

    def answer(self, status, content, headers, half=False):
        sound(self, status, content, headers | (odd.pop() if odd and content == b'1' else {}), half)

    monkeypatch.setattr(server.http.RequestHandlerClass, 'answer', answer)
    assert store.read('k') == b'1'
    assert (odd, server.count('GET /object/models/k')) == ([], 2)


# time and place


@pytest.mark.parametrize('ahead', [0, 7200, -7200])
def test_the_clock_is_the_one_of_the_service(server, store, ahead):
    server.clock_ahead = ahead
    for _ in range(2):
        assert abs(store.clock() - datetime.now(UTC) - timedelta(seconds=ahead)) < timedelta(seconds=2)
    assert len(server.requests) == 1


def test_the_environment_decides_about_the_store(server, monkeypatch, home):
    for key, value in {'SUPABASE_URL': server.url + '/', 'SUPABASE_SERVICE_ROLE_KEY': SERVICE_KEY}.items():
        monkeypatch.setenv(key, value)
    assert open_store().list('') == {}
    assert str(open_store()) == 'bucket models of 127.0.0.1'
    assert SERVICE_KEY not in repr(open_store()) + str(vars(open_store()))
    monkeypatch.setenv('SUPABASE_SERVICE_ROLE_KEY', ANON_KEY)
    with pytest.raises(SettingError, match='holds the anon key'):
        open_store()
    monkeypatch.delenv('SUPABASE_SERVICE_ROLE_KEY')
    (home / '.env').write_text(f'SUPABASE_SERVICE_ROLE_KEY={SECRET_KEY}\n')
    assert open_store().list('') == {}
    (home / '.env').unlink()
    with pytest.raises(SettingError, match='SUPABASE_URL is set, but SUPABASE_SERVICE_ROLE_KEY is not'):
        open_store()
