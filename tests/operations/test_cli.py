"""The chain, on three toy stages: what it runs, what it keeps when a stage fails, what it refuses before anything runs."""

import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import typer

from twotower import cli
from twotower.runs.run import create_run

OPENING = """
from datetime import UTC, datetime
from twotower.runs.tables import header
from twotower.runs.parameters import checked_parameters
from twotower.runs.run import find_run, record
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
    case 'leak': print(os.environ['SUPABASE_DB_URL'])
    case 'leak file': (run.path / 'facts.json').write_text(os.environ['SUPABASE_DB_URL'])
    case 'steps':
        from twotower.base.progress import progress
        for _ in progress(range(3), 'steps'): time.sleep(0.5)
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


@pytest.mark.parametrize(
    ('how', 'error'),
    [('killed', 'RuntimeError: the process of 02_train was killed (SIGKILL)'), ('exit', 'SystemExit: 0')],
)
def test_a_stage_that_ends_without_a_word_has_failed(project, twotower, how, error):
    (project / 'params' / 'toy' / 'chain.yaml').write_text('stages: 02_train 03_eval\n')
    status, _, err = twotower('run', 'toy', '--run-id', 'r1', '-p', f'how={how}')
    assert status == 1
    assert err.startswith(f'error: 02_train: {error}')
    assert states(project / 'outputs' / 'runs' / 'r1') == {'02_train': False}


def started(project: Path, how: str) -> subprocess.Popen:
    "A chain of one stage in a process group of its own, as a shell would start it."
    (project / 'params' / 'toy' / 'chain.yaml').write_text('stages: 02_train\n')
    code = (
        'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from twotower.cli import main; main()'
    )
    command = [sys.executable, '-c', code, 'run', 'toy', '--run-id', 'r1', '-p', f'how={how}']
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ), start_new_session=True
    )


@pytest.mark.fault(
    'Ctrl-C, or a service that ends the command', sees='which stage was interrupted and how to go on; exit status 130'
)
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_kernel_and_keeps_the_report(project, number):
    process, run, patience = started(project, 'sleep'), project / 'outputs' / 'runs' / 'r1', time.monotonic() + 60
    while not (run / 'asleep').exists():
        assert time.monotonic() < patience
        assert process.poll() is None
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family  # the kernel
    os.killpg(process.pid, number)  # as a terminal does: to all that is in the foreground
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == 'interrupted; go on with: twotower run toy --run-id r1 --from 02_train -p how=sleep\n'
    assert out.splitlines()[-1].endswith('interrupted')
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert 'KeyboardInterrupt' in (run / 'reports' / '02_train.html').read_text()
    assert 'KeyboardInterrupt' in (run / 'index.html').read_text()
    assert not list(run.rglob('.*'))
    assert json.loads((run / 'run.json').read_text())['stages'] == {}


def test_an_interrupt_while_the_kernel_starts_leaves_nothing_behind(project):
    process, patience = started(project, 'sleep'), time.monotonic() + 60
    while not (family := psutil.Process(process.pid).children(recursive=True)):
        assert time.monotonic() < patience
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert psutil.wait_procs(family, timeout=5)[1] == []


@pytest.mark.fault('a stage prints a password', sees='an error that names file and variable; the report is not kept')
@pytest.mark.parametrize(('how', 'file'), [('leak', 'reports/02_train.ipynb'), ('leak file', 'facts.json')])
def test_a_report_with_a_secret_is_not_kept(project, twotower, monkeypatch, how, file):
    monkeypatch.setenv('SUPABASE_DB_URL', 'postgresql://me:hunt%40er2@db.example/x')
    status, out, err = twotower('run', 'toy', '--run-id', 'r1', '-p', f'how={how}')
    run = project / 'outputs' / 'runs' / 'r1'
    assert status == 1
    assert f'LeakError: a secret stands in {file} (the value of SUPABASE_DB_URL)' in err.replace(
        '02_train.html (the value of SUPABASE_DB_URL), reports/', ''
    )
    assert states(run) == {'01_prep': True, '02_train': False}
    texts = [out, err, *(path.read_text() for path in run.rglob('*') if path.is_file())]
    assert not any('hunt' in text for text in texts)
    assert 'LeakError' in (run / 'index.html').read_text()
    status, out, _ = twotower('secrets')
    assert (status, out) == (0, f'no secret in {project / "outputs"} (SUPABASE_DB_URL)\n')
    (project / 'outputs' / 'sweep.csv').write_text('hunt@er2')
    status, _, err = twotower('secrets')
    assert (status, 'sweep.csv (the value of SUPABASE_DB_URL)' in err, 'hunt' in err) == (1, True, False)


def on_a_terminal(*command: str, **variables: str) -> str:
    "What a program writes to a terminal."
    reader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    environment = {k: v for k, v in os.environ.items() if k != 'CI'} | variables
    process = subprocess.Popen([sys.executable, *command], stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b''
    with suppress(OSError):  # how the end of a terminal is told
        while piece := os.read(reader, 4096):
            shown += piece
    os.close(reader)
    assert process.wait() == 0
    return shown.decode()


def test_a_terminal_shows_how_far_a_stage_is(project):
    (project / 'params' / 'toy' / 'chain.yaml').write_text('stages: 02_train\n')
    chain = on_a_terminal('-c', 'from twotower.cli import main; main()', 'run', 'toy', '-p', 'how=steps')
    assert 'steps 1/3' in chain
    (run,) = (project / 'outputs' / 'runs').iterdir()
    assert '1/3' not in (run / 'reports' / '02_train.html').read_text()


def test_long_work_is_silent_where_nobody_looks():
    bar = 'from twotower.base.progress import progress; print([n for n in progress(range(3), "steps")])'
    clock = 'from twotower.operations.execute import _Clock; c = _Clock("a", 1); c.tick("b"); c.end()'
    assert 'steps' in on_a_terminal('-c', bar)
    assert '\x1b[K' in on_a_terminal('-c', clock)
    assert on_a_terminal('-c', bar, CI='true') == '[0, 1, 2]\r\n'
    assert on_a_terminal('-c', clock, CI='true') == '  a     0.0 s\r\n'
    quiet = subprocess.run([sys.executable, '-c', bar], capture_output=True, text=True)
    assert (quiet.stdout, quiet.stderr) == ('[0, 1, 2]\n', '')


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
        'sead: 1\n': "03_eval.yaml: unknown parameters ['sead']; did you mean seed?",
        'seed: 1.5\n': '03_eval.yaml: seed is 1.5, must be int',
        'seed: one\n': "03_eval.yaml: seed is 'one', must be int",
        'seed: true\n': '03_eval.yaml: seed is True, must be int',
        'seed:\n': '03_eval.yaml: seed is None, must be int',
        'seed: 1\nseed: 2\n': '03_eval.yaml: seed stands twice',
        'seed: [\n': '03_eval.yaml is not YAML',
    }.items():
        last.write_text(content)
        refused('toy', says=says)
    last.rename(last.with_stem('03_eavl'))
    refused('toy', says='params/toy/03_eavl.yaml is of no stage; did you mean 03_eval?')
    last.with_stem('03_eavl').rename(last)
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


def test_a_place_that_can_not_be_written_is_one_line(project, twotower):
    (project / 'outputs').touch()  # a file, where a folder is needed
    status, _, err = twotower('run', 'toy')
    assert status == 1
    assert err.startswith('error: [Errno ')
    assert str(project / 'outputs') in err
    assert len(err.splitlines()) == 1


@pytest.mark.fault(
    'a secret is a word that stands in an older file of the run', sees='an error that names the file, which stays'
)
def test_a_false_alarm_costs_nothing_that_was_there_before(project, twotower, monkeypatch):
    assert twotower('run', 'toy', '--run-id', 'r1', '--to', '01_prep')[0] == 0
    run = project / 'outputs' / 'runs' / 'r1'
    (run / 'model_meta.json').write_text('{"inputs": ["interactions"]}')
    monkeypatch.setenv('PGPASSWORD', 'interactions')
    status, _, err = twotower('run', 'toy', '--run-id', 'r1', '--from', '02_train')
    assert status == 1
    assert 'what was there before is not: model_meta.json' in err
    assert (run / 'model_meta.json').exists()
    monkeypatch.setenv('PGPASSWORD', 'z9-another')
    assert twotower('run', 'toy', '--run-id', 'r1', '--from', '02_train')[0] == 0  # as the error says


HEAVY = {'torch', 'papermill', 'matplotlib', 'pandas', 'duckdb', 'onnxruntime', 'scipy', 'IPython', 'psycopg', 'tqdm'}


def loaded(code: str) -> set[str]:
    "The modules that a program has loaded when it ends."
    code = f'import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {code}'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_what_is_not_needed_is_not_loaded():
    assert not (HEAVY | {'numpy', 'pyarrow'}) & loaded('import twotower')
    for arguments in (['--help'], ['doctor', '--help'], ['--version']):
        code = f'sys.argv = ["twotower", *{arguments}]; from twotower.cli import main; main()'
        assert not HEAVY & loaded(code), arguments


def commands() -> dict:
    return typer.main.get_command(cli.app).commands


def test_every_command_explains_itself_with_an_example(twotower):
    assert 'twotower run demo' in twotower('--help')[1]
    for name, command in commands().items():
        status, out, _ = twotower(name, '--help')
        assert status == 0
        assert re.search(rf'Example: .*twotower {name}', out), name
        assert all(p.help for p in command.params if p.name != 'help'), name


@pytest.fixture
def completed(twotower, monkeypatch):
    "What a shell offers after some words, by the protocol of its completion."

    def ask(words: str) -> list[str]:
        monkeypatch.setenv('_TWOTOWER_COMPLETE', 'complete_bash')
        monkeypatch.setenv('COMP_WORDS', words)
        monkeypatch.setenv('COMP_CWORD', str(words.count(' ')))
        status, out, err = twotower()
        assert (status, err) == (0, '')
        return out.split()

    return ask


def test_the_shell_completes_commands_profiles_stages_runs_and_parameters(project, completed, twotower, monkeypatch):
    for name in ('r1', 'r2', 's1'):
        create_run(name)
    assert {'run', 'doctor'} <= set(completed('twotower '))
    assert completed('twotower run t') == ['toy']
    assert completed('twotower run toy --from ') == ['01_prep', '02_train', '03_eval']
    assert completed('twotower run toy --from 02_train --to 03') == ['03_eval']
    assert set(completed('twotower run toy --run-id r')) == {'r1', 'r2'}
    assert completed('twotower run toy -p r') == ['rate=']
    assert completed('twotower summary st') == ['stable']
    assert completed('twotower sweep toy --try ') == ['how=']
    assert completed('twotower run none --from 0') == []
    monkeypatch.setenv('_TWOTOWER_COMPLETE', 'source_bash')
    assert '_TWOTOWER_COMPLETE=complete_bash' in twotower()[1]  # what --show-completion shows


@pytest.mark.parametrize('secret', ['https://v.example/a?pass=hunter2', 'host=db.example password=hunter2'])
@pytest.mark.parametrize(
    'command',
    ['run ci --run-id', 'run ci --from', 'run', 'runner receive', 'runner summary', 'runner input', 'qual', 'migrate'],
)
def test_a_password_on_the_command_line_is_neither_repeated_nor_kept(tmp_path, monkeypatch, capsys, command, secret):
    monkeypatch.setenv('TWOTOWER_HOME', str(tmp_path))
    monkeypatch.setattr(sys, 'argv', ['twotower', *command.split(), secret])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.err.startswith('error: the command line holds ')
    assert 'hunter2' not in said.out + said.err
    assert not list(tmp_path.iterdir())
