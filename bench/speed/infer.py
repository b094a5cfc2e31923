"""How fast the two ONNX graphs are with wide features; see README.md.

python bench/speed/infer.py                      batches of 64 to 4096 through both graphs, then a catalogue of a million videos
python bench/speed/infer.py --catalogue 0        without the catalogue
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import wide
from scipy import sparse

from twotower.model.export import (
    export_onnx,
    export_sparse_onnx,
    onnx_embed,
    onnx_session,
    sparse_embed,
    sparse_session,
)
from twotower.model.towers import TwoTower, embed


def timed(work, times: int) -> tuple[float, float]:
    "Median wall and CPU seconds, after once for nothing."
    wall, cpu = [], []
    for _ in range(times + 1):
        started, before = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - before)
    return statistics.median(wall[1:]), statistics.median(cpu[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--catalogue', type=int, default=1_000_000)
    parser.add_argument('--threads', default='1,2')
    parser.add_argument('--sizes', default='64,256,1024,4096')
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    items = sparse.hstack(list(wide.item_parts(rng, max(args.catalogue, 8192)).values()), 'csr', np.float32)
    torch.manual_seed(0)
    model = TwoTower(3 * wide.VIDEOS + wide.TAGS + wide.PERFORMERS + 1, items.shape[1], hidden=128)
    folder = Path(tempfile.mkdtemp())
    export_onnx(model, folder / 'dense.onnx')
    export_sparse_onnx(model, folder / 'sparse.onnx')
    print(f'{items.shape[1]:,} features, {items.nnz / items.shape[0]:.1f} set in a row; load {os.getloadavg()[0]:.1f}')
    for threads in map(int, args.threads.split(',')):
        graphs = {
            'dense': (onnx_embed, onnx_session(folder / 'dense.onnx', threads)),
            'sparse': (sparse_embed, sparse_session(folder / 'sparse.onnx')),
        }
        for name, (function, session) in graphs.items():
            for size in map(int, args.sizes.split(',')):
                batch = items[:size]
                block = {'block': size} if name == 'dense' else {'workers': threads}
                wall, cpu = timed(
                    lambda f=function, s=session, b=batch, k=block: f(s, 'item', b, **k), 5 if size > 256 else 15
                )
                print(
                    f'{name:7} threads {threads} batch {size:5}: {size / wall:9,.0f} items/s, {size / cpu:9,.0f} items/CPU s',
                    flush=True,
                )
        if args.catalogue:
            started, before = time.perf_counter(), time.process_time()
            vectors = sparse_embed(graphs['sparse'][1], 'item', items, workers=threads)
            wall, cpu = time.perf_counter() - started, time.process_time() - before
            print(
                f'catalogue of {args.catalogue:,}, threads {threads}: {wall:.1f} s, {cpu:.1f} CPU s; load {os.getloadavg()[0]:.1f}',
                flush=True,
            )
            apart = np.abs(vectors[:1000] - embed(model.item, items[:1000])).max()
            print(f'  differs from torch by {apart:.1e} at most, on 1,000 rows')


if __name__ == '__main__':
    main()
