"What the database and its door must hold, against a real PostgreSQL."

import os
import re
import signal
import subprocess
import sys
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twotower.base.errors import InputError, OutsideError, SettingError
from twotower.base.tables import (
    DECISION,
    DECISIONS,
    EMBEDDING,
    TIME,
    USER,
    VIDEO,
    VIDEOS,
    as_uuid,
    embeddings_schema,
    stream_table,
)
from twotower.database import embedded
from twotower.database.connections import connect, retried, transaction
from twotower.database.embeddings import recommend, save_embeddings, similar
from twotower.database.people import save_decisions, save_profiles
from twotower.database.schema import TABLES, check_schema, migrate, schema_problems
from twotower.database.sql import advisory_lock
from twotower.database.videos import load_videos, missing_videos, save_videos

ANN, BEN = 'a0000000-0000-4000-8000-000000000001', 'b0000000-0000-4000-8000-000000000002'


def videos(n, **columns):
    table = {name: pa.nulls(n, VIDEOS.field(name).type) for name in VIDEOS.names}
    table['product_url'] = [f'https://v.example/{i}' for i in range(n)]
    table['content_id'] = [f'c{i}' for i in range(n)]
    return pa.table(table | columns, VIDEOS)


def ids(n):
    return [as_uuid(f'https://v.example/{i}') for i in range(n)]


def vectors(names, seed=0, key=VIDEO):
    values = np.random.default_rng(seed).standard_normal((len(names), 128)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return pa.table({key: names, EMBEDDING: values.tolist()}, embeddings_schema(key))


def contents(conn, table):
    return conn.execute(f'SELECT t::text, ctid FROM {table} t ORDER BY 1').fetchall()


@pytest.fixture
def filled(database):
    "Twenty videos with embeddings of m1; Ann and Ben with profiles and embeddings."
    save_videos(database, videos(20))
    save_embeddings(database, vectors(ids(20)), VIDEO, 'm1')
    save_profiles(database, [ANN, BEN])
    save_embeddings(database, vectors([ANN, BEN], seed=1, key=USER), USER, 'm1')
    return database


# The schema


def test_migrating_twice_changes_nothing(empty_database):
    with connect(empty_database) as conn:
        assert migrate(conn)[0] == '0001_roles.sql'
        before = contents(conn, 'twotower_migrations'), contents(conn, 'pg_class'), contents(conn, 'pg_policy')
        assert migrate(conn) == []
        assert before == (
            contents(conn, 'twotower_migrations'),
            contents(conn, 'pg_class'),
            contents(conn, 'pg_policy'),
        )


def test_a_failing_migration_leaves_nothing(empty_database):
    with connect(empty_database) as conn:
        conn.execute('CREATE FUNCTION public.similar_videos(p_video_id uuid, p_limit integer) RETURNS int RETURN 1')
        with pytest.raises(OutsideError, match='0005_functions'):
            migrate(conn)
        assert len(contents(conn, 'twotower_migrations')) == 4
        assert conn.execute("SELECT to_regproc('recommend_videos')").fetchone() == (None,)


def test_like_supabase(server, empty_database):
    "pgvector in `extensions`, roles and auth.uid() of its own, generous default privileges, and no superuser."
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute("""
            CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions;
            CREATE SCHEMA auth; CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS 'SELECT NULL::uuid';
            DROP ROLE IF EXISTS company; CREATE ROLE company LOGIN;
            GRANT USAGE ON SCHEMA extensions, auth TO PUBLIC;
            GRANT CREATE, USAGE ON SCHEMA public TO company WITH GRANT OPTION
        """)
        name = admin.info.dbname
        admin.execute(f'ALTER DATABASE {name} SET search_path = "$user", public, extensions')
    with connect(psycopg.conninfo.make_conninfo(empty_database, user='company')) as conn:
        conn.execute('ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated')
        conn.execute('CREATE TABLE profiles (user_id uuid PRIMARY KEY, nickname text)')  # theirs
        conn.execute('GRANT UPDATE ON profiles TO authenticated')
        assert migrate(conn)
        assert conn.execute("SELECT prosrc FROM pg_proc WHERE oid = 'auth.uid'::regproc").fetchone() == (
            'SELECT NULL::uuid',
        )
        rights = 'SELECT has_table_privilege(%s, %s, %s)'
        assert conn.execute(rights, ['authenticated', 'profiles', 'UPDATE']).fetchone() == (True,)
        assert conn.execute(rights, ['anon', 'user_embeddings', 'SELECT']).fetchone() == (False,)
        conn.execute("SET search_path = ''")  # found all the same
        save_videos(conn, videos(3))
        save_embeddings(conn, vectors(ids(3)), VIDEO, 'm1')
        save_embeddings(conn, vectors([ANN], key=USER), USER, 'm1')
        assert len(recommend(conn, ANN, 2)) == 2
        assert len(similar(conn, ids(3)[0])) == 2
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute('DROP OWNED BY company CASCADE')
    server.execute('DROP OWNED BY company CASCADE; DROP ROLE company')


@pytest.mark.fault(
    'a column of another dimension or type', sees='table, column, its type, the right one, and how to get it'
)
@pytest.mark.parametrize('kind', ['vector(128)', 'halfvec(256)', 'halfvec', 'real[]'])
def test_another_column_type_is_seen_before_anything_is_written(empty_database, kind):
    with connect(empty_database) as conn:
        conn.execute('CREATE EXTENSION vector')
        conn.execute(
            f'CREATE TABLE user_embeddings (user_id uuid PRIMARY KEY, embedding {kind}, updated_at timestamptz)'
        )
        migrate(conn)
        with pytest.raises(OutsideError) as error:
            save_embeddings(conn, vectors([ANN], key=USER), USER, 'm1')
        assert f'embedding is {kind}, must be halfvec(128)' in str(error.value)
        assert 'model_version is missing, must be text' in str(error.value)
        assert contents(conn, 'user_embeddings') == []


def test_without_tables_the_error_says_what_to_do(empty_database):
    with connect(empty_database) as conn, pytest.raises(OutsideError, match='apply the migrations first'):
        save_embeddings(conn, vectors([ANN], key=USER), USER, 'm1')


# Tables that were there before


def test_our_own_tables_are_as_they_must_be_to_the_last_column(database):
    check_schema(database)
    query = (
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND attname <> 'created_at'"
    )
    for name, columns in TABLES.items():
        assert {column for (column,) in database.execute(query, [name])} == set(columns) - {'created_at'}
    database.execute('DROP INDEX video_embeddings_nearest')
    assert schema_problems(database, need='write') == []
    (problem,) = schema_problems(database)
    database.execute(problem.split(': ')[-1])  # what it says to do
    check_schema(database)


def test_another_catalogue_is_reported_whole_and_before_anything_fails(empty_database):
    with connect(empty_database) as conn:
        conn.execute("""
            CREATE TABLE videos (
                id uuid PRIMARY KEY, product_url varchar(200), title jsonb, maker text, label text, series text, source text,
                director text, release_date timestamptz, duration interval, price numeric(10, 2), slug text NOT NULL
            );
            CREATE TABLE tags (id bigint PRIMARY KEY, name text)
        """)
        with pytest.raises(OutsideError, match=r'0002_videos\.sql: .*Tables that were there before lack') as error:
            migrate(conn)  # video_tags can not refer to tags whose id is no uuid
        said = str(error.value).splitlines()[1:]
        assert [line.split(': ALTER')[0].split(': CREATE')[0] for line in said] == [
            'public.videos: content_id is missing, must be text',
            'public.videos: title is jsonb, must be text',
            'public.videos: release_date is timestamp with time zone, must be date',
            'public.videos: duration is interval, must be real',
            'public.videos: slug is never given here',
            'public.tags: id is never given here',
            'public.tags: no unique index',
        ]
        with pytest.raises(OutsideError) as error:
            load_videos(conn)
        said = str(error.value)
        assert 'the tables are not as they must be, so nothing was done' in said
        assert 'slug' not in said  # whoever reads need not know
        assert 'public.videos: content_id is missing' in said
        assert 'public.video_tags: there is no such table: apply the migrations first' in said
        with pytest.raises(OutsideError, match='slug is never given here'):
            save_videos(conn, videos(1))
        with pytest.raises(OutsideError, match='content_id is missing'):
            next(missing_videos(conn, 'm1'))


@pytest.mark.fault(
    'the connection is lost while a migration is applied', sees='which migration, and what the server said'
)
def test_a_migration_that_is_cut_off_says_what_cut_it_off(empty_database, tmp_path, monkeypatch):
    (tmp_path / '0001_last.sql').write_text('SELECT pg_terminate_backend(pg_backend_pid())')
    monkeypatch.setattr('twotower.database.schema.MIGRATIONS', tmp_path)
    with connect(empty_database) as conn, pytest.raises(OutsideError, match=r'0001_last\.sql: terminating connection'):
        migrate(conn)


def test_the_statements_of_the_report_mend_the_tables(empty_database):
    with connect(empty_database) as conn:
        conn.execute("""
            CREATE TABLE videos (id uuid PRIMARY KEY, product_url varchar(99), duration text, price int);
            CREATE TABLE profiles (user_id uuid, nickname text);
            CREATE TYPE verdict AS ENUM ('like', 'dislike', 'skip');
            CREATE TABLE user_video_decisions (user_id uuid, video_id uuid, decision_type verdict, created_at timestamp)
        """)
        for _ in range(9):
            problems = [line for line in schema_problems(conn) if 'no such table' not in line]
            for problem in problems:
                conn.execute(problem.split(': ', 2)[2])
        assert problems == []
        migrate(conn)
        check_schema(conn)
        save_videos(conn, videos(3, price=[1, 2, None], tags=[['a'], [], None]))
        assert load_videos(conn).sort_by('content_id')['price'].to_pylist() == [1, 2, None]
        assert save_profiles(conn, [ANN]) == 1


def test_a_related_type_will_do(empty_database):
    with connect(empty_database) as conn:
        conn.execute("""
            CREATE TABLE videos (
                id uuid PRIMARY KEY, content_id varchar(20) UNIQUE NOT NULL, product_url varchar(200), title varchar(100),
                maker text, label text, series text, source text, director text, release_date date,
                duration smallint, price numeric(10, 2), internal_note text
            );
            CREATE TABLE tags (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name varchar(50) UNIQUE);
            CREATE TABLE video_tags (video_id uuid REFERENCES videos, tag_id bigint REFERENCES tags, PRIMARY KEY (tag_id, video_id))
        """)
        migrate(conn)
        check_schema(conn)
        table = videos(2, title=['a', '猫'], duration=[90, None], price=[12.5, None], tags=[['x', 'y'], []])
        assert save_videos(conn, table) == 2
        back = load_videos(conn).sort_by('content_id')
        for name in ('title', 'duration', 'price', 'tags'):
            assert back[name].to_pylist() == table[name].to_pylist(), name


# Embeddings


@pytest.mark.parametrize(
    ('value', 'rule'),
    [(np.nan, 'must be finite'), (np.inf, 'must be finite'), (65505.0, 'within'), (-1e5, 'within'), (0.0, 'zeros')],
)
def test_bad_vectors_are_refused_by_name(filled, value, rule):
    before = contents(filled, 'video_embeddings')
    table = vectors(ids(3), seed=2).to_pydict()
    table[EMBEDDING][1] = [value] * 128
    with pytest.raises(InputError, match=rule) as error:
        save_embeddings(filled, pa.table(table, embeddings_schema(VIDEO)), VIDEO, 'm2')
    assert ids(3)[1] in str(error.value)
    assert ids(3)[0] not in str(error.value)
    assert contents(filled, 'video_embeddings') == before


def test_duplicate_keys_are_refused_by_name(filled):
    twice = pa.concat_tables([vectors(ids(3)), vectors(ids(1), seed=2)])
    with pytest.raises(InputError, match='the same key more than once') as error:
        save_embeddings(filled, twice, VIDEO, 'm2')
    assert ids(1)[0] in str(error.value)


@pytest.fixture
def parted(tmp_path):
    "Other embeddings of the twenty videos and of one that has left, in the parts of a folder, with row groups of two."
    table = vectors([*ids(20), 'gone'], seed=3)
    for i, start in enumerate(range(0, 21, 7)):
        pq.write_table(table.slice(start, 7), tmp_path / f'{i}.parquet', row_group_size=2)
    return table, partial(stream_table, tmp_path, embeddings_schema(VIDEO))


def test_pieces_are_the_same_as_the_whole(filled, parted):
    table, pieces = parted
    assert [len(piece) for piece in pieces(rows=3)] == [3, 3, 1] * 3
    assert pa.concat_tables(pieces()).equals(table)  # in its order
    ours, whole = (save_embeddings(filled, rows, VIDEO, 'm2', dry_run=True) for rows in (pieces, table))
    assert ours == whole == save_embeddings(filled, partial(pieces, rows=1), VIDEO, 'm2')
    assert (ours['rows'], ours['updated'], ours['missing_ids']) == (21, 20, ['gone'])
    assert save_embeddings(filled, table, VIDEO, 'm2')['unchanged'] == 20


def test_a_key_in_two_pieces_is_refused_by_name(filled, parted):
    before = contents(filled, 'video_embeddings')
    table, pieces = parted
    again = table.slice(20).set_column(0, VIDEO, pa.array([ids(20)[4].upper()]))
    with pytest.raises(InputError, match=r'the same key more than once \(1 such\)') as error:
        save_embeddings(filled, lambda: [*pieces(), again], VIDEO, 'm2')
    assert ids(20)[4].upper() in str(error.value)
    assert contents(filled, 'video_embeddings') == before


@pytest.mark.fault(
    'a part of the embeddings is damaged, and those before it have been sent',
    sees='an error that names the file; the state before',
)
@pytest.mark.parametrize('damage', [lambda c: c[:-9], lambda c: c[:20] + bytes(300) + c[320:]], ids=['end', 'middle'])
def test_a_damaged_part_takes_all_with_it(filled, parted, tmp_path, damage):
    before, content = contents(filled, 'video_embeddings'), (tmp_path / '2.parquet').read_bytes()
    (tmp_path / '2.parquet').write_bytes(damage(content))
    with pytest.raises(InputError, match=r'2\.parquet is not a Parquet file'):
        save_embeddings(filled, parted[1], VIDEO, 'm2')
    assert contents(filled, 'video_embeddings') == before


@pytest.mark.fault(
    'connection lost between two parts of an upsert', sees='nothing: it is done again from the first part'
)
def test_pieces_are_read_again_after_a_lost_connection(filled, parted):
    calls = []

    def pieces():
        calls.append(1)
        for i, piece in enumerate(parted[1](rows=3)):
            if (len(calls), i) == (1, 1):
                filled.execute('SELECT pg_terminate_backend(%s)', [conn.info.backend_pid])
            yield piece

    with connect(conninfo(filled)) as conn:
        assert save_embeddings(conn, pieces, VIDEO, 'm2')['updated'] == 20
    assert len(calls) > 1
    assert versions(filled) == [('m2', 20)]


def test_a_repetition_does_not_touch_a_row(filled):
    before = contents(filled, 'video_embeddings')  # with the physical place of each row
    assert save_embeddings(filled, vectors(ids(20)), VIDEO, 'm1')['unchanged'] == 20
    assert contents(filled, 'video_embeddings') == before


def test_a_failing_row_takes_all_with_it(filled):
    before = contents(filled, 'video_embeddings')
    filled.execute(f"ALTER TABLE video_embeddings ADD CHECK (video_id <> '{ids(20)[7]}' OR model_version = 'm1')")
    with pytest.raises(OutsideError, match=r'saving embeddings by video_id: .*violates check constraint'):
        save_embeddings(filled, vectors(ids(20), seed=3), VIDEO, 'm2')
    assert contents(filled, 'video_embeddings') == before


def test_users_and_videos_change_together(filled):
    def both():
        with transaction(filled, 'both'):
            save_embeddings(filled, vectors([ANN, BEN], seed=5, key=USER), USER, 'm2')
            save_embeddings(filled, vectors(ids(20), seed=4), VIDEO, 'm2')
            raise InputError('halfway')

    with pytest.raises(InputError, match='halfway'):
        both()
    for table in ('user_embeddings', 'video_embeddings'):
        assert filled.execute(f'SELECT DISTINCT model_version FROM {table}').fetchall() == [('m1',)]


def test_videos_that_left_the_catalogue_are_counted_and_named(filled):
    gone = sorted(str(uuid.uuid4()) for _ in range(7))
    table = vectors([*ids(20), *gone])
    counts = save_embeddings(filled, table, VIDEO, 'm1')
    assert counts == dict(rows=27, inserted=0, updated=0, missing=7, few=0, unchanged=20, missing_ids=gone[:5])
    before = contents(filled, 'video_embeddings')
    with pytest.raises(InputError, match=r'refer to nothing \(7 such\)') as error:
        save_embeddings(filled, table, VIDEO, 'm2', strict=True)
    assert gone[0] in str(error.value)
    assert contents(filled, 'video_embeddings') == before


def test_users_whom_a_foreign_key_refuses_are_counted_and_the_others_written(filled):
    filled.execute('ALTER TABLE user_embeddings ADD FOREIGN KEY (user_id) REFERENCES profiles')
    counts = save_embeddings(filled, vectors([ANN, 'reviewer 7'], seed=9, key=USER), USER, 'm2')
    assert (counts['updated'], counts['missing'], counts['missing_ids']) == (1, 1, ['reviewer 7'])


def test_users_with_few_likes_are_left_out(filled):
    likes = {
        USER: [ANN, ANN, BEN, BEN],
        VIDEO: ids(2) * 2,
        DECISION: ['like', 'like', 'like', 'skip'],
        TIME: [None] * 4,
    }
    save_decisions(filled, pa.table(likes, DECISIONS))
    table = vectors([ANN, BEN], seed=9, key=USER)
    for dry_run in (True, False):
        counts = save_embeddings(filled, table, USER, 'm2', dry_run, min_user_interactions=2)
        assert (counts['updated'], counts['few']) == (1, 1)
    versions = filled.execute('SELECT user_id::text, model_version FROM user_embeddings ORDER BY 1').fetchall()
    assert versions == [(ANN, 'm2'), (BEN, 'm1')]


def test_missing_videos_are_those_without_and_those_of_another_model(filled):
    save_videos(filled, videos(22))
    save_embeddings(filled, vectors(ids(5), seed=1), VIDEO, 'm2')
    found = [i for piece in missing_videos(filled, 'm2', batch=6) for i in piece[VIDEO].to_pylist()]
    assert sorted(found) == sorted(set(ids(22)) - set(ids(5)))


# Faults in the middle


def row_locked(conn):
    "A transaction that holds the row which a merge comes to after others, so that it stops halfway."
    blocker = connect(conninfo(conn))
    blocker.execute('BEGIN')
    blocker.execute('SELECT FROM video_embeddings ORDER BY video_id DESC LIMIT 1 FOR UPDATE')
    return blocker


def conninfo(conn):
    return psycopg.conninfo.make_conninfo(conn.info.dsn)


def waiting(conn, pid=None):
    "The session that waits for a lock, as soon as there is one."
    query = (
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() AND pid <> %s"
    )
    for _ in range(200):
        if found := conn.execute(query, [pid or 0]).fetchone():
            return found[0]
        time.sleep(0.05)
    raise AssertionError('nobody came to wait')


@contextmanager
def halfway(work, conn):
    "Do work in a thread until it waits for a lock; yields what stops it, its session, and its result to come."
    blocker = row_locked(conn)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(work)
        try:
            yield blocker, waiting(blocker), result
        finally:
            blocker.close()


def versions(conn):
    return conn.execute('SELECT model_version, count(*) FROM video_embeddings GROUP BY 1 ORDER BY 1').fetchall()


@pytest.mark.fault('connection lost in the middle of an upsert', sees='nothing: it is done again on a new connection')
def test_an_upsert_survives_the_loss_of_its_connection(filled):
    with (
        connect(conninfo(filled)) as conn,
        halfway(lambda: save_embeddings(conn, vectors(ids(20), seed=3), VIDEO, 'm2'), filled) as (_, pid, result),
    ):
        filled.execute('SELECT pg_terminate_backend(%s)', [pid])
        assert versions(filled) == [('m1', 20)]
    assert result.result(60)['updated'] == 20
    assert versions(filled) == [('m2', 20)]


@pytest.mark.fault(
    'database restarted, or crashed, in the middle of an upsert',
    sees='nothing: it is done again as soon as the server is back',
)
@pytest.mark.parametrize('how', ['stopped', 'crashed'])
def test_an_upsert_survives_a_restart_of_the_server(tmp_path, how):
    with connect(embedded.start(tmp_path, linger=5)) as conn, connect(embedded.start(tmp_path)) as other:
        migrate(conn)
        save_videos(conn, videos(20))
        save_embeddings(conn, vectors(ids(20)), VIDEO, 'm1')
        with halfway(lambda: save_embeddings(conn, vectors(ids(20), seed=3), VIDEO, 'm2'), other) as (
            _,
            pid,
            result,
        ):
            if how == 'stopped':
                embedded.stop(tmp_path)
                time.sleep(0.5)
                embedded.start(tmp_path, linger=5)
            else:
                os.kill(pid, signal.SIGKILL)  # the server ends all its sessions and recovers
        assert result.result(60)['updated'] == 20
        # it may also have ended just before the server did: then its connection is gone
        with connect(embedded.start(tmp_path)) as again:
            assert versions(again) == [('m2', 20)]
    embedded.stop(tmp_path)


@pytest.mark.fault('deadlock with another program', sees='nothing: the upsert is done again')
def test_an_upsert_survives_a_deadlock(filled):
    first = filled.execute('SELECT video_id FROM video_embeddings ORDER BY 1').fetchone()[0]
    with (
        connect(conninfo(filled)) as conn,
        halfway(lambda: save_embeddings(conn, vectors(ids(20), seed=3), VIDEO, 'm2'), filled) as (blocker, pid, result),
    ):
        blocker.execute("SET LOCAL deadlock_timeout = '1min'")  # so that it is not the one to give way
        blocker.execute('UPDATE video_embeddings SET updated_at = now() WHERE video_id = %s', [first])
        assert conn.info.backend_pid == pid  # the same session,
        assert versions(filled) == [('m1', 20)]  # and nothing of its first attempt
        blocker.execute('COMMIT')
    assert result.result(60)['updated'] == 20
    assert versions(filled) == [('m2', 20)]


@pytest.mark.fault('two upserts at once, in opposite orders', sees='nothing: one waits for the other')
def test_two_upserts_at_once_take_turns(filled):
    def save(version, order):
        with connect(conninfo(filled)) as conn:
            return [save_embeddings(conn, vectors(ids(20)[::order], seed=i), VIDEO, version) for i in range(5)]

    with ThreadPoolExecutor() as pool:
        done = [*pool.map(save, ['m2', 'm3'], [1, -1])]
    assert [[one['updated'] for one in some] for some in done] == [[20] * 5] * 2
    assert len(versions(filled)) == 1


def test_what_keeps_failing_is_given_up(filled):
    calls = []

    def fail():
        calls.append(1)
        filled.execute("DO $$ BEGIN RAISE EXCEPTION 'busy' USING ERRCODE = '40001'; END $$")

    with pytest.raises(OutsideError, match='trying: busy'):
        retried(filled, 'trying', fail, attempts=3)
    assert len(calls) == 3
    with pytest.raises(OutsideError, match='trying: division by zero'):
        retried(filled, 'trying', lambda: calls.append(1) or filled.execute('SELECT 1 / 0'))
    assert len(calls) == 4  # that would be so every time


UPSERT = """
import sys
from test_database import connect, ids, save_embeddings, vectors, VIDEO
with connect(sys.argv[1]) as conn:
    save_embeddings(conn, vectors(ids(20), seed=3), VIDEO, 'm2')
"""


@pytest.mark.fault('SIGKILL in the middle of an upsert', sees='the state before; a repetition does it')
def test_a_killed_upsert_leaves_what_was_there(filled):
    before, blocker = contents(filled, 'video_embeddings'), row_locked(filled)
    places = os.pathsep.join(map(str, Path(__file__).parents[:2]))
    child = subprocess.Popen([sys.executable, '-c', UPSERT, conninfo(filled)], env=os.environ | {'PYTHONPATH': places})
    pid = waiting(filled)
    child.kill()
    child.wait()
    until = time.monotonic() + 30
    while filled.execute('SELECT FROM pg_stat_activity WHERE pid = %s', [pid]).fetchone():
        assert time.monotonic() < until, 'its statement is still waiting'
        time.sleep(0.02)
    blocker.close()
    assert contents(filled, 'video_embeddings') == before
    assert save_embeddings(filled, vectors(ids(20), seed=3), VIDEO, 'm2')['updated'] == 20


@pytest.mark.fault(
    'another program holds the lock of the same work',
    sees='who, on which machine and since when; after 15 minutes an end',
)
def test_whoever_waits_for_the_same_work_says_for_whom(filled, capsys, monkeypatch):
    monkeypatch.setattr('twotower.database.sql._MOMENT', 0.1)
    with connect(conninfo(filled)) as conn:
        conn.execute('BEGIN')
        advisory_lock(conn, 'videos')
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(save_videos, filled, videos(1, title=['new']))
            waiting(conn)
            time.sleep(0.5)
            said = capsys.readouterr().err
            assert re.search(
                rf'videos: at work is process {conn.info.backend_pid} \(twotower, process \d+ on .*, since 20', said
            )
            with (
                connect(conninfo(filled)) as other,
                pytest.raises(OutsideError, match=r'videos: waited 0\.2 s for process'),
                transaction(other, 'saving'),
            ):
                advisory_lock(other, 'videos', patience=0.2)
            conn.execute('ROLLBACK')
            assert done.result(20) == 1


# Neighbours


def in_sixteen_directions(names, seed=0, key=VIDEO):
    "With some likeness to each other, as embeddings have; where all directions are alike nothing is near anything."
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(names), 16)) @ np.random.default_rng(9).standard_normal((16, 128))
    values += 0.5 * rng.standard_normal(values.shape)
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(values.ravel(), 128)
    return pa.table({key: names, EMBEDDING: lists}, embeddings_schema(key))


def exact(table, taste, k):
    "The nearest by brute force, on the numbers as they are stored."
    halves = (
        table[EMBEDDING].combine_chunks().flatten().to_numpy().astype(np.float16).astype(np.float32).reshape(-1, 128)
    )
    scores = halves @ taste.astype(np.float16).astype(np.float32) / np.linalg.norm(halves, axis=1)
    return [table[VIDEO][int(i)].as_py() for i in np.argsort(-scores)[:k]]


def test_the_index_is_used_and_finds_the_nearest(database):
    n = 10_500  # more than what is compared one by one
    days, tags = (
        pa.array([i % 9000 for i in range(n)], pa.int32()).cast(pa.date32()),
        [[f't{i % 500}'] for i in range(n)],
    )
    save_videos(database, videos(n, release_date=days, tags=tags))
    table = in_sixteen_directions(ids(n))
    save_embeddings(database, table, VIDEO, 'm1')
    people = in_sixteen_directions([str(uuid.UUID(int=i)) for i in range(30)], seed=1, key=USER)
    save_embeddings(database, people, USER, 'm1')
    database.execute('ANALYZE')
    scans = "SELECT pg_stat_get_xact_numscans('video_embeddings_nearest'::regclass), pg_stat_get_xact_numscans('video_embeddings'::regclass)"

    def scanned(ask, *values, **filters):
        with database.transaction():
            before = database.execute(scans).fetchone()
            found = ask(database, *values, **filters)[VIDEO].tolist()
            after = database.execute(scans).fetchone()
        return found, (after[0] - before[0], after[1] - before[1])

    ann, taste = people[USER][0].as_py(), np.array(people[EMBEDDING][0].as_py(), np.float32)
    for ask, name in [(recommend, ann), (similar, ids(1)[0])]:
        found, scan = scanned(ask, name, 20)
        assert (len(found), scan) == (20, (1, 0))  # one scan of the index, none of the table
    assert scanned(recommend, ann, 20, released_from=date(1970, 1, 1))[1] == (1, 0)  # nearly all, by the index as well
    found, scan = scanned(recommend, ann, 20, tags=['t7', 'none'])  # one in 500: compared one by one
    assert (found, scan) == (exact(table.filter([i % 500 == 7 for i in range(n)]), taste, 20), (0, 0))
    some = [0 <= i % 9000 < 3 for i in range(n)]
    found, _ = scanned(recommend, ann, 20, released_to=date(1970, 1, 3))
    assert found == exact(table.filter(some), taste, 20)
    hits = 0
    for name, vector in zip(people[USER].to_pylist(), people[EMBEDDING].to_pylist(), strict=True):
        hits += len({*recommend(database, name, 20)[VIDEO]} & {*exact(table, np.array(vector, np.float32), 20)})
    assert hits / 20 / 30 >= 0.95

    plan = database.execute("""
        EXPLAIN SELECT video_id FROM video_embeddings
        ORDER BY embedding <=> (SELECT embedding FROM user_embeddings LIMIT 1) LIMIT 20
    """).fetchall()
    assert any('Index Scan using video_embeddings_nearest' in line for (line,) in plan)


def test_neighbours_are_the_exact_ones_on_a_small_catalogue(filled):
    halves = np.array(vectors(ids(20))[EMBEDDING].to_pylist()).astype(np.float16).astype(np.float32)
    taste = np.array(vectors([ANN], seed=1, key=USER)[EMBEDDING].to_pylist()[0]).astype(np.float16).astype(np.float32)
    scores = halves @ taste / np.linalg.norm(halves, axis=1) / np.linalg.norm(taste)
    found = recommend(filled, ANN, 20)
    assert found[VIDEO].tolist() == [ids(20)[i] for i in np.argsort(-scores)]
    np.testing.assert_allclose(found['score'], np.sort(scores)[::-1], atol=1e-3)


def test_decided_videos_are_not_recommended_even_if_they_are_all_the_nearest(database):
    n = 2000
    save_videos(database, videos(n))
    save_embeddings(database, vectors(ids(n)), VIDEO, 'm1')
    save_profiles(database, [ANN, BEN])
    save_embeddings(database, vectors([ANN, BEN], key=USER), USER, 'm1')
    nearest = recommend(database, ANN, 500)[VIDEO].tolist()
    rows = {USER: [ANN] * 500, VIDEO: nearest, DECISION: (['like', 'dislike', 'skip'] * 200)[:500], TIME: [None] * 500}
    assert save_decisions(database, pa.table(rows, DECISIONS)) == 500
    found = recommend(database, ANN, 50)[VIDEO].tolist()
    assert len(found) == 50
    assert not set(found) & set(nearest)
    assert len(recommend(database, BEN, 50)) == 50


# Who sees what


def seen(conn, role, query, user=None):
    "What a role sees, or `denied`."
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(f'SET LOCAL ROLE {role}')
            conn.execute("SELECT set_config('request.jwt.claims', %s, true)", [f'{{"sub": "{user}"}}' if user else ''])
            return conn.execute(query).fetchone()[0]
    except psycopg.errors.InsufficientPrivilege:
        return 'denied'


@pytest.mark.parametrize(
    ('table', 'anon', 'ann'),
    [
        ('videos', 20, 20),
        ('video_embeddings', 20, 20),
        ('profiles', 'denied', 1),
        ('user_embeddings', 'denied', 1),
        ('user_video_decisions', 'denied', 2),
        ('twotower_migrations', 'denied', 'denied'),
    ],
)
def test_each_role_sees_its_own(filled, table, anon, ann):
    rows = {USER: [ANN, ANN, BEN], VIDEO: ids(3), DECISION: ['like'] * 3, TIME: [None] * 3}
    save_decisions(filled, pa.table(rows, DECISIONS))
    count = f'SELECT count(*) FROM {table}'
    assert seen(filled, 'anon', count) == anon
    assert seen(filled, 'authenticated', count, ANN) == ann
    assert seen(filled, 'authenticated', count) in (0, 20, 'denied')
    if table != 'twotower_migrations':
        assert seen(filled, 'service_role', count) == filled.execute(count).fetchone()[0]


def test_functions_give_each_role_its_own(filled):
    ask = f"SELECT count(*) FROM recommend_videos('{ANN}', 5)"
    assert seen(filled, 'anon', ask) == 'denied'
    assert seen(filled, 'authenticated', ask, ANN) == 5
    assert seen(filled, 'authenticated', ask, BEN) == 0
    assert seen(filled, 'service_role', ask) == 5
    assert seen(filled, 'anon', f"SELECT count(*) FROM similar_videos('{ids(1)[0]}', 5)") == 5


def test_a_visitor_logs_in_as_the_product_does_and_sees_what_the_role_may(filled, server):
    "As PostgREST does it: one login without rights of its own, that takes the role of whoever asks."
    name = f'authenticator_{filled.info.dbname}'
    server.execute(f'CREATE ROLE {name} LOGIN NOINHERIT; GRANT anon, authenticated, service_role TO {name}')
    similar_to, own = f"similar_videos('{ids(1)[0]}', 5)", f"recommend_videos('{ANN}', 5)"
    with connect(psycopg.conninfo.make_conninfo(conninfo(filled), user=name)) as conn:

        def count(role, what, user=None):
            return seen(conn, role, f'SELECT count(*) FROM {what}', user)

        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute('SELECT FROM videos')
        assert [count('anon', what) for what in ('videos', similar_to)] == [20, 5]
        for what in ('profiles', 'user_embeddings', 'user_video_decisions', 'twotower_migrations', own):
            assert count('anon', what) == 'denied'
        assert [count('authenticated', what, ANN) for what in ('profiles', 'user_embeddings', own)] == [1, 1, 5]
        assert [count('authenticated', what, BEN) for what in ('profiles', 'user_embeddings', own)] == [1, 1, 0]
        assert count('authenticated', f"recommend_videos('{BEN}', 5, ARRAY['t'], '2020-01-01')", BEN) == 0
        assert [count('service_role', what) for what in ('profiles', 'user_embeddings', own)] == [2, 2, 5]
        assert count('authenticated', 'twotower_migrations', ANN) == 'denied'
    server.execute(f'DROP ROLE {name}')


def test_nobody_writes_but_the_service(filled):
    for role in ('anon', 'authenticated'):
        for table in ('videos', 'tags', 'user_embeddings', 'video_embeddings', 'profiles'):
            assert (
                seen(filled, role, f'WITH d AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM d', ANN)
                == 'denied'
            )
    insert = f"INSERT INTO user_video_decisions VALUES ('{BEN}', '{ids(1)[0]}', 'like') RETURNING 1"
    assert seen(filled, 'authenticated', insert, BEN) == 1
    assert seen(filled, 'authenticated', insert, ANN) == 'denied'  # in the name of another


# Texts and tables

ODD = [
    "O'Brien",
    'a "quoted" title',
    'two\nlines',
    'tab\tbed',
    '\\.',
    '\\N',
    'NULL',
    '',
    ' ',
    '動画 🎬',
    '%s {x} $1',
    ',',
]


def test_odd_texts_come_back_as_they_were(database):
    tags = [[t for t in ODD if t]] + [[t] for t in ODD[1:]]
    table = videos(len(ODD), title=ODD, maker=ODD[::-1], tags=tags)
    save_videos(database, table)
    back = {row['content_id']: row for row in load_videos(database).to_pylist()}
    for row in table.to_pylist():
        found = back[row['content_id']]
        assert (found['title'], found['maker']) == (row['title'], row['maker'])
        assert found['tags'] == sorted(t for t in row['tags'] if t)  # a nameless tag says nothing


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs'])), max_size=30))
def test_any_text_comes_back(database, texts):
    database.execute('TRUNCATE videos CASCADE')
    save_videos(database, videos(len(texts), title=texts))
    back = {row['content_id']: row['title'] for row in load_videos(database).to_pylist()}
    assert back == {f'c{i}': text for i, text in enumerate(texts)}


@pytest.mark.parametrize('column', ['title', 'tags'])
def test_nul_is_refused_by_name(database, column):
    value = {'title': ['a', 'b\0c'], 'tags': [['a'], ['b\0c']]}[column]
    with pytest.raises(InputError, match='contains a NUL character'):
        save_videos(database, videos(2, **{column: value}))
    assert contents(database, 'videos') == []


def test_numbers_and_dates_come_back_as_they_were(database):
    days = pa.array([0, -3653, None], pa.int32()).cast(pa.date32())
    table = videos(3, release_date=days, duration=[0.1, None, 1e7], price=[1 / 3, 0, None])
    table = table.set_column(0, VIDEO, pa.array([ANN, None, BEN]))
    save_videos(database, table)
    back = load_videos(database).sort_by('content_id')
    assert back[VIDEO].to_pylist() == [ANN, as_uuid('https://v.example/1'), BEN]
    for name in ('release_date', 'duration', 'price', 'content_id', 'product_url'):
        assert back[name].to_pylist() == table[name].to_pylist(), name


def test_an_empty_catalogue_is_a_table_without_rows(database):
    assert load_videos(database).equals(VIDEOS.empty_table())
    assert save_videos(database, VIDEOS.empty_table()) == 0


def test_a_video_listed_anew_keeps_its_id_and_what_is_known(database):
    save_videos(database, videos(2, title=['a', 'b'], price=[1, 2]))
    assert save_videos(database, videos(1, content_id=['other'])) == 1
    assert save_videos(database, videos(1, content_id=['other'])) == 0
    rows = {row['content_id']: row for row in load_videos(database).to_pylist()}
    assert sorted(rows) == ['c1', 'other']
    assert (rows['other'][VIDEO], rows['other']['price']) == (ids(1)[0], 1)


def test_two_videos_at_one_address_are_refused(database):
    save_videos(database, videos(2))
    with pytest.raises(OutsideError, match='duplicate key value violates unique constraint'):
        save_videos(database, videos(2, product_url=['https://v.example/x', 'https://v.example/0']).slice(1))


def test_a_video_keeps_its_id_when_its_address_changes(filled):
    assert save_videos(filled, videos(1, product_url=['https://v.example/new'])) == 1
    assert filled.execute("SELECT id::text FROM videos WHERE content_id = 'c0'").fetchone() == (ids(1)[0],)


def test_the_later_decision_wins(filled):
    def decide(kind, time):
        return save_decisions(filled, pa.table({USER: [ANN], VIDEO: ids(1), DECISION: [kind], TIME: [time]}, DECISIONS))

    assert [decide('like', 1), decide('dislike', 3), decide('skip', 2)] == [1, 1, 0]
    assert filled.execute('SELECT decision_type FROM user_video_decisions').fetchall() == [('dislike',)]


# Connections


def test_no_error_contains_the_password(monkeypatch):
    def shown(url):
        monkeypatch.setenv('REMOTE_DATABASE_URL', url)
        try:
            connect()
        except (OutsideError, SettingError) as error:
            return ''.join(traceback.format_exception(error))  # with whatever it was raised from

    refused = shown('postgresql://me:hunter2@127.0.0.1:1/x?connect_timeout=2')
    assert 'OutsideError: me@127.0.0.1:1/x: ' in refused
    assert 'hunter2' not in refused
    for url in ('postgres//me:hunter2@h/x', 'postgresql://me:hunt%er2@h/x', 'postgresql://me:1/hunter2@h/x', 'hunter2'):
        text = shown(url)
        assert 'SettingError: the database URL can not be read' in text
        assert 'hunter2' not in text
        assert '%er2' not in text


def test_a_lost_connection_is_named(database):
    def cut():
        with transaction(database, 'counting'):
            with connect() as other:
                other.execute('SELECT pg_terminate_backend(%s)', [database.info.backend_pid])
            database.execute('SELECT 1')

    with pytest.raises(OutsideError, match='counting: terminating connection due to administrator command'):
        cut()
    with pytest.raises(OutsideError, match=r'closed|lost'):
        load_videos(database)


# The embedded server

USE = """
import sys, time
from pathlib import Path
import psycopg
from twotower.database import embedded
with psycopg.connect(embedded.start(Path(sys.argv[1]), linger=1)) as conn:
    print(conn.execute('SELECT pg_postmaster_start_time()').fetchone()[0], flush=True)
time.sleep(float(sys.argv[2]))
"""


def use(folder, seconds):
    return subprocess.Popen([sys.executable, '-c', USE, folder, str(seconds)], stdout=subprocess.PIPE, text=True)


def running(folder):
    try:
        os.kill(int((folder / 'data' / 'postmaster.pid').read_text().split()[0]), 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def test_processes_share_one_server_and_the_last_one_ends_it(tmp_path):
    folder = tmp_path / 'a folder, long ' / ('x' * 100)  # longer than the path of a socket may be
    users = [use(folder, 0), use(folder, 0), use(folder, 60)]
    starts = [user.stdout.readline() for user in users]
    assert starts[0].strip()
    assert len(set(starts)) == 1
    assert [user.wait(20) for user in users[:2]] == [0, 0]
    time.sleep(2.5)  # more than the server lingers
    assert running(folder)
    users[2].send_signal(signal.SIGKILL)  # who leaves without a word is missed as well
    users[2].wait()
    deadline = time.monotonic() + 10
    while running(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(folder)


def test_a_killed_server_starts_again_with_what_was_committed(tmp_path):
    with psycopg.connect(embedded.start(tmp_path, linger=1)) as conn:
        conn.execute('CREATE TABLE kept AS SELECT 7 AS n')
    os.kill(int((tmp_path / 'data' / 'postmaster.pid').read_text().split()[0]), signal.SIGKILL)
    with psycopg.connect(embedded.start(tmp_path)) as conn:
        assert conn.execute('SELECT n FROM kept').fetchone() == (7,)
    embedded.stop(tmp_path)
