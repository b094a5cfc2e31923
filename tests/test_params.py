"""The profiles: the same keys as the notebook, of the right types, in all of them; and the tag that makes them count."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
import yaml

from twotower.cli import KINDS, chain, declared, plan
from twotower.core import PACKAGE

PROJECT = PACKAGE.parent
STAGES = [*sorted(p.stem for p in (PROJECT / 'nbs').glob('0[1-6]_*.ipynb')), '22_daily']
PROFILES = sorted(p.name for p in (PROJECT / 'params').iterdir() if p.is_dir())


@pytest.fixture(scope='module')
def cleaned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('cleaned')
    shutil.copy(PROJECT / 'pyproject.toml', folder)
    shutil.copytree(PROJECT / 'nbs', folder / 'nbs')
    shutil.copytree(PROJECT / 'twotower', folder / 'twotower')
    subprocess.run([Path(sys.executable).with_name('nbdev-clean')], cwd=folder, check=True, capture_output=True)
    return folder / 'nbs'


@pytest.mark.parametrize('stage', STAGES)
def test_the_tag_survives_cleaning_and_papermill_sees_what_we_see(cleaned, stage):
    notebook = cleaned / f'{stage}.ipynb'
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    assert sum('parameters' in c['metadata'].get('tags', []) for c in cells) == 1
    ours, theirs = declared(notebook), papermill.inspect_notebook(str(notebook))
    assert ours == {name: KINDS[p['inferred_type_name']] for name, p in theirs.items()}
    assert ours['run_id'] is str
    assert all(p['help'] for p in theirs.values())  # `papermill --help-notebook` explains each


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('profile', PROFILES)
def test_every_profile_has_every_key_with_a_reason(profile, stage):
    path = PROJECT / 'params' / profile / f'{stage}.yaml'
    text = path.read_text(encoding='utf-8')
    assert list(yaml.safe_load(text)) == list(declared(PROJECT / 'nbs' / f'{stage}.ipynb'))
    assert all('  # ' in line for line in text.splitlines() if not line.startswith('#'))


@pytest.mark.parametrize('profile', PROFILES)
def test_every_profile_can_run(profile):
    stages = chain(profile)
    assert [s.name for s in plan(profile, stages, {}, 'r1')] == stages
    assert [s.name for s in plan(profile, STAGES, {}, 'r1')] == STAGES  # what is not in its chain fits too


def test_these_profiles_ship():
    assert {'demo', 'ci', 'weekly', 'daily'} <= set(PROFILES)
