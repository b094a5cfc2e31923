"""How long 01_prep takes, and how much memory, on made-up reviews; see README.md.

python bench/speed/prep.py 1 5 20                   millions of rows, each in a process of its own
python bench/speed/prep.py 20 --memory-limit 3GB
python bench/speed/prep.py 1 --pandas               also the same steps in pandas, and do they agree?
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from twotower.base.tables import ITEM_FEATURES
from twotower.prep import prepare_files
from twotower.runs.settings import PrepSettings

USERS, VIDEOS = 200_000, 50_000
CONFIG = PrepSettings(
    mode='reviews', decisions_csv='', time_zone='UTC', max_invalid_share=0.0, min_stars=4.0, max_negative_stars=2.0,
    neg_per_pos=3, val_ratio=0.2, split_by='user', seed=0, max_history=1000, memory_limit='', snapshot_inputs=False,
)  # fmt: skip


def uuids(rng: np.random.Generator, n: int) -> pa.Array:
    raw = rng.bytes(16 * n).hex()
    return pa.array(
        [f'{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}' for h in (raw[i : i + 32] for i in range(0, 32 * n, 32))]
    )


def make_videos() -> pa.Table:
    "The videos master: six tags of 500, two performers of 5,000 and a maker of 300 each."
    rng = np.random.default_rng(1)
    weights = 1 / (np.arange(500) + 5.0)
    tags = rng.choice(500, (VIDEOS, 6), p=weights / weights.sum())
    columns = {
        'video_id': uuids(rng, VIDEOS),
        'product_url': [f'https://shop.example/detail/=/cid=vid{i:05}/' for i in range(VIDEOS)],
        'title': [f'title {i}' for i in range(VIDEOS)],
        'tags': [[f'tag {t}' for t in sorted(set(row))] for row in tags],
        'performers': [[f'performer {i}' for i in sorted(set(row))] for row in rng.integers(0, 5000, (VIDEOS, 2))],
        'maker': [f'maker {i}' for i in rng.integers(0, 300, VIDEOS)],
        'content_id': [f'vid{i:05}' for i in range(VIDEOS)],
    }
    schema = pa.schema([*(f for f in ITEM_FEATURES if f.name != 'popularity'), pa.field('content_id', pa.string())])
    return pa.table({f.name: columns.get(f.name, pa.nulls(VIDEOS, f.type)) for f in schema}, schema)


def make_reviews(path: Path, n: int) -> None:
    "Few videos get most reviews (a shifted Zipf law), few users write most of them (a Pareto law); five years."
    rng = np.random.default_rng(0)
    activity = np.cumsum(rng.pareto(1.5, USERS) + 0.3)
    popularity = np.cumsum(rng.permutation((np.arange(VIDEOS) + 50.0) ** -0.8))
    quality = rng.normal(3.7, 0.5, VIDEOS)
    people = uuids(rng, USERS)
    urls = pa.array([f'https://shop.example/detail/=/cid=vid{i:05}/' for i in range(VIDEOS)])
    writer = None
    for start in range(0, n, 1_000_000):
        size = min(1_000_000, n - start)
        user = np.searchsorted(activity, rng.random(size) * activity[-1])
        video = np.searchsorted(popularity, rng.random(size) * popularity[-1])
        stars = np.clip(np.round(quality[video] + rng.normal(0, 1, size)), 1, 5).astype(np.int8)
        times = pa.array((1_577_836_800 + rng.integers(0, 5 * 365 * 86400, size)).astype('datetime64[s]'))
        rows = pa.table({
            'product_url': urls.take(pa.array(video)), 'reviewer_id': people.take(pa.array(user)), 'stars': stars,
            'reviewed_at': pc.strftime(times, '%Y-%m-%dT%H:%M:%SZ'),
        })  # fmt: skip
        writer = writer or pyarrow.csv.CSVWriter(path, rows.schema)
        writer.write_table(rows)
    writer.close()


def measured(work) -> str:
    "Wall and CPU seconds of the work, and the peak memory of this process."
    started, before = time.perf_counter(), time.process_time()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f'{time.perf_counter() - started:.1f} {time.process_time() - before:.1f} {peak:.2f}'


def differences(ours: Path, theirs: Path) -> list[str]:
    "Files and columns whose values differ."
    found = []
    for file in sorted(ours.glob('*.parquet')):
        left, right = pq.read_table(file), pq.read_table(theirs / file.name)
        for name in left.column_names:
            a, b = left[name].to_pandas(), right[name].to_pandas()
            if a.dtype.kind == 'f' or name == 'created_at':
                same = len(a) == len(b) and (
                    np.isclose(a, b, rtol=1e-6, equal_nan=True).all()
                    if a.dtype.kind == 'f'
                    else a.equals(b.astype(a.dtype))
                )
            else:
                x = left[name].to_pylist()
                y = [[] if v is None and pa.types.is_list(left[name].type) else v for v in right[name].to_pylist()]
                same = x == y
            found += [] if same else [f'{file.name} {name}']
    return found


def run_one(engine: str, reviews: Path, folder: Path, memory_limit: str) -> None:
    "In a process of its own: print the measures."
    config = CONFIG.but(input=str(reviews), memory_limit=memory_limit)
    videos = make_videos()
    if engine == 'ours':
        print(measured(lambda: prepare_files(folder, videos, config)))
    else:
        from prep_pandas import prepare

        folder.mkdir()
        frame = videos.to_pandas()
        print(measured(lambda: prepare(reviews, frame, folder, config)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('millions', nargs='+', type=float)
    parser.add_argument('--pandas', action='store_true')
    parser.add_argument('--memory-limit', default='')
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()) / 'twotower-bench')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    if args.one:
        engine, reviews, out = args.one.split('|')
        return run_one(engine, Path(reviews), Path(out), args.memory_limit)
    print('rows       engine  wall s  CPU s  peak GB  load')
    for millions in args.millions:
        rows = int(millions * 1e6)
        reviews = args.folder / f'reviews-{rows}.csv'
        if not reviews.exists():
            make_reviews(reviews, rows)
        with tempfile.TemporaryDirectory(dir=args.folder) as out:
            for engine in ['ours', 'pandas'] if args.pandas else ['ours']:
                one = f'{engine}|{reviews}|{out}/{engine}'
                command = [sys.executable, __file__, str(millions), '--one', one, '--memory-limit', args.memory_limit]
                wall, cpu, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                print(f'{rows:10,} {engine:7} {wall:>6} {cpu:>6} {peak:>8}  {os.getloadavg()[0]:.1f}', flush=True)
            if args.pandas:
                wrong = differences(Path(out, 'ours'), Path(out, 'pandas'))
                print('all outputs agree' if not wrong else f'they differ in {wrong}')
                sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
