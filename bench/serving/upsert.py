"""Rows a second of `save_embeddings` against COPY and merge written by hand, into the same table.

    python bench/serving/upsert.py [ROWS ...] [--index] [--pairs N] [--part N]
    python bench/serving/upsert.py [ROWS ...] --streams [--pairs N]
    python bench/serving/upsert.py [ROWS ...] --memory

By hand means: the same Arrow table becomes the bytes of one binary COPY in a few lines of NumPy, and nothing is checked, compared or counted.
`fill` is an empty table, `replace` the same rows with other vectors. With --index the table has its HNSW index: it is there from the
start for the hand-written merge, and `save_embeddings` does what it does. The two take turns, the table is emptied between them.
With --part the table is filled once, with its index built at the end, and both ways give only so many of its rows other vectors, in turns:
each row that is changed costs a walk through the graph of all rows, so that a part tells what the whole would take.
With --streams nothing is merged: it measures what more connections would do for the way into the stage, whose rows are checked and sent by one, two or four threads,
each through a COPY of its own. A table for several connections can not be a temporary one, so it is an unlogged one.
With --memory the rows are in a Parquet file, and are saved once as a table and once piece by piece, each in a process of its own, whose peak of memory is printed.
Seconds of the processor are those of this process and of the server's processes together.
Makes its own embedded PostgreSQL in a temporary folder and throws it away.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import psycopg
import pyarrow as pa

from twotower.base.tables import DIMENSION, EMBEDDING, VIDEO, embeddings_schema, read_table, stream_table, write_table
from twotower.database import embedded, embeddings
from twotower.database.connections import connect, target
from twotower.database.embeddings import save_embeddings
from twotower.database.schema import migrate

ROW = np.dtype(
    [('n', '>i2'), ('a', '>i4'), ('id', 'u1', 16), ('b', '>i4'), ('dim', '>i2'), ('zero', '>i2'), ('v', '>f2', DIMENSION)]
)  # fmt: skip
MERGE = """
    INSERT INTO video_embeddings (video_id, embedding, model_version, updated_at)
    SELECT id, embedding, %s, now() FROM by_hand ORDER BY id
    ON CONFLICT (video_id) DO UPDATE
    SET embedding = excluded.embedding, model_version = excluded.model_version, updated_at = excluded.updated_at
"""


def rows(keys: list[uuid.UUID], seed: int) -> pa.Table:
    "Random unit vectors."
    vectors = np.random.default_rng(seed).standard_normal((len(keys), DIMENSION), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
    return pa.table({VIDEO: [str(key) for key in keys], EMBEDDING: lists}, embeddings_schema(VIDEO))


def packed(table: pa.Table) -> bytes:
    "The bytes of a binary COPY."
    out = np.zeros(len(table), ROW)
    out['n'], out['a'], out['b'], out['dim'] = 2, 16, 4 + 2 * DIMENSION, DIMENSION
    ids = bytes.fromhex(''.join(table[VIDEO].to_pylist()).replace('-', ''))
    out['id'] = np.frombuffer(ids, np.uint8).reshape(-1, 16)
    out['v'] = table[EMBEDDING].combine_chunks().flatten().to_numpy().reshape(-1, DIMENSION)
    return b'PGCOPY\n\xff\r\n\0' + bytes(8) + out.tobytes() + b'\xff\xff'


def by_hand(conn: psycopg.Connection, table: pa.Table, version: str) -> None:
    "What one would write without the library."
    content = packed(table)
    with conn.transaction():
        conn.execute('CREATE TEMP TABLE by_hand (id uuid, embedding halfvec(128)) ON COMMIT DROP')
        with conn.cursor() as cursor, cursor.copy('COPY by_hand FROM STDIN (FORMAT binary)') as copy:
            for start in range(0, len(content), 1 << 24):
                copy.write(content[start : start + (1 << 24)])
        conn.execute(MERGE, [version])


def cpu(server: psutil.Process) -> float:
    "Seconds of the processor, of us and of the server; its processes that have ended are counted by their parent."
    total = sum(psutil.Process().cpu_times()[:2]) + sum(server.cpu_times()[:4])
    for child in server.children():
        try:
            total += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total


def timed(server: psutil.Process, work) -> tuple[float, float]:
    "Wall seconds and seconds of the processor."
    wall, used = time.perf_counter(), cpu(server)
    work()
    return time.perf_counter() - wall, cpu(server) - used


def describe(n: int, index: bool, step: str, rows: int, taken: dict[str, list]) -> None:
    "A line of the table."
    wall, used = ({name: statistics.median(t[i] for t in times) for name, times in taken.items()} for i in (0, 1))
    ours, hand = wall.values()
    share = statistics.median(h[0] / o[0] for o, h in zip(*taken.values(), strict=True))
    cells = [f'{n:,}', 'HNSW' if index else 'none', step, f'{rows / ours:,.0f}', f'{rows / hand:,.0f}', f'{share:.0%}']
    cells += [f'{ours:.1f} / {used["save_embeddings"]:.1f}', f'{hand:.1f} / {used["by hand"]:.1f}']
    print(f'| {" | ".join(cells)} |', flush=True)


def measure(conn: psycopg.Connection, server: psutil.Process, n: int, index: bool, pairs: int, part: int) -> None:
    "One size, with or without the index."
    conn.execute('TRUNCATE videos CASCADE')
    conn.execute(f"""
        INSERT INTO videos (id, content_id, product_url) SELECT gen_random_uuid(), i, i FROM generate_series(1, {n}) i;
        ANALYZE videos
    """)
    conn.execute('DROP INDEX IF EXISTS video_embeddings_nearest')
    if index:
        conn.execute(
            'CREATE INDEX video_embeddings_nearest ON video_embeddings USING hnsw (embedding halfvec_cosine_ops)'
        )
    keys = [key for (key,) in conn.execute('SELECT id FROM videos ORDER BY random()')]
    ways = {
        'save_embeddings': lambda data, version: save_embeddings(conn, data, VIDEO, version),
        'by hand': lambda data, version: by_hand(conn, data, version),
    }
    taken: dict[str, dict[str, list]] = {step: {name: [] for name in ways} for step in ('fill', 'replace')}
    if part:
        save_embeddings(conn, rows(keys, 0), VIDEO, 'fill')
        print(f'filled, {"and the index built, " if index else ""}load {psutil.getloadavg()[0]:.1f}', flush=True)
    for pair in range(pairs):
        for way, name in enumerate(list(ways)[:: 1 if pair % 2 else -1]):
            steps = {'replace': rows(keys[(2 * pair + way) * part :][:part], 1)} if part else {}
            if not part:
                conn.execute('TRUNCATE video_embeddings')
                steps = {'fill': rows(keys, 0), 'replace': rows(keys, 1)}
            conn.execute('CHECKPOINT')
            for step, data in steps.items():
                taken[step][name].append(timed(server, lambda d=data, s=step, w=ways[name]: w(d, s)))
    for step in ('replace',) if part else ('fill', 'replace'):
        describe(n, index, f'{step} {part:,}' if part else step, part or n, taken[step])


def staged(conn: psycopg.Connection, server: psutil.Process, dsn: str, n: int, pairs: int) -> None:
    "Seconds of checking and sending, by the number of connections."
    data = rows([uuid.uuid4() for _ in range(n)], 0)
    columns, found = f'staged (id uuid, embedding halfvec({DIMENSION}))', {}

    def send(door: psycopg.Connection, part: pa.Table) -> None:
        for start in range(0, len(part), 1 << 16):
            embeddings._copy_vectors(door, *embeddings._checked_vectors(part.slice(start, 1 << 16), VIDEO))

    for _ in range(pairs):
        with conn.transaction():
            conn.execute(f'CREATE TEMP TABLE {columns} ON COMMIT DROP')
            found.setdefault('temporary, 1', []).append(timed(server, lambda: send(conn, data)))
        for count in (1, 2, 4):
            conn.execute(f'CREATE UNLOGGED TABLE {columns}')
            parts = [data.slice(i * n // count, (i + 1) * n // count - i * n // count) for i in range(count)]
            with ThreadPoolExecutor(count) as pool, ExitStack() as stack:
                doors = [stack.enter_context(connect(dsn)) for _ in range(count)]
                taken = timed(server, lambda w=(doors, parts), p=pool: list(p.map(send, *w)))
                found.setdefault(f'unlogged, {count}', []).append(taken)
            conn.execute('DROP TABLE staged')
    for name, taken in found.items():
        wall, used = (statistics.median(t[i] for t in taken) for i in (0, 1))
        print(f'| {n:,} | {name} | {wall:.2f} | {used:.2f} |', flush=True)


def held(conn: psycopg.Connection, dsn: str, folder: Path, n: int) -> None:
    "Peak memory of a process that saves a file, whole and in pieces."
    conn.execute('TRUNCATE videos CASCADE; DROP INDEX IF EXISTS video_embeddings_nearest')
    query = (
        'INSERT INTO videos (id, content_id, product_url) SELECT gen_random_uuid(), i, i FROM generate_series(1, %s) i'
    )
    conn.execute(query, [n])
    path, keys = folder / f'{n}.parquet', [key for (key,) in conn.execute('SELECT id FROM videos')]
    write_table(path, rows(keys, 0), embeddings_schema(VIDEO))
    for how in ('whole', 'pieces'):
        conn.execute('TRUNCATE video_embeddings')
        began = time.perf_counter()
        command = [sys.executable, __file__, '--one', how, str(path), dsn]
        peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f'| {n:,} | {how} | {float(peak):.2f} | {time.perf_counter() - began:.1f} |', flush=True)


def save_one(how: str, path: str, dsn: str) -> None:
    "In a process of its own: save the file, and print the peak of memory in GB."
    with connect(dsn) as conn:
        read = partial(read_table if how == 'whole' else stream_table, path, embeddings_schema(VIDEO))
        save_embeddings(conn, read() if how == 'whole' else read, VIDEO, how)
    # not getrusage, which goes on with what the parent had
    print(int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 2**20)


HEADS = {
    'streams': '| rows | stage, connections | wall s | CPU s |\n| ---: | --- | ---: | ---: |',
    'memory': '| rows | given | peak GB | wall s |\n| ---: | --- | ---: | ---: |',
    '': '| rows | index | step | rows/s | by hand | share | wall / CPU s | by hand |\n'
    '| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |',
}


def main() -> None:
    "Print the table."
    if sys.argv[1:2] == ['--one']:
        return save_one(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument('rows', nargs='*', type=int, default=[100_000])
    parser.add_argument('--index', action='store_true')
    parser.add_argument('--pairs', type=int, default=3)
    parser.add_argument('--part', type=int, default=0, help='replace only so many rows of a filled table')
    parser.add_argument(
        '--streams', action='store_true', help='only the way into the stage, by one or more connections'
    )
    parser.add_argument('--memory', action='store_true', help='only the memory that a file takes, whole and in pieces')
    given, folder = parser.parse_args(), Path(tempfile.mkdtemp())
    conn = connect(dsn := embedded.start(folder, linger=5))
    server = psutil.Process(int((folder / 'data' / 'postmaster.pid').read_text().split()[0]))
    migrate(conn)
    print(f'load {psutil.getloadavg()[0]:.1f}, {psutil.cpu_count()} cores, {given.pairs} pairs, {target(conn)}')
    print(HEADS['streams' if given.streams else 'memory' if given.memory else ''])
    for n in given.rows:
        if given.streams:
            staged(conn, server, dsn, n, given.pairs)
        elif given.memory:
            held(conn, dsn, folder, n)
        else:
            measure(conn, server, n, given.index, given.pairs, given.part)
    conn.close()
    embedded.stop(folder)


if __name__ == '__main__':
    main()
