"""Publishing under faults: whatever breaks, one whole and judged model is active, and a repeat finishes the job."""

import json
import multiprocessing
import re
import resource
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from stores import Around, Bucket

from twotower.base.errors import GateError, InputError, OutsideError, SettingError
from twotower.base.files import read_json, sha256, write_json
from twotower.publish import list_activations, list_files, perform, subject
from twotower.runs.run import MODEL_FILES, ONNX, PT, Run, blessed
from twotower.store.contract import Store
from twotower.store.local import LocalStore, Rehearsal
from twotower.store.models import activate, fetch, rollback, upload
from twotower.store.pruning import list_runs, prune
from twotower.store.records import MANIFEST, METRICS, PUBLISHED, activations, active, by_store_clock

RUNS, ACTIVATIONS, MIRROR = 'two_tower/runs', 'two_tower/activations', f'two_tower/latest/{MANIFEST}'


@pytest.fixture
def store(place) -> Store:
    return place.open()


def publish(store, run: Run, allow_older: bool = False) -> dict:
    upload(store, run)
    return activate(store, run.id, allow_older)


def write(store, key: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / 'x').write_bytes(content)
        store.put(key, Path(scratch) / 'x', create_only=False)


def overwrite(store, key: str, change: Callable[[bytes], bytes]) -> None:
    "Damage an object behind the back of all."
    write(store, key, change(store.read(key)))


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
@pytest.mark.parametrize('place', ['local'], indirect=True)
def test_a_file_changed_after_the_verdict_is_refused(store, toy_run, name):
    run = toy_run('a')
    (run.model / name).write_text('trained anew')
    with pytest.raises(GateError, match=f'{name} is not the file that'):
        upload(store, run)
    (run.model / name).unlink()
    with pytest.raises(GateError, match=f'{name} is missing'):
        upload(store, run)
    assert store.list('') == {}


@pytest.mark.fault('the model is trained anew while it is uploaded', sees='nothing: the judged files go out')
def test_a_model_trained_while_it_is_uploaded_changes_nothing(store, toy_run, monkeypatch):
    run, put = toy_run('a'), type(store).put

    def meanwhile(self, key, path, create_only):
        for name in MODEL_FILES:
            (run.model / name).write_text('trained anew')
        put(self, key, path, create_only)

    monkeypatch.setattr(type(store), 'put', meanwhile)
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


@pytest.mark.fault(
    'an uploaded file is damaged or missing in the store', sees='which file, its size and hash, and what they must be'
)
@pytest.mark.parametrize('name', PUBLISHED)
@pytest.mark.parametrize('damage', [lambda b: b[:-1], lambda b: b'', lambda b: b'X' + b[1:], None])
@pytest.mark.parametrize('place', ['local'], indirect=True)
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
    for key in store.list(f'{RUNS}/good'):
        write(store, key.replace('/good/', '/weak/'), store.read(key))
    overwrite(store, f'{RUNS}/weak/{MANIFEST}', lambda b: b.replace(b'"good"', b'"weak"'))
    write(store, f'{RUNS}/weak/{ONNX}', (run.model / ONNX).read_bytes())
    with pytest.raises(OutsideError, match=f'{ONNX} is damaged'):
        activate(store, 'weak')
    manifest = json.loads(store.read(f'{RUNS}/weak/{MANIFEST}'))
    manifest['files'][ONNX] = {'bytes': (run.model / ONNX).stat().st_size, 'sha256': sha256(run.model / ONNX)}
    write(store, f'{RUNS}/weak/{MANIFEST}', json.dumps(manifest).encode())
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


@pytest.mark.fault(
    'the newest activation is damaged in the store', sees='which object is damaged; the fetched model stays'
)
def test_a_damaged_activation_stops_everything(store, toy_run, tmp_path):
    publish(store, toy_run('a'))
    overwrite(store, f'{ACTIVATIONS}/00000001.json', lambda b: b[:20])
    upload(store, toy_run('b', 2))
    for use in (lambda: activate(store, 'b'), lambda: fetch(store, tmp_path / 'f'), lambda: rollback(store)):
        with pytest.raises(OutsideError, match=r'00000001\.json in the store is damaged'):
            use()


# by whose clock


@pytest.fixture
def skewed(monkeypatch):
    "Let what this machine takes for the time be ahead of the store's clock."

    def by(ahead: timedelta, store) -> None:
        monkeypatch.setattr(type(store), 'clock', lambda _: datetime.now(UTC) - ahead)

    return by


@pytest.mark.parametrize('place', ['local'], indirect=True)
@pytest.mark.parametrize('days', [-400, 400])
@pytest.mark.fault(
    'the clock of a training machine is wrong', sees='nothing: runs are compared by the clock of the store'
)
def test_a_wrong_clock_neither_blocks_nor_prefers_a_run(store, toy_run, skewed, days):
    for day, (name, ahead) in enumerate([('a', 0), ('b', days), ('c', 0), ('d', days)], 1):
        run = toy_run(name, day)
        facts = read_json(run.path / 'run.json')
        noted = datetime.fromisoformat(facts['created_at']) + timedelta(days=ahead)
        write_json(run.path / 'run.json', facts | {'created_at': noted.isoformat()})
        skewed(timedelta(days=ahead), store)
        assert publish(store, run)['run_id'] == name
        assert upload(store, run)['created_at'][:10] == f'2026-01-0{day}'  # again is fine, though seconds differ
    skewed(timedelta(0), store)
    with pytest.raises(GateError, match=r'run b of .* is older than the active run d'):
        activate(store, 'b')


def test_the_clock_of_the_bucket_counts(tmp_path, toy_run):
    bucket = Bucket(tmp_path)
    bucket.server.clock_ahead = -86_400 * 30
    manifest = upload(bucket.open(), toy_run('a', 31))
    assert manifest['created_at'][:10] == '2026-01-01'
    assert by_store_clock(bucket.open(), '2026-01-31T12:00:00+00:00')[:10] == '2026-01-01'
    bucket.close()


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


class BadLine(Around):
    "A store whose downloads of one object arrive changed."

    def __init__(self, store: Store, key: str, change: Callable[[bytes], bytes]):
        super().__init__(store)
        self.key, self.change = key, change

    def get(self, key: str, path: Path, most: int | None = None) -> None:
        self.store.get(key, path, None)  # the change comes after the look at the size
        if key == self.key:
            path.write_bytes(self.change(path.read_bytes()))


@pytest.mark.fault('a download arrives corrupt', sees='which file is damaged; the old model stays')
@pytest.mark.parametrize('name', PUBLISHED)
@pytest.mark.parametrize(
    'change', [lambda b: b[:-1], lambda b: b[:3] + b'?' + b[4:], lambda b: b'', lambda b: b + b' ']
)
@pytest.mark.parametrize('place', ['local'], indirect=True)
def test_a_corrupt_download_keeps_the_model_one_had(store, toy_run, tmp_path, name, change):
    publish(store, toy_run('old', 1))
    fetch(store, tmp_path / 'active')
    publish(store, toy_run('new', 2))
    bad = BadLine(store, f'{RUNS}/new/{name}', change)
    with pytest.raises(OutsideError, match=f'{name} is damaged'):
        fetch(bad, tmp_path / 'active')
    assert (tmp_path / 'active' / 'current').resolve().name == 'old'
    assert sorted(p.name for p in (tmp_path / 'active').iterdir()) == ['.lock', '.seen.json', 'current', 'old']
    assert fetch(store, tmp_path / 'active')['run_id'] == 'new'


@pytest.mark.fault(
    'the store offers files that are wrong, missing or unexpected, or an old state',
    sees='what is wrong; the old model stays',
)
@pytest.mark.parametrize(
    ('harm', 'message'),
    [
        (lambda s: overwrite(s, f'{RUNS}/new/{ONNX}', lambda b: b[:-1]), 'two_tower_latest.onnx is damaged'),
        (lambda s: s.delete([f'{RUNS}/new/{PT}']), 'missing .*two_tower_latest.pt'),
        (lambda s: write(s, f'{RUNS}/new/x.sh', b'rm -r /'), r"unexpected \['x.sh'\]"),
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
    assert not here.exists()
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


# what a network does


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.parametrize('how', [429, 503, 'cut', 'lost', 'half'])
@pytest.mark.fault('every request for a storage stumbles once', sees='nothing')
def test_a_network_that_stumbles_at_every_request(place, store, toy_run, tmp_path, how):
    a, b = toy_run('a', 1), toy_run('b', 2)
    publish(store, a)
    seen = set()

    def once_each(request: str) -> bool:
        fresh = request not in seen and not (how == 'half' and re.match('GET .*/info|DELETE', request))
        seen.add(request)
        return fresh

    place.server.fail(how, once_each, times=999)
    publish(store, b)
    assert check_whole(store, tmp_path / 'active', a, b) == 'b'
    assert rollback(store)['run_id'] == 'a'
    place.server.faults.clear()
    check_mirror(store, a)
    assert [x['seq'] for x in activations(store)] == [3, 2, 1]


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.parametrize('how', ['short', 'altered', 503])
@pytest.mark.fault(
    'downloads from a storage stay damaged', sees='which object, and what it must be; the old model stays'
)
def test_a_line_that_stays_bad_keeps_the_model_one_had(place, store, toy_run, tmp_path, how):
    publish(store, toy_run('old', 1))
    fetch(store, tmp_path / 'active')
    publish(store, toy_run('new', 2))
    place.server.fail(how, f'GET /object/models/{RUNS}/new/{PT}', times=999)
    with pytest.raises(OutsideError, match=rf'{RUNS}/new/{PT}.*asked 6 times'):
        fetch(store, tmp_path / 'active')
    assert (tmp_path / 'active' / 'current').resolve().name == 'old'
    assert sorted(p.name for p in (tmp_path / 'active').iterdir()) == ['.lock', '.seen.json', 'current', 'old']


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.fault('the manifest for simple readers is stale', sees='nothing: fetch goes by the activations')
def test_a_stale_mirror_misleads_nobody_who_fetches(place, store, toy_run, tmp_path):
    old, new = toy_run('old', 1), toy_run('new', 2)
    publish(store, old)
    stale = store.read(MIRROR)
    publish(store, new)
    write(store, MIRROR, stale)
    assert check_whole(store, tmp_path / 'active', new) == 'new'
    assert activate(store, 'new')['seq'] == 2  # a repeat mends the mirror
    check_mirror(store, new)


# prune


def test_prune_keeps_what_anybody_may_need(store, toy_run, tmp_path):
    runs = {name: toy_run(name, day) for day, name in enumerate('abcdefgh', 1)}
    for name, run in runs.items():
        upload(store, run)
        if name in 'bcdf':
            activate(store, name)
    assert rollback(store)['run_id'] == 'd'  # activations: b c d f d
    trial = Rehearsal(store, tmp_path / 'scratch')
    assert prune(trial, keep=2) == ['a', 'e']
    assert len(list_runs(store)) == 8
    assert prune(store, keep=2) == ['a', 'e']  # d f were active last, c b are below, g h are the newest
    assert prune(store, keep=2) == []
    assert [rollback(store)['run_id'] for _ in range(2)] == ['c', 'b']
    check_mirror(store, runs['b'])
    assert activate(store, 'h')['run_id'] == 'h'
    with pytest.raises(GateError, match="'a' is not, or not completely, uploaded"):
        activate(store, 'a', allow_older=True)
    assert publish(store, runs['a'], allow_older=True)['run_id'] == 'a'


def test_prune_touches_nothing_that_is_not_ours(store, toy_run):
    runs = [toy_run(name, day) for day, name in enumerate('abcd', 1)]
    for run in runs:
        publish(store, run)
    for key in (
        'two_tower_20260101_030405.onnx',
        'two_tower_20200101_000000.onnx',
        'other/runs/a/x',
        f'{RUNS}/zz/{PT}',
    ):
        write(store, key, b'of somebody else')
    assert prune(store, keep=1) == ['a', 'b']
    for key in (
        'two_tower_20260101_030405.onnx',
        'two_tower_20200101_000000.onnx',
        'other/runs/a/x',
        f'{RUNS}/zz/{PT}',
    ):
        assert store.read(key) == b'of somebody else'
    assert 'two_tower_20260101_030405.pt' not in store.list('')


class Between(Around):
    "A store in which another process acts just before the n-th request."

    def __init__(self, store: Store, n: int, other: Callable[[], object]):
        super().__init__(store)
        self.n, self.other = n, other

    def __getattr__(self, name: str):
        if name in ('put', 'get', 'read', 'list', 'delete'):
            self.n -= 1
            if self.n == 0:
                self.other()
        return getattr(self.store, name)


def _tried(work: Callable[[], object]) -> None:
    with suppress(GateError, OutsideError):
        work()


@pytest.mark.parametrize('place', ['local'], indirect=True)
@pytest.mark.parametrize('who', ['prune', 'activate'])
@pytest.mark.fault(
    'a run is activated while it is pruned', sees='the run is active and whole, or was pruned: upload it again'
)
def test_whatever_is_active_is_never_pruned(place, toy_run, tmp_path, who):
    runs = [toy_run(name, day) for day, name in enumerate('abcd', 1)]
    for run in runs:
        upload(place.open(), run)
        if run.id != 'a':
            activate(place.open(), run.id)
    place.keep()
    store, seen = place.open(), set()
    work = {
        'prune': lambda store: prune(store, keep=1),
        'activate': lambda store: activate(store, 'a', allow_older=True),
    }
    other = work['activate' if who == 'prune' else 'prune']
    for n in count(1):
        place.reset()
        between = Between(store, n, lambda: _tried(lambda: other(store)))
        _tried(lambda s=between: work[who](s))
        seen.add(check_whole(store, tmp_path / f'fetched{n}', *runs))
        shutil.rmtree(tmp_path / f'fetched{n}')
        _tried(lambda: prune(store, keep=1))
        check_whole(store, tmp_path / f'fetched{n}', *runs)
        check_mirror(store, next(r for r in runs if r.id == active(store)['run_id']))
        shutil.rmtree(tmp_path / f'fetched{n}')
        if between.n > 0:
            break
    assert seen == {'a', 'd'}
    assert n > 20


@pytest.mark.parametrize('place', ['local'], indirect=True)
@pytest.mark.fault('a run is pruned while it is uploaded', sees='that it was pruned: upload it again')
def test_an_upload_that_is_pruned_meanwhile_says_so(place, toy_run):
    old, new = toy_run('20260101_030405', 1), toy_run('20260102_030405', 2)
    publish(place.open(), new)
    place.keep()
    store, outcomes = place.open(), set()
    for n in count(1):
        place.reset()
        between = Between(store, n, lambda: prune(store, keep=1))
        try:
            upload(between, old)
            outcomes.add('whole')
        except GateError as error:
            outcomes.add(str(error))
            upload(store, old)
        assert activate(store, old.id, allow_older=True)['run_id'] == old.id
        if between.n > 0:
            break
    assert outcomes == {'whole', f'run {old.id} was pruned while it was uploaded: upload it again'}


# the process dies


def steps(place, stride: int) -> count:
    "Where to kill: at every step of the disk; with a network there are many more, of which some are taken."
    return count(1, stride) if isinstance(place, Bucket) else count(1)


@pytest.mark.fault(
    'the process is killed at any step of a publication',
    sees='the old model is active, or the new one; a repeat finishes',
)
def test_sigkill_at_every_step_of_publish(place, toy_run, tmp_path, killed_at):
    old, new = toy_run('old', 1), toy_run('new', 2)
    publish(place.open(), old)
    place.keep()
    seen, store = set(), place.open()
    for n in steps(place, 47):
        place.reset()
        killed = killed_at(n, lambda: publish(place.open(), new), network=True)
        seen.add(check_whole(store, tmp_path / f'fetched{n}', old, new))
        publish(store, new)
        assert check_whole(store, tmp_path / f'fetched{n}', new) == 'new'
        assert [a['run_id'] for a in activations(store)] == ['new', 'old']
        assert len(store.list('')) == 2 * (len(MODEL_FILES) + 2) + 2 + 1 + 2 * 3
        check_mirror(store, new)
        shutil.rmtree(tmp_path / f'fetched{n}')
        if not killed:
            break
    assert seen == {'old', 'new'}
    assert n > 50


@pytest.mark.fault(
    'the process is killed at any step of a rollback', sees='one of the two models is active; a repeat finishes'
)
def test_sigkill_at_every_step_of_rollback(place, toy_run, tmp_path, killed_at):
    a, b, c = (toy_run(name, day) for day, name in enumerate('abc', 1))
    for run in (a, b, c):
        publish(place.open(), run)
    place.keep()
    seen, store = set(), place.open()
    for n in steps(place, 37):
        place.reset()
        killed = killed_at(n, lambda: rollback(place.open(), 'c'), network=True)
        seen.add(check_whole(store, tmp_path / f'fetched{n}', b, c))
        rollback(store, 'c')
        assert check_whole(store, tmp_path / f'fetched{n}', b) == 'b'
        check_mirror(store, b)
        shutil.rmtree(tmp_path / f'fetched{n}')
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


@pytest.mark.fault(
    'the process is killed at any step of a fetch', sees='the old model or the new one, whole; a repeat finishes'
)
def test_sigkill_at_every_step_of_fetch(place, store, toy_run, tmp_path, killed_at):
    old, new = toy_run('old', 1), toy_run('new', 2)
    publish(store, old)
    fetch(store, tmp_path / 'base')
    publish(store, new)
    seen = set()
    for n in steps(place, 19):
        here = tmp_path / f'active{n}'
        shutil.copytree(tmp_path / 'base', here, symlinks=True)
        killed = killed_at(n, lambda h=here: fetch(place.open(), h), network=True)
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


@pytest.mark.fault('the process is killed at any step of a prune', sees='nothing; a repeat finishes')
def test_sigkill_at_every_step_of_prune(place, toy_run, killed_at):
    runs = [toy_run(name, day) for day, name in enumerate('abc', 1)]
    for run in runs:
        publish(place.open(), run)
    place.keep()
    store = place.open()
    for n in steps(place, 37):
        place.reset()
        killed = killed_at(n, lambda: prune(place.open(), keep=1), network=True)
        assert active(store)['run_id'] == 'c'
        prune(store, keep=1)
        assert set(list_runs(store)['run']) == {'b', 'c'}
        assert not [key for key in store.list('') if 'pruned' in key or '20260101' in key]
        assert rollback(store)['run_id'] == 'b'
        check_mirror(store, runs[1])
        if not killed:
            break
    assert n > 10


@pytest.mark.fault(
    'the disk is full while a model is fetched', sees='which file could not be written; the old model stays'
)
def test_a_fetch_that_does_not_fit_keeps_the_model_one_had(place, store, toy_run, tmp_path):
    publish(store, toy_run('old', 1))
    fetch(store, tmp_path / 'active')
    new = toy_run('new', 2)
    (new.model / PT).write_bytes(bytes(300_000))
    verdict = read_json(new.metrics)
    write_json(new.metrics, verdict | {'files': verdict['files'] | {PT: sha256(new.model / PT)}})
    publish(store, new)

    def fetch_on_a_full_disk(_: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OutsideError, match=f'{PT} could not be written to .*File too large'):
            fetch(place.open(), tmp_path / 'active')

    assert _together(fetch_on_a_full_disk, 1) == [0]
    assert (tmp_path / 'active' / 'current').resolve().name == 'old'
    assert sorted(p.name for p in (tmp_path / 'active').iterdir()) == ['.lock', '.seen.json', 'current', 'old']
    assert fetch(store, tmp_path / 'active')['run_id'] == 'new'


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


@pytest.mark.fault('two publishers at once', sees='the newer run is active; the older one is told that it is older')
def test_of_two_publishers_the_newer_run_wins(place, toy_run):
    runs = [toy_run('older', 1), toy_run('newer', 2)]
    for _ in range(3):
        place.reset()
        slow, fast = _together(lambda number: publish(place.open(), runs[number]), 2)
        store = place.open()
        assert fast == 0
        assert slow in (0, 3)  # it was first, or it saw that it is older
        history = [a['run_id'] for a in reversed(activations(store))]
        assert history == (['newer'] if slow == 3 else ['older', 'newer'])
        check_mirror(store, runs[1])


class Overtaken(Around):
    "A store in which another publisher acts just before the object `key` is put, once."

    def __init__(self, store: Store, key: str, other: Callable[[], object]):
        super().__init__(store)
        self.key, self.others = key, [other]

    def put(self, key: str, path: Path, create_only: bool) -> None:
        if key == self.key and self.others:
            self.others.pop()()
        self.store.put(key, path, create_only)


@pytest.mark.fault(
    'another publisher is faster while the copies for simple readers are written',
    sees='nothing: they are of the newest',
)
@pytest.mark.parametrize('key', [PT, ONNX, MIRROR])
def test_a_slow_publisher_leaves_the_mirror_of_the_newest(store, toy_run, key):
    slow, fast = toy_run('slow', 1), toy_run('fast', 2)
    assert publish(Overtaken(store, key, lambda: publish(store, fast)), slow)['run_id'] == 'fast'
    check_mirror(store, fast)


@pytest.mark.fault(
    'another publisher is faster while a run is activated', sees='nothing, or that the run is now the older one'
)
@pytest.mark.parametrize(('day', 'outcome'), [(1, 'older'), (3, 'newer')])
def test_who_is_overtaken_judges_again(store, toy_run, day, outcome):
    mine, other = toy_run('mine', 2), toy_run('other', day)
    key = f'{ACTIVATIONS}/00000001.json'
    overtaken = Overtaken(store, key, lambda: publish(store, other))
    if outcome == 'older':
        assert (publish(overtaken, mine)['seq'], active(store)['below']) == (2, 1)
        check_mirror(store, mine)
    else:
        with pytest.raises(GateError, match=r'run mine of .* is older than the active run other'):
            publish(overtaken, mine)
        check_mirror(store, other)


@pytest.mark.fault('another publisher is faster while a run is rolled back', sees='which run is active now')
def test_a_rollback_that_is_overtaken_stops(store, toy_run):
    for day, name in enumerate('ab', 1):
        publish(store, toy_run(name, day))
    c = toy_run('c', 3)
    overtaken = Overtaken(store, f'{ACTIVATIONS}/00000003.json', lambda: publish(store, c))
    with pytest.raises(OutsideError, match='another publisher was faster: now active is c'):
        rollback(overtaken)
    check_mirror(store, c)


@pytest.mark.fault('six publishers at once', sees='one history without gaps; older runs are told')
def test_many_publishers_leave_one_ordered_history(place, store, toy_run):
    runs = [toy_run(f'r{day}', day) for day in range(1, 7)]
    codes = _together(lambda number: publish(place.open(), runs[number]), 6)
    history = list(reversed(activations(store)))
    assert [a['seq'] for a in history] == list(range(1, len(history) + 1))
    assert [a['created_at'] for a in history] == sorted(a['created_at'] for a in history)
    assert {a['run_id'] for a in history} == {r.id for r, code in zip(runs, codes, strict=True) if code == 0}
    check_mirror(store, runs[-1])


def test_the_same_run_published_by_many_is_active_once(place, store, toy_run):
    run = toy_run('a')
    assert _together(lambda _: publish(place.open(), run), 4) == [0] * 4
    assert len(activations(store)) == 1
    check_mirror(store, run)


@pytest.mark.fault('four fetches into one folder at once', sees='nothing: one after the other')
def test_many_fetches_into_one_folder(place, store, toy_run, tmp_path):
    run = toy_run('a')
    publish(store, run)
    assert _together(lambda _: fetch(place.open(), tmp_path / 'active'), 4) == [0] * 4
    assert check_whole(store, tmp_path / 'active', run) == 'a'
