"""The chain, on three toy stages: what it runs, what it keeps when a stage fails, what it refuses before anything runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twotower import cli

OPENING = """
from datetime import UTC, datetime
from twotower.report import header
from twotower.runs import checked_parameters, find_run, record
started = datetime.now(UTC)
params = checked_parameters(globals())
run = find_run(params.run_id)
"""
PREP = (
    OPENING
    + """
header('01_prep', params, run)
(run.path / 'rate.txt').write_text(f'{params.rate} {params.seed}')
record(run, '01_prep', params, started)
"""
)
TRAIN = (
    OPENING
    + """
import os, signal, sys, time
match params.how:
    case 'error': raise ZeroDivisionError('1 / <0>')
    case 'killed': os.kill(os.getpid(), signal.SIGKILL)
    case 'exit': sys.exit(0)
    case 'sleep': (run.path / 'asleep').touch(); time.sleep(60)
record(run, '02_train', params, started)
"""
)
EVAL = OPENING + "record(run, '03_eval', params, started, seed=params.seed)"
STAGES = {
    '01_prep': ("run_id: str = 'auto'  # run\nseed: int = 0  # seed\nrate: float = 0.1  # rate", PREP),
    '02_train': ("run_id: str = 'newest'  # run\nhow: str = ''  # how it ends", TRAIN),
    '03_eval': ("run_id: str = 'newest'  # run\nseed: int = 0  # seed", EVAL),
}


def write_notebook(path: Path, parameters: str, code: str, tag: str = 'parameters') -> None:
    cells = [
        ('markdown', f'# {path.stem}\n\n> The claim of {path.stem}', []),
        ('code', 'SECRET_CODE = print("preflight")', []),
        ('code', parameters, [tag] if tag else []),
        ('markdown', '## Run\n\nWhat does it say?', []),
        ('code', code, []),
    ]
    content = [
        {'cell_type': kind, 'id': f'c{i}', 'metadata': {'tags': tags}, 'source': source}
        | ({'outputs': [], 'execution_count': None} if kind == 'code' else {})
        for i, (kind, source, tags) in enumerate(cells)
    ]
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({'cells': content, 'metadata': kernel, 'nbformat': 4, 'nbformat_minor': 5}))


@pytest.fixture
def project(home: Path) -> Path:
    for name, (parameters, code) in STAGES.items():
        write_notebook(home / 'nbs' / f'{name}.ipynb', parameters, code)
    folder = home / 'params' / 'toy'
    folder.mkdir(parents=True)
    (folder / 'chain.yaml').write_text('stages: 01_prep 02_train 03_eval\n')
    (folder / '01_prep.yaml').write_text('run_id: auto\nseed: 1\nrate: 0.5\n')
    (folder / '02_train.yaml').write_text("run_id: newest\nhow: ''\n")
    (folder / '03_eval.yaml').write_text('run_id: newest\nseed: 1\n')
    return home


@pytest.fixture
def twotower(monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', ['twotower', *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return call


def states(run: Path) -> dict[str, bool]:
    files = sorted((run / 'reports').glob('*.ipynb'))
    return {f.stem: 'This stage failed' not in f.with_suffix('.html').read_text() for f in files}


def test_a_chain_runs_with_one_id_and_leaves_reports(project, twotower):
    status, out, err = twotower('run', 'toy', '--run-id', 'r1', '-p', 'seed=7')
    run = project / 'outputs' / 'runs' / 'r1'
    assert (status, err) == (0, '')
    assert states(run) == {'01_prep': True, '02_train': True, '03_eval': True}
    assert (run / 'rate.txt').read_text() == '0.5 7'  # the profile, and the command line above it
    recorded = json.loads((run / 'run.json').read_text())['stages']
    assert {s['parameters']['run_id'] for s in recorded.values()} == {'r1'}
    assert recorded['03_eval']['seed'] == 7
    assert [line.split()[0] for line in out.splitlines() if line.startswith('  0')] == list(STAGES)
    assert str(run / 'index.html') in out

    page = (run / 'reports' / '01_prep.html').read_text()
    for part in ['The claim of 01_prep', 'What does it say?', 'rate', '>0.5<', '>7<']:
        assert part in page
    for part in ['SECRET_CODE', 'preflight', 'checked_parameters', '<script', 'src="http', 'href="http']:
        assert part not in page
    assert 'reports/03_eval.html' in (run / 'index.html').read_text()
    assert not list(run.rglob('.*'))  # no draft is left

    status, _, err = twotower('run', 'toy', '--run-id', 'r1')
    assert status == 1
    assert 'run r1 exists: go on with --from' in err


def test_a_failing_stage_stops_the_chain_and_can_be_resumed(project, twotower):
    status, out, err = twotower('run', 'toy', '-p', 'how=error')
    (run,) = (project / 'outputs' / 'runs').iterdir()
    assert status == 1
    assert err.splitlines()[0] == 'error: 02_train: ZeroDivisionError: 1 / <0>'
    assert f'{run / "reports" / "02_train.html"}' in err
    assert 'Traceback' not in out + err
    assert states(run) == {'01_prep': True, '02_train': False}
    page = (run / 'reports' / '02_train.html').read_text()
    assert 'ZeroDivisionError: 1 / &lt;0&gt;' in page
    assert 'Traceback (most recent call last)' in page
    assert '>how<' in page.replace('</dt>', '<')  # it died before its header: the injected values stand in for it
    assert 'ZeroDivisionError' in (run / 'index.html').read_text()

    status, _, _ = twotower('run', 'toy', '--from', '02_train')
    assert status == 0
    assert states(run) == {'01_prep': True, '02_train': True, '03_eval': True}


@pytest.mark.parametrize(('how', 'error'), [('killed', 'DeadKernelError: Kernel died'), ('exit', 'SystemExit: 0')])
def test_a_stage_that_ends_without_a_word_has_failed(project, twotower, how, error):
    (project / 'params' / 'toy' / 'chain.yaml').write_text('stages: 02_train 03_eval\n')
    status, _, err = twotower('run', 'toy', '--run-id', 'r1', '-p', f'how={how}')
    assert (status, err.splitlines()[0]) == (1, f'error: 02_train: {error}')
    assert states(project / 'outputs' / 'runs' / 'r1') == {'02_train': False}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_kernel_and_keeps_the_report(project, number):
    (project / 'params' / 'toy' / 'chain.yaml').write_text('stages: 02_train\n')
    code = (
        'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from twotower.cli import main; main()'
    )
    command = [sys.executable, '-c', code, 'run', 'toy', '--run-id', 'r1', '-p', 'how=sleep']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    run, patience = project / 'outputs' / 'runs' / 'r1', time.monotonic() + 60
    while not (run / 'asleep').exists():
        assert time.monotonic() < patience
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert 'interrupted; go on with' in err
    assert 'KeyboardInterrupt' in (run / 'reports' / '02_train.html').read_text()


def test_what_is_wrong_is_said_before_anything_runs(project, twotower):
    def refused(*arguments: str, says: str) -> None:
        status, _, err = twotower('run', *arguments)
        assert status == 1
        assert err.startswith('error: ')
        assert says in err
        assert 'Traceback' not in err
        assert not (project / 'outputs').exists()

    last = project / 'params' / 'toy' / '03_eval.yaml'  # the first stages are in order
    for content, says in {
        'sead: 1\n': "03_eval.yaml: unknown parameters ['sead']; 03_eval has ['run_id', 'seed']",
        'seed: 1.5\n': '03_eval.yaml: seed is 1.5, must be int',
        'seed: one\n': "03_eval.yaml: seed is 'one', must be int",
        'seed: true\n': '03_eval.yaml: seed is True, must be int',
        'seed:\n': '03_eval.yaml: seed is None, must be int',
        'seed: 1\nseed: 2\n': '03_eval.yaml: seed stands twice',
        'seed: [\n': '03_eval.yaml is not YAML',
    }.items():
        last.write_text(content)
        refused('toy', says=says)
    last.unlink()
    refused('toy', says='params/toy/03_eval.yaml is in none of')
    last.write_text('seed: 1\n')

    (project / 'params' / 'toy' / '01_prep.yaml').write_text('rate: 1e-3\n')
    refused('toy', says="01_prep.yaml: rate is '1e-3', must be float; YAML reads 1e-3 as text: write 0.001")
    (project / 'params' / 'toy' / '01_prep.yaml').write_text('rate: 0.001\n')

    refused('toy', '-p', 'sead=1', says='-p sead: no parameter of 01_prep 02_train 03_eval')
    refused('toy', '--to', '02_train', '--from', '02_train', '-p', 'seed=1', says='-p seed: no parameter of 02_train')
    refused('toy', '-p', 'seed=1.5', says="-p seed is '1.5', must be int")
    refused('toy', '-p', 'seed', says='-p seed: must be name=value')
    refused('toy', '-p', 'run_id=x', says='use --run-id')
    refused('toy', '--from', '09_none', says='09_none is no stage of toy')
    refused('toy', '--from', '03_eval', '--to', '01_prep', says='03_eval comes after 01_prep')
    refused('toy', '--from', '02_train', says='holds no run yet')
    refused('toy', '--from', '02_train', '--run-id', 'none', says="no run 'none'")
    refused('toy', '--run-id', '../x', says='can not name a new run')
    refused('none', says='params/none/chain.yaml is in none of')

    write_notebook(project / 'nbs' / '03_eval.ipynb', *STAGES['03_eval'], tag='')
    refused('toy', says='03_eval.ipynb has 0 cells tagged `parameters`')


def test_help_and_version_load_nothing_heavy():
    code = 'import sys, twotower.cli; print(*sys.modules)'
    modules = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert not {'torch', 'papermill', 'matplotlib', 'pandas', 'duckdb', 'onnxruntime'} & set(modules)
    code = 'from twotower.cli import main; main()'
    done = subprocess.run([sys.executable, '-c', code, '--help'], capture_output=True, text=True, check=True)
    for command in ('run', 'summary', 'movielens'):
        assert command in done.stdout
