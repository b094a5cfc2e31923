"""Does the index find the nearest? Recall of the SQL functions against exact search, milliseconds a query, seconds to build.

    python bench/serving/hnsw.py [N] [--ef 40 100 200] [--replace]

`random` are vectors from all directions alike, the hardest there is, since nothing is near anything; `towers` are mixtures of 16 directions
with noise, as embeddings of a model are. Users and videos are drawn alike. 200 users, k = 20, none has decided on anything.
--ef sets hnsw.ef_search of the functions to other values than theirs. --replace also gives all videos other vectors in place, row by row in the index,
and asks again, before and after VACUUM. Makes its own embedded PostgreSQL in a temporary folder and throws it away.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import psycopg
import pyarrow as pa

from twotower.base.tables import DIMENSION, EMBEDDING, USER, VIDEO, embeddings_schema
from twotower.database import embedded
from twotower.database.connections import connect
from twotower.database.embeddings import recommend, save_embeddings
from twotower.database.schema import migrate

USERS, K = 200, 20


def draw(kind: str, n: int, seed: int) -> np.ndarray:
    "Unit vectors, as half floats keep them."
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((n, DIMENSION), np.float32)
    if kind == 'towers':
        directions = np.random.default_rng(99).standard_normal((16, DIMENSION)).astype(np.float32)
        found = rng.standard_normal((n, 16)).astype(np.float32) @ directions + 0.5 * found
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def table(ids: list[str], vectors: np.ndarray, key: str) -> pa.Table:
    "What `save_embeddings` takes."
    return pa.table(
        {key: ids, EMBEDDING: pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIMENSION)}, embeddings_schema(key)
    )


def ask(conn: psycopg.Connection, vectors: np.ndarray, users: np.ndarray, ids: np.ndarray) -> tuple[float, float]:
    "Recall at K, and the median milliseconds of a query."
    found, taken = 0, []
    for i, user in enumerate(users):
        started = time.perf_counter()
        answer = recommend(conn, f'user {i}', K)[VIDEO]
        taken.append(time.perf_counter() - started)
        found += len(set(answer) & set(ids[np.argpartition(-(vectors @ user), K)[:K]]))
    return found / (K * len(users)), 1000 * float(np.median(taken))


def settings(ef: int | None) -> str:
    "The statement that sets `ef_search`."
    signature = 'recommend_videos(uuid, integer, text[], date, date)'
    return f'ALTER FUNCTION {signature} SET hnsw.ef_search = {ef}' if ef else 'SELECT 1'


def main() -> None:
    "Print the table."
    parser = argparse.ArgumentParser()
    parser.add_argument('n', nargs='?', type=int, default=100_000)
    parser.add_argument('--ef', nargs='*', type=int, default=[None])
    parser.add_argument('--replace', action='store_true')
    parser.add_argument('--kinds', nargs='*', default=['random', 'towers'])
    given, folder = parser.parse_args(), Path(tempfile.mkdtemp())
    conn = connect(embedded.start(folder, linger=5))
    migrate(conn)
    print(f'load {psutil.getloadavg()[0]:.1f}, {psutil.cpu_count()} cores')
    print('| vectors | n | state | ef_search | recall@20 | ms a query |\n| --- | ---: | --- | ---: | ---: | ---: |')
    conn.execute(
        f'INSERT INTO videos (id, content_id, product_url) SELECT gen_random_uuid(), i, i FROM generate_series(1, {given.n}) i'
    )
    ids = np.array([str(key) for (key,) in conn.execute('SELECT id FROM videos ORDER BY id')])

    def report(kind: str, state: str, vectors: np.ndarray, users: np.ndarray) -> None:
        for ef in given.ef:
            conn.execute(settings(ef))
            recall, milliseconds = ask(conn, vectors, users, ids)
            print(
                f'| {kind} | {given.n:,} | {state} | {ef or "ours"} | {recall:.4f} | {milliseconds:.1f} |', flush=True
            )

    for kind in given.kinds:
        conn.execute('TRUNCATE video_embeddings')
        users = draw(kind, USERS, 7)
        save_embeddings(conn, table([f'user {i}' for i in range(USERS)], users, USER), USER, 'm1')
        vectors, started = draw(kind, given.n, 1), time.perf_counter()
        save_embeddings(conn, table(ids.tolist(), vectors, VIDEO), VIDEO, 'm1')
        conn.execute('ANALYZE')
        report(kind, f'built at once, with the upsert in {time.perf_counter() - started:.0f} s', vectors, users)
        if given.replace:
            vectors, started = draw(kind, given.n, 2), time.perf_counter()
            save_embeddings(conn, table(ids.tolist(), vectors, VIDEO), VIDEO, 'm1')
            report(kind, f'all replaced in place in {time.perf_counter() - started:.0f} s', vectors, users)
            started = time.perf_counter()
            conn.execute('VACUUM ANALYZE video_embeddings')
            report(kind, f'after VACUUM of {time.perf_counter() - started:.0f} s', vectors, users)
    conn.close()
    embedded.stop(folder)


if __name__ == '__main__':
    main()
