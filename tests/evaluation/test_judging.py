"The numbers agree with those of others, and whatever is wrong with a model, it does not pass."

import copy
import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import pytrec_eval
import sklearn.calibration
import sklearn.metrics
import torch
from scipy import sparse

from twotower import evaluate
from twotower.base.errors import GateError, InputError
from twotower.base.files import atomic_folder, write_json
from twotower.base.settings import project_file
from twotower.base.tables import INTERACTIONS, KIND, LIKE, VIDEOS, read_table
from twotower.evaluate import BY_USER, judge_run, past_verdicts
from twotower.evaluation.metrics import auc, auc_within, log_losses, ranking_metrics, reliability, top_k
from twotower.evaluation.parity import forms_of
from twotower.learning.inner import train
from twotower.learning.training_set import load_prepared
from twotower.model.towers import TwoTower
from twotower.prep import prepare_files
from twotower.runs.parameters import read_yaml
from twotower.runs.run import MODEL_FILES, ONNX, VAL, Run, blessed, create_run, find_run, point_stable
from twotower.runs.settings import EvalSettings, PrepSettings, TrainSettings
from twotower.train import save_training

PREP, TRAINING, RULES = (
    read_yaml(project_file(f'params/ci/{name}.yaml')) for name in ('01_prep', '02_train', '03_eval')
)
TRAINING |= {'hidden': 8, 'epochs': 4}


# the same numbers as others


@pytest.mark.parametrize('seed', range(3))
def test_rankings_are_measured_as_by_trec_eval(seed):
    rng, k = np.random.default_rng(seed), 20
    users, items = (rng.normal(size=(n, 8)).astype(np.float32) for n in (40, 300))
    seen = sparse.csr_matrix(rng.random((40, 300)) < 0.2)
    wanted = rng.random((40, 300)) < rng.choice([0.02, 0.2], 40)[:, None]
    wanted[:, 0] = True
    relevant = sparse.csr_matrix(wanted)
    rows, _ = top_k(users, items, k, seen)
    ours = ranking_metrics(rows, relevant)
    truth = {str(u): {str(v): 1 for v in relevant[u].indices} for u in range(40)}
    lists = {str(u): {str(v): float(k - i) for i, v in enumerate(rows[u])} for u in range(40)}
    asked = pytrec_eval.RelevanceEvaluator(truth, {f'recall.{k}', f'map_cut.{k}', f'ndcg_cut.{k}', 'recip_rank'})
    theirs = [asked.evaluate(lists)[str(u)] for u in range(40)]
    wanted = wanted.sum(1)
    assert (wanted > k).any()  # there trec_eval's average precision can't reach 1, since it divides by all likes
    for name, column, factor in [
        ('recall', f'recall_{k}', 1),
        ('map', f'map_cut_{k}', wanted / np.minimum(wanted, k)),
        ('ndcg', f'ndcg_cut_{k}', 1),
        ('mrr', 'recip_rank', 1),
    ]:
        np.testing.assert_allclose(ours[name], np.array([t[column] for t in theirs]) * factor, err_msg=name)


@pytest.mark.parametrize('seed', range(3))
def test_scores_are_judged_as_by_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    users, labels = rng.integers(0, 30, 1500), rng.integers(0, 2, 1500)
    p = np.round(np.clip(rng.beta(2, 2, 1500) + 0.1 * labels, 0.01, 0.99), 2)  # many ties
    assert auc(p, labels) == pytest.approx(sklearn.metrics.roc_auc_score(labels, p))
    each = [sklearn.metrics.roc_auc_score(labels[users == u], p[users == u]) for u in range(30)]
    np.testing.assert_allclose(auc_within(p, labels, users, 30), each)
    assert log_losses(p, labels).mean() == pytest.approx(sklearn.metrics.log_loss(labels, p))
    q = p + 0.003  # off the edges of the bins, whose side is a matter of taste
    bins, error = reliability(q, labels)
    observed, predicted = sklearn.calibration.calibration_curve(labels, q, n_bins=10)
    np.testing.assert_allclose([b['observed'] for b in bins], observed)
    np.testing.assert_allclose([b['predicted'] for b in bins], predicted)
    assert error == pytest.approx(np.abs(observed - predicted) @ [b['n'] for b in bins] / 1500)


# what doesn't pass


@pytest.fixture(scope='module')
def first(tmp_path_factory) -> tuple[Run, TwoTower]:
    "Eighty users with one of two tastes: a judged run and its model."
    folder, rng = tmp_path_factory.mktemp('world'), np.random.default_rng(0)
    rows = [
        (f'https://shop/{v}', f'u{u}', 5 if v % 2 == u % 2 else 1)
        for u in range(80)
        for v in rng.choice(60, 24, replace=False)
    ]
    with open(folder / 'reviews.csv', 'w', newline='') as file:
        csv.writer(file).writerows([('product_url', 'reviewer_id', 'stars'), *rows])
    videos = [
        dict.fromkeys(VIDEOS.names)
        | {'video_id': f'v{v}', 'content_id': f'c{v}', 'product_url': f'https://shop/{v}', 'tags': ['even', 'odd'][v % 2 : v % 2 + 1]}
        for v in range(60)
    ]  # fmt: skip
    run = create_run('first', folder / 'outputs')
    config = PrepSettings(**PREP | {'input': str(folder / 'reviews.csv'), 'snapshot_inputs': False})
    prepare_files(run.prep, pa.Table.from_pylist(videos, VIDEOS), config)
    prepared = load_prepared(run.prep, TrainSettings(**TRAINING))
    model, _, facts = train(prepared.data, TrainSettings(**TRAINING))
    with atomic_folder(run.model) as draft:
        save_training(draft, model, prepared, {'run_id': run.id, 'calibration': facts})
    assert verdict_on(run)['reasons'] == []
    return run, model


def verdict_on(run: Run, **rules) -> dict:
    "Judge as the stage does."
    verdict = judge_run(run, EvalSettings(**RULES | rules))
    write_json(run.metrics, verdict)
    point_stable(run.outputs)
    return verdict


@pytest.fixture
def again(first, tmp_path) -> Callable[..., Run]:
    "A new run beside the first, with the same data and a changed model."

    def make(change: Callable[[TwoTower], object] | None = None) -> Run:
        outputs = tmp_path / 'outputs'
        shutil.copytree(first[0].outputs, outputs, symlinks=True, dirs_exist_ok=True)
        run, model = create_run('second', outputs), copy.deepcopy(first[1])
        shutil.copytree(first[0].prep, run.prep)
        if change is None:
            shutil.copytree(first[0].model, run.model)
            return run
        with torch.no_grad():
            change(model)
        prepared = load_prepared(run.prep, TrainSettings(**TRAINING))
        with atomic_folder(run.model) as draft:
            save_training(draft, model, prepared, {'run_id': run.id, 'calibration': {'scale': 5.0, 'bias': 0.0}})
        return run

    return make


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = change(pq.read_table(path))
    path.unlink()  # it may share its bytes with another run
    pq.write_table(table, path)


def test_the_same_model_has_not_fallen(first, again):
    run = again()
    verdict = verdict_on(run, max_fall_recall=0.0, max_fall_map=0.0, max_fall_ndcg=0.0, max_fall_auc=0.0)
    assert (verdict['verdict'], verdict['compared_with'], verdict['notes']) == ('pass', 'first', [])
    assert {(row['fall'], row['chance']) for row in verdict['falls']} == {(0.0, 1.0)}
    assert [row['n_users'] for row in verdict['falls']] == [verdict['n_users']] * 3 + [80]
    assert find_run('stable', run.outputs).id == 'second'
    assert [v['run_id'] for v in past_verdicts(run.outputs)] == ['first', 'second']
    assert verdict_on(run)['compared_with'] == 'first'  # judged twice, it isn't compared with itself


def test_a_model_that_unlearned_has_fallen_beyond_chance(again):
    run = again(lambda model: [p.copy_(torch.randn_like(p)) for p in model.user.parameters()])
    verdict = verdict_on(run, max_fall_recall=0.1, hard_fall=1.0, min_recall=0.0, min_ndcg=0.0, min_auc=0.0)
    fell = r'recall@20, at most 10% below stable run first: it fell by .* on the same \d+ users \(beyond chance, p = 0.0005\)'
    assert re.fullmatch(fell, verdict['reasons'][0])
    assert find_run('stable', run.outputs).id == 'first'


@pytest.mark.fault(
    'the weights of a model are NaN', sees='03_eval fails: embeddings with NaN or infinity, every metric unknown'
)
def test_nan_weights_do_not_pass(again):
    run = again(lambda model: model.item.bias.fill_(float('nan')))
    verdict = verdict_on(run)
    assert verdict['verdict'] == 'fail'
    assert set(verdict['metrics'].values()) == {None}
    said = ' '.join(verdict['reasons'])
    assert re.search(r'embeddings with NaN or infinity, at most 0: it is \d+', said)
    assert 'L2 distance of torch, ONNX and files, at most 0.001: it is unknown' in said
    with pytest.raises(GateError, match="says 'fail'"):
        blessed(run.model, run.metrics)


@pytest.mark.fault(
    'all embeddings of a model point one way', sees='03_eval fails: mean cosine of two videos, all alike'
)
def test_a_collapsed_model_does_not_pass(again):
    def collapse(model):
        for tower in (model.user, model.item):
            tower.first.weight.mul_(1e-4)
            tower.bias.fill_(1)

    verdict = verdict_on(again(collapse), min_recall=0.0, min_ndcg=0.0, min_auc=0.0)
    for name in ('users', 'videos'):
        assert any(r.startswith(f'mean cosine of two {name} (1: all alike)') for r in verdict['reasons'])
    assert verdict['verdict'] == 'fail'


@pytest.mark.fault('the held-out part has no dislike', sees='03_eval fails: auc is unknown')
def test_one_class_does_not_pass(again):
    run = again()
    change_table(run.prep / VAL, lambda t: t.filter(pc.equal(t[KIND], LIKE)))
    verdict = verdict_on(run, min_auc=0.0)
    assert (verdict['metrics']['auc'], verdict['verdict']) == (None, 'fail')
    assert 'auc, at least 0: it is unknown' in verdict['reasons']
    assert 'auc, at most 100% below stable run first: it is unknown' in verdict['reasons']


@pytest.mark.fault('nothing was held out', sees='03_eval fails: no users with something to find, every metric unknown')
def test_nobody_to_ask_does_not_pass(again):
    run = again()
    change_table(run.prep / VAL, lambda t: t.slice(0, 0))
    verdict = verdict_on(run, min_users=0, min_recall=0.0, min_ndcg=0.0, min_auc=0.0)
    assert verdict['verdict'] == 'fail'
    assert {'recall@20, at least 0: it is unknown', 'auc, at least 0: it is unknown'} <= set(verdict['reasons'])


@pytest.mark.fault(
    'the ONNX file is of another training', sees='03_eval fails: cosine distance of torch, ONNX and files'
)
def test_forms_that_differ_do_not_pass(first, again):
    run = again(lambda model: model.user.first.weight.add_(0.1 * torch.randn_like(model.user.first.weight)))
    shutil.copy(first[0].model / ONNX, run.model / ONNX)
    verdict = verdict_on(run)
    assert any(r.startswith('cosine distance of torch, ONNX and files, at most 1e-05') for r in verdict['reasons'])
    forms = verdict['parity']['forms']
    assert forms['user onnx']['max_l2'] > 0.01 > 1e-5 > forms['item onnx']['max_l2']
    assert list(forms_of(run.model))[:2] == ['torch', 'onnx']


@pytest.mark.fault('a file of a model is altered after its verdict', sees='whatever comes next stops: not the file that was judged')  # fmt: skip
@pytest.mark.parametrize('name', MODEL_FILES)
def test_the_verdict_is_about_these_bytes(again, name):
    run = again()
    assert verdict_on(run)['verdict'] == 'pass'
    content = bytearray((run.model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run.model / name).write_bytes(content)
    with pytest.raises(GateError, match=f'{name} is not the file that'):
        blessed(run.model, run.metrics)
    assert point_stable(run.outputs).id == 'first'


@pytest.mark.fault('a file of a model is exchanged while it is judged', sees='03_eval stops: changed while being judged; no verdict')  # fmt: skip
def test_files_that_change_meanwhile_get_no_verdict(again, monkeypatch):
    run, parity = again(), evaluate.parity

    def meanwhile(*args):
        found = parity(*args)
        (run.model / ONNX).write_bytes(b'another')
        return found

    monkeypatch.setattr(evaluate, 'parity', meanwhile)
    with pytest.raises(InputError, match=f'{ONNX} changed while being judged'):
        verdict_on(run)
    assert not run.metrics.exists()


@pytest.mark.fault("the last stable run's metrics by user are lost or altered", sees='03_eval compares by intervals instead and says so')  # fmt: skip
@pytest.mark.parametrize('damage', ['lost', 'altered'])
def test_without_the_metrics_by_user_intervals_serve(first, again, damage):
    run = again()
    path = run.outputs / 'runs' / 'first' / BY_USER
    if damage == 'lost':
        path.unlink()
    else:
        change_table(path, lambda t: t.slice(1))
    verdict = verdict_on(run)
    assert (verdict['verdict'], verdict['compared_with']) == ('pass', 'first')
    assert [row['n_users'] for row in verdict['falls']] == [None] * 4
    why = {'lost': 'is not here', 'altered': 'is not the one of its verdict'}[damage]
    assert verdict['notes'] == [f'recall@20, map@20, ndcg@20, auc compared with stable run first by intervals, not user by user: {BY_USER} of run first {why}']  # fmt: skip


def test_without_runs_the_fetched_model_is_the_reference(first, again):
    run = again()
    shutil.rmtree(run.outputs / 'runs' / 'first')
    (run.outputs / 'active' / 'current').mkdir(parents=True)
    shutil.copy(first[0].metrics, run.outputs / 'active' / 'current')
    assert verdict_on(run)['compared_with'] == 'first'
    shutil.rmtree(run.outputs / 'active')
    assert verdict_on(run)['notes'] == ['no stable run to compare with: this is the first']


def test_new_users_are_counted_and_lists_of_another_length_are_not_compared(again):
    run = again()
    stranger = {'user_id': 'nobody', 'video_id': 'v0', 'label': 1, 'kind': 'like'}
    change_table(run.prep / VAL, lambda t: pa.concat_tables([t, pa.Table.from_pylist([stranger], INTERACTIONS)]))
    assert read_table(run.prep / VAL, INTERACTIONS)['user_id'][-1].as_py() == 'nobody'
    verdict = verdict_on(run, k=5)
    assert (verdict['unknown_users'], [row['metric'] for row in verdict['falls']]) == (1, ['auc'])
    assert verdict['notes'] == ['stable run first has no recall@5, map@5, ndcg@5: not compared']
