"""A Supabase Storage that runs here and fails on command.

It answers as the real one (storage-api 1.11) was seen to: most refusals are HTTP 400 with the true status in the body,
`list` shows one folder and 100 entries unless told, `If-Match` is ignored, an anonymous reader finds nothing, and reads
go through a cache that may show an overwritten object for a minute. Creating is not exclusive: it looks, takes the body
and then writes, so two creators at once both succeed; only `move` is exclusive. An upload that is refused is answered
before its body is read, and after a large one nobody answers on that connection any more. A bucket that is not there is
listed as empty, and `info` says of a key that is not admitted that there is no such bucket.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import select
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PREFIX = '/storage/v1'
SECRET_KEY, PUBLISHABLE_KEY = 'sb_secret_' + 'x' * 31, 'sb_publishable_' + 'y' * 31
_SIGNING = b'the secret with which the project signs its legacy keys'


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b'=').decode()


def _signature(text: str) -> str:
    return _base64(hmac.digest(_SIGNING, text.encode(), 'sha256'))


def legacy_key(role: str, expires: float = 4e9) -> str:
    "A key as Supabase gave them out until 2025: a JWT, valid until `expires`."
    head, claims = {'alg': 'HS256', 'typ': 'JWT'}, {'iss': 'supabase', 'ref': 'abc', 'role': role, 'exp': int(expires)}
    text = '.'.join(_base64(json.dumps(part).encode()) for part in (head, claims))
    return f'{text}.{_signature(text)}'


_DRAINED = 65_536  # bytes of a body that are read although the upload is refused
SERVICE_KEY, ANON_KEY = legacy_key('service_role'), legacy_key('anon')


class Refused(Exception):
    "An answer that is not a success."

    def __init__(self, status: int, error: str, message: str, code: str | None = None):
        self.status, self.body = status, {'statusCode': str(status), 'error': error, 'message': message}
        self.body |= {'code': code} if code else {}


@dataclass
class Stored:
    "An object with what the service knows of it."

    content: bytes
    content_type: str
    cache_control: str
    metadata: dict | None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: float = field(default_factory=time.time)

    def facts(self) -> dict:
        etag = f'"{hashlib.md5(self.content).hexdigest()}"'
        return {'eTag': etag, 'size': len(self.content), 'mimetype': self.content_type} | {
            'cacheControl': self.cache_control,
            'contentLength': len(self.content),
            'httpStatusCode': 200,
        }


@dataclass
class Fault:
    "What shall go wrong with the next requests that fit."

    how: int | str | Callable[[], object]
    fits: str | Callable[[str], bool]
    left: int
    headers: dict


class StorageServer:
    """One bucket behind `url`, in memory.

    `fail(how, fits, times)` spoils the next `times` requests whose `METHOD /path` fits (a pattern, or a function). `how` is
    - a status: 5xx above 500 come as a page of HTML from the gateway, others in the service's own words;
    - `cut`: the connection ends before anything is done; `half`: it ends in the middle of the body, up or down;
    - `lost`: done, but the connection ends before the answer; `hang`: nothing is done and no answer comes; `late`: done, no answer comes;
    - `short`, `altered`: the download looks whole and is not;
    - `html 403` and the like: a gateway answers with a page; `json cut`: done, but the answer ends in the middle;
    - a function: called just before the request is served, as if another publisher came in between.
    """

    def __init__(self, bucket: str = 'models', size_limit: int = 50_000_000, cached_seconds: float = 60):
        self.bucket, self.size_limit, self.cached_seconds = bucket, size_limit, cached_seconds
        self.clock_ahead = 0.0  # seconds
        self.plain_status = False  # True: the HTTP status is the one in the body
        self.gateway = True  # a gateway knows the keys; without it an unknown one reaches the service
        self.bucket_limit: int | None = None  # bytes; what the bucket itself allows, None: as the project
        self.writing_seconds = 0.003  # from the look at a key until the object is there
        self.objects: dict[str, Stored] = {}
        self.cache: dict[str, tuple[float, Stored]] = {}
        self.requests: list[str] = []
        self.sent: list[dict] = []  # headers of the requests
        self.faults: list[Fault] = []
        self.lock, self.closing = threading.RLock(), threading.Event()
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), type('Bound', (_Handler,), {'server_state': self}))
        self.http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.http.server_port}'
        threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()

    def fail(self, how, fits: str | Callable[[str], bool] = '', times: int = 1, **headers) -> None:
        self.faults.append(Fault(how, fits, times, {k.replace('_', '-'): v for k, v in headers.items()}))

    def fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                fits = fault.fits(request) if callable(fault.fits) else re.search(fault.fits, request)
                if fault.left and fits:
                    fault.left -= 1
                    return fault
        return None

    def count(self, fits: str) -> int:
        return sum(bool(re.search(fits, request)) for request in self.requests)

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def __enter__(self) -> StorageServer:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm, server_state = 'HTTP/1.1', True, None

    def log_message(self, *_) -> None:
        pass

    def date_time_string(self, timestamp=None) -> str:
        return formatdate(time.time() + self.server_state.clock_ahead, usegmt=True)

    def do_POST(self) -> None:
        self.serve()

    do_GET = do_PUT = do_DELETE = do_POST

    # one request

    def serve(self) -> None:
        state, url = self.server_state, urllib.parse.urlsplit(self.path)
        request = f'{self.command} {urllib.parse.unquote(url.path).removeprefix(PREFIX)}'
        state.requests.append(request)
        state.sent.append(dict(self.headers))
        fault = state.fault(request)
        how = fault.how if fault else None
        length = int(self.headers.get('content-length', 0))
        if how == 'cut' or (how == 'half' and length):
            self.rfile.read(length // 2 if how == 'half' else 0)
            return self.hang_up()
        early = None
        if callable(how):
            how()
        if upload := re.fullmatch('POST /object/(?!list/)([^/]+)/(.+)', request):
            try:
                with state.lock:
                    self.may_upload(self.role(), *upload.groups())
            except (Refused, PermissionError) as refused:
                early = refused
            if isinstance(early, Refused) and length > _DRAINED and not isinstance(how, int | str):
                return self.answer_early(early)
        body = self.rfile.read(length)
        if len(body) < length:  # the client has gone: nothing is stored
            return self.hang_up()
        if how == 'hang':
            state.closing.wait(30)
            return self.hang_up()
        if isinstance(how, int):
            return self.answer_fault(how, fault.headers)
        if isinstance(how, str) and how.startswith('html '):
            return self.answer(int(how[5:]), b'<html><body>Sorry</body></html>', {'Content-Type': 'text/html'})
        try:
            if early:
                raise early
            if upload:
                time.sleep(state.writing_seconds)
            with state.lock:
                answer = self.perform(request, url.query, body)
        except Refused as refused:
            return self.answer_json(refused.status if state.plain_status else 400, refused.body)
        except PermissionError:
            return self.answer_json(401, {'message': 'Invalid API key', 'hint': 'Double check your API key.'})
        if how == 'late':
            state.closing.wait(30)
        if how in ('lost', 'late'):
            return self.hang_up()
        if isinstance(answer, Stored):
            return self.answer_content(answer, how)
        if how == 'json cut':
            return self.answer(200, json.dumps(answer).encode()[:-1], {'Content-Type': 'application/json'})
        self.answer_json(200, answer)

    def answer_early(self, refused: Refused) -> None:
        "Refuse an upload without reading it; whatever follows on this connection is taken for the rest of the body."
        self.answer_json(refused.status if self.server_state.plain_status else 400, refused.body)
        gone = select.poll()
        gone.register(self.connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        while not self.server_state.closing.is_set() and not gone.poll(50):
            pass
        self.close_connection = True

    def perform(self, request: str, query: str, body: bytes):
        try:
            role = self.role()
        except Refused:
            if request.startswith('GET /object/info/'):
                raise Refused(404, 'Bucket not found', 'Bucket not found', 'NoSuchBucket') from None
            raise
        for pattern, work in [
            ('POST /object/(move)', self.move),
            ('GET /bucket/([^/]+)', self.about_bucket),
            ('POST /object/list/([^/]+)', self.list),
            ('GET /object/info/([^/]+)/(.+)', self.info),
            ('GET /object/([^/]+)/(.+)', self.download),
            ('POST /object/([^/]+)/(.+)', self.upload),
            ('DELETE /object/([^/]+)', self.remove),
        ]:
            if found := re.fullmatch(pattern, request):
                return work(role, query, body, *found.groups())
        raise Refused(404, 'Not Found', f'Route {request} not found')

    def role(self) -> str:
        key, bearer = self.headers.get('apikey', ''), self.headers.get('authorization', '').removeprefix('Bearer ')
        known = {SECRET_KEY: 'service_role', PUBLISHABLE_KEY: 'anon'}
        if key in known:
            if bearer not in ('', key):
                raise Refused(403, 'Unauthorized', 'Invalid Compact JWS')
            return known[key]
        text, _, signature = key.rpartition('.')
        if (not text or _signature(text) != signature) and self.server_state.gateway:
            raise PermissionError
        if not text or _signature(text) != signature:
            raise Refused(403, 'Unauthorized', 'signature verification failed' if text else 'Invalid Compact JWS')
        if bearer != key:
            raise Refused(403, 'Unauthorized', 'signature verification failed')
        claims = json.loads(base64.urlsafe_b64decode(text.partition('.')[2] + '=='))
        if claims['exp'] < time.time():
            raise Refused(403, 'Unauthorized', '"exp" claim timestamp check failed')
        return claims['role']

    # what it can do

    def may_upload(self, role: str, bucket: str, key: str) -> None:
        state = self.server_state
        if bucket != state.bucket:
            raise Refused(404, 'Bucket not found', 'Bucket not found', 'NoSuchBucket')
        if role != 'service_role':
            raise Refused(403, 'Unauthorized', 'new row violates row-level security policy')
        if not re.fullmatch(r"[\w/!.*'()&$@=;:+,? -]*", key, re.A):
            raise Refused(400, 'InvalidKey', f'Invalid key: {key}')
        if key in state.objects and self.headers.get('x-upsert', 'false') != 'true':
            raise Refused(409, 'Duplicate', 'The resource already exists')

    def upload(self, role: str, query: str, body: bytes, bucket: str, key: str) -> dict:
        state, fields = self.server_state, _multipart(self.headers['content-type'], body)
        content_type, content = fields['file']
        if len(content) > min(state.size_limit, state.bucket_limit or state.size_limit):
            raise Refused(413, 'Payload too large', 'The object exceeded the maximum allowed size')
        metadata = json.loads(fields['metadata'][1]) if 'metadata' in fields else None
        age = fields['cacheControl'][1].decode() if 'cacheControl' in fields else ''
        state.objects[key] = Stored(content, content_type, f'max-age={age}' if age else 'no-cache', metadata)
        return {'Id': state.objects[key].id, 'Key': f'{bucket}/{key}'}

    def move(self, role: str, query: str, body: bytes, _: str) -> dict:
        asked, state = json.loads(body), self.server_state
        found = self.find(role, asked['bucketId'], asked['sourceKey'])
        if asked['destinationKey'] in state.objects:
            raise Refused(409, 'Duplicate', 'The resource already exists')
        state.objects[asked['destinationKey']] = found
        del state.objects[asked['sourceKey']]
        return {'message': 'Successfully moved'}

    def about_bucket(self, role: str, query: str, body: bytes, bucket: str) -> dict:
        if bucket != self.server_state.bucket or role != 'service_role':
            raise Refused(404, 'Bucket not found', 'Bucket not found', 'NoSuchBucket')
        limits = {'file_size_limit': self.server_state.bucket_limit, 'allowed_mime_types': None}
        when = '2026-01-01T00:00:00.000Z'
        return {'id': bucket, 'name': bucket, 'owner': '', 'public': False, **limits} | {
            'type': 'STANDARD',
            'created_at': when,
            'updated_at': when,
        }

    def find(self, role: str, bucket: str, key: str) -> Stored:
        if bucket != self.server_state.bucket:
            raise Refused(404, 'Bucket not found', 'Bucket not found', 'NoSuchBucket')
        if role != 'service_role' or key not in self.server_state.objects:
            raise Refused(404, 'not_found', 'Object not found')
        return self.server_state.objects[key]

    def download(self, role: str, query: str, body: bytes, bucket: str, key: str) -> Stored:
        state, place = self.server_state, f'{bucket}/{key}?{query}'
        found = self.find(role, bucket, key)
        fetched, cached = state.cache.get(place, (0.0, found))
        if time.monotonic() - fetched < state.cached_seconds:
            return cached
        state.cache[place] = time.monotonic(), found
        return found

    def info(self, role: str, query: str, body: bytes, bucket: str, key: str) -> dict:
        found = self.find(role, bucket, key)
        when = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(found.created + self.server_state.clock_ahead))
        return {
            **{'id': found.id, 'name': key, 'version': found.id, 'bucket_id': bucket, 'size': len(found.content)},
            **{'content_type': found.content_type, 'cache_control': found.cache_control},
            **{'etag': found.facts()['eTag'], 'metadata': found.metadata, 'last_modified': when, 'created_at': when},
        }

    def list(self, role: str, query: str, body: bytes, bucket: str) -> list[dict]:
        asked = json.loads(body)
        folder = f'{asked["prefix"].strip("/")}/' if asked['prefix'].strip('/') else ''
        entries = {}
        for key, stored in self.server_state.objects.items():
            if role == 'service_role' and bucket == self.server_state.bucket and key.startswith(folder):
                name, deeper, _ = key.removeprefix(folder).partition('/')
                when = time.strftime(
                    '%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(stored.created + self.server_state.clock_ahead)
                )
                facts = {'id': stored.id, 'metadata': stored.facts(), 'created_at': when, 'updated_at': when}
                facts = dict.fromkeys(facts) if deeper else facts
                entries[name] = {'name': name, **facts}
        names = sorted(entries)[asked.get('offset', 0) :][: min(asked.get('limit', 100), 1000)]
        return [entries[name] for name in names]

    def remove(self, role: str, query: str, body: bytes, bucket: str) -> list[dict]:
        keys, state = json.loads(body)['prefixes'], self.server_state
        if len(keys) > 1000:
            raise Refused(400, 'InvalidRequest', 'body/prefixes must NOT have more than 1000 items')
        if role != 'service_role' or bucket != state.bucket:
            return []
        return [{'name': key, 'id': state.objects.pop(key).id} for key in keys if key in state.objects]

    # answers

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer_fault(self, status: int, headers: dict) -> None:
        if status > 500:
            content = f'<html><body>{status} from the gateway</body></html>'.encode()
            return self.answer(status, content, {'Content-Type': 'text/html', **headers})
        messages = {
            404: ('not_found', 'Object not found'),
            429: ('too_many_connections', 'Too many connections issued to the database'),
        }
        error, message = messages.get(status, ('Internal', 'Internal Server Error'))
        self.answer_json(status, {'statusCode': str(status), 'error': error, 'message': message}, headers)

    def answer_json(self, status: int, body: object, headers: dict | None = None) -> None:
        self.answer(status, json.dumps(body).encode(), {'Content-Type': 'application/json', **(headers or {})})

    def answer_content(self, found: Stored, how: str | None) -> None:
        content, facts = found.content, found.facts()
        if how == 'short':
            content = content[:-1]
        if how == 'altered':
            content = bytes([content[0] ^ 1]) + content[1:] if content else b'?'
        headers = {'Content-Type': found.content_type, 'Cache-Control': found.cache_control, 'ETag': facts['eTag']}
        self.answer(200, content, headers, half=how == 'half')

    def answer(self, status: int, content: bytes, headers: dict, half: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, 'Content-Length': str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        self.wfile.flush()
        if half:
            self.hang_up()

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, OSError):  # the client has gone
            self.close_connection = True


def _multipart(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    "Content type and content of each field of a form."
    boundary = b'--' + re.search('boundary=(.+)', content_type)[1].encode()
    fields = {}
    for part in body.split(boundary)[1:-1]:
        head, _, content = part.removeprefix(b'\r\n').partition(b'\r\n\r\n')
        name = re.search(rb'name="([^"]+)"', head)[1].decode()
        kind = re.search(rb'content-type: *([^\r\n]+)', head, re.I)
        fields[name] = (kind[1].decode() if kind else 'text/plain', content.removesuffix(b'\r\n'))
    return fields
