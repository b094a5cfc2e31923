"Machines that run out of something: the disk, the temporary folder, shared memory, memory, or a file system that can do less."

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from nbformat import v4

from twotower.base.errors import OutsideError, SettingError
from twotower.base.files import atomic_file, atomic_folder, one_writer, point
from twotower.data.sources import workspace
from twotower.database import embedded
from twotower.operations.execute import execute
from twotower.operations.plan import Stage
from twotower.runs.run import Run
from twotower.store.local import LocalStore


@pytest.fixture
def disk():
    "Mount a disk of so many bytes; yields a function that gives its folder."
    mounted = []

    def mount(size: int) -> Path:
        folder = Path(tempfile.mkdtemp(prefix='disk-', dir='/tmp'))  # short enough for sockets
        made = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder], capture_output=True)
        if made.returncode:
            folder.rmdir()
            pytest.skip(f'nobody may mount a small disk here: {made.stderr.decode().strip()}')
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(['umount', folder], check=True)
        folder.rmdir()


def stage(folder: Path, name: str, code: str) -> Stage:
    cells = [v4.new_code_cell('rate: float = 0.1', metadata={'tags': ['parameters']}), v4.new_code_cell(code)]
    content = v4.new_notebook(cells=cells, metadata={'language_info': {'name': 'python'}})
    (folder / f'{name}.ipynb').write_text(v4.writes(content))
    return Stage(name, folder / f'{name}.ipynb', {})


# Disks that are full


@pytest.mark.fault(
    'the temporary folder is full while files are read',
    sees='which folder, how much room it has, and TMPDIR',
)
def test_a_full_temporary_folder_is_named(disk, tmp_path, monkeypatch):
    rows = ''.join(f'u{i},r{i % 99},5,2024-01-01\n' for i in range(200_000))
    (tmp_path / 'reviews.csv').write_text(f'product_url,reviewer_id,stars,reviewed_at\n{rows}')
    small = disk(1 << 20)
    monkeypatch.setattr(tempfile, 'tempdir', str(small))
    with (
        pytest.raises(OutsideError, match='the temporary folder is full') as error,
        workspace(memory_limit='30MB', threads=1) as con,
    ):
        con.execute(f"CREATE TABLE t AS SELECT * FROM '{tmp_path}/reviews.csv'; CHECKPOINT")
    assert f'{small} has 0 MB free: make room there, or set TMPDIR to a folder with more' in str(error.value)
    assert list(small.iterdir()) == []


@pytest.mark.fault(
    'the temporary folder is so full that not even the notebook of a stage can be written',
    sees='which folder, how much room it has, and TMPDIR; there is a report',
)
def test_a_stage_without_a_temporary_folder_has_a_report(disk, tmp_path, monkeypatch):
    small = disk(1 << 13)
    monkeypatch.setattr(tempfile, 'tempdir', str(small))
    run = Run(tmp_path / 'outputs' / 'runs' / 'r1')
    said = execute(stage(tmp_path, '01_a', 'print("x" * 100_000)'), run)
    for part in ('No space left on device', f'{small} has', 'TMPDIR'):
        assert part in said
    assert 'TMPDIR' in (run.reports / '01_a.html').read_text()


WRITERS = {
    'torch': lambda folder: torch.save({'a': torch.rand(100_000)}, folder / 'a.pt'),
    'arrow': lambda folder: pq.write_table(pa.table({'a': torch.rand(100_000).numpy()}), folder / 'a.parquet'),
    'numpy': lambda folder: torch.rand(100_000).numpy().tofile(folder / 'a.npy'),
}


@pytest.mark.fault(
    'the disk of the outputs is full, and the library that writes does not say so',
    sees='No space left on device, and which file or folder',
)
@pytest.mark.parametrize('writer', WRITERS)
def test_a_full_disk_is_named_and_nothing_half_written_is_left(disk, writer):
    small = disk(100_000)
    with pytest.raises(OSError, match='No space left on device') as error, atomic_folder(small / 'model') as draft:
        WRITERS[writer](draft)
    assert error.value.filename == str(small / 'model')
    with pytest.raises(OSError, match='No space left on device') as error, atomic_file(small / 'a') as draft:
        draft.write_bytes(bytes(200_000))
    assert (error.value.filename, list(small.iterdir())) == (str(small / 'a'), [])


# Memory


@pytest.mark.fault(
    'the system kills a stage for want of memory',
    sees='that it was killed, probably for memory, and which setting makes it need less',
)
def test_a_killed_stage_says_what_needs_less(tmp_path):
    run = Run(tmp_path / 'outputs' / 'runs' / 'r1')
    said = execute(stage(tmp_path, '01_prep', 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'), run)
    for part in ('the process of 01_prep was killed (SIGKILL)', 'memory', '-p memory_limit=2GB'):
        assert part in said
    assert 'memory_limit=2GB' in (run.reports / '01_prep.html').read_text()


SHARED = """
import sys
from pathlib import Path
import psycopg
from twotower.database import embedded
folder = Path(sys.argv[1])
with psycopg.connect(embedded.start(folder, linger=1)) as conn:
    print(conn.execute('SHOW dynamic_shared_memory_type').fetchone()[0])
embedded.stop(folder)
"""


@pytest.mark.fault('a container has next to no shared memory', sees='nothing: files of the database serve')
def test_the_embedded_server_needs_no_shared_memory(tmp_path):
    folder = tmp_path / 'database'
    small = f'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "{sys.executable}" -c "$0" "$1"'
    if subprocess.run(['unshare', '-m', 'mount', '-t', 'tmpfs', 'tmpfs', '/dev/shm'], capture_output=True).returncode:
        pytest.skip('nobody may mount a small /dev/shm here')
    command = ['unshare', '-m', 'sh', '-c', small, SHARED, folder]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd='/', env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    )
    assert done.stdout.split() == ['mmap'], done.stderr


# File systems that can do less


def lacking(*_args, **_kwargs):
    raise PermissionError(errno.EPERM, 'Operation not permitted')  # as FAT and many mounted clouds say it


@pytest.mark.fault(
    'a file system has no hard links, symbolic links or locks', sees='which folder, and to choose another'
)
def test_a_file_system_that_can_do_less_is_named(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('x')
    for module, name in ((os, 'link'), (os, 'symlink'), (fcntl, 'flock')):
        monkeypatch.setattr(module, name, lacking)
    said = 'lies on a file system without {} .*choose a folder on a disk of this machine'
    with pytest.raises(SettingError, match=said.format('hard links')):
        LocalStore(tmp_path / 'store').put('a/k', tmp_path / 'file', create_only=True)
    with pytest.raises(SettingError, match=said.format('symbolic links')):
        point(tmp_path / 'latest', tmp_path)
    with pytest.raises(SettingError, match=said.format('locks')), one_writer(tmp_path / 'live'):
        pass
    with pytest.raises(SettingError, match=said.format('locks')):
        embedded.start(tmp_path / 'database')
    assert [path.name for path in (tmp_path / 'store' / 'a').iterdir()] == []
