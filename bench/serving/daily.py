"""What a day costs: a thousand new videos in a catalogue of fifty thousand, and in one of half a million.

    python bench/serving/daily.py [--sizes 50000,500000] [--new 1000] [--no-index] [--memory]

Each size gets an embedded PostgreSQL of its own with videos, three tags and two performers each, and an embedding of each video, without the way
through the model. Then the steps of `twotower run daily` run as the stages run them, against a shop on this machine that answers at once:
take in, embed, reflect; and the whole once more, when nothing is new. `--memory` embeds catalogues of 50,000 and 200,000 videos from nothing
and shows the peak of the process. `--no-index` leaves the index of the nearest out, whose every new row walks through the graph.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qsl, urlsplit

import psutil
import pyarrow as pa
from psycopg import Connection

from twotower.base.files import sha256, write_json
from twotower.base.settings import JST
from twotower.base.tables import ITEM_FEATURES, USER, USER_FEATURES, VIDEO, embeddings_schema, write_table
from twotower.catalogue.intake import sync
from twotower.database import embedded
from twotower.database.connections import connect
from twotower.database.schema import migrate
from twotower.database.videos import load_videos
from twotower.embedding.live import embed_live
from twotower.embedding.reflect import reflect
from twotower.model.export import export_onnx, export_sparse_onnx
from twotower.model.features import fit_encoding
from twotower.model.towers import TwoTower
from twotower.runs.run import (
    META,
    MODEL_FILES,
    ONNX,
    PT,
    SPARSE_ONNX,
    USER_EMBEDDINGS,
    VIDEO_EMBEDDINGS,
    Run,
    create_run,
)  # fmt: skip
from twotower.runs.settings import EmbedSettings

PARAMS = EmbedSettings(rows='missing', live_users=True)
FILL = """
    INSERT INTO tags (name) SELECT 'tag ' || i FROM generate_series(1, 500) i;
    INSERT INTO performers (name) SELECT 'performer ' || i FROM generate_series(1, 20000) i;
    CREATE TEMP TABLE numbered AS
    SELECT i, gen_random_uuid() AS id FROM generate_series(1, {n}) i;
    INSERT INTO videos (id, content_id, product_url, title, maker, source, release_date, duration)
    SELECT id, 'old' || i, 'https://v.example/' || i, 'video number ' || i, 'maker ' || i % 300, 'FANZA/digital/videoa',
        date '2015-01-01' + i % 3600, 60 + i % 90
    FROM numbered ORDER BY id;
"""
LINKS = """
    INSERT INTO video_{name}s
    SELECT DISTINCT v.id, w.id
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS i FROM videos) v
    CROSS JOIN generate_series(1, {each}) k
    JOIN (SELECT id, row_number() OVER (ORDER BY id) AS r FROM {name}s) w ON w.r = 1 + (v.i * 7 + k * 31) % {kinds}
"""
VECTORS = """
    INSERT INTO video_embeddings (video_id, embedding, model_version)
    SELECT id, (
        SELECT array_agg(x / sqrt(128))::halfvec(128)
        FROM (SELECT random() * 2 - 1 AS x FROM generate_series(1, 128) WHERE id IS NOT NULL) numbers
    ), 'bench'
    FROM videos ORDER BY id
"""
DECISIONS = """
    INSERT INTO profiles (user_id) SELECT gen_random_uuid() FROM generate_series(1, 2000);
    INSERT INTO user_video_decisions (user_id, video_id, decision_type)
    SELECT user_id, (array_agg(v.id))[1], 'like'
    FROM (SELECT user_id, row_number() OVER () AS r FROM profiles) p
    CROSS JOIN generate_series(1, 20) k
    JOIN (SELECT id, row_number() OVER (ORDER BY id) AS i FROM videos LIMIT 5000) v ON v.i = 1 + (p.r * 13 + k * 97) % 5000
    GROUP BY user_id, k
    ON CONFLICT DO NOTHING
"""


def fill(conn: Connection, n: int, index: bool) -> None:
    "A catalogue with embeddings, and two thousand people with twenty likes each."
    conn.execute(FILL.format(n=n))
    for name, each, kinds in [('tag', 3, 500), ('performer', 2, 20_000)]:
        conn.execute(LINKS.format(name=name, each=each, kinds=kinds))
    nearest = conn.execute("SELECT pg_get_indexdef('video_embeddings_nearest'::regclass)").fetchone()[0]
    conn.execute('DROP INDEX video_embeddings_nearest')
    conn.execute(VECTORS)
    if index:
        conn.execute("SET maintenance_work_mem = '1GB'; SET max_parallel_maintenance_workers = 1")
        conn.execute(nearest)
    conn.execute(DECISIONS)
    conn.execute('VACUUM ANALYZE')


def model(conn: Connection) -> Run:
    "A blessed run with random weights, whose files are as small as they can be."
    some = load_videos(conn, [str(i) for (i,) in conn.execute('SELECT id FROM videos LIMIT 2000')])
    zeros = pa.array([0] * len(some), pa.int32())
    items = pa.table({n: some[n] if n in some.column_names else zeros for n in ITEM_FEATURES.names})
    user = dict.fromkeys(USER_FEATURES.names) | {USER: 'u', 'recent_positive_video_ids': some[VIDEO].to_pylist()}
    users = pa.Table.from_pylist([user | {'like_count': n} for n in (1, 5)], USER_FEATURES)
    encoding = fit_encoding(items.cast(ITEM_FEATURES), users, 4096, 1024)
    run = create_run('bench')
    run.model.mkdir()
    write_json(run.model / META, {'encoding': encoding})
    towers = TwoTower(encoding['user']['width'], encoding['item']['width'], hidden=128)
    export_onnx(towers, run.model / ONNX)
    export_sparse_onnx(towers, run.model / SPARSE_ONNX)
    (run.model / PT).write_text('weights')
    for name, key in [(USER_EMBEDDINGS, USER), (VIDEO_EMBEDDINGS, VIDEO)]:
        write_table(run.model / name, embeddings_schema(key).empty_table(), embeddings_schema(key))
    files = {name: sha256(run.model / name) for name in MODEL_FILES}
    write_json(run.metrics, {'run_id': run.id, 'verdict': 'pass', 'files': files})
    return run


class Shop(BaseHTTPRequestHandler):
    "Lists `items`, newest first."

    items: ClassVar[list[dict]] = []

    def do_GET(self) -> None:
        query = dict(parse_qsl(urlsplit(self.path).query))
        low, high = (query[k].replace('T', ' ') for k in ('gte_date', 'lte_date'))
        found = [one for one in self.items if low <= one['date'] <= high]
        first = int(query['offset']) - 1
        result = {'status': 200, 'total_count': len(found), 'items': found[first : first + int(query['hits'])]}
        body = json.dumps({'result': result}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def listed(n: int) -> list[dict]:
    "New entries of the last two days."
    newest = datetime.now(UTC).astimezone(JST)
    return [
        {
            **{'content_id': f'new{i}', 'title': f'a new video, number {i}', 'URL': f'https://v.example/new{i}'},
            **{'date': f'{newest - timedelta(seconds=100 * i):%Y-%m-%d %H:%M:%S}', 'volume': '61'},
            'iteminfo': {
                'genre': [{'name': f'tag {1 + (i * 7 + k) % 500}'} for k in range(3)],
                'actress': [{'name': f'performer {1 + (i * 11 + k) % 20000}'} for k in range(2)],
                'maker': [{'name': f'maker {i % 300}'}],
            },
        }
        for i in range(n)
    ]


def server_cpu(folder: Path) -> float:
    "CPU seconds of the database so far, its finished children included."
    pid = int((folder / 'data' / 'postmaster.pid').read_text().split()[0])
    parent = psutil.Process(pid)
    times = [parent.cpu_times(), *(p.cpu_times() for p in parent.children())]
    return sum(t.user + t.system for t in times) + times[0].children_user + times[0].children_system


class Clock:
    "Wall and CPU seconds of each step, of this process and of the database."

    def __init__(self, folder: Path):
        self.folder, self.rows = folder, []

    def __call__(self, name: str, work):
        before = time.perf_counter(), time.process_time(), server_cpu(self.folder)
        done = work()
        after = time.perf_counter(), time.process_time(), server_cpu(self.folder)
        self.rows.append([name, *(b - a for a, b in zip(before, after, strict=True))])
        return done


def one_day(n: int, new: int, index: bool) -> list[list]:
    "The steps of two days, the second of them without anything new."
    folder = Path(tempfile.mkdtemp())
    os.environ['TWOTOWER_HOME'] = str(folder)
    os.environ |= {'FANZA_API_ID': 'x', 'FANZA_API_AFFILIATE_ID': 'y'}
    folder.chmod(0o711)  # as root the server runs as nobody, who must pass
    conn = connect(embedded.start(folder / 'pg', linger=2))
    migrate(conn)
    fill(conn, n, index)
    run, clock = model(conn), Clock(folder / 'pg')
    Shop.items = listed(new)
    web = ThreadingHTTPServer(('127.0.0.1', 0), Shop)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    options = {'base_url': f'http://127.0.0.1:{web.server_port}', 'interval': 0}
    live = embed_live(conn, run, PARAMS.but(rows='none'), folder / 'live')
    reflect(conn, run, 'none', dry_run=False, live=live)  # the people of yesterday
    conn.execute(
        "UPDATE user_video_decisions SET decision_type = 'dislike' WHERE user_id IN (SELECT user_id FROM profiles LIMIT 20)"
    )
    for day in ('', ', nothing new'):
        taken = clock(f'take in{day}', lambda: sync(conn, **options))
        live = clock(f'embed{day}', lambda: embed_live(conn, run, PARAMS, folder / 'live'))
        counts = clock(f'reflect{day}', lambda live=live: reflect(conn, run, 'missing', dry_run=False, live=live))
        assert (taken['changed'], counts['inserted'].sum()) == ((0, 0) if day else (new, new))
    conn.close()
    web.shutdown()
    embedded.stop(folder / 'pg')
    shutil.rmtree(folder)
    return clock.rows


def peak(n: int) -> None:
    "Embed a whole catalogue; the peak of this process in MB."
    folder = Path(tempfile.mkdtemp())
    os.environ['TWOTOWER_HOME'] = str(folder)
    folder.chmod(0o711)  # as root the server runs as nobody, who must pass
    url = embedded.start(folder / 'pg', linger=30)
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import daily; daily.embed_all({url!r})'
    with connect(url) as conn:
        migrate(conn)
        conn.execute(FILL.format(n=n))
        for name, each, kinds in [('tag', 3, 500), ('performer', 2, 20_000)]:
            conn.execute(LINKS.format(name=name, each=each, kinds=kinds))
        conn.execute('DROP INDEX video_embeddings_nearest; ANALYZE')
        model(conn)
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=os.environ)
    print(f'{n:>9,} videos: {done.stdout.strip()}', flush=True)
    embedded.stop(folder / 'pg')
    shutil.rmtree(folder)


def embed_all(url: str) -> None:
    "In a process of its own."
    started, run = time.perf_counter(), Run(Path(os.environ['TWOTOWER_HOME']) / 'outputs' / 'runs' / 'bench')
    with connect(url) as conn:
        live = embed_live(conn, run, PARAMS, run.outputs / 'live')
        embedded_at = time.perf_counter() - started
        reflect(conn, run, 'missing', dry_run=False, live=live)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f'peak {size:.0f} MB; embedded after {embedded_at:.1f} s, reflected after {time.perf_counter() - started:.1f} s'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', default='50000,500000', help='videos in the catalogue')
    parser.add_argument('--new', type=int, default=1000, help='videos that are new')
    parser.add_argument('--no-index', action='store_true', help='without the index of the nearest')
    parser.add_argument('--memory', action='store_true', help='peak memory of embedding everything')
    options = parser.parse_args()
    if options.memory:
        for n in (50_000, 200_000):
            peak(n)
        return
    print(f'load {os.getloadavg()[0]:.1f}', flush=True)
    print('| videos | step | wall s | CPU s | CPU s of the database |\n| ---: | --- | ---: | ---: | ---: |')
    for n in map(int, options.sizes.split(',')):
        for name, *seconds in one_day(n, options.new, not options.no_index):
            print(f'| {n:,} | {name} | ' + ' | '.join(f'{s:.2f}' for s in seconds) + ' |', flush=True)


if __name__ == '__main__':
    main()
