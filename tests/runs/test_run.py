"The main job on real ratings: good, reproducible, the same in ONNX, useful for what is new, and whole when killed."

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from typer.testing import CliRunner

from twotower.base.errors import GateError, InputError, TwotowerError
from twotower.base.files import atomic_folder, point, read_json, sha256, write_json
from twotower.base.settings import project_file
from twotower.base.tables import ITEM_FEATURES, USER_FEATURES, read_embeddings, read_table
from twotower.catalogue.movielens import fetch_wheel, read_ml100k, write_reviews
from twotower.cli import app
from twotower.evaluate import judge_run
from twotower.learning.inner import train
from twotower.learning.training_set import load_prepared
from twotower.model.export import onnx_embed, onnx_session
from twotower.model.features import encode
from twotower.prep import prepare_files
from twotower.runs.parameters import read_yaml
from twotower.runs.run import (
    FIRST_FILES,
    ITEMS,
    META,
    MODEL_FILES,
    ONNX,
    SPARSE_ONNX,
    TRAIN,
    USERS,
    VAL,
    VIDEO_EMBEDDINGS,
    Run,
    blessed,
    create_run,
    find_run,
    point_stable,
)  # fmt: skip
from twotower.runs.settings import EvalSettings, PrepSettings, TrainSettings
from twotower.train import save_training

torch.set_num_threads(1)  # children are forked below, and threads don't survive that
PREP, TRAINING, RULES = (
    read_yaml(project_file(f'params/ci/{name}.yaml')) for name in ('01_prep', '02_train', '03_eval')
)


def prepare_run(run: Run, folder: Path, **settings) -> None:
    prepare_files(
        run.prep,
        read_videos(),
        PrepSettings(**PREP | {'input': str(folder / 'reviews.csv')} | {'snapshot_inputs': False} | settings),
    )


def read_videos() -> pa.Table:
    videos = read_ml100k(fetch_wheel()).videos
    return videos.set_column(videos.column_names.index('video_id'), 'video_id', videos['content_id'])


def train_run(run: Run, **settings) -> None:
    config = TrainSettings(**TRAINING | settings)
    prepared = load_prepared(run.prep, config)
    model, _, facts = train(prepared.data, config)
    with atomic_folder(run.model) as folder:
        save_training(folder, model, prepared, {'run_id': run.id, 'calibration': facts})
    point(run.outputs / 'latest', run.path)


def verdict_on(run: Run, **settings) -> dict:
    verdict = judge_run(run, EvalSettings(**RULES | settings))
    write_json(run.metrics, verdict)
    point_stable(run.outputs)
    return verdict


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Run:
    "A run on MovieLens-100K, prepared, trained in a few seconds and judged."
    folder = tmp_path_factory.mktemp('finished')
    write_reviews(read_ml100k(fetch_wheel()), folder / 'reviews.csv')
    run = create_run('first', folder / 'outputs')
    prepare_run(run, folder)
    train_run(run)
    verdict_on(run)
    return run


def fork(run: Run, name: str, *parts: str) -> Run:
    "A new run with some of the folders of another."
    new = create_run(name, run.outputs)
    for part in parts:
        with atomic_folder(new.path / part) as draft:
            for file in (run.path / part).iterdir():
                (draft / file.name).hardlink_to(file)
    return new


def test_it_beats_what_needs_no_model(finished):
    metrics = read_json(finished.metrics)
    assert metrics['verdict'] == 'pass'
    assert metrics['reasons'] == []
    for name in ('recall@20', 'map@20', 'ndcg@20'):
        assert (
            metrics['intervals'][name][0]
            > metrics['baselines']['popularity'][name]
            > metrics['baselines']['random'][name]
        )
    assert {'schema_version', 'run_id', 'verdict', 'n_users', 'n_items', 'parity', 'files'} <= set(metrics)
    assert (find_run('latest', finished.outputs), find_run('stable', finished.outputs)) == (finished, finished)


def test_a_sweep_writes_a_table_and_keeps_the_best(finished, home, monkeypatch):
    monkeypatch.setattr('twotower.cli.find_run', lambda name: finished)
    before = sha256(finished.prep / VAL)
    asked = ['sweep', 'ci', '--try', 'learning_rate=0.000001,0.01', '--try', 'hidden=8', '--write']
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    [table] = (finished.outputs / 'sweeps').iterdir()
    rows = pd.read_csv(table)
    assert rows['learning_rate'].tolist() == [0.01, 0.000001]  # a step that is too small learns nothing
    assert rows['score'].is_monotonic_decreasing
    written = read_yaml(home / 'params' / 'ci' / '02_train.yaml')
    assert written == TRAINING | {'learning_rate': 0.01, 'hidden': 8}
    assert sha256(finished.prep / VAL) == before
    refused = CliRunner().invoke(app, ['sweep', 'ci', '--try', 'learning_rat=0.01'])
    assert 'no parameter of 02_train' in str(refused.exception)


def test_onnx_agrees_with_torch_on_every_row(finished):
    parity = read_json(finished.metrics)['parity']
    assert parity['max_cosine_distance'] < 1e-5
    assert parity['max_l2'] < 1e-3


def test_a_model_without_the_second_graph_is_still_judged(finished):
    old = fork(finished, 'old', 'prep', 'model')
    (old.model / SPARSE_ONNX).unlink()
    assert set(verdict_on(old)['files']) == set(FIRST_FILES)
    assert blessed(old.model, old.metrics)['verdict'] == 'pass'


def test_the_same_seed_gives_the_same_files_and_metrics(finished):
    again = fork(finished, 'again', 'prep')
    train_run(again)
    for name in MODEL_FILES:
        assert name == META or sha256(again.model / name) == sha256(finished.model / name), name
    assert verdict_on(again)['metrics'] == read_json(finished.metrics)['metrics']
    other = fork(finished, 'other', 'prep')
    train_run(other, seed=1, epochs=1)
    assert sha256(other.model / ONNX) != sha256(finished.model / ONNX)


def test_training_never_reads_the_held_out_part(finished):
    blind = create_run('blind', finished.outputs)
    with atomic_folder(blind.prep) as draft:
        for name in (TRAIN, ITEMS, USERS):
            (draft / name).hardlink_to(finished.prep / name)
    train_run(blind)
    assert not (blind.prep / VAL).exists()
    assert sha256(blind.model / ONNX) == sha256(finished.model / ONNX)


@pytest.mark.parametrize('genre', ['Horror', "Children's", 'War', 'Documentary'])
def test_a_new_video_lands_among_its_genre(finished, genre):
    meta, session = read_json(finished.model / META), onnx_session(finished.model / ONNX)
    new = pa.Table.from_pylist([{'video_id': 'never seen', 'tags': [genre]}], ITEM_FEATURES)
    vectors, report = encode(meta['encoding'], 'item', new)
    assert report['unknown_words']['video'] == 1
    _, items = read_embeddings(finished.model / VIDEO_EMBEDDINGS, 'video_id')
    nearest = np.argsort(-(items @ onnx_embed(session, 'item', vectors)[0]))[:20]
    tags = read_table(finished.prep / ITEMS, ITEM_FEATURES)['tags'].to_pylist()
    share = np.mean([genre in tags[i] for i in nearest])
    everywhere = np.mean([genre in t for t in tags])
    assert share > 3 * everywhere


def test_a_new_user_is_shown_what_they_like(finished):
    meta, session = read_json(finished.model / META), onnx_session(finished.model / ONNX)
    items = read_table(finished.prep / ITEMS, ITEM_FEATURES)
    popular = items.filter(pc.greater(items['popularity'], 40))
    horror = [
        v
        for v, tags in zip(popular['video_id'].to_pylist(), popular['tags'].to_pylist(), strict=True)
        if 'Horror' in tags
    ]
    new = pa.Table.from_pylist(
        [{'user_id': 'new', 'recent_positive_video_ids': horror, 'like_count': len(horror)}], USER_FEATURES
    )
    user = onnx_embed(session, 'user', encode(meta['encoding'], 'user', new)[0])[0]
    ids, vectors = read_embeddings(finished.model / VIDEO_EMBEDDINGS, 'video_id')
    known = pc.is_in(ids, value_set=pa.array(horror)).to_numpy(zero_copy_only=False)
    best = np.argsort(-(vectors @ user) + 9 * known)[:20]
    share = np.mean(['Horror' in items['tags'][int(i)].as_py() for i in best])
    assert share > 3 * np.mean(['Horror' in t for t in items['tags'].to_pylist()])


def test_the_code_of_the_readme_runs(finished, monkeypatch):
    monkeypatch.setenv('TWOTOWER_HOME', str(finished.outputs.parent))
    cells = read_json(Path(__file__).parents[2] / 'nbs' / 'index.ipynb')['cells']
    scope = {}
    for cell in cells:
        if cell['cell_type'] == 'code':
            exec(''.join(cell['source']), scope)
    assert scope['vector'].shape == (1, 128)
    assert scope['report']['missing_columns']


def test_a_failing_gate_says_why_and_nothing_goes_on(finished):
    weak = fork(finished, 'weak', 'prep', 'model')
    verdict = verdict_on(weak, min_recall=0.9, min_auc=0.99)
    assert verdict['verdict'] == 'fail'
    assert [r.split(',')[0] for r in verdict['reasons']] == ['recall@20', 'auc']
    with pytest.raises(GateError, match=r'recall@20, at least 0\.9: it is 0\.'):
        blessed(weak.model, weak.metrics)
    assert find_run('stable', finished.outputs) != weak


def test_a_sharp_fall_against_the_stable_run_fails(finished):
    worse = fork(finished, 'worse', 'prep')
    train_run(worse, epochs=1, hidden=0, learning_rate=0.0001)
    verdict = verdict_on(worse, min_recall=0.0, min_ndcg=0.0, min_auc=0.0, min_lift=0.0, max_fall_recall=0.1)
    assert verdict['compared_with'] in ('first', 'again')
    assert any('at most 10% below stable run' in reason for reason in verdict['reasons'])


def test_files_of_another_run_are_refused(finished):
    mixed = fork(finished, 'mixed', 'prep', 'model')
    video = mixed.model / VIDEO_EMBEDDINGS
    short = pa.parquet.read_table(video).slice(1)
    video.unlink()
    pa.parquet.write_table(short, video)
    with pytest.raises(InputError, match=r'video_embeddings\.parquet is not about the rows of'):
        verdict_on(mixed)


def test_divergence_is_said_and_leaves_nothing(finished):
    wild = fork(finished, 'wild', 'prep')
    with pytest.raises(TwotowerError, match=r'loss is nan in epoch \d+, batch \d+: lower learning_rate'):
        train_run(wild, learning_rate=1e38)
    assert sorted(p.name for p in wild.path.iterdir()) == ['prep', 'run.json']


def whole(outputs: Path) -> None:
    "What a reader finds through the pointers is complete, whatever was killed."
    latest = find_run('latest', outputs)
    assert sorted(p.name for p in latest.model.iterdir()) == sorted(MODEL_FILES)
    stable = find_run('stable', outputs)
    assert blessed(stable.model, stable.metrics)['verdict'] == 'pass'


@pytest.mark.fault(
    'SIGKILL at every write of preparing, training and judging', sees='the run before; a new attempt does it'
)
def test_killed_at_every_write_of_every_stage(finished, killed_at):
    "SIGKILL before each rename, link, sync and so on: the pointers lead to something whole, and a new try finishes."
    config = TrainSettings(**TRAINING | {'hidden': 4, 'epochs': 1, 'batch_size': 1000})
    prepared = load_prepared(finished.prep, config)
    model, _, facts = train(prepared.data, config)
    run = create_run('killed', finished.outputs)

    def save_prep() -> None:
        prepare_run(run, finished.outputs.parent)

    def save_model() -> None:
        with atomic_folder(run.model) as folder:
            save_training(
                folder, model, prepared, {'run_id': run.id, 'calibration': facts, 'at': datetime.now(UTC).isoformat()}
            )
        point(run.outputs / 'latest', run.path)

    def save_verdict() -> None:
        verdict_on(run, min_recall=0.0, min_ndcg=0.0, min_auc=0.0, min_lift=0.0)

    deaths = {}
    for name, stage, done in [
        ('prep', save_prep, run.prep),
        ('model', save_model, run.model),
        ('verdict', save_verdict, None),
    ]:
        n = 1
        while killed_at(n, stage):
            whole(finished.outputs)
            n += 1
            if (
                done and done.exists()
            ):  # renamed: finished work is never written over, the pointer is all that is left to do
                break
        deaths[name] = n - 1
        whole(finished.outputs)
    point(run.outputs / 'latest', run.path)
    save_verdict()
    assert find_run('stable', finished.outputs).id == 'killed'
    assert min(deaths.values()) >= 3, deaths
