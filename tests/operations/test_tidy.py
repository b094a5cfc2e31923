"""Old runs go whole or not at all: whoever is killed, reads, works or tidies at the same time."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
from toys import run_to_look_at

from twotower.base.errors import InputError, SettingError
from twotower.base.files import beside, point, write_json
from twotower.base.holds import using
from twotower.data.sources import workspace
from twotower.embedding import live
from twotower.operations.tidy import tidy
from twotower.page.open_run import open_run
from twotower.runs.run import SUMMARY, all_runs, create_run, find_run


def aged(path: Path) -> Path:
    for each in [*path.rglob('*'), path]:
        os.utime(each, (0, 0), follow_symlinks=False)
    return path


@pytest.fixture
def outputs(tmp_path, toy_run) -> Path:
    "Four old runs with models, of which `stable` is the first and `latest` the last; three daily ones; four days of live."
    outputs = tmp_path / 'outputs'
    for day, name in enumerate('abcd', 1):
        toy_run(name, day)
    for day, name in enumerate('xyz', 5):
        run = create_run(name, outputs)
        made = {'run_id': name, 'created_at': f'2026-01-{day:02}T03:04:05+00:00', 'stages': {}}
        write_json(run.path / 'run.json', made)
        write_json(outputs / 'active' / f'of-{name}' / 'metrics.json', {})
        point(run.model, outputs / 'active' / f'of-{name}')
    for day in range(1, 5):
        write_json(outputs / 'live' / f'2026010{day}_000000' / SUMMARY, {})
    for name in ('live', 'active'):
        (outputs / name / '.lock').touch()
    point(outputs / 'stable', outputs / 'runs' / 'a')
    point(outputs / 'latest', outputs / 'runs' / 'd')
    point(outputs / 'active' / 'current', outputs / 'active' / 'of-z')
    return aged(outputs)


def names(outputs: Path) -> dict[str, list[str]]:
    return {
        place: sorted(p.name for p in (outputs / place).glob('[!.]*') if not p.is_symlink())
        for place in ('runs', 'live', 'active')
    }


LEFT = {'runs': ['a', 'd', 'z'], 'live': ['20260104_000000'], 'active': ['of-z']}


@pytest.mark.fault('old runs fill the disk', sees='nothing: the chain of the week removes them, a link keeps one')
def test_what_is_pointed_to_or_new_stays(outputs):
    listed = tidy(outputs, 1, places=set())
    assert len(all_runs(outputs)) == 7  # they were only listed
    assert tidy(outputs, 1, remove=True, places=set()) == listed
    days = [f'2026010{day}_000000' for day in (1, 2, 3)]
    assert [path.name for path in listed] == ['b', 'c', 'x', 'y', *days, 'of-x', 'of-y']
    assert names(outputs) == LEFT
    assert (find_run('stable', outputs).id, find_run('latest', outputs).id) == ('a', 'd')
    assert tidy(outputs, 1, remove=True, places=set()) == []


@pytest.mark.fault('the process is killed at any step of removing old runs', sees='whole runs only; a repeat finishes')
def test_sigkill_at_every_step(outputs, killed_at, tmp_path):
    shutil.copytree(outputs, tmp_path / 'kept', symlinks=True)
    whole = {run.id: sorted(p.name for p in run.path.rglob('*')) for run in all_runs(outputs)}
    seen = set()
    for n in count(1):
        shutil.rmtree(outputs)
        shutil.copytree(tmp_path / 'kept', outputs, symlinks=True)
        aged(outputs)
        killed = killed_at(n, lambda: tidy(outputs, 1, remove=True, places=set()))
        runs = all_runs(outputs)
        seen.add(len(runs))
        assert all(whole[run.id] == sorted(p.name for p in run.path.rglob('*')) for run in runs)
        assert all((outputs / link / 'run.json').is_file() for link in ('stable', 'latest'))
        tidy(outputs, 1, remove=True, places=set())
        assert names(outputs) == LEFT
        assert not [p for place in ('runs', 'live', 'active') for p in (outputs / place).glob('.*.tmp')]
        if not killed:
            break
    assert seen == {3, 4, 5, 6, 7}
    assert n > 30


@pytest.mark.fault('a run is pointed to while it is removed', sees='nothing: it stays, also after a kill')
def test_a_run_that_is_pointed_to_in_that_very_moment_stays(outputs, monkeypatch):
    rename, places = os.rename, []

    def meanwhile(source, target):
        rename(source, target)
        if Path(source).name == 'b' and not places:
            places.append(target)
            point(outputs / 'stable', outputs / 'runs' / 'b')

    monkeypatch.setattr(os, 'rename', meanwhile)
    assert 'b' not in [path.name for path in tidy(outputs, 1, remove=True, places=set())]
    assert find_run('stable', outputs).id == 'b'
    rename(outputs / 'runs' / 'b', places[0])  # as if it had been killed before it gave the name back
    assert [run.id for run in all_runs(outputs)] == ['a', 'd', 'z']
    tidy(outputs, 1, remove=True, places=set())
    assert find_run('stable', outputs).id == 'b'


def _hold(work, told) -> None:
    with work:
        told.set()
        time.sleep(600)


def holding(work) -> multiprocessing.Process:
    "A process that is in the middle of some work."
    fork = multiprocessing.get_context('fork')
    told = fork.Event()
    process = fork.Process(target=_hold, args=(work, told))
    process.start()
    assert told.wait(60)
    return process


@pytest.mark.fault('a chain works in an old run while others are removed', sees='nothing: its run stays')
def test_a_run_that_is_worked_in_stays_until_its_process_dies(outputs):
    draft = beside(outputs / 'runs' / 'b' / 'prep')
    draft.mkdir()
    aged(outputs / 'runs' / 'b')
    process = holding(using(outputs / 'runs' / 'b'))
    tidy(outputs, 1, remove=True, places=set())
    assert names(outputs)['runs'] == ['a', 'b', 'd', 'z']
    assert draft.exists()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    tidy(outputs, 1, remove=True, places=set())
    assert names(outputs)['runs'] == ['a', 'd', 'z']


def test_what_was_written_to_today_stays(outputs):
    (outputs / 'runs' / 'b' / 'reports').mkdir()
    (outputs / 'runs' / 'b' / 'reports' / '06_qual.html').write_text('by hand')
    tidy(outputs, 1, remove=True, places=set())
    assert names(outputs)['runs'] == ['a', 'b', 'd', 'z']


def test_a_run_that_was_removed_is_told(outputs):
    run = find_run('b', outputs)
    tidy(outputs, 1, remove=True, places=set())
    with pytest.raises(InputError, match='b has been removed, as old: begin a new run'), using(run.path):
        pass


@pytest.mark.fault('a run is removed while a page reads it', sees='nothing: it stays, or was gone before')
def test_a_reader_reads_a_whole_run(tmp_path, monkeypatch):
    run = run_to_look_at('old', 1, tmp_path / 'outputs')
    for name in ('new', 'newer'):
        create_run(name, tmp_path / 'outputs')
        (tmp_path / 'outputs' / 'runs' / name / 'model').mkdir()
    removed = []
    import twotower.page.open_run as page

    real = page.read_table

    def meanwhile(*args):
        aged(run.path)
        removed.extend(tidy(tmp_path / 'outputs', 1, remove=True, places=set()))
        return real(*args)

    monkeypatch.setattr(page, 'read_table', meanwhile)
    assert open_run(run).run_id == 'old'
    assert removed == []
    assert tidy(tmp_path / 'outputs', 1, remove=True, places=set()) == [run.path]
    with pytest.raises(InputError, match='old has been removed'):
        open_run(run)


def _tidied(outputs: Path, barrier) -> None:
    barrier.wait()
    tidy(outputs, 1, remove=True, places=set())


@pytest.mark.fault('two processes remove old runs at once', sees='nothing: one after the other')
def test_two_tidy_at_once(outputs):
    fork = multiprocessing.get_context('fork')
    barrier = fork.Barrier(4)
    processes = [fork.Process(target=_tidied, args=(outputs, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert {p.exitcode for p in processes} == {0}
    assert names(outputs) == LEFT


def test_who_embeds_now_keeps_all_of_live(outputs):
    process = holding(live.one_writer(outputs / 'live'))
    tidy(outputs, 1, remove=True, places=set())
    assert len(names(outputs)['live']) == 4
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    tidy(outputs, 1, remove=True, places=set())
    assert names(outputs)['live'] == ['20260104_000000']


@pytest.mark.fault('a killed stage left its scratch in the temporary folder', sees='nothing; twotower tidy removes it')
def test_the_scratch_of_the_dead_goes_and_that_of_the_living_stays(tmp_path, monkeypatch):
    place = tmp_path / 'temporary'
    place.mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(place))
    processes = [holding(workspace()) for _ in range(2)]
    aged(place)  # neither has written for long
    assert tidy(tmp_path / 'none', 1, remove=True, places={place}) == []
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].join()
    assert len(tidy(tmp_path / 'none', 1, places={place})) == 1
    tidy(tmp_path / 'none', 1, remove=True, places={place})
    (left,) = place.iterdir()
    assert (left / 'work.duckdb').exists()
    os.kill(processes[1].pid, signal.SIGKILL)
    processes[1].join()
    tidy(tmp_path / 'none', 1, remove=True, places={place})
    assert list(place.iterdir()) == []


def test_scratch_of_an_earlier_release_goes_after_a_day_if_nobody_has_it_open(tmp_path):
    place = tmp_path / 'temporary'
    for name in ('twotower-abcd0123', 'twotower-0123abcd'):
        (place / name).mkdir(parents=True)
        (place / name / 'work.duckdb').touch()
    assert tidy(tmp_path / 'none', 1, remove=True, places={place}) == []  # of today
    aged(place)
    with (place / 'twotower-abcd0123' / 'work.duckdb').open('rb'):
        assert [p.name for p in tidy(tmp_path / 'none', 1, remove=True, places={place})] == ['twotower-0123abcd']


@pytest.mark.fault('torchrun is killed', sees='nothing: what it left is removed with the scratch of its owner')
def test_torchrun_leaves_nothing(tmp_path):
    place, work = tmp_path / 'temporary', tmp_path / 'work'
    for folder in (place, work):
        folder.mkdir()
    code = 'from pathlib import Path; import sys; from twotower.parallel.launch import torchrun; torchrun("builtins:print", Path(sys.argv[1]), 1)'
    subprocess.run([sys.executable, '-c', code, str(work)], env={**os.environ, 'TMPDIR': str(place)}, check=True)
    assert [p.name for p in place.iterdir() if p.name.startswith(('twotower-', 'torchelastic_'))] == []


def test_the_profile_of_the_week_says_how_many_stay(home):
    from twotower.operations.plan import runs_to_keep

    (home / 'params' / 'mine').mkdir(parents=True)
    (home / 'params' / 'mine' / 'chain.yaml').write_text('stages: 01_prep\nkeep: none\n')
    with pytest.raises(SettingError, match=r"chain\.yaml: keep is 'none', must be a whole number, 1 or more"):
        runs_to_keep('mine')
    assert (runs_to_keep('weekly'), runs_to_keep('demo')) == (10, None)
