"""The speed of RecTools' DSSM, in an environment of its own; called by train.py.

python dssm_steps.py PREFIX STEPS THREADS
"""

import json
import logging
import resource
import statistics
import sys
import time
import warnings

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from rectools.dataset.torch_datasets import DSSMTrainDataset
from rectools.models.nn.dssm import DSSM
from scipy import sparse
from torch.utils.data import DataLoader

BATCH = 128


class Clock(Callback):
    "The time of each step, with the making of its batch."

    def __init__(self):
        self.wall, self.cpu = [time.perf_counter()], [time.process_time()]

    def on_train_batch_end(self, *_):
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def main(prefix: str, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter('ignore')
    logging.getLogger('pytorch_lightning').setLevel(logging.ERROR)
    users, items, likes = (sparse.load_npz(f'{prefix}.{name}.npz') for name in ('users', 'items', 'likes'))
    some = np.flatnonzero(np.diff(likes.indptr))
    model = DSSM(128, 128, users.shape[1], items.shape[1], likes.shape[1])
    clock = Clock()
    quiet = {
        'logger': False,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
    }
    trainer = Trainer(accelerator='cpu', devices=1, max_steps=steps + 1, callbacks=[clock], **quiet)
    trainer.fit(model, DataLoader(DSSMTrainDataset(items, users[some], likes[some]), batch_size=BATCH, shuffle=True))
    wall, cpu = (statistics.median(np.diff(times)[1:]) for times in (clock.wall, clock.cpu))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({'engine': 'RecTools DSSM', 'steps': steps, 'examples a step': float(BATCH), 'examples/s': BATCH / wall,
                      'examples/CPU s': BATCH / cpu, 'peak GB': peak}))  # fmt: skip


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
