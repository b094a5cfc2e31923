"""What Ray costs on one machine, and how time and memory grow; see SCALE.md.

python bench/many/scale.py prep 1 5 20             millions of reviews, in files of a million rows
python bench/many/scale.py embed 0.05 0.164        millions of users, with a model of random weights
python bench/many/scale.py rank 0.02 0.1           millions of users, whose lists of 20 among 50,000 videos are made and measured
    --engines local ray-1 ray-2               the number is that of the workers (processors) of the cluster

Each line has a process of its own. Memory is the peak of the sum over its tree of processes, shared pages counted once (PSS, sampled twice a second).
Seconds of the processor are those of the tree. `start` is how long the cluster took to start; it is part of the wall time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from twotower.base.errors import OutsideError
from twotower.base.files import write_json
from twotower.base.tables import DIMENSION, ITEM_FEATURES, USER, USER_FEATURES
from twotower.data.on_ray import prepare_on_cluster
from twotower.embedding.encoder import Embedder
from twotower.evaluation.scores import Judged, rank
from twotower.model.export import export_onnx, export_sparse_onnx
from twotower.model.features import fit_encoding
from twotower.model.towers import TwoTower
from twotower.parallel.engine import LOCAL, OnRay, cluster
from twotower.prep import prepare_files
from twotower.runs.run import ITEMS, META, ONNX, SPARSE_ONNX, USERS

sys.path.append(str(Path(__file__).resolve().parents[1] / 'speed'))

from prep import CONFIG, make_reviews, make_videos

STORE = 2 * 2**30  # bytes of the object store


def reviews_of(folder: Path, millions: float) -> Path:
    "A folder of CSV files."
    rows = int(millions * 1e6)
    place = folder / f'reviews-{rows}'
    if not place.exists():
        whole, draft = folder / f'reviews-{rows}.csv', folder / f'.reviews-{rows}'
        if not whole.exists():
            make_reviews(whole, rows)
        draft.mkdir(exist_ok=True)
        with open(whole, 'rb') as file:
            head = file.readline()
            for i in range(-(-rows // 1_000_000)):
                with open(draft / f'{i:04}.csv', 'wb') as part:
                    part.write(head)
                    part.writelines(line for _, line in zip(range(1_000_000), file, strict=False))
        draft.rename(place)
    return place


def model_of(folder: Path, prep: Path) -> Path:
    "A model of random weights for what was prepared."
    place, draft = folder / 'model', folder / '.model'
    if not place.exists():
        draft.mkdir(exist_ok=True)
        items, users = pq.read_table(prep / ITEMS).cast(ITEM_FEATURES), pq.read_table(prep / USERS).cast(USER_FEATURES)
        encoding = fit_encoding(items, users, 500, 1000)
        model = TwoTower(encoding['user']['width'], encoding['item']['width'], hidden=128)
        export_onnx(model, draft / ONNX)
        export_sparse_onnx(model, draft / SPARSE_ONNX)
        write_json(draft / META, {'encoding': encoding})
        draft.rename(place)
    return place


def judged_of(n: int, m: int = 50_000) -> Judged:
    "Users and videos at random: 20 opinions of each user in training, of them 10 likes, and 3 held-out likes."
    rng = np.random.default_rng(0)
    users, items = (rng.standard_normal((k, DIMENSION), np.float32) for k in (n, m))

    def opinions(each: int) -> sparse.csr_matrix:
        columns = rng.integers(m, size=n * each, dtype=np.int32)
        return sparse.csr_matrix((np.ones(n * each, np.float32), columns, np.arange(0, n * each + 1, each)), (n, m))

    liked, ids = opinions(3), pa.array(np.arange(n).astype(str))
    rows, labels = np.repeat(np.arange(n), 3), np.tile([1, 1, 0], n)
    return Judged(ids, users, items, opinions(20), opinions(10), liked, rows, liked.indices, labels, 0)


@contextmanager
def started(workers: int) -> Iterator[None]:
    "A cluster; a crowded machine may need more than the 15 seconds that Ray gives it, so it is tried again."
    with ExitStack() as stack:
        for chance in range(5):
            try:
                stack.enter_context(cluster(num_cpus=workers, object_store_memory=STORE))
                break
            except OutsideError:
                if chance == 4:
                    raise
        yield


def work(what: str, millions: float, engine: str, folder: Path) -> None:
    "In a process of its own: do it, and print how long the cluster took to start, and how many rows came out."
    _, _, workers = engine.partition('-')
    began = time.perf_counter()
    with started(int(workers)) if workers else nullcontext():
        start = time.perf_counter() - began
        if what == 'prep':
            config = CONFIG.but(input=str(reviews_of(folder, millions)))
            prepare = prepare_on_cluster if workers else prepare_files
            with tempfile.TemporaryDirectory(dir=folder) as out:
                summary = prepare(Path(out) / 'prep', make_videos(), config)
            rows = sum(sum(kinds.values()) for kinds in summary['interactions'].values())
        elif what == 'rank':
            judged, on = judged_of(int(millions * 1e6)), OnRay() if workers else LOCAL
            *_, totals = rank(judged.users, judged.items, judged, 20, engine=on)
            rows = int(totals.shown.sum())
        else:
            file, on = pq.ParquetFile(folder / 'prepared' / USERS), OnRay() if workers else LOCAL
            wanted = int(millions * 1e6)
            batches = (pa.Table.from_batches([b]).cast(USER_FEATURES) for b in file.iter_batches(10_000))
            tables = (batch for i, batch in enumerate(batches) if i * 10_000 < wanted)
            carried = on.carry(folder / 'model', (META, ONNX, SPARSE_ONNX))
            rows = sum(len(made) for made in on.pool(Embedder, (carried, 'user', USER, on.threads), tables))
    print(json.dumps({'start': start, 'rows': rows}))


def measured(command: list[str]) -> dict:
    "Run a command: what it printed, wall and CPU seconds, and peak memory of its tree."
    began, peak, used = time.perf_counter(), 0, {}
    environment = os.environ | {'RAY_worker_niceness': '0'}  # Ray's workers else give way to all other work
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            tree, memory = [psutil.Process(process.pid)], 0
            with suppress(psutil.NoSuchProcess):
                tree += tree[0].children(recursive=True)
            for one in tree:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    memory += one.memory_full_info().pss
                    used[one.pid] = sum(one.cpu_times()[:2])
            peak = max(peak, memory)
            time.sleep(0.5)
        printed = process.stdout.read()
    if process.returncode:
        sys.exit(f'{command} failed')
    wall = time.perf_counter() - began
    return json.loads(printed.splitlines()[-1]) | {'wall': wall, 'cpu': sum(used.values()), 'peak': peak / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['prep', 'embed', 'rank'])
    parser.add_argument('millions', nargs='+', type=float)
    parser.add_argument('--engines', nargs='+', default=['local', 'ray-1', 'ray-2'])
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()) / 'twotower-bench')
    parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    if args.one:
        return work(args.what, args.millions[0], args.engines[0], args.folder)
    if args.what == 'embed':
        if not (args.folder / 'prepared').exists():
            config = CONFIG.but(input=str(reviews_of(args.folder, 1)))
            prepare_files(args.folder / 'prepared', make_videos(), config)
        model_of(args.folder, args.folder / 'prepared')
    print('| what | millions | engine | wall s | of which start | CPU s | peak GB | rows out | load |')
    print('| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |')
    for millions in args.millions:
        if args.what == 'prep':
            reviews_of(args.folder, millions)
        for engine in args.engines:
            command = [
                sys.executable,
                __file__,
                args.what,
                str(millions),
                '--engines',
                engine,
                '--folder',
                str(args.folder),
                '--one',
            ]
            m = measured(command)
            cells = [
                args.what,
                f'{millions:g}',
                engine,
                f'{m["wall"]:.1f}',
                f'{m["start"]:.1f}',
                f'{m["cpu"]:.1f}',
                f'{m["peak"]:.2f}',
            ]
            print(f'| {" | ".join(cells)} | {m["rows"]:,} | {os.getloadavg()[0]:.1f} |', flush=True)


if __name__ == '__main__':
    main()
