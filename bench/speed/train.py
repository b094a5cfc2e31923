"""How fast training is with wide features: ours, the same network with a dense first layer, RecTools' DSSM; see README.md.

python bench/speed/train.py                          1 million opinions; ours with both optimisers, the dense one, DSSM if RECTOOLS_PYTHON is set
python bench/speed/train.py --millions 10 --engines rowwise --steps 50
python bench/speed/train.py --engines rowwise --profile       where the time goes
python bench/speed/train.py --device cuda --precision bfloat16 --engines rowwise --batch-size 4096 --steps 200
python bench/speed/train.py --millions 10 --device cuda --engines rowwise --batch-size 4096 --epochs 5     whole epochs of `loop.fit` too
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import wide
from scipy import sparse
from torch.utils.data import DataLoader, Dataset

from twotower.learning import descent as optimisers
from twotower.learning import losses
from twotower.learning.descent import DESCENTS, autocast, pick_device
from twotower.learning.loop import batches, fit
from twotower.learning.losses import batch_loss, candidates, softmax_loss
from twotower.learning.training_set import TrainingSet
from twotower.model.sparse_rows import take
from twotower.model.towers import TwoTower
from twotower.runs.settings import TrainSettings

CONFIG = dict(
    loss='softmax', bce_weight=0.5, temperature=0.2, targets='all', mask_known=False, hard_weight=1.0,
    history_dropout=0.3, profile_dropout=0.5, id_dropout=0.1, average=0.98, warmup=20, hidden=128, dropout=0.0, learning_rate=0.006,
    weight_decay=0.0, clip_norm=5.0, seed=0, start='random',
)  # fmt: skip


def ours(data: TrainingSet, config: TrainSettings):
    "Steps as `loop.fit` makes them; yields the opinions of each batch."
    device = pick_device(config.device)
    generator, data = torch.Generator(device).manual_seed(0), data.to(device)
    torch.manual_seed(0)
    model = TwoTower(*data.widths, config.hidden).to(device)
    descent = DESCENTS[config.optimizer](model, config)
    ours.descent = descent
    while True:
        for which in batches(len(data.users), config.batch_size, generator):
            with autocast(config.precision, device):
                loss = batch_loss(model, data, which, config, generator)
            loss.item()
            loss.backward()
            descent.step()
            yield int((data.pairs.starts[which + 1] - data.pairs.starts[which]).sum())


class Users(Dataset):
    "A user: a dense vector with a part of the history hidden, the videos they spoke about and their weights."

    def __init__(self, data: TrainingSet, share: float):
        self.starts, self.columns, self.values = (x.numpy() for x in vars(data.users).values())
        self.kinds, self.videos, self.weights = (x.numpy() for x in (data.kinds, data.videos, data.weights))
        self.width, self.share, self.rng = data.widths[0], share, np.random.default_rng(0)

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, i):
        here = slice(self.starts[i], self.starts[i + 1])
        said = self.kinds[here] > 0
        shown = ~said | (self.rng.random(len(said)) >= self.share)
        vector = np.zeros(self.width, np.float32)
        vector[self.columns[here][shown]] = self.values[here][shown]
        return vector, self.videos[here][said], self.weights[here][said]


def dense(data: TrainingSet, config: TrainSettings):
    "Plain PyTorch: dense vectors, a DataLoader, AdamW, the same network, batch and loss; no moving average. Yields the opinions of each batch."
    rng = np.random.default_rng(0)
    items = sparse.csr_matrix(tuple(x.numpy() for x in (data.items.values, data.items.columns, data.items.starts)),
                              (len(data.items), data.widths[1]))  # fmt: skip

    def collate(rows):
        vectors, videos, weights = zip(*rows, strict=True)
        whose = np.repeat(np.arange(len(rows)), [len(v) for v in videos])
        wanted = np.concatenate(videos)
        chosen, counts = np.unique(
            np.concatenate([wanted, rng.integers(0, len(data.items), config.negatives)]), return_counts=True
        )
        log_q = np.log(np.minimum(counts / len(wanted) + config.negatives / len(data.items), 1)).astype(np.float32)
        parts = (
            np.stack(vectors),
            items[chosen].toarray(),
            whose,
            np.searchsorted(chosen, wanted),
            np.concatenate(weights),
            log_q,
        )
        return [torch.from_numpy(x) for x in parts]

    torch.manual_seed(0)
    model = TwoTower(*data.widths, config.hidden)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    while True:
        for users, videos, row, column, weights, log_q in DataLoader(
            Users(data, config.history_dropout), config.batch_size, shuffle=True, collate_fn=collate
        ):
            u, v = model(users, videos)
            loss = softmax_loss(u, v, (row, column), weights, config.temperature, log_q)
            loss.item()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            yield len(row)


def floor_bytes(data: TrainingSet, config: TrainSettings) -> float:
    "What a step must move at least: rows of the tables read, their gradients written and read, weights and averages read and written; products written and read once forward and once back."
    generator, sizes = torch.Generator().manual_seed(0), []
    for _, which in zip(range(3), batches(len(data.users), config.batch_size, generator), strict=False):
        rows, entries = take(data.users, which)
        wanted = data.videos[entries][data.kinds[entries] > 0]
        chosen, _ = candidates(data.rated, wanted, config.negatives, generator)
        touched = sum(len(r.columns.unique()) for r in (rows, take(data.items, chosen)[0]))
        sizes.append(touched * (config.hidden + 128) * 4 * 7 + len(which) * len(chosen) * 4 * 4)
    return statistics.mean(sizes)


def bandwidth(device: torch.device) -> float:
    "Bytes a second that a large copy reads and writes."
    a = torch.zeros(1 << (28 if device.type == 'cuda' else 26), device=device)
    b, times = torch.empty_like(a), []
    for _ in range(6):
        started = time.perf_counter()
        b.copy_(a)
        b[:1].item()
        times.append(time.perf_counter() - started)
    return 2 * a.nbytes / min(times)


CLASSES = 'products', 'sums of rows and their gradient', 'moving rows', 'other weights', 'batch', 'loss and activations'


def epoch_seconds(data: TrainingSet, config: TrainSettings, epochs: int) -> float:
    "Seconds of an epoch of `loop.fit`, the data being on the device; the first is left out."
    ends = []
    fit(data, config, epochs, lambda model: ends.append(time.perf_counter()) or {})
    return statistics.median(np.diff(ends))


def profile(steps, number: int, gpu: bool) -> dict[str, float]:
    "Share of the time of each class of work, by the operations' own time, on a GPU that of their kernels, in the place where they were called."

    def named(name, function):
        def call(*args, **kwargs):
            with torch.profiler.record_function(name):
                return function(*args, **kwargs)

        return call

    descent = ours.descent
    for name in ('take', 'hide', 'thin', 'candidates'):
        setattr(losses, name, named('batch', getattr(losses, name)))
    optimisers.move_rows = named('moving rows', optimisers.move_rows)
    descent.step = named('other weights', descent.step)
    kinds = torch.profiler.ProfilerActivity
    started = time.perf_counter()
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if gpu else [kinds.CPU]) as profiled:
        for _ in range(number):
            next(steps)
        wall = time.perf_counter() - started
    found = Counter()
    for event in profiled.events():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel; its time is in the operation that launched it too
        place, kind = event, None
        if event.name in ('aten::mm', 'aten::addmm', 'aten::bmm'):
            kind = 'products'
        while place is not None and kind is None:
            if place.name in CLASSES:
                kind = place.name
            elif '_Bag' in place.name:
                kind = 'sums of rows and their gradient'
            place = place.cpu_parent
        found[kind or 'loss and activations'] += event.self_device_time_total if gpu else event.self_cpu_time_total
    busy = {'of the time under the profiler, the GPU computed': found.total() / 1e6 / wall} if gpu else {}
    return {name: found[name] / found.total() for name in CLASSES} | busy


def run_one(engine: str, path: Path, config: TrainSettings, steps: int, show: bool, epochs: int) -> dict:
    "In a process of its own: what was measured."
    torch.set_num_threads(config.threads)
    data = wide.load(path)
    if engine == 'dense':
        running = dense(data, config)
    else:
        config = config.but(optimizer=engine)
        running = ours(data, config)
    for _ in range(2):
        next(running)
    wall, cpu, examples = [], [], []
    for _ in range(steps):
        started, before = time.perf_counter(), time.process_time()
        examples.append(next(running))
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - before)
    result = {
        'engine': engine, 'steps': steps, 'examples a step': statistics.mean(examples),
        'examples/s': statistics.mean(examples) / statistics.median(wall), 'examples/CPU s': statistics.mean(examples) / statistics.median(cpu),
        'peak GB': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip
    if engine != 'dense':
        device = pick_device(config.device)
        result['share of bandwidth'] = floor_bytes(data, config) / bandwidth(device) / statistics.median(wall)
        if device.type == 'cuda':
            result['peak GPU GB'] = torch.cuda.max_memory_allocated() / 1e9
        if show:
            result['profile'] = profile(running, min(steps, 20), device.type == 'cuda')
        if epochs:
            seconds = epoch_seconds(data, config, epochs)
            result |= {'s an epoch of fit': seconds, 'examples/s of fit': len(data.pairs.columns) / seconds}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--millions', type=float, default=1.0)
    parser.add_argument('--engines', default='adamw,rowwise,dense,dssm')
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--dense-steps', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--negatives', type=int, default=4096)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--precision', default='float32')
    parser.add_argument('--profile', action='store_true')
    parser.add_argument('--epochs', type=int, default=0)
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()) / 'twotower-bench')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    path = args.folder / f'wide_{args.millions:g}.pt'
    if args.one:
        keys = ('threads', 'batch_size', 'negatives', 'device', 'precision')
        config = TrainSettings(**CONFIG | {key: getattr(args, key) for key in keys})
        steps = args.dense_steps if args.one == 'dense' else args.steps
        print(json.dumps(run_one(args.one, path, config, steps, args.profile, args.epochs)))
        return
    if not path.exists():
        data, users, items = wide.make(int(args.millions * 1e6))
        wide.save(data, path)
        sparse.save_npz(path.with_suffix('.users.npz'), users[:20_000])
        sparse.save_npz(path.with_suffix('.items.npz'), items)
        likes = sparse.csr_matrix(tuple(x.numpy() for x in (data.pairs.values, data.pairs.columns, data.pairs.starts)))[
            :20_000
        ]
        likes.eliminate_zeros()
        sparse.save_npz(path.with_suffix('.likes.npz'), likes)
        del data, users, items
    for engine in args.engines.split(','):
        command = [sys.executable, __file__, '--one', engine, *sys.argv[1:]]
        if engine == 'dssm':
            if not (python := os.environ.get('RECTOOLS_PYTHON')):
                continue
            script = Path(__file__).with_name('dssm_steps.py')
            command = [python, script, path.with_suffix(''), str(args.dense_steps), str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(engine, 'failed:', done.stderr[-2000:])
            continue
        result = json.loads(done.stdout.strip().splitlines()[-1]) | {'load': os.getloadavg()[0]}
        shares = result.pop('profile', {})
        print(', '.join(f'{k} {v:,.3g}' if isinstance(v, float) else f'{k} {v}' for k, v in result.items()), flush=True)
        for name, share in shares.items():
            print(f'  {share:5.1%}  {name}')


if __name__ == '__main__':
    main()
