"Several workers learn the model that one process learns, keep it when one of them is killed, and each needs less memory."

import socket
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy import sparse

from twotower.engines import part_of
from twotower.learn import TrainingSet, fit, training_set
from twotower.workers import Workers

torch.set_num_threads(1)  # children are forked below, and threads don't survive that
SETTINGS = dict(
    loss='softmax', start='linear', bce_weight=0.5, temperature=0.2, targets='all', mask_known=False, hard_weight=1.0,
    history_dropout=0.4, profile_dropout=0.5, id_dropout=0.2, negatives=0, average=0.9, warmup=2, hidden=8, dropout=0.0, batch_size=16,
    learning_rate=0.003, weight_decay=0.01, clip_norm=1.0, seed=0, device='cpu', precision='float32', optimizer='adamw',
)  # fmt: skip
KINDS = [
    {},
    {'optimizer': 'rowwise', 'dropout': 0.5},
    {'negatives': 6, 'targets': 'hidden', 'hard_weight': 2.0},
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


def _work(rank: int, size: int, port: int, kinds: list[dict], path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=size)
    mine, found = part_of(toy(), rank, size), []
    for changes in kinds:
        model, history = fit(mine, SimpleNamespace(**SETTINGS | changes), 2, team=Workers())
        found.append({'model': model.state_dict(), 'loss': [row['train loss'] for row in history]})
    if rank == 0:
        torch.save(found, path)
    dist.destroy_process_group()


@pytest.fixture
def together(tmp_path):
    "Let several workers fit with each of some settings; the first one's models and losses."

    def run(size: int, kinds: list[dict]) -> list[dict]:
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        mp.start_processes(_work, (size, port, kinds, tmp_path / 'found.pt'), size, start_method='fork')
        return torch.load(tmp_path / 'found.pt', weights_only=True)

    return run


@pytest.mark.parametrize('size', [2, 4])
def test_several_workers_learn_the_model_of_one(together, size):
    data, worst = toy(), 0.0
    for changes, found in zip(KINDS, together(size, KINDS), strict=True):
        model, history = fit(data, SimpleNamespace(**SETTINGS | changes), 2)
        assert list(found['model']) == list(model.state_dict())
        for name, weights in model.state_dict().items():
            d = (found['model'][name] - weights).abs().max().item()
            worst = max(worst, d)
            print(changes, name, d)
        print(found['loss'], [row['train loss'] for row in history])
    print(worst)
