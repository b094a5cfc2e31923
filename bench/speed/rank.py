"""Time of full-catalogue ranking (`twotower.evaluation.metrics.top_k`) beside that of the bare matrix product.

python bench/speed/rank.py                              # 100,000 users x 50,000 videos x 128, once
python bench/speed/rank.py --users 20000 --repeats 5

Users go through in slices, each by the bare product, by `top_k` and by torch.topk on whole rows, in turn, so that other work on
the machine disturbs all alike. The bare product has the same blocks and writes into the same memory again and again.
"""

import argparse
import os
import resource
import time

import numpy as np
import torch
from scipy import sparse

from twotower.evaluation.metrics import GROUP, top_k


def unit(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    x = rng.standard_normal((n, d), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def blocks(users: np.ndarray, items: np.ndarray, memory_mb: int):
    "The scores of a block of users at a time."
    size = max(1, memory_mb * 2**20 // (4 * -(-len(items) // GROUP) * GROUP))
    held = torch.empty(min(size, len(users)), len(items))
    for start in range(0, len(users), size):
        some = torch.from_numpy(users[start : start + size])
        yield start, torch.mm(some, torch.from_numpy(items).T, out=held[: len(some)])


def bare(users, items, seen, k, memory_mb) -> None:
    for _ in blocks(users, items, memory_mb):
        pass


def plain(users, items, seen, k, memory_mb) -> None:
    "What top_k does, with a partial sort of whole rows."
    for start, scores in blocks(users, items, memory_mb):
        part = seen[start : start + len(scores)].tocoo()
        scores[torch.from_numpy(part.row).long(), torch.from_numpy(part.col).long()] = -torch.inf
        scores.topk(k)


def ours(users, items, seen, k, memory_mb) -> None:
    top_k(users, items, k, seen, memory_mb)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {'users': 100_000, 'items': 50_000, 'dimension': 128, 'k': 20, 'seen': 50, 'repeats': 1, 'slice': 10_000, 'memory-mb': 256}.items():  # fmt: skip
        ask.add_argument(f'--{name}', type=int, default=default)
    a = ask.parse_args()
    rng = np.random.default_rng(0)
    users, items = unit(rng, a.users, a.dimension), unit(rng, a.items, a.dimension)
    places = np.repeat(np.arange(a.users), a.seen), rng.integers(0, a.items, a.users * a.seen)
    seen = sparse.csr_matrix((np.ones(len(places[0]), np.float32), places), (a.users, a.items))
    ways = {'bare product': bare, 'top_k': ours, 'product and torch.topk': plain}
    for way in ways.values():
        way(users[:500], items, seen[:500], a.k, a.memory_mb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours(users[: a.slice], items, seen[: a.slice], a.k, a.memory_mb)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f'{a.users:,} users x {a.items:,} videos x {a.dimension}, k {a.k}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}'
    )
    print(f'memory_mb {a.memory_mb}: the peak of the process grew by {grown:.0f} MB over that of a block of 500 users')
    print(
        '| repeat | way | wall s | CPU s | wall / bare | CPU / bare | load |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: |'
    )
    for repeat in range(a.repeats):
        spent = {name: np.zeros(2) for name in ways}
        for start in range(0, a.users, a.slice):
            part = slice(start, start + a.slice)
            for name, way in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                way(users[part], items, seen[part], a.k, a.memory_mb)
                spent[name] += time.perf_counter() - wall, time.process_time() - cpu
        for name, (wall, cpu) in spent.items():
            ratio = spent[name] / spent['bare product']
            load = os.getloadavg()[0]
            print(
                f'| {repeat + 1} | {name} | {wall:.1f} | {cpu:.1f} | {ratio[0]:.2f} | {ratio[1]:.2f} | {load:.1f} |',
                flush=True,
            )


if __name__ == '__main__':
    main()
