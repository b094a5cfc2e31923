"""Many publishers, hostile records and kills between any two requests: one winner each, and records that stay as they are."""

import ast
import dataclasses
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import httpx
import pytest
from stores import Bucket

import twotower
from twotower.base.errors import GateError, OutsideError
from twotower.base.files import read_json, write_json
from twotower.publish import perform, prune_in_passing
from twotower.runs.run import MODEL_FILES, ONNX, PT
from twotower.store.contract import ExistsError
from twotower.store.models import activate, fetch, rollback, upload
from twotower.store.pruning import list_runs, prune
from twotower.store.records import MANIFEST, activations, active, append, key_of, put_same, read_activation

MANIFEST_OF = {'created_at': '2026-01-02T03:04:05+00:00'}


# one winner each


def _race(place, folder: Path, number: int, rounds: int, barrier) -> None:
    store = place.open(timeout=60) if isinstance(place, Bucket) else place.open()
    for seq in range(1, rounds + 1):
        barrier.wait()
        try:
            append(store, 'activate', MANIFEST_OF | {'run_id': f'r{number}'}, 'abc', seq, seq - 1 or None)
        except ExistsError:
            continue
        (folder / f'won-{seq}-r{number}').touch()


@pytest.mark.fault(
    'eight publishers activate at once, twenty times', sees='one is told that it won, the others are not'
)
def test_of_eight_publishers_one_wins_each_of_twenty_rounds(place, tmp_path):
    fork, rounds = multiprocessing.get_context('fork'), 20
    barrier = fork.Barrier(8)
    processes = [fork.Process(target=_race, args=(place, tmp_path, number, rounds, barrier)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0] * 8
    history = activations(place.open(), rounds + 1)
    assert [a['seq'] for a in history] == list(range(rounds, 0, -1))
    assert sorted(p.name for p in tmp_path.glob('won-*')) == sorted(f'won-{a["seq"]}-{a["run_id"]}' for a in history)
    if isinstance(place, Bucket):
        assert not [key for key in place.server.objects if key.startswith('.')]  # the losers' drafts are gone


def _activate_in_turn(place, runs: list[str], barrier) -> None:
    store = place.open(timeout=60) if isinstance(place, Bucket) else place.open()
    barrier.wait()
    for run_id in runs:
        activate(store, run_id, allow_older=True)


@pytest.mark.fault('eight publishers activate twenty times each, at once', sees='nothing: 160 activations, 160 records')
def test_as_many_activations_as_records(place, toy_run):
    runs = [[f'r{number}a', f'r{number}b'] * 10 for number in range(8)]
    for number, names in enumerate(runs):
        for second, run_id in enumerate(names[:2]):
            upload(place.open(), toy_run(run_id, 1 + 2 * number + second))
    fork = multiprocessing.get_context('fork')
    barrier = fork.Barrier(8)
    processes = [fork.Process(target=_activate_in_turn, args=(place, names, barrier)) for names in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [p.exitcode for p in processes] == [0] * 8
    history = activations(place.open(), 200)
    assert [a['seq'] for a in history] == list(range(160, 0, -1))
    assert sorted(a['run_id'] for a in history) == sorted(name for names in runs for name in names)


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.fault('a slow older publisher writes its activation late', sees='that it is older; the newer one stays')
def test_a_slow_older_publisher_overwrites_nobody(place, toy_run):
    old, new = toy_run('old', 1), toy_run('new', 2)
    upload(place.open(), old)
    upload(place.open(), new)
    moves = count(1)

    def third_move(request: str) -> bool:  # after those of the two dated files
        return request == 'POST /object/move' and next(moves) == 3

    place.server.fail(lambda: activate(place.open(), 'new'), third_move)  # both have seen that number 1 is free
    with pytest.raises(GateError, match=r'run old of .* is older than the active run new'):
        activate(place.open(), 'old')
    assert [a['run_id'] for a in activations(place.open())] == ['new']


# a record that was seen never changes


def change(store, number: int, tmp_path: Path, **values) -> None:
    write_json(tmp_path / 'changed.json', read_activation(store, number) | values)
    store.put(key_of('activations', f'{number:08}.json'), tmp_path / 'changed.json', create_only=False)


@pytest.mark.fault('an activation that was seen is overwritten by another', sees='which, and that it was overwritten')
def test_a_reader_notices_that_an_activation_was_overwritten(place, toy_run, tmp_path):
    store, here = place.open(), tmp_path / 'active'
    for day, name in enumerate('ab', 1):
        upload(store, toy_run(name, day))
        activate(store, name)
    fetch(store, here)
    other = {'run_id': 'a', 'manifest_sha256': read_activation(store, 1)['manifest_sha256']}
    change(store, 2, tmp_path, **other)
    with pytest.raises(GateError, match=r'offers activation 2 \(run a\), but .* has seen 2 \(run b\)'):
        fetch(store, here)
    upload(store, toy_run('c', 3))
    activate(store, 'c')
    with pytest.raises(GateError, match=r'offers activation 2 \(run a\), but .* has seen 2 \(run b\).*overwritten'):
        fetch(store, here)  # although there is a later one
    assert (here / 'current').resolve().name == 'b'
    assert fetch(store, here, allow_older=True)['run_id'] == 'c'


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.fault('a publisher of an older release overwrites an activation', sees='which run it is of now')
def test_who_was_overwritten_is_told(place, toy_run, tmp_path):
    store = place.open()
    upload(store, toy_run('a', 1))
    server, key = place.server, key_of('activations', '00000001.json')

    def older_release() -> None:
        facts = {'run_id': 'z', 'schema_version': 1, 'seq': 1, 'action': 'activate', 'below': None}
        facts |= {'manifest_sha256': 'x', 'activated_at': MANIFEST_OF['created_at']} | MANIFEST_OF
        write_json(tmp_path / 'z.json', facts)
        place.open().put(key, tmp_path / 'z.json', create_only=False)

    server.fail(older_release, f'GET /object/info/models/{key}')
    with pytest.raises(OutsideError, match='activation 1 of run a was overwritten, and is of run z now'):
        activate(store, 'a')


# records of the wrong kind


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('seq', 10**30),
        ('seq', '1'),
        ('seq', 0),
        ('seq', None),
        ('below', 10**30),
        ('below', 5),
        ('run_id', None),
        ('run_id', '../../etc'),
        ('created_at', 'infinity'),
        ('created_at', '2026-01-02T03:04:05'),
        ('created_at', 0),
        ('manifest_sha256', 7),
        ('action', 'delete'),
    ],
)
@pytest.mark.parametrize('place', ['local'], indirect=True)
@pytest.mark.fault(
    'an activation holds a value of a wrong type or size', sees='which object, which value, and the rule'
)
def test_an_activation_of_the_wrong_kind_is_refused(place, toy_run, tmp_path, name, value):
    store = place.open()
    upload(store, toy_run('a', 1))
    activate(store, 'a')
    change(store, 1, tmp_path, **{name: value})
    for use in (lambda: activate(store, 'a'), lambda: fetch(store, tmp_path / 'f'), lambda: rollback(store)):
        with pytest.raises(OutsideError, match=r'00000001\.json in the store is damaged'):
            use()
    store.delete([key_of('activations', '00000001.json')])  # as the error says
    assert activate(store, 'a')['run_id'] == 'a'


FACT = {'bytes': 1, 'sha256': '0' * 64}


@pytest.mark.parametrize(
    'files',
    [None, [], 'x', {PT: None}, {PT: FACT | {'bytes': '1'}}, {PT: FACT | {'bytes': -1}}, {PT: FACT | {'sha256': None}}],
)
@pytest.mark.parametrize('place', ['local'], indirect=True)
def test_a_manifest_of_the_wrong_kind_is_refused(place, toy_run, tmp_path, files):
    store = place.open()
    run = toy_run('a', 1)
    upload(store, run)
    key = key_of('runs', 'a', MANIFEST)
    write_json(tmp_path / MANIFEST, json.loads(store.read(key)) | {'files': files})
    store.put(key, tmp_path / MANIFEST, create_only=False)
    for use in (lambda: activate(store, 'a'), lambda: upload(store, run)):
        with pytest.raises(OutsideError, match=r'manifest\.json in the store is damaged: files'):
            use()


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.fault('an uploaded file was replaced by one of gigabytes', sees='its size, before anything is downloaded')
def test_what_is_larger_than_the_manifest_says_is_not_downloaded(place, toy_run, tmp_path):
    store = place.open()
    upload(store, toy_run('a', 1))
    (tmp_path / 'huge').write_bytes(bytes(5_000_000))
    store.put(key_of('runs', 'a', PT), tmp_path / 'huge', create_only=False)
    before = place.server.count('GET /object/models/')
    with pytest.raises(OutsideError, match=rf'{PT} is damaged: 5000000 bytes, must be'):
        activate(store, 'a')
    assert place.server.count('GET /object/models/') == before + 1  # the manifest


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.fault('a published copy was replaced by one of gigabytes', sees='nothing; it is not downloaded')
def test_prune_downloads_nothing_that_is_larger_than_its_record(place, toy_run, tmp_path):
    store, server = place.open(), place.server
    for day, name in enumerate('abc', 1):
        upload(store, toy_run(name, day))
        activate(store, name)
    (tmp_path / 'huge').write_bytes(bytes(5_000_000))
    copy = 'two_tower_20260101_030405.onnx'
    store.put(copy, tmp_path / 'huge', create_only=False)
    assert prune(store, keep=1) == ['a']
    assert server.count(f'GET /object/models/{copy}') == 0
    assert (copy in store.list(''), 'two_tower_20260101_030405.pt' in store.list('')) == (True, False)
    with pytest.raises(OutsideError, match=f'{copy} is already in .* with other content'):
        put_same(store, copy, toy_run('d', 4).metrics)
    assert server.count(f'GET /object/models/{copy}') == 0


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.parametrize(
    ('name', 'use'),
    [(ONNX, lambda store: activate(store, 'a')), (MANIFEST, lambda store: prune(store, keep=1))],
)
def test_what_becomes_large_after_it_was_looked_at_is_not_downloaded(place, toy_run, name, use):
    store, server = place.open(), place.server
    for day, run in enumerate('abc', 1):
        upload(store, toy_run(run, day))
        if run != 'a' or name == MANIFEST:
            activate(store, run)
    for run in 'bc' if name == ONNX else '':
        store.delete(store.list(key_of('runs', run)) | store.list(key_of('activations')))
    key = key_of('runs', 'a', name)
    huge = dataclasses.replace(server.objects[key], content=bytes(20_000_000), metadata=None)
    looks = count(1)  # a manifest is read once before it is set aside

    def late(request: str) -> bool:
        fits = request == f'GET /object/info/models/{key}'
        return fits and next(looks) == (1 if name == ONNX else 2)

    server.fail(lambda: server.objects.update({key: huge}), late)
    with pytest.raises(OutsideError, match=rf'{name} in .* is damaged: 20000000 bytes, must be at most \d+; roll back'):
        use(store)


def test_every_download_has_a_bound():
    calls = [
        (path.name, call.lineno, len(call.args))
        for path in Path(twotower.__file__).parent.rglob('*.py')
        for call in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ('store.get', 'self._layer(key).get')
    ]
    assert len(calls) > 6
    assert [call for call in calls if call[2] < 3] == []


@pytest.mark.parametrize('place', ['local'], indirect=True)
def test_a_verdict_about_another_run_is_refused(place, toy_run):
    run = toy_run('a', 1)
    write_json(run.metrics, read_json(run.metrics) | {'run_id': 'b'})
    with pytest.raises(GateError, match=r"metrics\.json is about run 'b', not 'a'"):
        upload(place.open(), run)
    write_json(run.metrics, read_json(run.metrics) | {'run_id': 'a', 'files': None})
    with pytest.raises(GateError, match='files must be hashes by name'):
        upload(place.open(), run)
    assert place.open().list('') == {}


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.fault('one file of a run is larger than the bucket allows', sees='the limit; no file is sent')
def test_a_run_that_does_not_fit_is_not_begun(place, toy_run):
    run = toy_run('a', 1)
    place.server.bucket_limit = max((run.model / name).stat().st_size for name in MODEL_FILES) - 1
    with pytest.raises(OutsideError, match=r'is too large for bucket models .*must be at most'):
        upload(place.open(), run)
    assert place.server.objects == {}


# the process dies between two requests


def killed_after(n: int, work: Callable[[], object]) -> bool:
    "Do work in a child that dies after the answer to its n-th request; False if it ended before that."
    child = os.fork()
    if child == 0:
        real, requests = httpx.Client.send, count(1)

        def send(self, *args, **kwargs):
            answer = real(self, *args, **kwargs)
            if next(requests) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        httpx.Client.send = send
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, 'the work failed before it was killed'
    return os.WIFSIGNALED(status)


WORK = {
    'upload': lambda store, run: upload(store, run),
    'weekly': lambda store, run: (perform(store, 'publish', run, Path('unused')), prune_in_passing(store, 1)),
    'activate': lambda store, run: activate(store, run.id),
    'rollback': lambda store, run: rollback(store, 'b'),
    'prune': lambda store, run: prune(store, keep=1),
}
ACTIVE = {'weekly': {'b', 'c'}, 'upload': {'b'}, 'activate': {'b', 'c'}, 'rollback': {'b', 'a'}, 'prune': {'b'}}


@pytest.mark.parametrize('place', ['supabase'], indirect=True)
@pytest.mark.parametrize('what', WORK)
@pytest.mark.fault('the process is killed after any request to the storage', sees='nothing; a repeat finishes')
def test_sigkill_after_every_request(place, toy_run, what):
    runs = {name: toy_run(name, day) for day, name in enumerate('0abc', 1)}
    for name in '0ab':
        upload(place.open(), runs[name])
        activate(place.open(), name)
    if what == 'activate':
        upload(place.open(), runs['c'])
    place.keep()
    seen, store, server = set(), place.open(), place.server
    for n in count(1):
        place.reset()
        killed = killed_after(n, lambda: WORK[what](place.open(), runs['c']))
        seen.add(active(store)['run_id'])
        WORK[what](store, runs['c'])
        now = active(store)
        assert now['run_id'] == max(ACTIVE[what], key='0bac'.index if what == 'rollback' else '0abc'.index)
        assert [a['seq'] for a in activations(store)] == list(range(now['seq'], 0, -1))
        assert now['seq'] == (3 if what in ('upload', 'prune') else 4)
        fetched = store.read(ONNX)
        assert fetched == (runs[now['run_id']].model / ONNX).read_bytes()
        left = {'prune': 'ab', 'rollback': '0ab', 'weekly': 'bc'}.get(what, '0abc')
        assert set(list_runs(store)['run']) == set(left)
        assert not [key for key in server.objects if key.startswith(key_of('pruned'))]
        drafts = [key for key in server.objects if key.startswith('.')]
        assert len(drafts) <= 1
        for key in drafts:
            server.objects[key].created = time.time() - 90_000
        assert (store.sweep(), store.sweep()) == (len(drafts), 0)
        if not killed:
            break
    assert seen == ACTIVE[what]
    assert n > 15
