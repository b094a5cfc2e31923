"""Our towers beside what people would pick instead: same split, same metrics, one process for each fit.

python bench/quality/quality.py --splits random --seeds 5
"""

from __future__ import annotations

import os

os.environ |= {
    name: os.environ.get('BENCH_THREADS', '1')
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
}

import importlib.metadata
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from peers import PEERS, ROOT, Placed
from problems import DISLIKED, LIKED, SPLITS, Problem, likes, load_problem, make_problems
from scipy import sparse

from twotower.evaluation.metrics import auc, ranking_metrics, top_k

COLUMNS = ['recall@10', 'recall@20', 'recall@50', 'ndcg@20', 'map@20', 'auc', 'coverage@20', 'fit seconds', 'peak MB']
COLD_COLUMNS = [
    'recall@20 among cold',
    'ndcg@20 among cold',
    'recall@20',
    'ndcg@20',
    'warm recall@20',
    'warm ndcg@20',
    'fit seconds',
    'peak MB',
]
BLOCK = 2048  # users at a time


def lists(placed: Placed, who: np.ndarray, seen: sparse.csr_matrix | None, k: int) -> np.ndarray:  # (len(who), k)
    "The best unseen videos of some users."
    users, items = placed
    parts = []
    for start in range(0, len(who), BLOCK):
        block = users[who[start : start + BLOCK]]
        block = block.toarray() if sparse.issparse(block) else block
        parts.append(top_k(block, items, k, None if seen is None else seen[who[start : start + BLOCK]])[0])
    return np.concatenate(parts)


def pair_scores(placed: Placed, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    "The score of each pair of a user and a video."
    users, items = placed
    parts = []
    for start in range(0, len(rows), BLOCK):
        u, v = users[rows[start : start + BLOCK]], items[columns[start : start + BLOCK]]
        parts.append(np.asarray(u.multiply(v).sum(1)).ravel() if sparse.issparse(u) else (u * v).sum(1))
    return np.concatenate(parts)


def ranked(
    placed: Placed, seen: sparse.csr_matrix | None, liked: sparse.csr_matrix, lengths: tuple[int, ...]
) -> dict[str, float]:
    "Means over the users who have something to find."
    who = np.flatnonzero(np.diff(liked.indptr))
    best = lists(placed, who, seen, max(lengths))
    out = {'users': len(who), 'coverage@20': len(np.unique(best[:, :20][best[:, :20] >= 0])) / len(placed[1])}
    for k in lengths:
        out |= {f'{name}@{k}': float(v.mean()) for name, v in ranking_metrics(best[:, :k], liked[who]).items()}
    return out


def measure(placed: Placed, problem: Problem) -> dict[str, float]:
    "Everything that is said about a recommender on users and videos."
    held = problem.held.tocoo()
    told = (held.data >= LIKED) | (held.data <= DISLIKED)
    scores = pair_scores(placed, held.row[told], held.col[told])
    return ranked(placed, problem.history, likes(problem.held), (10, 20, 50)) | {
        'auc': auc(scores, (held.data[told] >= LIKED).astype(int))
    }


def _columns(matrix: sparse.csr_matrix, chosen: np.ndarray) -> sparse.csr_matrix:
    "The same matrix with nothing in the other columns."
    out = matrix @ sparse.diags(chosen.astype(np.float32))
    out.eliminate_zeros()
    return out.tocsr()


def measure_cold(placed: Placed, problem: Problem) -> dict[str, float]:
    "The videos that arrived after training: among themselves, and against the whole catalogue; and what the others lose."
    liked, cold = likes(problem.held), problem.cold
    among = ranked((placed[0], placed[1][cold]), None, liked[:, cold], (20,))
    whole, warm = (ranked(placed, problem.history, _columns(liked, chosen), (20,)) for chosen in (cold, ~cold))
    named = {f'{name} among cold': value for name, value in among.items()} | {
        f'warm {name}': value for name, value in warm.items()
    }
    return whole | named


def best_settings(name: str, problem: Problem, kind: str) -> dict:
    "The best settings on the inner problem."
    peer, tried, found = PEERS[name], PEERS[name].settings(kind), []
    for settings in tried if len(tried) > 1 else []:
        placed = peer.fit(problem, **settings)
        scores = measure_cold(placed, problem) if kind == 'cold' else measure(placed, problem)
        value = {'cold': 'recall@20 among cold', 'auc': 'auc'}.get('cold' if kind == 'cold' else peer.choice)
        found.append((scores[value] if value else scores['recall@20'] + scores['ndcg@20'], settings))
        print(name, *found[-1], file=sys.stderr, flush=True)
    return max(found, key=lambda x: x[0])[1] if found else tried[0]


def _peak() -> int:
    "Most memory that this process ever held, kB; `ru_maxrss` would begin with that of its parent."
    return int(
        next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM')).split()[1]
    )


def fit_and_measure(name: str, folder: Path, kind: str, settings: dict, seed: int) -> dict:
    "One row of the table before means; run in a process of its own, so that the peak of memory is that of this fit."
    problem = load_problem(folder)
    wall, processor = time.perf_counter(), time.process_time()
    placed = PEERS[name].fit(problem, seed=seed, **settings)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - processor + children.ru_utime + children.ru_stime
    cost = {'fit seconds': spent, 'wall seconds': time.perf_counter() - wall}
    peak = max(_peak(), children.ru_maxrss)
    scores = measure_cold(placed, problem) if kind == 'cold' else measure(placed, problem)
    return {
        'model': name,
        'split': kind,
        'seed': seed,
        **cost,
        'peak MB': peak / 1024,
        **scores,
        'settings': json.dumps(settings),
    }


def in_child(action: str, *arguments: str) -> dict:
    "Run a function of this file in a process of its own."
    command = [sys.executable, __file__, f'--{action}', json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_split(data: Path | None, kind: str, seeds: int, names: list[str], folder: Path) -> None:
    "Search once, then fit and score for every seed; what is already there is kept."
    for seed in range(seeds):
        where = folder / f'{kind}-{seed}'
        if not (where / 'done').exists():
            make_problems(data, kind, seed, where)
            (where / 'done').touch()
    for name in names:
        chosen = folder / f'{kind}-0' / f'{name}.settings.json'
        if not chosen.exists():
            chosen.write_text(json.dumps(in_child('search', name, str(folder / f'{kind}-0' / 'inner'), kind)))
        for seed in range(seeds):
            result = folder / f'{kind}-{seed}' / f'{name}.json'
            if not result.exists():
                settings = json.loads(chosen.read_text())
                result.write_text(
                    json.dumps(in_child('one', name, str(folder / f'{kind}-{seed}' / 'outer'), kind, settings, seed))
                )
                print(kind, seed, name, result.read_text()[:300], flush=True)


def collect(folder: Path, kind: str) -> pd.DataFrame:  # one row for each model and seed
    "All results of a split."
    rows = [json.loads(path.read_text()) for path in folder.glob(f'{kind}-*/*.json') if '.settings' not in path.name]
    return pd.DataFrame(rows)


def summary(results: pd.DataFrame, kind: str) -> pd.DataFrame:  # text, one row for each model
    "Mean and spread (standard deviation over seeds), the best last."
    columns = COLD_COLUMNS if kind == 'cold' else COLUMNS
    means, spread = (getattr(results.groupby('model')[columns], f)() for f in ('mean', 'std'))
    order = means['recall@20 among cold' if kind == 'cold' else 'recall@20'].sort_values().index
    digits = {'fit seconds': '.1f', 'peak MB': '.0f'}
    seeds = results.groupby('model').size()

    def cell(column: str, model: str) -> str:
        known = column not in digits and seeds[model] > 1
        return f'{means[column][model]:{digits.get(column, ".3f")}}' + (
            f' ±{spread[column][model]:.3f}' if known else ''
        )

    text = {column: [cell(column, model) for model in order] for column in columns}
    return pd.DataFrame(text, index=order).assign(seeds=seeds[order])


def markdown(frame: pd.DataFrame) -> str:
    "A table of texts as Markdown, the index first, numbers to the right."
    rows = [
        ['model', *frame.columns],
        ['---', *['---:'] * len(frame.columns)],
        *([i, *row] for i, row in zip(frame.index, frame.to_numpy(), strict=True)),
    ]
    return '\n'.join('| ' + ' | '.join(str(cell) for cell in row) + ' |' for row in rows)


def verdicts(results: pd.DataFrame, kind: str, ours: str = 'our towers') -> list[str]:
    "Ours against the best of the others; a difference within the spread of the seeds is called a tie."
    said = []
    for column in ['recall@20 among cold', 'recall@20'] if kind == 'cold' else ['recall@20', 'ndcg@20', 'auc']:
        table = results.pivot_table(index='seed', columns='model', values=column)
        others = table.drop(columns=[m for m in table if m.startswith(ours)], errors='ignore')
        if ours not in table or not len(others.columns):
            continue
        best = others.mean().idxmax()
        gap = (table[ours] - table[best]).dropna()
        spread = max(table[ours].std(), table[best].std())
        word = 'tie with' if abs(gap.mean()) <= spread or np.isnan(spread) else 'above' if gap.mean() > 0 else 'below'
        said.append(
            f'{column}: {ours} {table[ours].mean():.3f}, {word} {best} {table[best].mean():.3f} '
            f'(spread {spread:.3f}; ahead in {int((gap > 0).sum())} of {len(gap)} seeds)'
        )
    return said


def plot(results: pd.DataFrame, path: Path) -> None:
    "Recall@20 of every model in every split, a dot for each seed."
    import matplotlib.pyplot as plt

    from twotower.base.plots import BLUE, GREY, ORANGE, use_style

    use_style()
    kinds = [kind for kind in SPLITS if kind in set(results['split'])]
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.6 * len(kinds), 4.2), layout='constrained', squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        part = results[results['split'] == kind]
        column = 'recall@20 among cold' if kind == 'cold' else 'recall@20'
        for y, name in enumerate(part.groupby('model')[column].mean().sort_values().index):
            values = part[part['model'] == name][column]
            colour, marker = (
                (BLUE, 'o') if name == 'our towers' else (ORANGE, 's') if name.startswith('our') else (GREY, 'D')
            )
            axis.plot(values, [y] * len(values), marker, color=colour, alpha=0.5, markersize=5)
            axis.plot(values.mean(), y, '|', color=colour, markersize=16, markeredgewidth=2)
        names = part.groupby('model')[column].mean().sort_values().index
        axis.set(title=kind, xlabel=column, yticks=range(len(names)), yticklabels=names, xlim=(0, None))
    figure.savefig(path, dpi=130)


def machine() -> str:
    "Where and with what."
    names = ('torch', 'numpy', 'implicit', 'lightfm-next')
    found = [f'{name} {importlib.metadata.version(name)}' for name in names if _installed(name)]
    return f'{time.strftime("%Y-%m-%d")}, {os.cpu_count()} cores ({platform.machine()}), 1 thread a process, load {os.getloadavg()[1]:.1f}; {", ".join(found)}'


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def absent() -> dict[str, str]:  # model: why it is left out
    "Peers that can't run here."
    needs = {'ALS': 'implicit', 'BPR': 'implicit'} | {
        name: 'lightfm-next' for name in PEERS if name.startswith('LightFM')
    }
    out = {name: f'{package} is not installed' for name, package in needs.items() if not _installed(package)}
    return out if os.environ.get('RECTOOLS_PYTHON') else out | {'RecTools DSSM': 'RECTOOLS_PYTHON is not set'}


def main(
    data: Annotated[
        Path | None, typer.Option(help='folder with ratings.csv and movies.csv; by default MovieLens-100K')
    ] = None,
    splits: Annotated[str, typer.Option(help='any of random, time, users, cold')] = ' '.join(SPLITS),
    seeds: Annotated[int, typer.Option(help='how many divisions of each split')] = 5,
    models: Annotated[str, typer.Option(help='comma-separated; by default all that can take part')] = '',
    out: Annotated[Path, typer.Option(help='results; a run that was cut off goes on here')] = ROOT
    / 'outputs'
    / 'bench',
    search: Annotated[str, typer.Option(hidden=True)] = '',
    one: Annotated[str, typer.Option(hidden=True)] = '',
) -> None:
    "Train and score everything, print the tables, write Parquet and a plot."
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    if search or one:
        name, folder, kind, *rest = json.loads(search or one)
        done = (
            best_settings(name, load_problem(Path(folder)), kind)
            if search
            else fit_and_measure(name, Path(folder), kind, *rest)
        )
        print(json.dumps(done))
        return
    folder = out / (data.resolve().name if data else 'ml-100k')
    for name, reason in absent().items():
        print(f'{name}: left out, {reason}')
    for kind in splits.split():
        wanted = (
            [n.strip() for n in models.split(',')]
            if models
            else [n for n, p in PEERS.items() if kind in p.splits.split() and ': ' not in n]
        )
        run_split(
            data, kind, seeds, [n for n in wanted if n not in absent() and kind in PEERS[n].splits.split()], folder
        )
    report(folder)


def report(folder: Path) -> None:
    "Print and write what is there."
    parts = {kind: part for kind in SPLITS if len(part := collect(folder, kind))}
    print(machine())
    for kind, part in parts.items():
        print(f'\n### {kind}: {SPLITS[kind]}\n\n{markdown(summary(part, kind))}\n')
        print('\n'.join(f'- {line}' for line in verdicts(part, kind)))
    results = pd.concat(parts.values(), ignore_index=True)
    results.to_parquet(folder / 'quality.parquet')
    plot(results, folder / 'quality.png')
    print(f'\n{folder / "quality.parquet"}, {folder / "quality.png"}')


if __name__ == '__main__':
    typer.run(main)
