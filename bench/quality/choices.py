"""Why the defaults are what they are: our towers with one thing changed, on what was held out. Makes nbs/choices.png.

python bench/quality/choices.py --seeds 3
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import pandas as pd
import typer
from peers import CHOICES, ROOT
from quality import collect, markdown, run_split

from twotower.base.plots import BLUE, GREY, ORANGE, use_style

SPLITS = {'random': 'recall@20', 'users': 'recall@20', 'cold': 'recall@20 among cold'}


def table(folder: Path, splits: list[str]) -> pd.DataFrame:  # one row for each choice: means over the seeds
    "Everything that was measured, in the order of CHOICES."
    parts = {kind: collect(folder, kind).groupby('model') for kind in splits}
    means = {kind: part.mean(numeric_only=True) for kind, part in parts.items()}
    columns = {f'{kind}: {column}': means[kind][column] for kind, column in SPLITS.items() if kind in splits}
    columns |= {'random: auc': means['random']['auc'], 'random: ndcg@20': means['random']['ndcg@20']}
    rows = pd.DataFrame(columns)
    names = [(group, name) for group, choices in CHOICES.items() for name in choices]
    return rows.loc[[f'our towers: {name}' for _, name in names]].set_axis(pd.MultiIndex.from_tuples(names))


def draw(rows: pd.DataFrame, path: Path) -> None:
    "Losses by recall and AUC; everything else by what it does in the splits."
    use_style()
    figure, axes = plt.subplots(1, 3, figsize=(17, 4.6), layout='constrained')
    shown = {'known users: recall@20': 'random: recall@20', 'likes against dislikes: AUC': 'random: auc'}
    names = {'random': 'known users', 'users': 'new users', 'cold': 'new videos'}
    others = {f'{names[kind]}: recall@20': f'{kind}: {column}' for kind, column in SPLITS.items()}
    for axis, group in zip(axes, CHOICES, strict=True):
        part, series = rows.loc[group], shown if group == 'loss' else others
        for marker, colour, (label, column) in zip('osD', (BLUE, ORANGE, GREY), series.items(), strict=False):
            if column in part:
                axis.plot(part[column], range(len(part)), marker, color=colour, label=label)
        axis.set(title=group.capitalize(), yticks=range(len(part)), yticklabels=part.index)
        axis.invert_yaxis()
        axis.legend(loc='upper center', bbox_to_anchor=(0.3, -0.06), ncols=3)
    figure.savefig(path, dpi=110)


def main(
    seeds: Annotated[int, typer.Option(help='how many divisions of each split')] = 3,
    splits: Annotated[str, typer.Option(help='random and any of users, cold')] = ' '.join(SPLITS),
    out: Annotated[Path, typer.Option(help='results; a run that was cut off goes on here')] = ROOT
    / 'outputs'
    / 'choices',
    picture: Annotated[Path, typer.Option(help='where to draw')] = ROOT / 'nbs' / 'choices.png',
) -> None:
    "Fit every choice in three splits on MovieLens-100K, print a table, draw a picture."
    names = [f'our towers: {name}' for choices in CHOICES.values() for name in choices]
    for kind in splits.split():
        run_split(None, kind, seeds, names, out)
    rows = table(out, splits.split())
    print(markdown(rows.droplevel(0).map('{:.3f}'.format)))
    draw(rows, picture)


if __name__ == '__main__':
    typer.run(main)
