"Several workers learn the model that one process learns, keep it when one of them is killed, and each needs less memory."

import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy import sparse

from twotower.learning.descent import DESCENTS
from twotower.learning.inner import train
from twotower.learning.loop import fit
from twotower.learning.taste import fit_taste
from twotower.learning.together import train_together
from twotower.learning.training_set import TrainingSet, part_of, training_set
from twotower.model.shards import assembled, first_layer
from twotower.model.sparse_rows import Rows
from twotower.model.towers import TwoTower
from twotower.parallel.launch import torchrun
from twotower.parallel.team import ALONE, Workers
from twotower.runs.settings import TrainSettings

torch.set_num_threads(1)  # children are forked below, and threads don't survive that
SETTINGS = dict(
    loss='softmax', start='linear', bce_weight=0.5, temperature=0.2, targets='all', mask_known=False, hard_weight=1.0,
    history_dropout=0.4, profile_dropout=0.5, id_dropout=0.2, negatives=0, average=0.9, warmup=2, hidden=8, dropout=0.0, batch_size=16,
    learning_rate=0.003, weight_decay=0.01, clip_norm=1.0, seed=0, device='cpu', precision='float32', optimizer='adamw',
)  # fmt: skip
KINDS = [
    {},
    {'optimizer': 'rowwise', 'dropout': 0.5},
    {'negatives': 6, 'hard_weight': 2.0},
    {'negatives': 6, 'optimizer': 'rowwise', 'targets': 'one', 'start': 'random', 'dropout': 0.5},
    {'loss': 'bce', 'clip_norm': 0.1},
    {'loss': 'bce', 'optimizer': 'rowwise', 'negatives': 6},
    {'loss': 'mixed', 'mask_known': True},
    {'loss': 'mixed', 'optimizer': 'rowwise', 'clip_norm': 0.1},
]


def toy() -> TrainingSet:
    "Fifty users, thirty videos, the last four of which nobody has seen; likes, dislikes, a profile."
    rng = np.random.default_rng(0)
    names = [f'v{i}' for i in range(30)]
    seen = sparse.random(50, 30, density=0.3, format='csr', rng=rng, dtype=np.float32).multiply(np.arange(30) < 26)
    seen = seen.toarray()
    liked, disliked = sparse.csr_matrix((seen > 0.4) * 1.0), sparse.csr_matrix((seen > 0) * (seen <= 0.4) * 1.0)
    segments = [
        {'name': n, 'vocabulary': 'video', 'offset': 30 * i, 'width': 30} for i, n in enumerate(('liked', 'disliked'))
    ]
    encoding = {
        'vocabularies': {'video': names},
        'user': {'segments': segments},
        'item': {'segments': [{'name': 'video', 'vocabulary': 'video', 'offset': 0, 'width': 30}]},
    }
    users = sparse.hstack([liked, disliked, sparse.csr_matrix(rng.random((50, 3)))]).tocsr()
    items = sparse.hstack([sparse.eye(30), sparse.csr_matrix(rng.random((30, 2)))]).tocsr()
    return training_set(
        encoding, users, items, pa.array(names), (liked + 0.3 * disliked).tocsr(), (liked * 2 + disliked).tocsr()
    )


def _together(work: Callable, size: int, *args) -> None:
    "Let several processes do a work; each is told its number."
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    mp.start_processes(_join, (size, port, work, args), size, start_method='fork')


def _join(rank: int, size: int, port: int, work: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=size)
    work(Workers() if size > 1 else ALONE, *args)
    dist.destroy_process_group()


def _learn(team: Workers, path: Path) -> None:
    mine, found = part_of(toy(), team.rank, team.size), []
    for changes in KINDS:
        model, history = fit(mine, TrainSettings(**SETTINGS | changes), 2, team=team)
        found.append({'model': model.state_dict(), 'loss': [row['train loss'] for row in history]})
    if team.rank == 0:
        torch.save(found, path)


@pytest.mark.parametrize('size', [1, 2, 4])
def test_several_workers_learn_the_model_of_one(size, tmp_path):
    _together(_learn, size, tmp_path / 'found.pt')
    for changes, found in zip(KINDS, torch.load(tmp_path / 'found.pt', weights_only=True), strict=True):
        model, history = fit(toy(), TrainSettings(**SETTINGS | changes), 2)
        assert list(found['model']) == list(model.state_dict())
        for name, weights in model.state_dict().items():
            np.testing.assert_allclose(found['model'][name], weights, rtol=0, atol=1e-5, err_msg=f'{changes} {name}')
        np.testing.assert_allclose(found['loss'], [row['train loss'] for row in history], rtol=1e-6)


TASTES = [{}, {'optimizer': 'rowwise', 'dropout': 0.5}]


def _taste(team: Workers, path: Path) -> None:
    mine, found = part_of(toy(), team.rank, team.size), []
    for changes in TASTES:
        config = TrainSettings(**SETTINGS | changes | {'taste_batch_size': 16})
        towers, _ = fit(mine, config, 2, team=team, whole=False)
        taste, history = fit_taste(towers, mine, config, 2, team=team)
        towers.learn_taste(taste, mine.history)
        found.append({'model': assembled(towers, team).state_dict(), 'loss': [row['train loss'] for row in history]})
    if team.rank == 0:
        torch.save(found, path)


@pytest.mark.parametrize('size', [2, 3])
def test_several_workers_learn_the_taste_of_one(size, tmp_path):
    _taste(ALONE, tmp_path / 'one.pt')
    _together(_taste, size, tmp_path / 'found.pt')
    one, several = (torch.load(tmp_path / name, weights_only=True) for name in ('one.pt', 'found.pt'))
    for changes, expected, found in zip(TASTES, one, several, strict=True):
        assert list(found['model']) == list(expected['model'])
        assert any(name.startswith('taste.user') for name in found['model'])
        for name, weights in expected['model'].items():
            np.testing.assert_allclose(found['model'][name], weights, rtol=0, atol=1e-5, err_msg=f'{changes} {name}')
        np.testing.assert_allclose(found['loss'], expected['loss'], rtol=1e-5)


def _weigh(team: Workers, folder: Path) -> None:
    for kind in DESCENTS:
        model = TwoTower(20_000, 10_000, 8, table=first_layer(team))
        descent = DESCENTS[kind](model, TrainSettings(**SETTINGS), team)
        entries = Rows(torch.tensor([0, 1]), torch.tensor([3]), torch.ones(1))
        (model.user(entries) + model.item(entries)).sum().backward()
        descent.step()
        states = {'model': model.state_dict(), 'descent': descent.state_dict()}
        (folder / f'{kind}.{team.rank}').write_text(str(_nbytes(states)))


def _nbytes(state: object) -> int:
    "Bytes of all tensors in it."
    if isinstance(state, dict | list | tuple):
        return sum(map(_nbytes, state.values() if isinstance(state, dict) else state))
    return state.nbytes if isinstance(state, torch.Tensor) else 0


def test_weights_and_optimiser_of_each_worker_shrink_with_their_number(tmp_path):
    sizes = {}
    for size in (1, 2, 4):
        _together(_weigh, size, tmp_path)
        for kind in DESCENTS:
            sizes[kind, size] = max(int((tmp_path / f'{kind}.{rank}').read_text()) for rank in range(size))
    for kind in DESCENTS:
        assert sizes[kind, 1] > 30_000 * 136 * 4 * 2  # weights and their average, at least
        assert sizes[kind, 2] < 0.51 * sizes[kind, 1]
        assert sizes[kind, 4] < 0.26 * sizes[kind, 1]


LONG = TrainSettings(**SETTINGS | dict(epochs=60, patience=60, inner_ratio=0.2, threads=1, engine='local', workers=2))


def _as_if_undisturbed(config: TrainSettings, folder: Path, fault: Callable[[], None]) -> None:
    "Train while something goes wrong in the middle of an epoch, after the fifth checkpoint."

    def wait() -> None:
        while not [p for p in folder.glob('checkpoints/*.pt') if int(p.name.split('.')[1]) >= 5]:
            if over.wait(0.02):
                return
        fault()
        struck.set()

    over, struck = Event(), Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(wait)
        try:
            model, epochs, facts = train_together(toy(), config, folder, every=0)
        finally:
            over.set()
        done.result()
    assert struck.is_set()
    one, one_epochs, one_facts = train(toy(), config)
    np.testing.assert_allclose(epochs, one_epochs, atol=1e-4)
    assert facts['epochs'] == one_facts['epochs']
    for mine, theirs in zip(model.state_dict().values(), one.state_dict().values(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)


def _below(pid: int, name: str) -> list[psutil.Process]:
    "Processes that a process has started whose command has a name in it."
    return [p for p in psutil.Process(pid).children(recursive=True) if name in ' '.join(p.cmdline())]


@pytest.mark.fault(
    'one of several training processes is killed', sees='all go on from the last checkpoint and learn the same model'
)
def test_a_killed_worker_is_started_again(tmp_path):
    _as_if_undisturbed(LONG, tmp_path, lambda: _below(os.getpid(), 'twotower.learning.together:work')[-1].kill())


@pytest.mark.fault(
    'a training of several processes is interrupted',
    sees='no process of it is left behind',
)
def test_an_interrupt_ends_all_workers(tmp_path, monkeypatch):
    (tmp_path / 'a_work.py').write_text(
        "import time\ndef sleep(folder):\n    (folder / 'on').touch()\n    time.sleep(60)\n"
    )
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    workers = []

    def interrupt() -> None:
        while not (tmp_path / 'on').exists():
            time.sleep(0.05)
        workers.extend(_below(os.getpid(), 'a_work:sleep'))
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            torchrun('a_work:sleep', tmp_path, 2)
        done.result()
    _, alive = psutil.wait_procs(workers, 5)
    assert len(workers) == 3  # torchrun and the two
    assert not alive


@pytest.mark.ray
@pytest.mark.fault(
    'a machine of the Ray cluster is lost while it trains',
    sees='Ray starts the workers on those that are left, and they go on from the last checkpoint',
)
def test_a_lost_machine_of_a_cluster_is_done_without(tmp_path, monkeypatch):
    cluster_utils = pytest.importorskip('ray.cluster_utils')
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    node = {'num_cpus': 1, 'object_store_memory': 80 * 2**20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node | {'include_dashboard': False})
    try:
        for _ in range(2):
            cluster.add_node(**node)
        monkeypatch.setenv('RAY_ADDRESS', cluster.address)
        raylets = [n.all_processes['raylet'][0].process.pid for n in cluster.worker_nodes]

        def lose() -> None:
            os.kill(next(pid for pid in raylets if _below(pid, 'RayTrainWorker')), signal.SIGKILL)

        _as_if_undisturbed(LONG.but(engine='ray'), tmp_path, lose)
    finally:
        cluster.shutdown()
