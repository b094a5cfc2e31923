"""Publishing under faults: whatever breaks, one whole and judged model is active, and a repeat finishes the job."""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from twotower.core import GateError, InputError, OutsideError, SettingError, sha256
from twotower.publish import (
    MANIFEST,
    METRICS,
    PUBLISHED,
    activate,
    activations,
    active,
    fetch,
    list_activations,
    list_files,
    list_runs,
    perform,
    rollback,
    subject,
    upload,
)
from twotower.runs import MODEL_FILES, ONNX, PT, Run, blessed, read_json, write_json
from twotower.store import LocalStore, Rehearsal

RUNS, ACTIVATIONS, MIRROR = 'two_tower/runs', 'two_tower/activations', f'two_tower/latest/{MANIFEST}'


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path / 'store')


def publish(store, run: Run) -> dict:
    upload(store, run)
    return activate(store, run.id)


def overwrite(store: LocalStore, key: str, change: Callable[[bytes], bytes]) -> None:
    "Damage an object behind the back of all."
    (store.folder / key).write_bytes(change((store.folder / key).read_bytes()))


def check_whole(store, folder: Path, *runs: Run) -> str:
    "A machine that has no model yet gets a whole one, of one of `runs`; every plain name is one whole file."
    fetch(store, folder)
    held = folder / 'current'
    assert blessed(held, held / METRICS)['verdict'] == 'pass'
    run = next(r for r in runs if r.id == held.resolve().name)
    for name in MODEL_FILES:
        assert (held / name).read_bytes() == (run.model / name).read_bytes()
    for name in (ONNX, PT):
        assert store.read(name) in [(r.model / name).read_bytes() for r in runs]
    return run.id


def check_mirror(store, run: Run) -> None:
    "All that simple readers see is of `run`."
    mirrored = json.loads(store.read(MIRROR))
    assert (mirrored['run_id'], mirrored['seq']) == (run.id, active(store)['seq'])
    for name in (ONNX, PT):
        assert store.read(name) == (run.model / name).read_bytes()
    for name, fact in mirrored['files'].items():
        path = run.metrics if name == METRICS else run.model / name
        assert fact == {'bytes': path.stat().st_size, 'sha256': sha256(path)}


def test_the_layout_is_the_one_of_the_contract(store, toy_run):
    run, dated = toy_run('20260101_030405'), toy_run('mine', 2)
    publish(store, run)
    assert list(store.list('')) == sorted(
        [
            *(f'{RUNS}/{run.id}/{name}' for name in (*MODEL_FILES, 'metrics.json', 'manifest.json')),
            f'{ACTIVATIONS}/00000001.json',
            'two_tower/latest/manifest.json',
            'two_tower_latest.onnx',
            'two_tower_latest.pt',
            'two_tower_20260101_030405.onnx',
            'two_tower_20260101_030405.pt',
        ]
    )
    publish(store, dated)
    assert 'two_tower_20260102_030405.onnx' in store.list('')
    check_mirror(store, dated)


def test_published_twice_is_published_once(store, toy_run):
    run = toy_run('a')
    publish(store, run)
    before = {key: store.read(key) for key in store.list('') if key != MIRROR}
    assert publish(store, run)['seq'] == 1
    assert {key: store.read(key) for key in store.list('') if key != MIRROR} == before


def test_the_store_works_for_a_machine_without_the_run(store, toy_run, tmp_path):
    run = toy_run('a')
    upload(store, run)
    shutil.rmtree(tmp_path / 'outputs')
    perform(store, 'activate', subject('a', 'activate', tmp_path / 'outputs'), tmp_path / 'active')
    perform(store, 'fetch', subject('latest', 'fetch', tmp_path / 'outputs'), tmp_path / 'active')
    assert (tmp_path / 'active' / 'current' / ONNX).read_text() == f'{ONNX} of a'


# what may not go out


def test_a_failing_verdict_is_refused(store, toy_run):
    with pytest.raises(GateError, match="says 'fail': too weak"):
        upload(store, toy_run('weak', verdict='fail'))
    assert store.list('') == {}


def test_an_unjudged_run_is_refused(store, toy_run):
    run = toy_run('a')
    run.metrics.unlink()
    with pytest.raises(GateError, match=r'metrics\.json is missing'):
        upload(store, run)
    assert store.list('') == {}


@pytest.mark.parametrize('name', MODEL_FILES)
def test_a_file_changed_after_the_verdict_is_refused(store, toy_run, name):
    run = toy_run('a')
    (run.model / name).write_text('trained anew')
    with pytest.raises(GateError, match=f'{name} is not the file that'):
        upload(store, run)
    (run.model / name).unlink()
    with pytest.raises(GateError, match=f'{name} is missing'):
        upload(store, run)
    assert store.list('') == {}


def test_a_model_trained_while_it_is_uploaded_changes_nothing(store, toy_run, monkeypatch):
    run, put = toy_run('a'), LocalStore.put

    def meanwhile(self, key, path, create_only):
        for name in MODEL_FILES:
            (run.model / name).write_text('trained anew')
        put(self, key, path, create_only)

    monkeypatch.setattr(LocalStore, 'put', meanwhile)
    upload(store, run)
    assert activate(store, 'a')['run_id'] == 'a'
    assert store.read(ONNX).decode() == f'{ONNX} of a'


def test_a_run_never_changes_after_its_upload(store, toy_run):
    run = toy_run('a')
    upload(store, run)
    write_json(run.metrics, read_json(run.metrics) | {'judged': 'again'})
    with pytest.raises(OutsideError, match=r'runs/a/metrics\.json is already in .* with other content'):
        upload(store, run)
    assert activate(store, 'a')['run_id'] == 'a'


@pytest.mark.parametrize('run_id', ['current', 'é', 'a b'])
def test_a_run_whose_name_can_not_be_a_key_is_refused(store, tmp_path, run_id):
    with pytest.raises(SettingError, match='can not be published'):
        upload(store, Run(tmp_path / run_id))


@pytest.mark.parametrize('name', PUBLISHED)
@pytest.mark.parametrize('damage', [lambda b: b[:-1], lambda b: b'', lambda b: b'X' + b[1:], None])
def test_a_damaged_upload_is_not_activated(store, toy_run, name, damage):
    old, new = toy_run('old', 1), toy_run('new', 2)
    publish(store, old)
    upload(store, new)
    key = f'{RUNS}/new/{name}'
    if damage:
        overwrite(store, key, damage)
    else:
        store.delete([key])
    with pytest.raises(OutsideError, match=rf'{name} is damaged|missing \[.{name}'):
        activate(store, 'new')
    assert active(store)['run_id'] == 'old'
    check_mirror(store, old)


def test_a_forged_verdict_is_not_activated(store, toy_run):
    run = toy_run('weak', verdict='fail')
    passing = toy_run('good')
    upload(store, passing)
    shutil.copytree(store.folder / RUNS / 'good', store.folder / RUNS / 'weak')
    overwrite(store, f'{RUNS}/weak/{MANIFEST}', lambda b: b.replace(b'"good"', b'"weak"'))
    shutil.copyfile(run.model / ONNX, store.folder / RUNS / 'weak' / ONNX)
    with pytest.raises(OutsideError, match=f'{ONNX} is damaged'):
        activate(store, 'weak')
    fact = {'bytes': (run.model / ONNX).stat().st_size, 'sha256': sha256(run.model / ONNX)}
    manifest = read_json(store.folder / RUNS / 'weak' / MANIFEST)
    manifest['files'][ONNX] = fact
    write_json(store.folder / RUNS / 'weak' / MANIFEST, manifest)
    with pytest.raises(GateError, match=f'{ONNX} is not the file that'):
        activate(store, 'weak')
    assert active(store) is None


def test_an_incomplete_upload_is_not_activated(store, toy_run):
    upload(store, toy_run('a'))
    store.delete([f'{RUNS}/a/{MANIFEST}'])
    with pytest.raises(GateError, match="'a' is not, or not completely, uploaded"):
        activate(store, 'a')


def test_an_older_run_needs_a_word(store, toy_run):
    old, new = toy_run('old', 1), toy_run('new', 2)
    publish(store, new)
    upload(store, old)
    with pytest.raises(GateError, match=r'run old of .* is older than the active run new'):
        activate(store, 'old')
    check_mirror(store, new)
    assert activate(store, 'old', allow_older=True)['seq'] == 2
    check_mirror(store, old)


def test_a_damaged_activation_stops_everything(store, toy_run, tmp_path):
    publish(store, toy_run('a'))
    overwrite(store, f'{ACTIVATIONS}/00000001.json', lambda b: b[:20])
    upload(store, toy_run('b', 2))
    for use in (lambda: activate(store, 'b'), lambda: fetch(store, tmp_path / 'f'), lambda: rollback(store)):
        with pytest.raises(OutsideError, match=r'00000001\.json in the store is damaged'):
            use()


# rollback


def test_rollback_walks_down_and_up_again(store, toy_run):
    a, b, c, d = (toy_run(name, day) for day, name in enumerate('abcd', 1))
    for run in (a, b, c):
        publish(store, run)
    assert rollback(store)['run_id'] == 'b'
    check_mirror(store, b)
    publish(store, d)
    assert [rollback(store)['run_id'] for _ in range(2)] == ['b', 'a']
    with pytest.raises(InputError, match='no model to return to'):
        rollback(store)
    assert [x['seq'] for x in activations(store)] == [7, 6, 5, 4, 3, 2, 1]
    check_mirror(store, a)


def test_a_named_rollback_may_be_repeated(store, toy_run):
    a, b, c = (toy_run(name, day) for day, name in enumerate('abc', 1))
    for run in (a, b, c):
        publish(store, run)
    assert [rollback(store, 'c')['run_id'] for _ in range(3)] == ['b'] * 3
    with pytest.raises(InputError, match=r'run a is not active .* active is b'):
        rollback(store, 'a')
    check_mirror(store, b)


def test_rollback_to_a_damaged_run_is_refused(store, toy_run):
    a, b = toy_run('a', 1), toy_run('b', 2)
    publish(store, a)
    publish(store, b)
    overwrite(store, f'{RUNS}/a/{PT}', lambda b: b[:-1])
    with pytest.raises(OutsideError, match=f'{PT} is damaged'):
        rollback(store)
    check_mirror(store, b)


# fetch


class BadLine(LocalStore):
    "A store whose downloads of one object arrive changed."

    def __init__(self, folder: Path, key: str, change: Callable[[bytes], bytes]):
        super().__init__(folder)
        self.key, self.change = key, change

    def get(self, key: str, path: Path) -> None:
        super().get(key, path)
        if key == self.key:
            path.write_bytes(self.change(path.read_bytes()))


@pytest.mark.parametrize('name', PUBLISHED)
@pytest.mark.parametrize(
    'change', [lambda b: b[:-1], lambda b: b[:3] + b'?' + b[4:], lambda b: b'', lambda b: b + b' ']
)
def test_a_corrupt_download_keeps_the_model_one_had(store, toy_run, tmp_path, name, change):
    publish(store, toy_run('old', 1))
    fetch(store, tmp_path / 'active')
    publish(store, toy_run('new', 2))
    bad = BadLine(store.folder, f'{RUNS}/new/{name}', change)
    with pytest.raises(OutsideError, match=f'{name} is damaged'):
        fetch(bad, tmp_path / 'active')
    assert (tmp_path / 'active' / 'current').resolve().name == 'old'
    assert sorted(p.name for p in (tmp_path / 'active').iterdir()) == ['.lock', '.seen.json', 'current', 'old']
    assert fetch(store, tmp_path / 'active')['run_id'] == 'new'


@pytest.mark.parametrize(
    ('harm', 'message'),
    [
        (lambda s: overwrite(s, f'{RUNS}/new/{ONNX}', lambda b: b[:-1]), 'two_tower_latest.onnx is damaged'),
        (lambda s: s.delete([f'{RUNS}/new/{PT}']), 'missing .*two_tower_latest.pt'),
        (lambda s: s.put(f'{RUNS}/new/x.sh', s.folder / ONNX, create_only=True), r"unexpected \['x.sh'\]"),
        (lambda s: overwrite(s, f'{RUNS}/new/{MANIFEST}', lambda b: b + b' '), 'is not the one that was activated'),
        (lambda s: s.delete([f'{ACTIVATIONS}/00000002.json']), r'offers activation 1 \(run old\)'),
        (lambda s: s.delete(s.list(ACTIVATIONS)), 'no model is active'),
    ],
)
def test_fetch_refuses_and_keeps_the_model_it_had(store, toy_run, tmp_path, harm, message):
    here = tmp_path / 'active'
    publish(store, toy_run('old', 1))
    fetch(store, here)
    publish(store, toy_run('new', 2))
    if 'offers' in message:
        fetch(store, here)
    held = (here / 'current').resolve().name
    harm(store)
    with pytest.raises((OutsideError, GateError, InputError), match=message):
        fetch(store, here)
    assert (here / 'current').resolve().name == held
    assert blessed(here / 'current', here / 'current' / METRICS)['verdict'] == 'pass'


def test_fetch_follows_a_rollback_and_notices_another_store(store, toy_run, tmp_path):
    here, other = tmp_path / 'active', LocalStore(tmp_path / 'other')
    a, b = toy_run('a', 1), toy_run('b', 2)
    for run in (a, b):
        publish(store, run)
        publish(other, run)
    fetch(store, here)
    rollback(store)
    assert fetch(store, here)['run_id'] == 'a'
    assert (here / 'current').resolve().name == 'a'
    publish(other, toy_run('c', 3))
    with pytest.raises(GateError, match=r'offers activation 3 \(run c\), but .* has seen 3 \(run a\)'):
        fetch(other, here)
    assert fetch(other, here, allow_older=True)['run_id'] == 'c'


def test_a_dry_fetch_checks_and_leaves_all_as_it_is(store, toy_run, tmp_path):
    here = tmp_path / 'active'
    publish(store, toy_run('a'))
    assert fetch(store, here, dry_run=True)['run_id'] == 'a'
    assert [p.name for p in here.iterdir()] == ['.lock']
    overwrite(store, f'{RUNS}/a/{PT}', lambda b: b[:-1])
    with pytest.raises(OutsideError, match='is damaged'):
        fetch(store, here, dry_run=True)


def test_a_rehearsal_of_everything_changes_nothing(store, toy_run, tmp_path):
    old, new = toy_run('old', 1), toy_run('new', 2)
    publish(store, old)
    before = {key: store.read(key) for key in store.list('')}
    trial = Rehearsal(store, tmp_path / 'scratch')
    perform(trial, 'publish', new, tmp_path / 'active', dry_run=True)
    check_mirror(trial, new)
    perform(trial, 'rollback', new, tmp_path / 'active', dry_run=True)
    check_mirror(trial, old)
    assert {key: store.read(key) for key in store.list('')} == before
    assert (len(list_runs(trial)), len(list_activations(activations(trial)))) == (2, 3)
    assert list(list_files(trial, 'new')['file']) == list(PUBLISHED)


# the process dies


def test_sigkill_at_every_step_of_publish(toy_run, tmp_path, killed_at):
    old, new = toy_run('old', 1), toy_run('new', 2)
    publish(LocalStore(tmp_path / 'base'), old)
    seen = set()
    for n in count(1):
        store = LocalStore(tmp_path / f'store{n}')
        shutil.copytree(tmp_path / 'base', store.folder)
        killed = killed_at(n, lambda s=store: publish(s, new))
        seen.add(check_whole(store, tmp_path / f'fetched{n}', old, new))
        publish(store, new)
        assert check_whole(store, tmp_path / f'fetched{n}', new) == 'new'
        assert [a['run_id'] for a in activations(store)] == ['new', 'old']
        assert len(store.list('')) == 2 * 7 + 2 + 1 + 2 * 3
        check_mirror(store, new)
        for folder in (store.folder, tmp_path / f'fetched{n}'):
            shutil.rmtree(folder)
        if not killed:
            break
    assert seen == {'old', 'new'}
    assert n > 50


def test_sigkill_at_every_step_of_rollback(toy_run, tmp_path, killed_at):
    a, b, c = (toy_run(name, day) for day, name in enumerate('abc', 1))
    for run in (a, b, c):
        publish(LocalStore(tmp_path / 'base'), run)
    seen = set()
    for n in count(1):
        store = LocalStore(tmp_path / f'store{n}')
        shutil.copytree(tmp_path / 'base', store.folder)
        killed = killed_at(n, lambda s=store: rollback(s, 'c'))
        seen.add(check_whole(store, tmp_path / f'fetched{n}', b, c))
        rollback(store, 'c')
        assert check_whole(store, tmp_path / f'fetched{n}', b) == 'b'
        check_mirror(store, b)
        for folder in (store.folder, tmp_path / f'fetched{n}'):
            shutil.rmtree(folder)
        if not killed:
            break
    assert seen == {'b', 'c'}


def test_an_unnamed_rollback_that_was_cut_off_goes_one_step_only(store, toy_run):
    a, b, c = (toy_run(name, day) for day, name in enumerate('abc', 1))
    for run in (a, b, c):
        publish(store, run)
    mirrored = store.read(MIRROR)
    rollback(store)
    overwrite(store, MIRROR, lambda _: mirrored)
    assert rollback(store)['run_id'] == 'b'
    check_mirror(store, b)


def test_sigkill_at_every_step_of_fetch(store, toy_run, tmp_path, killed_at):
    old, new = toy_run('old', 1), toy_run('new', 2)
    publish(store, old)
    fetch(store, tmp_path / 'base')
    publish(store, new)
    seen = set()
    for n in count(1):
        here = tmp_path / f'active{n}'
        shutil.copytree(tmp_path / 'base', here, symlinks=True)
        killed = killed_at(n, lambda h=here: fetch(store, h))
        held = (here / 'current').resolve()
        seen.add(held.name)
        assert held.name == 'old' or read_json(here / '.seen.json')['run_id'] == 'new'
        assert blessed(here / 'current', here / 'current' / METRICS)['verdict'] == 'pass'
        assert (here / 'current' / ONNX).read_text() == f'{ONNX} of {held.name}'
        fetch(store, here)
        assert (here / 'current' / ONNX).read_text() == f'{ONNX} of new'
        assert sorted(p.name for p in here.iterdir()) == ['.lock', '.seen.json', 'current', 'new', 'old']
        shutil.rmtree(here)
        if not killed:
            break
    assert seen == {'old', 'new'}


# others at the same time


def _together(work: Callable[[int], object], n: int) -> list[int]:
    "Run `work(0)` … `work(n - 1)` in processes that start at once; exit codes, 3 for a GateError."
    fork = multiprocessing.get_context('fork')
    barrier = fork.Barrier(n)

    def child(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except GateError:
            raise SystemExit(3) from None

    processes = [fork.Process(target=child, args=(number,)) for number in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_of_two_publishers_the_newer_run_wins(toy_run, tmp_path):
    runs = [toy_run('older', 1), toy_run('newer', 2)]
    for n in range(10):
        store = LocalStore(tmp_path / f'store{n}')
        slow, fast = _together(lambda number, s=store: publish(s, runs[number]), 2)
        assert fast == 0
        assert slow in (0, 3)  # it was first, or it saw that it is older
        history = [a['run_id'] for a in reversed(activations(store))]
        assert history == (['newer'] if slow == 3 else ['older', 'newer'])
        check_mirror(store, runs[1])


class Overtaken(LocalStore):
    "A store in which another publisher acts just before the object `key` is put, once."

    def __init__(self, folder: Path, key: str, other: Callable[[], object]):
        super().__init__(folder)
        self.key, self.others = key, [other]

    def put(self, key: str, path: Path, create_only: bool) -> None:
        if key == self.key and self.others:
            self.others.pop()()
        super().put(key, path, create_only)


@pytest.mark.parametrize('key', [PT, ONNX, MIRROR])
def test_a_slow_publisher_leaves_the_mirror_of_the_newest(store, toy_run, key):
    slow, fast = toy_run('slow', 1), toy_run('fast', 2)
    assert publish(Overtaken(store.folder, key, lambda: publish(store, fast)), slow)['run_id'] == 'fast'
    check_mirror(store, fast)


@pytest.mark.parametrize(('day', 'outcome'), [(1, 'older'), (3, 'newer')])
def test_who_is_overtaken_judges_again(store, toy_run, day, outcome):
    mine, other = toy_run('mine', 2), toy_run('other', day)
    key = f'{ACTIVATIONS}/00000001.json'
    overtaken = Overtaken(store.folder, key, lambda: publish(store, other))
    if outcome == 'older':
        assert (publish(overtaken, mine)['seq'], active(store)['below']) == (2, 1)
        check_mirror(store, mine)
    else:
        with pytest.raises(GateError, match=r'run mine of .* is older than the active run other'):
            publish(overtaken, mine)
        check_mirror(store, other)


def test_a_rollback_that_is_overtaken_stops(store, toy_run):
    for day, name in enumerate('ab', 1):
        publish(store, toy_run(name, day))
    c = toy_run('c', 3)
    overtaken = Overtaken(store.folder, f'{ACTIVATIONS}/00000003.json', lambda: publish(store, c))
    with pytest.raises(OutsideError, match='another publisher was faster: now active is c'):
        rollback(overtaken)
    check_mirror(store, c)


def test_many_publishers_leave_one_ordered_history(store, toy_run):
    runs = [toy_run(f'r{day}', day) for day in range(1, 7)]
    codes = _together(lambda number: publish(store, runs[number]), 6)
    history = list(reversed(activations(store)))
    assert [a['seq'] for a in history] == list(range(1, len(history) + 1))
    assert [a['created_at'] for a in history] == sorted(a['created_at'] for a in history)
    assert {a['run_id'] for a in history} == {r.id for r, code in zip(runs, codes, strict=True) if code == 0}
    check_mirror(store, runs[-1])


def test_the_same_run_published_by_many_is_active_once(store, toy_run):
    run = toy_run('a')
    assert _together(lambda _: publish(store, run), 4) == [0] * 4
    assert len(activations(store)) == 1
    check_mirror(store, run)


def test_many_fetches_into_one_folder(store, toy_run, tmp_path):
    run = toy_run('a')
    publish(store, run)
    assert _together(lambda _: fetch(store, tmp_path / 'active'), 4) == [0] * 4
    assert check_whole(store, tmp_path / 'active', run) == 'a'
