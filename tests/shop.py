"A real HTTP server that speaks the format of the item API and can be told to fail."

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

KEYS = {'api_id': 'Kq7pZm/3xWvT+tell=nobody', 'affiliate_id': 'quietfox-990'}


def item(n, day=1, clock='10:00:00', **more):
    return {
        'service_code': 'digital',
        'floor_code': 'videoa',
        'content_id': f'walk{n:05}',
        'product_id': f'walk{n:05}',
        'title': f'A walk in the park, part {n}',
        'volume': '61',
        'review': {'count': 3, 'average': '4.33'},
        'URL': f'https://www.dmm.co.jp/digital/videoa/-/detail/=/cid=walk{n:05}/',
        'affiliateURL': f'https://al.fanza.co.jp/?lurl=x&af_id={KEYS["affiliate_id"]}&ch=api',
        'imageURL': {'list': 'https://pics.example/1.jpg'},
        'prices': {'price': '300~', 'list_price': '500'},
        'date': f'2025-03-{day:02} {clock}',
        'iteminfo': {
            'genre': [{'id': 1, 'name': 'Outdoors'}, {'id': 2, 'name': '散歩'}],
            'actress': [{'id': 3, 'name': 'Ann', 'ruby': 'あん'}],
            'maker': [{'id': 4, 'name': 'Park Films'}],
        },
        **more,
    }


class Shop:
    "The state of the server: what it lists, how it answers next, what it was asked."

    def __init__(self):
        self.items: dict[str, dict] = {}
        self.ceiling = 50_000
        self.rank = {}  # order of entries of equal date, by content id; else the content id orders them
        self.next = []  # for the coming requests: None, or a function of the handler that answers instead
        self.before = {}  # by number of the request: a change of the list
        self.asked = []  # query, time
        self.list(*(item(n, day=1 + n % 10, clock=f'{n % 24:02}:00:{n % 60:02}') for n in range(30)))

    def list(self, *items):
        self.items |= {i['content_id']: i for i in items}

    def answer(self, query):
        "Status and body, as the real one answers."
        bad = {}
        if {k: query.get(k) for k in KEYS} != KEYS:
            bad['api_id'] = f'{query.get("api_id")} is unknown'
        hits, offset = int(query.get('hits', 20)), int(query.get('offset', 1))
        if not 1 <= hits <= 100:
            bad['hits'] = 'must be from 1 to 100'
        if not 1 <= offset <= self.ceiling:
            bad['offset'] = f'must be from 1 to {self.ceiling}'
        if (query.get('site'), query.get('sort'), query.get('output')) != ('FANZA', 'date', 'json'):
            bad['site'] = 'must be FANZA, sorted by date'
        for name in ('gte_date', 'lte_date'):
            try:
                datetime.strptime(query[name], '%Y-%m-%dT%H:%M:%S')
            except ValueError:
                bad[name] = 'must be ISO 8601 without a zone'
        if bad:
            return 400, {'status': 400, 'message': 'BAD REQUEST', 'errors': bad}
        low, high = (query[k].replace('T', ' ') for k in ('gte_date', 'lte_date'))
        found = [i for i in self.items.values() if low <= i['date'] <= high]
        found.sort(key=lambda i: (i['date'], self.rank.get(i['content_id'], 0), i['content_id']), reverse=True)
        shown = found[offset - 1 : offset - 1 + hits]
        counts = {'result_count': len(shown), 'total_count': len(found), 'first_position': offset}
        return 200, {'status': 200, **counts, 'items': shown}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        shop = self.server.shop
        self.query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        shop.before.pop(len(shop.asked), lambda: None)()
        shop.asked.append(self.query)
        special = shop.next.pop(0) if shop.next else None
        if special:
            special(self)
        else:
            self.say(*shop.answer(self.query))

    def say(self, status, result, **headers):
        body = json.dumps({'request': {'parameters': self.query}, 'result': result}).encode()
        self.send(status, body, **{'Content-Type': 'application/json; charset=utf-8'} | headers)

    def send(self, status, body, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def status(code, **headers):
    return lambda handler: handler.send(code, b'<h1>Sorry</h1>', Content_Type='text/html', **headers)


def refuse(code, **result):
    return lambda handler: handler.say(code, {'status': code, **result})


def text(body, kind='application/json'):
    return lambda handler: handler.send(200, body, Content_Type=kind)


def hang(handler):
    time.sleep(0.6)


def hang_up(handler):
    handler.close_connection = True


def cut(handler):
    "Half of what was announced."
    body = json.dumps({'request': {'parameters': handler.query}, 'result': {'status': 200}}).encode()
    handler.send(200, body[: len(body) // 2], length=len(body))
    handler.close_connection = True


def half_json(handler):
    "As cut, but announced as whole: ends within a key."
    body = json.dumps({'request': {'parameters': handler.query}}).encode()
    handler.send(200, body[: body.index(b'api_id') + 20], Content_Type='application/json')


@contextmanager
def open_shop() -> Iterator[Shop]:
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.shop = Shop()
    server.shop.url = f'http://127.0.0.1:{server.server_port}/affiliate/v3'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    thread.start()
    yield server.shop
    server.shutdown()
    server.server_close()
    thread.join()
