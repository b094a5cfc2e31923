"The notebooks' tests run one by one, and what they gave is kept for the site."

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat.v4 as nbf
import pytest

TOP = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / '.ci').mkdir()
    (tmp_path / 'nbs/data').mkdir(parents=True)
    shutil.copy(TOP / '.ci/notebooks.py', tmp_path / '.ci')
    shutil.copy(TOP / 'pyproject.toml', tmp_path)
    return tmp_path


def write(path: Path, *cells: str) -> None:
    path.write_text(json.dumps(nbf.new_notebook(cells=[nbf.new_code_cell(cell) for cell in cells])))


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '.ci/notebooks.py', *arguments], cwd=project, capture_output=True, text=True)


def test_a_notebook_is_kept_with_its_results_and_its_source_is_left_alone(project):
    cells = ['from pathlib import Path', 'print(Path.cwd().name)', "#| run\nraise SystemExit('only in a run')"]
    write(project / 'nbs/data/good.ipynb', *cells)
    before = (project / 'nbs/data/good.ipynb').read_bytes()
    done = run(project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith('s  nbs/data/good.ipynb\n')
    assert (project / 'nbs/data/good.ipynb').read_bytes() == before
    kept = json.loads((project / '_ran/nbs/data/good.ipynb').read_text())['cells']
    assert [''.join(output['text']) for cell in kept for output in cell['outputs']] == ['data\n']


def test_a_failure_names_notebook_cell_and_error_and_keeps_nothing(project):
    write(project / 'nbs/bad.ipynb', 'x = 1', 'assert x == 2, "x is wrong"', 'print("never")')
    write(project / 'nbs/data/good.ipynb', 'import matplotlib', "matplotlib.rcParams['axes.titlelocation'] = 'left'")
    (project / '_ran/nbs').mkdir(parents=True)
    write(project / '_ran/nbs/bad.ipynb', 'of an earlier run')
    done = run(project, 'nbs/bad.ipynb', 'nbs/data')
    assert done.returncode == 1
    for word in ('nbs/bad.ipynb', 'Cell #2', 'AssertionError: x is wrong'):
        assert word in done.stderr
    assert [line.split('  ')[-1] for line in done.stdout.splitlines() if 'bad' in line] == ['FAILED']
    assert [path.name for path in (project / '_ran').rglob('*.ipynb')] == ['good.ipynb']


def test_a_notebook_knows_nothing_of_the_one_before(project):
    for name in 'ab':
        write(project / f'nbs/{name}.ipynb', 'import math', 'assert not hasattr(math, "seen")', 'math.seen = True')
    assert run(project, '--n-workers', '1').returncode == 0


def test_to_name_nothing_is_no_success(project):
    assert run(project, 'nbs/data').returncode != 0


def test_what_a_chain_leaves_out_is_tested_here(project):
    failing = nbf.new_code_cell('assert 1 + 1 == 3', metadata={'tags': ['skip-execution']})
    (project / 'nbs/bad.ipynb').write_text(json.dumps(nbf.new_notebook(cells=[failing])))
    done = run(project)
    assert (done.returncode, 'assert 1 + 1 == 3' in done.stderr) == (1, True)
