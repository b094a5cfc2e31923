"A stage is killed after its work is finished and before that is noted: the command that is printed ends the chain."

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twotower.base.files import read_json
from twotower.catalogue.movielens import load
from twotower.runs.run import find_run

# Python runs this file when it starts: a kernel dies as soon as the name in DIES has been written, or run.json with the stage in it
DEADLY = """
import json, os, signal, sys
if 'ipykernel_launcher' in sys.orig_argv and 'DIES' in os.environ:
    def deadly(real):
        def step(source, target, *rest, **more):
            stage, name = os.environ['DIES'].split()
            noted = os.path.basename(target) == 'run.json' and stage in json.load(open(source))['stages']
            if name == 'unnoted' and noted:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target, *rest, **more)
            if os.path.basename(target) == name or (name == 'noted' and noted):
                os.kill(os.getpid(), signal.SIGKILL)
        return step
    os.rename, os.replace = deadly(os.rename), deadly(os.replace)
"""
DEATHS = {
    '01_prep': ('prep', 'noted'),
    '02_train': ('model', 'noted'),
    '03_eval': ('metrics.json', 'unnoted'),
    '04_embed': ('unnoted',),
    '05_publish': ('unnoted',),
}


@pytest.fixture
def typed(home, tmp_path):
    "Type a command in a shell; kernels die where `dies` says."
    (tmp_path / 'sitecustomize.py').write_text(DEADLY)
    folders = (str(tmp_path), str(Path(__file__).parents[2]), os.environ.get('PYTHONPATH', ''))
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    env = os.environ | {'PYTHONPATH': ':'.join(folders), 'PATH': path}

    def type_in(command: str, dies: str = '') -> tuple[int, str]:
        done = subprocess.run(
            ['sh', '-c', command], env=env | ({'DIES': dies} if dies else {}), capture_output=True, text=True, cwd=home
        )
        return done.returncode, done.stdout + done.stderr

    return type_in


@pytest.mark.fault(
    'a stage is killed after its folder was finished, before it was recorded or pointed to',
    sees='a command; the stage adds what is missing',
)
def test_killed_between_the_work_and_its_record(database, home, typed):
    load()
    (home / 'data' / 'ml-100k' / 'reviews.csv').rename(home / 'data' / "it's all.csv")
    command = """twotower run ci --run-id r1 --to 05_publish -p epochs=2 -p "input=data/it's all.csv" """
    for stage, places in DEATHS.items():
        for place in places:
            status, said = typed(command, f'{stage} {place}')
            assert (status, f'error: {stage}: RuntimeError: the process of {stage} was killed (SIGKILL)' in said) == (
                1,
                True,
            ), said
            command = said.splitlines()[-1].removeprefix('go on with: ')
            assert command.startswith(f'twotower run ci --run-id r1 --from {stage} --to 05_publish'), said
    status, said = typed(command)
    assert status == 0, said
    run = find_run('latest', home / 'outputs')
    assert (run.id, find_run('stable', home / 'outputs').id) == ('r1', 'r1')
    record = read_json(run.path / 'run.json')
    assert (list(record['stages']), record['begun']) == (list(DEATHS), {})
    assert record['stages']['02_train']['parameters']['epochs'] == 2
    assert not (run.path / 'checkpoints').exists()

    status, said = typed('twotower run ci --run-id r1 --from 02_train --to 02_train -p epochs=3')
    assert (status, 'repeat what it was made with, -p epochs=2; or begin a new run' in said) == (1, True), said
