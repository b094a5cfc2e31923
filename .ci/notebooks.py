"""Run the notebooks' tests as nbdev-test does, and keep each notebook with its results in `_ran/` for the site: `python .ci/notebooks.py [PATH ...]`."""

import argparse
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbdev.test
import nbformat
from fastcore.nbio import does_cell_eval, read_nb, write_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob

CONFIG = get_config(Path(__file__).resolve().parent.parent)
TOP = CONFIG.config_path


def kept(
    notebook: Path,  # in the repository
) -> Path:  # in `_ran/`, which git ignores
    "Where the executed copy of a notebook lies."
    return TOP / '_ran' / notebook.relative_to(TOP)


def last_time(
    notebook: Path,
) -> float:  # seconds; infinite if it never passed here
    "How long a notebook took when it was last run."
    if not kept(notebook).exists():
        return float('inf')
    return sum(cell.metadata.get('execution', {}).get('total', 0) for cell in read_nb(kept(notebook)).cells)


def evaluated(cell, default: bool) -> bool:
    "Whether a cell runs: the tag `skip-execution` keeps tests out of papermill's runs, not out of these."
    cell.metadata['tags'] = [tag for tag in cell.metadata.get('tags', []) if tag != 'skip-execution']
    return does_cell_eval(cell, default)


def run(
    notebook: Path,  # runs in its own folder, without the cells that have a flag of `tst_flags`
) -> tuple[bool, float]:  # whether all cells passed, and the seconds they took
    "Run one notebook, and keep its copy if it passed."
    copy = kept(notebook)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)
    nbdev.test.does_cell_eval = evaluated
    nbdev.test.write_nb = lambda nb, _: write_nb(nb, copy)  # not over the source
    flags, limit = CONFIG.tst_flags.split(), CONFIG.cell_timeout or None
    return nbdev.test.test_nb(notebook, skip_flags=flags, basepath=TOP, save=True, cell_timeout=limit)


def results(
    top: Path,  # of the repository
    name: str,  # of the notebook, such as `nbs/01_prep`
) -> dict[tuple[str, str], list]:  # outputs by id and source of the cell: of a cell that has changed since, none
    "What the cells of a notebook gave in their tests and, for a stage, in the newest run."
    found = {}
    for path in (top / f'_ran/{name}.ipynb', top / f'outputs/latest/reports/{Path(name).name}.ipynb'):
        cells = nbformat.v4.reads(path.read_text(encoding='utf-8')).cells if path.exists() else []
        for cell in cells:
            if cell.get('outputs') or (cell.id, cell.source) not in found:
                found[cell.id, cell.source] = cell.get('outputs', [])
    return found


def readable(
    nb: nbformat.NotebookNode,  # as it was written
    found: dict[tuple[str, str], list],  # its results
) -> nbformat.NotebookNode:  # as it is read
    "A notebook with results and without nbdev's directives; its cells are tagged by what they are, its functions have anchors."
    made = []
    for cell in nb.cells:
        flags = set(re.findall(r'^#\| *(\w+)', cell.source, re.M)) if cell.cell_type == 'code' else set()
        code = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip() if cell.cell_type == 'code' else cell.source
        if not code or flags & {'default_exp', 'hide'}:
            continue
        if cell.cell_type == 'code':
            imports = all(re.match(r'(import|from) |[ )]|$', line) for line in code.split('\n'))
            tags = [*cell.metadata.get('tags', []), *sorted(flags), *(['hide-input'] if imports else [])]
            cell.update(outputs=found.get((cell.id, cell.source), []), source=code, metadata={'tags': tags})
        names = re.findall(r'^(?:async )?(?:def|class) ([a-zA-Z]\w*)', code, re.M) if 'export' in flags else []
        made += [nbformat.v4.new_markdown_cell(f'<span id="def-{name}"></span>') for name in names] + [cell]
    if not found:
        made.insert(1, nbformat.v4.new_markdown_cell('*This notebook has not been run here: its results are missing.*'))
    language = {'language_info': {'name': 'python', 'pygments_lexer': 'python'}}
    return nbformat.v4.new_notebook(cells=made, metadata=language)


def main() -> None:
    "Run what was named, the longest first, and say how long each took."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('paths', nargs='*', default=[CONFIG.nbs_path], help='notebooks or folders; without any, all')
    parser.add_argument('--n-workers', type=int, default=2, help='notebooks at a time')
    given = parser.parse_args()
    found = {Path(name).resolve() for path in given.paths for name in nbglob(str(path), as_path=True)}
    notebooks = sorted(found, key=lambda path: (last_time(path), path.stat().st_size), reverse=True)
    # a process for each: what one notebook sets (a style, a number of threads) must not decide how the next one ends
    with ProcessPoolExecutor(given.n_workers, get_context('spawn'), max_tasks_per_child=1) as pool:
        ended = dict(zip(notebooks, pool.map(run, notebooks), strict=True))
    for notebook, (passed, seconds) in sorted(ended.items(), key=lambda item: -item[1][1]):
        print(f'{seconds:6.1f} s  {notebook.relative_to(TOP)}{"" if passed else "  FAILED"}')
    sys.exit(not ended or not all(passed for passed, _ in ended.values()))


if __name__ == '__main__':
    main()
