"""The parameters: one class for each stage, from which its tagged cell is written; profiles that list only what differs; and the tag that makes them count."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
import yaml

from twotower.base.errors import SettingError
from twotower.base.settings import PACKAGE
from twotower.operations.plan import chain, plan
from twotower.runs.parameters import KINDS, declared, parameters_cell
from twotower.runs.settings import SETTINGS

PROJECT = PACKAGE.parent
STAGES = sorted(p.stem for p in (PROJECT / 'nbs').glob('[0-9]*.ipynb'))
PROFILES = sorted(p.name for p in (PROJECT / 'params').iterdir() if p.is_dir())
FILES = sorted(p.relative_to(PROJECT / 'params') for p in (PROJECT / 'params').glob('*/0*.yaml'))


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
def test_the_tagged_cell_is_written_from_the_class(stage):
    cells = json.loads((PROJECT / f'nbs/{stage}.ipynb').read_text(encoding='utf-8'))['cells']
    [source] = [''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    assert source == parameters_cell(SETTINGS[stage]), 'type: make readme'


def test_the_page_of_all_parameters_is_up_to_date():
    code = f"import runpy; print(runpy.run_path({str(PROJECT / '.ci/parameters.py')!r})['page'](), end='')"
    made = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout
    assert made == (PROJECT / 'PARAMETERS.md').read_text(encoding='utf-8'), 'type: make readme'


def test_every_stage_has_a_class():
    assert list(SETTINGS) == STAGES


@pytest.mark.parametrize('file', FILES, ids=str)
def test_a_profile_lists_only_what_differs_with_its_reason(file):
    text, stage = (PROJECT / 'params' / file).read_text(encoding='utf-8'), file.stem
    assert stage in chain(file.parent.name)  # what its chain never runs is not listed
    values, lines = yaml.safe_load(text), [line for line in text.splitlines() if not line.startswith('#')]
    assert len(lines) == len(values) > 0
    assert all('  # ' in line for line in lines)
    default = vars(SETTINGS[stage]())
    assert [name for name, value in values.items() if value == default[name]] == []


@pytest.mark.parametrize('profile', PROFILES)
def test_every_profile_can_run(profile):
    stages = chain(profile)
    assert [s.name for s in plan(profile, stages, {}, 'r1')] == stages
    assert [s.name for s in plan(profile, STAGES, {}, 'r1')] == STAGES  # what is not in its chain has defaults


def test_these_profiles_ship():
    assert {'demo', 'ci', 'weekly', 'daily'} <= set(PROFILES)


@pytest.fixture
def profile(home):
    "Write a file of the profile `own`."
    (home / 'params/own').mkdir(parents=True)
    return lambda name, text: (home / 'params/own' / name).write_text(text)


def test_a_profile_that_lists_everything_is_read(profile):
    stages = ['02_train', '03_eval']
    profile('chain.yaml', f'stages: {" ".join(stages)}\n')
    for stage in stages:
        profile(f'{stage}.yaml', yaml.safe_dump(vars(SETTINGS[stage]()) | {'seed': 7}))
    for stage in plan('own', chain('own'), {}, 'r1'):
        assert stage.parameters == vars(SETTINGS[stage.name]()) | {'seed': 7, 'run_id': 'r1'}


def test_a_profile_with_the_old_name_of_the_daily_stage_is_read(profile):
    profile('chain.yaml', 'stages: 22_daily 04_embed\n')
    profile('22_daily.yaml', 'skip_ingest: true\n')
    assert chain('own') == ['07_daily', '04_embed']
    assert chain('own', '22_daily', '22_daily') == ['07_daily']
    [daily] = plan('own', ['07_daily'], {}, 'r1')
    assert daily.parameters == {'skip_ingest': True, 'run_id': 'r1'}


@pytest.mark.parametrize(
    ('line', 'says'),
    [
        ('epochs: 0', '02_train.yaml: epochs is 0, must be 1 or more'),
        ('dropout: 1.5', '02_train.yaml: dropout is 1.5, must be 0 to 1'),
        ('loss: softmex', "02_train.yaml: loss is 'softmex', must be one of softmax, bce, mixed"),
        ('learning_rate: 1e-3', "02_train.yaml: learning_rate is '1e-3', must be float; YAML reads 1e-3 as text"),
        ('temprature: 0.1', r"02_train.yaml: unknown parameters \['temprature'\]; did you mean temperature\?"),
    ],
)
def test_a_wrong_value_names_its_file_and_rule(profile, line, says):
    profile('02_train.yaml', line + '\n')
    with pytest.raises(SettingError, match=says):
        plan('own', ['02_train'], {}, 'r1')


def test_a_wrong_value_of_the_command_line_names_its_rule(profile):
    with pytest.raises(SettingError, match='-p epochs is 0, must be 1 or more'):
        plan('own', ['02_train'], {'epochs': '0'}, 'r1')
