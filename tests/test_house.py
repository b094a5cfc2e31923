"""What a visitor relies on: small rooms, tagged tests, a package that starts quickly."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
NOTEBOOKS = sorted(path for path in (TOP / 'nbs').rglob('*.ipynb') if path.stem not in ('index', 'index_ja'))
STAGES = [path for path in NOTEBOOKS if path.parent.name == 'nbs' and path.stem[0].isdigit()]


def code_cells(notebook: Path) -> list[tuple[str, list[str]]]:  # source, tags
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [(''.join(c['source']), c['metadata'].get('tags', [])) for c in cells if c['cell_type'] == 'code']


def name_of(path: Path) -> str:
    return path.relative_to(TOP).as_posix()


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name_of)
def test_a_chain_leaves_tests_out(notebook):
    "papermill skips what carries the tag `skip-execution`, and only that; nbdev-test runs it all the same."
    for source, tags in code_cells(notebook):
        flags = set(re.findall(r'^#\|\s*(\w+)', source, re.M))
        works = flags & {'export', 'run', 'default_exp'} or 'parameters' in tags
        assert ('skip-execution' in tags) is not bool(works), source[:200]


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name_of)
def test_a_notebook_is_short_and_so_are_its_cells(notebook):
    assert len(json.loads(notebook.read_text(encoding='utf-8'))['cells']) <= 50
    for source, _ in code_cells(notebook):
        if re.search(r'^#\|\s*export', source, re.M):
            assert len([line for line in source.splitlines() if line.strip() and not line.startswith('#|')]) <= 45, (
                source[:200]
            )


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name_of)
def test_a_notebook_is_named_as_its_module(notebook):
    [module] = re.findall(r'^#\| default_exp (\S+)', '\n'.join(source for source, _ in code_cells(notebook)), re.M)
    stages = {'03_eval': 'evaluate'}
    inside = notebook.relative_to(TOP / 'nbs').with_suffix('').as_posix().replace('/', '.')
    assert module == stages.get(inside, re.sub(r'^\d\d_', '', inside))


def test_modules_are_short_and_their_inits_empty():
    for path in (TOP / 'twotower').rglob('*.py'):
        inside = path.relative_to(TOP / 'twotower')
        lines = len(path.read_text(encoding='utf-8').splitlines())
        if path.name == '__init__.py' and len(inside.parts) > 1:
            assert path.read_text() == '', inside
        elif path.name != '_modidx.py':
            stage = len(inside.parts) == 1 and path.stem != 'cli'
            assert lines <= (170 if stage else 320) * 1.15, inside


def test_no_private_name_crosses_a_module():
    for path in (TOP / 'twotower').rglob('[a-z]*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').startswith('twotower')):
                assert [a.name for a in node.names if a.name.startswith('_')] == [], path


@pytest.mark.parametrize('statement', ['import twotower', 'from twotower.model import features'])
def test_what_needs_no_torch_loads_none(statement):
    code = f'{statement}; import sys; print([name for name in ("torch", "ray", "matplotlib", "jupyterlab") if name in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'
