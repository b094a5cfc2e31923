"""What an earlier version published stays readable: each folder tests/golden/store_vN was written by the version of its time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twotower.base.errors import GateError, InputError
from twotower.base.files import read_json, sha256, write_json
from twotower.base.tables import (
    EMBEDDING,
    ITEM_FEATURES,
    USER,
    USER_FEATURES,
    VIDEO,
    embeddings_schema,
    read_embeddings,
    read_table,
    read_tastes,
)
from twotower.embedding.reflect import reflect
from twotower.model.export import has_taste, onnx_embed, onnx_session, sparse_embed, sparse_session
from twotower.model.features import encode
from twotower.model.towers import embed, embed_taste, load_model
from twotower.publish import list_files
from twotower.runs import run as runs
from twotower.runs.run import META, ONNX, PT, SPARSE_ONNX, USER_EMBEDDINGS, VIDEO_EMBEDDINGS, blessed, create_run
from twotower.store import records
from twotower.store.local import LocalStore
from twotower.store.models import activate, adopt, fetch, rollback, upload
from twotower.store.records import METRICS, active

GOLDEN = sorted((Path(__file__).parents[1] / 'golden').glob('store_v*'))
SIDES = {'item': (VIDEO, VIDEO_EMBEDDINGS), 'user': (USER, USER_EMBEDDINGS)}
SCHEMAS = {'item': ITEM_FEATURES, 'user': USER_FEATURES}


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def golden(request) -> Path:
    return request.param


@pytest.fixture
def fetched(golden, tmp_path) -> Path:
    "The folder of the active model of an old store."
    fetch(LocalStore(golden), tmp_path / 'active')
    return tmp_path / 'active' / 'current'


def rows(golden: Path, side: str, encoding: dict) -> pa.Table:
    "Features of the first users or videos, as JSON had them; only the columns that the model of that time knows."
    found = json.loads((golden / f'{side}s.json').read_text())
    columns = {segment['column'] for segment in encoding[side]['segments']} | {SIDES[side][0]}
    kinds = {name: SCHEMAS[side].field(name).type for name in sorted(columns)}
    return pa.table({name: pa.array([row[name] for row in found]).cast(kind) for name, kind in kinds.items()})


def test_an_old_model_is_fetched_and_still_blessed(golden, fetched):
    verdict = blessed(fetched, fetched / METRICS)
    assert verdict['run_id'] == active(LocalStore(golden))['run_id'] == fetched.resolve().name
    assert {'verdict', 'metrics', 'baselines', 'files'} <= set(verdict)
    assert set(list_files(LocalStore(golden), fetched.resolve().name)['file']) >= {*runs.FIRST_FILES, METRICS}


@pytest.mark.parametrize('side', SIDES)
def test_an_old_model_gives_the_vectors_that_it_gave(golden, fetched, side):
    meta, (key, name) = read_json(fetched / META), SIDES[side]
    table = read_table(fetched / name, embeddings_schema(key))
    written = dict(zip(table[key].to_pylist(), table[EMBEDDING].to_pylist(), strict=True))
    some = rows(golden, side, meta['encoding'])
    expected = [written[i] for i in some[key].to_pylist()]
    features, _ = encode(meta['encoding'], side, some)
    model = load_model(fetched / PT, meta['model'])
    np.testing.assert_allclose(embed(getattr(model, side), features), expected, atol=1e-5)
    np.testing.assert_allclose(onnx_embed(onnx_session(fetched / ONNX, 1), side, features), expected, atol=1e-5)


@pytest.mark.parametrize('side', SIDES)
def test_an_old_model_gives_the_tastes_that_it_gave_if_it_has_any(golden, fetched, side):
    meta, (key, name) = read_json(fetched / META), SIDES[side]
    graphs = [(onnx_embed, onnx_session(fetched / ONNX, 1))]
    if (fetched / SPARSE_ONNX).exists():
        graphs.append((sparse_embed, sparse_session(fetched / SPARSE_ONNX, 1)))
    written = read_tastes(fetched / name, key)
    assert (written is not None) == (golden.name != 'store_v1') == ('taste' in meta)
    assert {has_taste(session) for _, session in graphs} == {'taste' in meta}
    features, _ = encode(meta['encoding'], side, rows(golden, side, meta['encoding']))
    if written is None:
        with pytest.raises(InputError, match='the model has no taste: it is older'):
            onnx_embed(graphs[0][1], side, features, what='taste')
        return
    places = read_embeddings(fetched / name, key)[0].to_pylist()
    expected = [written[places.index(i)] for i in rows(golden, side, meta['encoding'])[key].to_pylist()]
    model = load_model(fetched / PT, meta['model'])
    np.testing.assert_allclose(embed_taste(model, side, features), expected, atol=1e-5)
    for ask, session in graphs:
        np.testing.assert_allclose(ask(session, side, features, what='taste'), expected, atol=1e-5)


def test_a_daily_run_works_with_an_old_model(fetched, database):
    run = create_run('daily')
    adopt(run, fetched.resolve())
    counts = reflect(database, run, 'run', include_users=True)
    files = {key: read_table(fetched / name, embeddings_schema(key)) for key, name in SIDES.values()}
    assert dict(zip(counts['what'], counts['rows'], strict=True)) == {
        'users': len(files[USER]),
        'videos': len(files[VIDEO]),
    }


@pytest.fixture
def later(monkeypatch) -> str:
    "Let this be a later version, whose models have one more file."
    name = 'two_tower_latest.more.onnx'
    monkeypatch.setattr(runs, 'MODEL_FILES', (*runs.MODEL_FILES, name))
    monkeypatch.setattr(records, 'PUBLISHED', (*records.PUBLISHED, name))
    return name


def test_a_later_version_reads_a_model_without_its_new_file(golden, later, tmp_path):
    assert fetch(LocalStore(golden), tmp_path / 'active')['seq'] == 1
    held = tmp_path / 'active' / 'current'
    assert blessed(held, held / METRICS)['verdict'] == 'pass'
    (held / later).write_text('nobody has judged this')
    with pytest.raises(GateError, match=f'{later} is not the file that'):
        blessed(held, held / METRICS)


def test_a_later_version_publishes_both_kinds(golden, later, tmp_path, toy_run):
    store = LocalStore(tmp_path / 'store')
    shutil.copytree(golden / 'two_tower', store.folder / 'two_tower')
    run = toy_run('new', 28)
    (run.model / later).write_text(f'{later} of new')
    with pytest.raises(GateError, match=f'{later} is not the file that'):  # the verdict does not know it
        upload(store, run)
    verdict = read_json(run.metrics)
    write_json(run.metrics, verdict | {'files': verdict['files'] | {later: sha256(run.model / later)}})
    upload(store, run)
    activate(store, 'new', allow_older=True)
    assert fetch(store, tmp_path / 'active')['run_id'] == 'new'
    assert (tmp_path / 'active' / 'current' / later).read_text() == f'{later} of new'
    old = rollback(store)['run_id']
    assert fetch(store, tmp_path / 'active')['run_id'] == old
    assert not (tmp_path / 'active' / 'current' / later).exists()
