"A small model with random weights, which embeds as well as any other, and videos to embed."

import hashlib
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from twotower.base.files import sha256, write_json
from twotower.base.tables import (
    DECISIONS,
    DIMENSION,
    EMBEDDING,
    INTERACTIONS,
    ITEM_FEATURES,
    USER,
    USER_FEATURES,
    VIDEO,
    VIDEOS,
    as_uuid,
    embeddings_schema,
    embeddings_table,
    write_table,
)  # fmt: skip
from twotower.database.people import save_decisions, save_profiles
from twotower.database.videos import load_videos
from twotower.model.export import export_onnx, export_sparse_onnx, onnx_embed, onnx_session
from twotower.model.features import encode, fit_encoding
from twotower.model.towers import TwoTower
from twotower.runs.run import (
    ITEMS,
    META,
    MODEL_FILES,
    ONNX,
    PT,
    SPARSE_ONNX,
    TRAIN,
    USER_EMBEDDINGS,
    VIDEO_EMBEDDINGS,
    Run,
    create_run,
)  # fmt: skip

GENRES = ['Comedy', 'War', 'Drama', 'Western']


def videos(numbers) -> pa.Table:
    rows = [
        dict.fromkeys(VIDEOS.names)
        | {'content_id': f'c{i}', 'product_url': f'https://v.example/{i}', 'title': f'video {i}'}
        | {'tags': [GENRES[i % 4]], 'performers': []}
        for i in numbers
    ]
    return pa.Table.from_pylist(rows, VIDEOS)


def decide(conn, *rows) -> None:
    "Save decisions, each a user, the content id of a video, like or dislike or skip, and a day of January 2026."
    ids = dict(conn.execute('SELECT content_id, id::text FROM videos').fetchall())
    save_profiles(conn, {user for user, *_ in rows})
    columns = zip(
        *((user, ids[video], what, f'2026-01-{day:02}T00:00:00Z') for user, video, what, day in rows), strict=True
    )
    users, chosen, kinds, times = map(list, columns)
    times = pa.array(times).cast(DECISIONS.field('created_at').type)
    save_decisions(conn, pa.table([users, chosen, kinds, times], DECISIONS.names).cast(DECISIONS))


@lru_cache
def _exported(user_width: int, item_width: int, seed: int | None) -> dict[str, bytes]:
    "Both ONNX files with the same random weights; to export one takes seconds."
    if seed is not None:
        torch.manual_seed(seed)
    model = TwoTower(user_width, item_width, hidden=8)
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / ONNX)
        export_sparse_onnx(model, Path(folder) / SPARSE_ONNX)
        return {name: (Path(folder) / name).read_bytes() for name in (ONNX, SPARSE_ONNX)}


def blessed_run(conn, run_id: str, seed: int | None = None, users: tuple[str, ...] = (), day: int | None = None) -> Run:
    "A run whose model was trained, as it were, on the videos in the database, and has passed."
    table = load_videos(conn)
    zeros = pa.array([0] * len(table))
    items = pa.table({n: table[n] if n in table.column_names else zeros for n in ITEM_FEATURES.names})
    liked = table[VIDEO].slice(0, 9).to_pylist()
    user = dict.fromkeys(USER_FEATURES.names) | {USER: 'u', 'recent_positive_video_ids': liked, 'like_count': 1}
    people = pa.Table.from_pylist([user, user | {'like_count': 5, 'preferred_tag_ids': GENRES}], USER_FEATURES)
    encoding = fit_encoding(items.cast(ITEM_FEATURES), people)
    run = create_run(run_id)
    if day:  # of January 2026: runs of one second could not be told apart in the store
        facts = {'run_id': run_id, 'created_at': f'2026-01-{day:02}T03:04:05+00:00', 'stages': {}}
        write_json(run.path / 'run.json', facts)
    run.model.mkdir()
    write_json(run.model / META, {'encoding': encoding})
    for name, content in _exported(encoding['user']['width'], encoding['item']['width'], seed).items():
        (run.model / name).write_bytes(content)
    (run.model / PT).write_text('weights')
    matrix = encode(encoding, 'item', items)[0]
    vectors = onnx_embed(onnx_session(run.model / ONNX), 'item', matrix)
    known = pa.table({VIDEO: table[VIDEO], EMBEDDING: vectors.tolist()}, embeddings_schema(VIDEO))
    write_table(run.model / VIDEO_EMBEDDINGS, known, embeddings_schema(VIDEO))
    tastes = np.random.default_rng(seed).standard_normal((len(users), DIMENSION))
    trained = embeddings_table(USER, pa.array(users, pa.string()), tastes)
    write_table(run.model / USER_EMBEDDINGS, trained, embeddings_schema(USER))
    files = {name: sha256(run.model / name) for name in MODEL_FILES}
    verdict = {'run_id': run.id, 'verdict': 'pass', 'n_users': 2, 'n_items': len(table)}
    write_json(run.metrics, verdict | {'metrics': {'auc': 0.9}, 'baselines': {}, 'files': files})
    return run


TABLES = (
    *('videos', 'tags', 'video_tags', 'performers', 'video_performers', 'profiles', 'user_video_decisions'),
    *('user_embeddings', 'video_embeddings', 'twotower_live_users', 'twotower_taken_in'),
)


def rows_written(conn) -> str:
    "Changes with any row that is written, even if it is written as it was."
    found = [conn.execute(f'SELECT xmin::text, ctid::text, t::text FROM {t} t ORDER BY 3').fetchall() for t in TABLES]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def state(conn) -> dict[str, list]:
    "What the tables say, without the ids and times that are made up on the way."
    queries = {
        'videos': 'SELECT id, content_id, product_url, title, maker, source, release_date, duration, price FROM videos',
        'tags': 'SELECT content_id, name FROM videos JOIN video_tags ON video_id = videos.id JOIN tags ON tag_id = tags.id',
        'performers': """SELECT content_id, name FROM videos
            JOIN video_performers ON video_id = videos.id JOIN performers ON performer_id = performers.id""",
        'video_embeddings': 'SELECT video_id, embedding::text, model_version FROM video_embeddings',
        'user_embeddings': 'SELECT user_id, embedding::text, model_version FROM user_embeddings',
        'known': 'SELECT * FROM twotower_live_users',
        'marks': 'SELECT * FROM twotower_taken_in',
    }
    return {name: sorted(map(str, conn.execute(query).fetchall())) for name, query in queries.items()}


TITLES = {1: '<script>window.hacked = true</script>', 2: '<img src=x onerror="window.hacked = true">', 3: '$x^2$ & "y"'}


def run_to_look_at(run_id: str, seed: int, outputs: Path | None = None, n_users: int = 30, n_items: int = 60) -> Run:
    "A run with random embeddings, for the page: other seeds rank otherwise. Each user likes three videos; some titles are nasty."
    rng, run = np.random.default_rng(seed), create_run(run_id, outputs)
    for folder in (run.prep, run.model):
        folder.mkdir()
    makers = ['Acme', '<b>Bolt</b>', 'Cine', None]
    items = [
        {VIDEO: as_uuid(f'v{i}'), 'title': TITLES.get(i, f'Film {i}'), 'tags': [GENRES[i % 4], GENRES[(i + 1) % 4]]}
        | {'maker': makers[i % 4], 'popularity': 3 * (i == 5) + i % 3}
        for i in range(n_items)
    ]
    write_table(run.prep / ITEMS, pa.Table.from_pylist(items, ITEM_FEATURES), ITEM_FEATURES)
    liked = [
        {USER: f'user-{u}', VIDEO: as_uuid(f'v{(7 * u + i) % n_items}'), 'kind': 'like', 'label': 1, 'stars': 4 + i % 2}
        for u in range(n_users)
        for i in range(3)
    ]
    write_table(run.prep / TRAIN, pa.Table.from_pylist(liked, INTERACTIONS), INTERACTIONS)
    users = pa.array([f'user-{u}' for u in range(n_users)])
    for name, key, ids in (
        (USER_EMBEDDINGS, USER, users),
        (VIDEO_EMBEDDINGS, VIDEO, pa.array([i[VIDEO] for i in items])),
    ):
        vectors = rng.standard_normal((len(ids), DIMENSION))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        write_table(run.model / name, embeddings_table(key, ids, vectors), embeddings_schema(key))
    return run
