"""What a store promises, and that it holds when the process dies, the disk is full or others ask at the same time."""

import errno
import multiprocessing
import os
import resource
import shutil
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.base.errors import OutsideError, SettingError
from twotower.base.files import beside
from twotower.base.settings import project_file
from twotower.store.contract import ExistsError, MissingError, check_key
from twotower.store.local import LocalStore, Rehearsal
from twotower.store.opening import open_store


@pytest.fixture(params=['itself', 'rehearsal'])
def store(request, place, tmp_path):
    return place.open() if request.param == 'itself' else Rehearsal(place.open(), tmp_path / 'scratch')


@pytest.fixture
def file(tmp_path):
    def make(text: str) -> Path:
        (tmp_path / 'in').write_text(text)
        return tmp_path / 'in'

    return make


def test_an_object_comes_back_as_it_was(store, file, tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / 'big').write_bytes(content)
    store.put('a/big', tmp_path / 'big', create_only=True)
    store.get('a/big', tmp_path / 'deep' / 'er' / 'copy')
    assert (tmp_path / 'deep' / 'er' / 'copy').read_bytes() == store.read('a/big') == content


def test_create_only_never_overwrites(store, file):
    store.put('k', file('1'), create_only=True)
    with pytest.raises(ExistsError, match='k is already in'):
        store.put('k', file('2'), create_only=True)
    assert store.read('k') == b'1'
    store.put('k', file('22'), create_only=False)
    assert (store.read('k'), store.list('')) == (b'22', {'k': 2})


def test_what_is_missing_is_said(store, tmp_path):
    with pytest.raises(MissingError, match='no/thing is not in'):
        store.read('no/thing')
    with pytest.raises(MissingError, match='no/thing is not in'):
        store.get('no/thing', tmp_path / 'x')
    assert not (tmp_path / 'x').exists()
    store.delete(['no/thing'])


def test_list_is_by_folder_and_not_by_prefix(store, file):
    for key in ('run/1/x', 'run/10/x', 'run/1/y/z', 'runs'):
        store.put(key, file('1'), create_only=True)
    assert list(store.list('run/1')) == ['run/1/x', 'run/1/y/z']
    assert len(store.list('')) == 4
    store.delete(['run/1/x'])
    assert list(store.list('run/1')) == ['run/1/y/z']
    store.put('run/1/x', file('1'), create_only=True)


@pytest.mark.parametrize(
    'key', ['../x', 'a/../../x', '/etc/passwd', '', '.', 'a//b', 'a/', 'ä', 'a b', 'a\n', '.x', 'a\0']
)
def test_a_key_stays_in_its_store(store, file, tmp_path, key):
    for use in (
        lambda: store.put(key, file('1'), create_only=True),
        lambda: store.get(key, tmp_path / 'out'),
        lambda: store.read(key),
        lambda: store.delete([key]),
    ):
        with pytest.raises(SettingError, match='can not be a key'):
            use()


@given(st.text(max_size=12))
def test_an_accepted_key_is_plain(key):
    try:
        check_key(key)
    except SettingError:
        return
    assert key.isascii()
    assert os.path.normpath(key) == key
    assert not any(part.startswith('.') for part in key.split('/'))


@pytest.mark.fault('the process is killed at any step of storing an object', sees='nothing; the next attempt stores it')
@pytest.mark.parametrize('create_only', [True, False])
def test_sigkill_at_every_step_of_put(place, file, killed_at, create_only):
    for n in count(1):
        place.reset()
        store = place.open()
        if not create_only:
            store.put('a/b/k', file('old'), create_only=True)
        path = file('new')
        killed = killed_at(n, lambda p=path: place.open().put('a/b/k', p, create_only), network=True)
        assert store.list('') in ({}, {'a/b/k': 3})  # no draft is ever listed
        if store.list(''):
            assert store.read('a/b/k') in ((b'new',) if create_only else (b'old', b'new'))
        store.put('a/b/k', path, create_only=False)
        assert store.read('a/b/k') == b'new'
        if not killed:
            break
    assert n > 3


@pytest.mark.fault('the process is killed at any step of a download', sees='the old file, or the new one')
def test_sigkill_at_every_step_of_get(place, tmp_path, file, killed_at):
    place.open().put('k', file('new'), create_only=True)
    for n in count(1):
        (tmp_path / 'out').write_text('old')
        killed = killed_at(n, lambda: place.open().get('k', tmp_path / 'out'), network=True)
        assert (tmp_path / 'out').read_text() in ('old', 'new')
        if not killed:
            break
    assert n > 3


def test_what_the_disk_refuses_is_an_error_of_the_store(tmp_path, file):
    store, key = LocalStore(tmp_path / 'store'), 'k' * 300  # longer than a name may be
    store.put('a/k', file('1'), create_only=True)
    for use in (
        lambda: store.read(key),
        lambda: store.get(key, tmp_path / 'out'),
        lambda: store.list(key),
        lambda: store.delete([key]),
    ):
        with pytest.raises(OutsideError, match=r'can not be used in folder .*File name too long'):
            use()
    with pytest.raises(OutsideError, match='can not be used in folder'):
        store.delete(['a'])  # a folder
    assert store.list('') == {'a/k': 1}


@pytest.mark.fault('the disk of the local store is full', sees='key could not be put: No space left on device')
@pytest.mark.parametrize('create_only', [True, False])
def test_a_full_disk_loses_nothing(tmp_path, file, monkeypatch, create_only):
    store = LocalStore(tmp_path / 'store')
    store.put('old', file('1'), create_only=True)

    def full(source, target):
        Path(target).write_text('ha')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, 'copyfile', full)
    with pytest.raises(OutsideError, match=r'(old|new) could not be put into .*No space left'):
        store.put('new' if create_only else 'old', file('22'), create_only)
    assert [p.name for p in store.folder.iterdir()] == ['old']
    assert store.read('old') == b'1'


def _claim(place, folder: Path, number: int, barrier) -> None:
    (folder / f'in{number}').write_text(str(number))
    store = place.open()
    barrier.wait()
    for key in range(10):
        try:
            store.put(f'seq/{key}', folder / f'in{number}', create_only=True)
        except ExistsError:
            continue
        (folder / f'won{key}-{number}').touch()


@pytest.mark.fault('several processes create the same object', sees='one succeeds, the others are told that it exists')
def test_of_many_processes_one_creates(place, tmp_path):
    fork = multiprocessing.get_context('fork')
    barrier = fork.Barrier(6)
    processes = [fork.Process(target=_claim, args=(place, tmp_path, number, barrier)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0] * 6
    store = place.open()
    for key in range(10):
        assert [p.name for p in tmp_path.glob(f'won{key}-*')] == [f'won{key}-{store.read(f"seq/{key}").decode()}']


@pytest.mark.fault('a killed process left a draft in the local store', sees='nothing; it is swept out after a day')
def test_drafts_are_swept_out_after_a_day(tmp_path, file):
    store = LocalStore(tmp_path / 'store')
    store.put('a/k', file('1'), create_only=True)
    old, new = beside(store.folder / 'a' / 'x'), beside(store.folder / 'a' / 'y')
    for draft in (old, new):
        draft.write_text('half')
    os.utime(old, (0, 0))
    store.put('a/l', file('2'), create_only=True)
    assert (old.exists(), new.exists()) == (False, True)
    os.utime(new, (0, 0))
    store.delete(['a/l'])
    assert [p.name for p in (store.folder / 'a').iterdir()] == ['k']


def _limited(work, size: int) -> None:
    "Do work in a process that can write no file larger than `size` bytes."

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            work()
        except OutsideError as error:
            raise SystemExit(3 if 'could not be written to' in str(error) else 4) from None

    process = multiprocessing.get_context('fork').Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 3


@pytest.mark.fault(
    'the disk is full while an object is fetched', sees='key could not be written to FILE, and the reason'
)
def test_a_download_that_does_not_fit_keeps_the_old_file(place, tmp_path):
    (tmp_path / 'big').write_bytes(bytes(300_000))
    place.open().put('k', tmp_path / 'big', create_only=True)
    (tmp_path / 'out' / 'x').parent.mkdir()
    (tmp_path / 'out' / 'x').write_text('old')
    _limited(lambda: place.open().get('k', tmp_path / 'out' / 'x'), 100_000)
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['x']
    assert (tmp_path / 'out' / 'x').read_text() == 'old'


def test_a_rehearsal_changes_nothing(place, tmp_path, file):
    real = place.open()
    for key in ('a', 'b', 'c'):
        real.put(key, file('1'), create_only=True)
    trial = Rehearsal(real, tmp_path / 'scratch')
    trial.put('a', file('222'), create_only=False)
    trial.put('d/e', file('22'), create_only=True)
    trial.delete(['b', 'd/e'])
    assert trial.list('') == {'a': 3, 'c': 1}
    with pytest.raises(MissingError, match='d/e'):
        trial.read('d/e')
    assert real.list('') == {'a': 1, 'b': 1, 'c': 1}


def test_the_installation_has_a_store(tmp_path, monkeypatch):
    (tmp_path / 'settings.ini').write_text(
        project_file('settings.ini').read_text().replace('outputs/store', 'elsewhere')
    )
    monkeypatch.setenv('TWOTOWER_HOME', str(tmp_path))
    assert str(open_store()) == f'folder {tmp_path}/elsewhere'
