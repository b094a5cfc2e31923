"""Why the defaults are what they are: our towers with one thing changed, on what was held out. Makes nbs/choices.png.

python bench/choices.py --seeds 3
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import pandas as pd
import typer
from peers import CHOICES, ROOT
from quality import collect, markdown, run_split

from twotower.report import BLUE, GREY, ORANGE, use_style

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
    "Losses by what they trade; everything else by what it does in three splits."
    use_style()
    figure, axes = plt.subplots(1, 3, figsize=(17, 4.6), layout='constrained')
    loss, *others = CHOICES
    points = rows.loc[loss]
    for i, (name, row) in enumerate(points.iterrows()):
        colour = BLUE if i == 0 else ORANGE if name == 'binary' else GREY
        axes[0].plot(row['random: auc'], row['random: recall@20'], 'o', color=colour)
        axes[0].annotate(
            name, (row['random: auc'], row['random: recall@20']), xytext=(5, 3), textcoords='offset points', fontsize=8
        )
    axes[0].set(title='Losses', xlabel='AUC of likes against dislikes', ylabel='recall@20', ylim=(0, None))
    axes[0].margins(x=0.25)
    for axis, group in zip(axes[1:], others, strict=True):
        part = rows.loc[group]
        for marker, colour, (kind, column) in zip('osD', (BLUE, ORANGE, GREY), SPLITS.items(), strict=True):
            if f'{kind}: {column}' not in part:
                continue
            axis.plot(part[f'{kind}: {column}'], range(len(part)), marker, color=colour, label=kind)
        axis.set(title=group.capitalize(), xlabel='recall@20', yticks=range(len(part)), yticklabels=part.index)
        axis.invert_yaxis()
        axis.legend()
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
