"""Every test begins in an empty home and without anybody's database or store."""

import itertools
import os
import shutil
import signal
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from shop import open_shop
from stores import PLACES

from twotower.base.files import sha256, write_json
from twotower.database import embedded
from twotower.database.connections import connect
from twotower.database.schema import migrate
from twotower.runs.run import MODEL_FILES, Run, create_run


@pytest.fixture(autouse=True)
def home(tmp_path, tmp_path_factory, monkeypatch):
    for name in list(os.environ):
        if 'SUPABASE' in name or 'DATABASE_URL' in name or name.startswith(('PG', 'FANZA', 'SLACK')):
            monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp('home')
    for above in [tmp_path, *folder.parents[:3]] if os.geteuid() == 0 else ():
        above.chmod(0o711)  # the embedded server runs as nobody, and opens no folder that is not the project's
    monkeypatch.setenv('TWOTOWER_HOME', str(folder))
    return folder


def pytest_addoption(parser):
    parser.addoption('--postgres', type=int, help='version of the embedded PostgreSQL, 16 or 18')


def pytest_configure(config):
    if os.geteuid() == 0 and not config.option.basetemp:  # another pytest that starts would close the folder they share
        config.option.basetemp = Path(tempfile.mkdtemp(prefix='twotower-tests-')) / 'all'
        config.option.basetemp.parent.chmod(0o711)


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: item.get_closest_marker('ray') is None
    )  # the longest first, so that no process waits for one at the end


def pytest_sessionfinish(session, exitstatus):
    place = Path(session.config.option.basetemp or '')
    if exitstatus == 0 and place.name == 'all' and place.parent.name.startswith('twotower-tests-'):
        shutil.rmtree(place.parent)


@pytest.fixture(scope='session')
def server(request):
    "An embedded PostgreSQL with one migrated, empty database: yields a connection to its maintenance database."
    folder = Path(tempfile.mkdtemp())
    dsn = embedded.start(folder, linger=2, version=request.config.getoption('postgres'))
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute('CREATE DATABASE migrated')
        with connect(psycopg.conninfo.make_conninfo(dsn, dbname='migrated')) as conn:
            migrate(conn)
        yield admin
    embedded.stop(folder)
    shutil.rmtree(folder)


@pytest.fixture
def empty_database(server, request):
    "The connection string of a new database without tables."
    name = f'test_{abs(hash(request.node.nodeid)):x}'
    server.execute(f'CREATE DATABASE {name} TEMPLATE template0')
    yield psycopg.conninfo.make_conninfo(server.info.dsn, dbname=name)
    server.execute(f'DROP DATABASE {name} WITH (FORCE)')


@pytest.fixture
def database(server, request, monkeypatch):
    "A connection to a migrated database without rows, where `connect()` leads as well, also in other processes."
    name = f'test_{abs(hash(request.node.nodeid)):x}'
    server.execute(f'CREATE DATABASE {name} TEMPLATE migrated')
    url = psycopg.conninfo.make_conninfo(server.info.dsn, dbname=name)
    monkeypatch.setenv('REMOTE_DATABASE_URL', url)
    with connect(url) as conn:
        yield conn
    server.execute(f'DROP DATABASE {name} WITH (FORCE)')


@pytest.fixture
def shop():
    "A shop with thirty videos; see shop.py."
    with open_shop() as shop:
        yield shop


BOUNDARIES = ('replace', 'rename', 'link', 'symlink', 'unlink', 'mkdir', 'rmdir', 'fsync', 'sendfile')


def _outside_scratch(place: int | str | Path | socket.socket) -> bool:
    path = os.readlink(f'/proc/self/fd/{place}') if isinstance(place, int) else str(place)
    return not path.startswith(tempfile.gettempdir())


def _killed_at(n: int, work: Callable[[], object], network: bool = False) -> bool:
    child = os.fork()
    if child == 0:
        step = itertools.count(1)

        def deadly(real):
            def call(*args, **kwargs):
                if _outside_scratch(args[0]) and next(step) == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in BOUNDARIES:
            setattr(os, name, deadly(getattr(os, name)))
        for name in ('send', 'recv') if network else ():
            setattr(socket.socket, name, deadly(getattr(socket.socket, name)))
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, 'the work failed before it was killed'
    return os.WIFSIGNALED(status)


@pytest.fixture
def killed_at(monkeypatch, tmp_path_factory) -> Callable[[int, Callable[[], object]], bool]:
    """Do work in a child that dies by SIGKILL at its n-th step on the disk, scratch aside; False if it ended before that.

    With `network=True` whatever is sent or awaited through a socket is a step as well.
    """
    monkeypatch.setattr(os, 'fsync', lambda _: None)  # a process that dies takes nothing from the page cache
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path_factory.mktemp('left')))
    return _killed_at


@pytest.fixture(params=PLACES)
def place(request, tmp_path, monkeypatch):
    "Where a store can be opened: a folder, or a bucket of a Supabase Storage that runs here."
    monkeypatch.setattr(os, 'fsync', lambda _: None)
    place = PLACES[request.param](tmp_path / 'store')
    yield place
    place.close()


@pytest.fixture
def toy_run(tmp_path: Path) -> Callable[..., Run]:
    "Make a run in `tmp_path/outputs` with a small fake model and a verdict about it."

    def make(run_id: str, day: int = 1, verdict: str = 'pass') -> Run:
        run = create_run(run_id, tmp_path / 'outputs')
        created = f'2026-01-{day:02}T03:04:05+00:00'
        write_json(run.path / 'run.json', {'run_id': run_id, 'created_at': created, 'stages': {}})
        run.model.mkdir()
        for name in MODEL_FILES:
            (run.model / name).write_text(f'{name} of {run_id}')
        files = {name: sha256(run.model / name) for name in MODEL_FILES}
        write_json(run.metrics, {'run_id': run_id, 'verdict': verdict, 'reasons': ['too weak'], 'files': files})
        return run

    return make
