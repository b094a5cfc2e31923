"""RecTools' DSSM in an environment of its own: `pip install rectools[torch]`. Called by peers.py, knows nothing of twotower.

python dssm.py FOLDER FACTORS EPOCHS LEARNING_RATE SEED
"""

import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Trainer, seed_everything
from rectools.dataset.torch_datasets import DSSMItemDataset, DSSMTrainDataset, DSSMUserDataset
from rectools.models.nn.dssm import DSSM
from scipy import sparse
from torch.utils.data import DataLoader


def main(folder: Path, factors: int, epochs: int, learning_rate: float, seed: int) -> None:
    "Fit on likes.npz, users.npz and items.npz; write user_vectors.npy and item_vectors.npy, whose product orders as the distance does."
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    logging.getLogger('pytorch_lightning').setLevel(logging.ERROR)
    seed_everything(seed)
    train, shown, users, items = (
        sparse.load_npz(folder / f'{name}.npz') for name in ('likes', 'shown', 'users', 'items')
    )
    some = np.flatnonzero(np.diff(train.indptr))
    model = DSSM(factors, factors, users.shape[1], items.shape[1], train.shape[1], lr=learning_rate)
    quiet = {
        'logger': False,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
    }
    trainer = Trainer(accelerator='cpu', devices=1, max_epochs=epochs, **quiet)
    trainer.fit(model, DataLoader(DSSMTrainDataset(items, users[some], train[some]), batch_size=128, shuffle=True))
    u = model.inference_users(DataLoader(DSSMUserDataset(users, shown), batch_size=128))
    v = model.inference_items(DataLoader(DSSMItemDataset(items), batch_size=128))
    half = [(x**2).sum(1, keepdims=True) / 2 for x in (u, v)]  # -|u - v|^2 / 2 = u v - |u|^2 / 2 - |v|^2 / 2
    np.save(folder / 'user_vectors.npy', np.hstack([u, -half[0], np.ones_like(half[0])]).astype(np.float32))
    np.save(folder / 'item_vectors.npy', np.hstack([v, np.ones_like(half[1]), -half[1]]).astype(np.float32))


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
