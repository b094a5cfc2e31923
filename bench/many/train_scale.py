"""What it costs to share a training among processes: examples a second, and memory of each, with 1, 2, ... workers; see README.md.

python bench/many/train_scale.py                            0.1 million opinions; 1 and 2 workers by torchrun, 1 and 2 by Ray Train
python bench/many/train_scale.py --engines local --workers 1,2,4 --steps 5
python bench/many/train_scale.py --count 2,16               what each of 2 or 16 workers would send, by the formula of SCALE.md, from what one process asks for
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from itertools import chain, count, islice
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).resolve().parents[1] / 'speed'))

import wide
from train import CONFIG

from twotower.base.tables import DIMENSION
from twotower.learning.descent import DESCENTS
from twotower.learning.loop import batches
from twotower.learning.losses import batch_loss
from twotower.learning.training_set import TrainingSet, load_set, part_of, save_set
from twotower.model.shards import first_layer
from twotower.model.sparse_rows import take
from twotower.model.towers import Table, TwoTower
from twotower.parallel import team as operations
from twotower.parallel.launch import launch
from twotower.parallel.team import joined
from twotower.runs.settings import TrainSettings


def nbytes(state: object) -> int:
    "Bytes of all tensors in it."
    if isinstance(state, dict | list | tuple):
        return sum(map(nbytes, state.values() if isinstance(state, dict) else state))
    return state.nbytes if isinstance(state, torch.Tensor) else 0


def count_sent(sent: list[int]) -> None:
    "Note the bytes that this process sends to others in each operation."
    exchange, reduce = dist.all_to_all_single, dist.all_reduce

    def counted_exchange(out, x, receive, send):
        own = send[dist.get_rank()] * x[:1].nbytes
        sent.append(x.nbytes - own)
        return exchange(out, x, receive, send)

    def counted_reduce(x):
        sent.append(2 * x.nbytes * (dist.get_world_size() - 1) // dist.get_world_size())  # of a ring
        return reduce(x)

    operations.dist.all_to_all_single, operations.dist.all_reduce = counted_exchange, counted_reduce


def count_asked(data: TrainingSet, config: TrainSettings, steps: int, numbers: list[int]) -> None:
    "The formula of SCALE.md on the batches of one process, which is not told of others: nothing here is sent or measured."
    asked, found = [], []

    class Counted(Table):
        def forward(self, rows):
            asked.extend([len(rows), len(rows.columns)])
            return super().forward(rows)

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = TwoTower(*data.widths, config.hidden, table=Counted)
    descent = DESCENTS[config.optimizer](model, config)
    epochs = (batches(len(data.users), config.batch_size, generator) for _ in count())
    for which in islice(chain.from_iterable(epochs), steps + 2):
        asked.clear()
        batch_loss(model, data, which, config, generator).backward()
        descent.step()
        rows = take(data.users, which)[1]
        found.append([*asked, int(((data.kinds[rows] > 0) & (data.videos[rows] >= 0)).sum())])
    k, p = config.hidden + DIMENSION, sum(weights.numel() for weights in descent.common)
    for n in numbers:
        sent = [
            (n - 1) / n * (12 * (of_users + of_videos) / n + 8 * k * (b + c) + 8 * DIMENSION * c + 8 * p + 16 * b + 8 * opinions)
            for b, of_users, c, of_videos, opinions in found[2:]
        ]  # fmt: skip
        names = ('users', 'their features', 'candidates', 'their features', 'opinions')
        middle = ', '.join(
            f'{statistics.median(x):,.0f} {name}' for name, x in zip(names, zip(*found[2:], strict=True), strict=True)
        )
        print(f'{n} workers: {statistics.median(sent) / 1e6:.2f} MB sent by each in a step; {middle}')


def measure(folder: Path) -> None:
    "Steps as `loop.fit` makes them, in one of several workers; each writes what it measured."
    given, sent = json.loads((folder / 'settings.json').read_text()), []
    config = TrainSettings(**given['config'])
    torch.set_num_threads(1)
    with joined('cpu') as team:
        data, generator = load_set(folder / f'{team.rank}.pt'), torch.Generator().manual_seed(0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        torch.manual_seed(0)
        model = TwoTower(*data.widths, config.hidden, table=first_layer(team))
        descent = DESCENTS[config.optimizer](model, config, team)
        if team.size > 1:
            count_sent(sent)
        n, wall, cpu, moved, number = team.count(len(data.users)), [], [], [], 0
        epochs = (batches(n, config.batch_size, generator) for _ in count())
        for which in islice(chain.from_iterable(epochs), given['steps'] + 2):
            started, busy, sent[:] = time.perf_counter(), time.process_time(), []
            loss = batch_loss(model, data, which, config, generator, team)
            team.sum(loss).item()
            loss.backward()
            descent.step()
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - busy)
            moved.append(sum(sent))
            mine = team.users(which, data.first, len(data.users))[0]
            number += team.count(int((data.pairs.starts[mine + 1] - data.pairs.starts[mine]).sum()))
        found = {
            'examples a step': number / len(wall), 'wall s': statistics.median(wall[2:]), 'CPU s': statistics.median(cpu[2:]),
            'MB sent': statistics.median(moved[2:]) / 1e6, 'MB of weights': nbytes([model.state_dict(), descent.state_dict()]) / 1e6,
            'MB of data': sum(os.path.getsize(p) for p in [folder / f'{team.rank}.pt']) / 1e6,
            'peak GB': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 'GB before': before / 2**20,
        }  # fmt: skip
        (folder / f'found.{team.rank}.json').write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--millions', type=float, default=0.1)
    parser.add_argument('--engines', default='local,ray')
    parser.add_argument('--workers', default='1,2')
    parser.add_argument('--optimizer', default='rowwise')
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--negatives', type=int, default=4096)
    parser.add_argument('--count', help='only count, for so many workers')
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()) / 'twotower-bench')
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    path = args.folder / f'wide_{args.millions:g}.pt'
    if not path.exists():
        wide.save(wide.make(int(args.millions * 1e6))[0], path)
    data = wide.load(path)
    print(f'{len(data.users)} users, {len(data.items)} videos, features {data.widths}')
    settings = CONFIG | {k: getattr(args, k) for k in ('optimizer', 'batch_size', 'negatives')} | {'device': 'cpu'}
    if args.count:
        return count_asked(data, TrainSettings(**settings), args.steps, [int(n) for n in args.count.split(',')])
    os.environ['PYTHONPATH'] = (
        f'{Path(__file__).resolve().parent}:{Path(__file__).resolve().parents[1] / "speed"}:{os.environ.get("PYTHONPATH", "")}'
    )
    for engine in args.engines.split(','):
        for workers in map(int, args.workers.split(',')):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / 'settings.json').write_text(json.dumps({'steps': args.steps, 'config': settings}))
                for rank in range(workers):
                    save_set(folder / f'{rank}.pt', part_of(data, rank, workers))
                started = time.perf_counter()
                launch('train_scale:measure', folder, engine, workers, 'cpu')
                took = time.perf_counter() - started
                found = [json.loads((folder / f'found.{rank}.json').read_text()) for rank in range(workers)]
            worst = {key: max(f[key] for f in found) for key in found[0]}
            shown = {'engine': engine, 'workers': workers, 'examples/s': worst['examples a step'] / worst['wall s']}
            shown |= (
                {'CPU s of all': sum(f['CPU s'] for f in found)} | worst | {'job s': took, 'load': os.getloadavg()[0]}
            )
            print(
                ', '.join(f'{k} {v:,.4g}' if isinstance(v, float) else f'{k} {v}' for k, v in shown.items()), flush=True
            )


if __name__ == '__main__':
    main()
