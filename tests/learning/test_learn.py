"A long training that is killed goes on as if nothing had happened."

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import sparse

from twotower.learning.descent import DESCENTS
from twotower.learning.loop import fit
from twotower.learning.training_set import training_set
from twotower.runs.settings import TrainSettings

torch.set_num_threads(1)  # children are forked below, and threads don't survive that
SETTINGS = dict(
    loss='softmax', start='linear', bce_weight=0.5, temperature=0.2, targets='all', mask_known=False, hard_weight=1.0,
    history_dropout=0.4, profile_dropout=0.5, id_dropout=0.1, negatives=5, average=0.9, warmup=2, hidden=8, dropout=0.5, batch_size=7,
    learning_rate=0.01, weight_decay=0.01, clip_norm=1.0, seed=0, device='cpu', precision='float32',
)  # fmt: skip


@pytest.fixture
def data():
    "Twenty users, twelve videos; the last four nobody has seen."
    names = [f'v{i}' for i in range(12)]
    liked = sparse.random(20, 12, density=0.4, format='csr', rng=np.random.default_rng(0), dtype=np.float32)
    liked.data[:] = 1
    liked = liked.multiply(np.arange(12) < 8).tocsr()
    segment = {'vocabulary': 'video', 'offset': 0, 'width': 12}
    encoding = {
        'vocabularies': {'video': names},
        'user': {'segments': [{'name': 'liked'} | segment]},
        'item': {'segments': [{'name': 'video'} | segment]},
    }
    return training_set(encoding, liked, sparse.eye(12, format='csr'), pa.array(names), liked, liked * 2)


@pytest.mark.fault('training is killed', sees='it goes on from the last checkpoint and ends with the same weights')
@pytest.mark.parametrize('optimizer', DESCENTS)
def test_killed_at_every_write_it_ends_with_the_same_weights(data, optimizer, killed_at, tmp_path):
    config = TrainSettings(**SETTINGS, optimizer=optimizer)
    whole, history = fit(data, config, epochs=6)
    times = 0
    while killed_at(4, lambda: fit(data, config, 6, checkpoints=tmp_path, every=0)):
        times += 1
    assert times > 1
    rest, again = fit(data, config, 6, checkpoints=tmp_path, every=0)
    assert again == history
    for mine, theirs in zip(rest.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
