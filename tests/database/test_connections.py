"""The ways to a database, through a real PgBouncer: pooled as Supabase does it, with TLS and without.

The embedded PostgreSQL is built without TLS, so PgBouncer speaks it for the server, as Supabase's pooler does for Supabase.
"""

import os
import pwd
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest
import trustme
from psycopg.conninfo import make_conninfo

from twotower.base.errors import OutsideError
from twotower.base.tables import EMBEDDING, USER, VIDEO, VIDEOS, as_uuid, embeddings_schema
from twotower.database import embedded
from twotower.database.connections import connect, describe, target, transaction
from twotower.database.embeddings import recommend, save_embeddings, similar
from twotower.database.schema import migrate
from twotower.database.videos import load_videos, missing_videos, save_videos

USERS = '"postgres.abcd" "hunter2"\n"postgres" "hunter2"\n'


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as held:
        return held.getsockname()[1]


@contextmanager
def pgbouncer(server, **settings):
    "A PgBouncer before the embedded server; yields its port."
    program = shutil.which('pgbouncer') or shutil.which('pgbouncer', path='/usr/sbin')
    assert program, 'pgbouncer is not on the PATH: apt-get install pgbouncer'
    folder, port = Path(tempfile.mkdtemp()), free_port()
    common = {'listen_addr': '127.0.0.1', 'listen_port': port, 'unix_socket_dir': '', 'auth_type': 'scram-sha-256'}
    common |= {'auth_file': folder / 'users.txt', 'pool_mode': 'transaction', 'default_pool_size': 1} | settings
    lines = ['[databases]', f'* = host={server.info.host} user=postgres', '[pgbouncer]']
    (folder / 'users.txt').write_text(USERS)
    (folder / 'pgbouncer.ini').write_text('\n'.join([*lines, *(f'{k} = {v}' for k, v in common.items())]))
    folder.chmod(0o755)
    as_user = {}
    if os.geteuid() == 0:  # it refuses to be root
        nobody = pwd.getpwnam('nobody')
        as_user = {'user': nobody.pw_uid, 'group': nobody.pw_gid, 'extra_groups': []}
    with open(folder / 'log', 'w') as log:
        process = subprocess.Popen([program, folder / 'pgbouncer.ini'], stdout=log, stderr=log, **as_user)
    try:
        for _ in range(100):
            with socket.socket() as client:
                if client.connect_ex(('127.0.0.1', port)) == 0:
                    break
            assert process.poll() is None, (folder / 'log').read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope='module')
def pooler(server):
    "The port of a pooler in transaction mode with one session for everybody, and without TLS."
    with pgbouncer(server) as port:
        yield port


@pytest.fixture
def pooled(pooler, empty_database):
    "The connection string of an empty database behind the pooler."
    name = psycopg.conninfo.conninfo_to_dict(empty_database)['dbname']
    return f'postgresql://postgres.abcd:hunter2@127.0.0.1:{pooler}/{name}'


@pytest.fixture(scope='module')
def tls(server):
    "The port of a pooler that speaks TLS only, and the files of its authority and of another one."
    folder = Path(tempfile.mkdtemp())
    ours, other = trustme.CA(), trustme.CA()
    certificate = ours.issue_cert('localhost')
    certificate.private_key_pem.write_to_path(folder / 'key.pem')
    certificate.cert_chain_pems[0].write_to_path(folder / 'cert.pem')
    for name, authority in (('ours.crt', ours), ('other.crt', other)):
        authority.cert_pem.write_to_path(folder / name)
    folder.chmod(0o755)
    (folder / 'key.pem').chmod(0o644)  # it is worth nothing
    files = {'client_tls_key_file': folder / 'key.pem', 'client_tls_cert_file': folder / 'cert.pem'}
    with pgbouncer(server, client_tls_sslmode='require', **files) as port:
        yield port, folder
    shutil.rmtree(folder)


def refusal(url, monkeypatch, **variables):
    "What `connect` says when it fails, and never the password."
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(OutsideError) as error:
        connect(url)
    assert 'hunter2' not in str(error.value)
    return str(error.value)


# Pooled


def videos(n):
    rows = [
        dict.fromkeys(VIDEOS.names)
        | {'content_id': f'c{i}', 'product_url': f'https://v.example/{i}', 'tags': [f't{i % 3}']}
        for i in range(n)
    ]
    return pa.Table.from_pylist(rows, VIDEOS)


def embeddings(names, key):
    rows = [[float(i == j) + 0.1 for j in range(128)] for i in range(len(names))]
    return pa.table({key: names, EMBEDDING: rows}, embeddings_schema(key))


def test_all_work_goes_through_one_session_that_two_share(pooled):
    with connect(pooled) as one, connect(pooled) as two:
        assert migrate(one)
        assert migrate(two) == []
        assert one.execute('SELECT pg_backend_pid()').fetchone() == two.execute('SELECT pg_backend_pid()').fetchone()
        assert save_videos(one, videos(5)) == 5
        assert load_videos(two).num_rows == 5
        pieces = missing_videos(one, 'm1', batch=2)
        for piece in pieces:  # reading and writing take turns in the same session
            save_embeddings(two, embeddings(piece[VIDEO].to_pylist(), VIDEO), VIDEO, 'm1')
        assert save_embeddings(one, embeddings(['u'], USER), USER, 'm1')['inserted'] == 1
        assert len(recommend(two, 'u', 3)) == 3
        assert len(similar(one, as_uuid('https://v.example/1'), 3)) == 3
        left = """
            SELECT (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_class WHERE relpersistence = 't'),
                (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
                current_setting('statement_timeout'), current_setting('search_path')
        """
        assert two.execute(left).fetchone() == (0, 0, 0, '0', '"$user", public')


def test_a_failure_leaves_nothing_behind_in_the_session_of_another(pooled):
    with connect(pooled) as one, connect(pooled) as two:

        def divide():
            with transaction(one, 'dividing'):
                one.execute("SET LOCAL search_path = ''")
                one.execute('SELECT 1 / 0')

        with pytest.raises(OutsideError, match='division by zero'):
            divide()
        assert two.execute('SHOW search_path').fetchone() == ('"$user", public',)


def test_the_direct_address_leads_to_the_pooler_that_the_environment_names(pooler, monkeypatch):
    monkeypatch.setenv('REMOTE_DATABASE_URL', 'postgresql://postgres:hunter2@db.abcd.supabase.co:5432/postgres')
    monkeypatch.setenv('SUPABASE_POOLER_HOST', '127.0.0.1')
    monkeypatch.setenv('SUPABASE_POOLER_PORT', str(pooler))
    monkeypatch.setenv('PGSSLMODE', 'prefer')
    with connect() as conn:
        assert target(conn) == f'postgres.abcd@127.0.0.1:{pooler}/postgres'
        assert describe(conn) == f'{target(conn)} at 127.0.0.1 (IPv4), not encrypted'
        assert 'hunter2' not in repr(conn)


def test_a_host_with_both_kinds_of_address_is_reached_by_the_one_that_answers(pooler):
    with connect(f'postgresql://postgres:hunter2@localhost:{pooler}/postgres') as conn:
        assert conn.info.hostaddr == '127.0.0.1'


# Refused


@pytest.mark.fault('wrong password of the database', sees='which user, and how to write or reset the password')
def test_a_wrong_password_is_named_and_not_shown(pooler, monkeypatch):
    said = refusal(f'postgresql://postgres:wrong-hunter2@127.0.0.1:{pooler}/postgres', monkeypatch)
    assert said.startswith(f'postgres@127.0.0.1:{pooler}/postgres: ')
    assert 'the password is wrong, or there is no user postgres: correct them in the database URL' in said


def test_an_unknown_user_is_named(pooler, monkeypatch):
    said = refusal(f'postgresql://postgres.other:hunter2@127.0.0.1:{pooler}/postgres', monkeypatch)
    assert 'the password is wrong, or there is no user postgres.other' in said


def test_a_user_of_no_tenant_is_told_what_a_tenant_is(server, monkeypatch):
    with pgbouncer(server, auth_type='trust') as port:
        said = refusal(f'postgresql://postgres.other@127.0.0.1:{port}/postgres', monkeypatch)
    assert 'the pooler does not know postgres.other' in said
    assert said.endswith('copy both from the dashboard, Connect')


def test_a_wrong_database_is_named(pooler, monkeypatch):
    said = refusal(f'postgresql://postgres:hunter2@127.0.0.1:{pooler}/postgers', monkeypatch)
    assert 'there is no database postgers: correct the name' in said


def test_a_wrong_port_is_named(monkeypatch):
    port = free_port()
    said = refusal(f'postgresql://postgres:hunter2@127.0.0.1:{port}/postgres', monkeypatch)
    assert f'nobody listens at port {port} of 127.0.0.1: correct the port' in said


def test_a_port_of_another_protocol_is_named(monkeypatch):
    class Web(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')

    with socketserver.TCPServer(('127.0.0.1', 0), Web) as web:
        port = web.server_address[1]
        threading.Thread(target=web.serve_forever, daemon=True).start()
        said = refusal(f'postgresql://me:hunter2@127.0.0.1:{port}/x?connect_timeout=5', monkeypatch)
        web.shutdown()
    assert f"what listens at port {port} does not speak PostgreSQL's protocol" in said


def test_a_silent_server_is_named(monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as mute:
        url = f'postgresql://me:hunter2@127.0.0.1:{mute.getsockname()[1]}/x?connect_timeout=2'
        assert 'resume the project if it is paused' in refusal(url, monkeypatch)


def test_the_direct_host_out_of_reach_leads_to_the_pooler(monkeypatch):
    said = refusal('postgresql://me:hunter2@db.abcdefghijklmnopqrst.supabase.co/x?connect_timeout=2', monkeypatch)
    assert "Supabase's direct host has IPv6 only" in said
    assert said.endswith('or SUPABASE_POOLER_HOST, and the pooler is used')


def test_a_guessed_pooler_is_called_a_guess(monkeypatch):
    url = 'postgresql://postgres:hunter2@db.abcdefghijklmnopqrst.supabase.co/x?connect_timeout=2'
    said = refusal(url, monkeypatch, SUPABASE_REGION='nowhere-9').splitlines()
    assert [line.split(': ')[0] for line in said[:2]] == [
        f'postgres.abcdefghijklmnopqrst@aws-{n}-nowhere-9.pooler.supabase.com:5432/x' for n in (0, 1)
    ]
    assert said[-1].startswith('SUPABASE_REGION=nowhere-9 does not say which pooler is yours')
    assert said[-1].endswith('set SUPABASE_POOLER_HOST to the host that the dashboard shows under Connect')


# Encrypted


def secure(port, host='localhost', **parameters):
    return make_conninfo(f'postgresql://postgres:hunter2@{host}:{port}/postgres', **parameters)


def test_the_right_authority_opens(tls, monkeypatch):
    port, folder = tls
    monkeypatch.setenv('PGSSLROOTCERT', str(folder / 'ours.crt'))
    with connect(secure(port)) as conn:
        assert describe(conn).endswith('(IPv4), TLS verify-full')
    monkeypatch.chdir(folder)
    monkeypatch.setenv(
        'TWOTOWER_HOME', str(folder.parent)
    )  # a relative name starts at the project, not where one stands
    monkeypatch.setenv('PGSSLROOTCERT', f'{folder.name}/ours.crt')
    monkeypatch.setenv('PGSSLMODE', 'verify-full')
    with connect(secure(port, sslmode='require')) as conn:
        assert describe(conn).endswith('TLS verify-full')


@pytest.mark.fault(
    'a server whose certificate another authority has signed',
    sees='which file named the authority, and where to get the right one',
)
def test_another_authority_does_not(tls, monkeypatch):
    port, folder = tls
    said = refusal(secure(port), monkeypatch, PGSSLROOTCERT=folder / 'other.crt')
    assert 'was not signed by the authority in PGSSLROOTCERT: download the CA certificate' in said


def test_another_host_name_does_not(tls, monkeypatch):
    port, folder = tls
    said = refusal(secure(port, '127.0.0.1'), monkeypatch, PGSSLROOTCERT=folder / 'ours.crt')
    assert 'somebody else may be answering' in said
    assert said.endswith('write the host as the certificate names it')


def test_no_authority_does_not(tls, monkeypatch):
    monkeypatch.setenv('HOME', str(tls[1]))
    said = refusal(secure(tls[0]), monkeypatch, PGSSLMODE='verify-full')
    assert 'download the CA certificate of your server and set PGSSLROOTCERT to the file' in said


def test_in_clear_does_not(tls, monkeypatch):
    said = refusal(secure(tls[0], sslmode='disable'), monkeypatch)
    assert 'the server takes encrypted connections only: set PGSSLMODE=verify-full' in said


def test_a_server_without_tls_is_not_trusted_with_the_password(pooler, tls, monkeypatch):
    said = refusal(secure(pooler), monkeypatch, PGSSLROOTCERT=tls[1] / 'ours.crt')
    assert 'TLS is asked for, and this server or port has none' in said


def test_an_empty_mode_of_tls_is_none(server, tmp_path, monkeypatch):
    monkeypatch.setenv('PGSSLMODE', '')  # libpq: invalid sslmode value: ""
    folder = tmp_path / 'embedded'
    with connect(embedded.start(folder, linger=1)) as conn:
        assert conn.execute('SELECT 1').fetchall() == [(1,)]
    embedded.stop(folder)


SLEEPER = """
import sys
from twotower.database.connections import connect, transaction
with connect(sys.argv[1]) as conn, transaction(conn, 'sleeping'):
    conn.execute("SELECT pg_sleep(600) /* of a client that is killed */")
"""


@pytest.mark.fault(
    'a client is killed while the server works for it', sees='nothing: the statement ends within seconds'
)
def test_nothing_goes_on_for_a_killed_client(database):
    url = os.environ['REMOTE_DATABASE_URL']
    child = subprocess.Popen([sys.executable, '-c', SLEEPER, url])
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%of a client that is killed%' AND pid <> pg_backend_pid()"

    def wait_for(number: int, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if database.execute(running).fetchone()[0] == number:
                return True
            time.sleep(0.2)
        return False

    assert wait_for(1, 60)
    child.kill()
    child.wait()
    assert wait_for(0, 30)
