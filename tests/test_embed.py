"The daily way: videos that came after the model, embedded from its files alone."

import json

import numpy as np
import pyarrow as pa
import pytest

from twotower.core import (
    EMBEDDING,
    ITEM_FEATURES,
    USER,
    USER_FEATURES,
    VIDEO,
    embeddings_schema,
    read_table,
    sha256,
    write_table,
)
from twotower.database import VIDEOS, load_videos, missing_videos, save_videos
from twotower.embed import reflect
from twotower.features import encode, fit_encoding
from twotower.model import TwoTower, embed, export_onnx
from twotower.runs import (
    META,
    MODEL_FILES,
    ONNX,
    PT,
    SPARSE_ONNX,
    USER_EMBEDDINGS,
    VIDEO_EMBEDDINGS,
    create_run,
    write_json,
)
from twotower.sparse_onnx import export_sparse_onnx

GENRES = ['Comedy', 'War', 'Drama', 'Western']


def videos(numbers):
    rows = [
        dict.fromkeys(VIDEOS.names)
        | {'content_id': f'c{i}', 'product_url': f'https://v.example/{i}', 'title': f'video {i}'}
        | {'tags': [GENRES[i % 4]], 'performers': []}
        for i in numbers
    ]
    return pa.Table.from_pylist(rows, VIDEOS)


@pytest.fixture
def run(database):
    "A blessed run with twelve videos and an untrained model: random weights embed as well as others."
    save_videos(database, videos(range(12)))
    table = load_videos(database)
    items = pa.table(
        {name: table[name] if name in table.column_names else pa.array([0] * 12) for name in ITEM_FEATURES.names}
    ).cast(ITEM_FEATURES)
    users = pa.Table.from_pylist([dict.fromkeys(USER_FEATURES.names) | {USER: 'u', 'like_count': 1}], USER_FEATURES)
    encoding = fit_encoding(items, users)
    model = TwoTower(encoding['user']['width'], encoding['item']['width'], hidden=8)
    vectors = embed(model.item, encode(encoding, 'item', items)[0])
    run = create_run('r1')
    run.model.mkdir()
    write_json(run.model / META, {'encoding': encoding})
    export_onnx(model, run.model / ONNX)
    export_sparse_onnx(model, run.model / SPARSE_ONNX)
    (run.model / PT).write_text('weights')
    known = pa.table({VIDEO: table[VIDEO], EMBEDDING: vectors.tolist()}, embeddings_schema(VIDEO))
    write_table(run.model / VIDEO_EMBEDDINGS, known, embeddings_schema(VIDEO))
    write_table(run.model / USER_EMBEDDINGS, embeddings_schema(USER).empty_table(), embeddings_schema(USER))
    write_json(
        run.metrics,
        {'run_id': run.id, 'verdict': 'pass', 'files': {name: sha256(run.model / name) for name in MODEL_FILES}},
    )
    return run


def test_new_videos_are_embedded_and_the_others_left_alone(database, run):
    reflect(database, run, dry_run=False)
    save_videos(database, videos(range(12, 20)))
    before = database.execute('SELECT video_id, embedding::text, ctid::text FROM video_embeddings').fetchall()
    assert reflect(database, run, 'missing', batch=3).iloc[0].tolist() == ['videos', 8, 8, 0, 0, 0]
    assert reflect(database, run, 'missing', dry_run=False, batch=3).iloc[0].tolist() == ['videos', 8, 8, 0, 0, 0]
    assert reflect(database, run, 'missing', dry_run=False).iloc[0].tolist() == ['videos', 0, 0, 0, 0, 0]
    after = database.execute('SELECT video_id, embedding::text, ctid::text FROM video_embeddings').fetchall()
    assert set(before) < set(after)
    assert len(after) == 20
    assert list(missing_videos(database, run.id)) == []


def test_the_daily_way_gives_the_vectors_of_the_training(database, run):
    reflect(database, run, 'missing', dry_run=False)
    stored = dict(database.execute('SELECT video_id::text, embedding::text FROM video_embeddings').fetchall())
    written = read_table(run.model / VIDEO_EMBEDDINGS, embeddings_schema(VIDEO)).to_pydict()
    assert len(stored) == 12
    for video, vector in zip(written[VIDEO], written[EMBEDDING], strict=True):
        np.testing.assert_allclose(json.loads(stored[video]), vector, atol=1e-3)
