"What the functions of the product answer: within what the caller may see, and within bounds."

import psycopg
import pytest
from test_database import ANN, connect, ids, in_sixteen_directions, seen, vectors, videos

from twotower.base.errors import OutsideError
from twotower.base.tables import USER, VIDEO
from twotower.database.embeddings import recommend, save_embeddings, similar
from twotower.database.schema import migrate
from twotower.database.videos import save_videos


@pytest.fixture
def shop(database):
    "Sixty videos, every fifth of them with the title `shown`."
    titles = ['shown' if i % 5 == 0 else 'hidden' for i in range(60)]
    save_videos(database, videos(60, title=titles, tags=[['t']] * 60))
    save_embeddings(database, in_sixteen_directions(ids(60)), VIDEO, 'm1')
    save_embeddings(database, vectors([ANN], key=USER), USER, 'm1')
    return database


@pytest.mark.fault(
    'row-level security hides most videos from a visitor',
    sees='as many videos as were asked for, of those they may see',
)
@pytest.mark.parametrize(
    'ask',
    [
        f"recommend_videos('{ANN}', {{}})",
        f"recommend_videos('{ANN}', {{}}, ARRAY['t'])",
        f"similar_videos('{ids(1)[0]}', {{}})",
    ],
)
def test_what_is_hidden_takes_no_place(shop, ask):
    every = shop.execute(f'SELECT array_agg(video_id ORDER BY score DESC) FROM {ask.format(60)}').fetchone()[0]
    shown = {video for (video,) in shop.execute("SELECT id FROM videos WHERE title = 'shown'")}
    shop.execute("""
        DROP POLICY "everybody reads" ON videos;
        CREATE POLICY "what is shown" ON videos FOR SELECT TO anon, authenticated USING (title = 'shown')
    """)
    query = f'SELECT array_agg(video_id ORDER BY score DESC) FROM {ask.format(9)}'
    assert seen(shop, 'authenticated', query, ANN) == [video for video in every if video in shown][:9]


def test_limits_are_bounded_and_null_is_the_default(shop):
    recommended, alike = f"recommend_videos('{ANN}', %s, %s)", f"similar_videos('{ids(1)[0]}', %s)"

    def count(function, *values):
        with connect(shop.info.dsn) as conn:
            return conn.execute(f'SELECT count(*) FROM {function}', values).fetchone()[0]

    assert [count(recommended, None, None), count(alike, None)] == [20, 20]
    assert [count(recommended, 1000, ['t'] * 100), count(alike, 1000)] == [60, 59]
    for function, values, said in [
        (recommended, (1001, None), 'p_limit is 1001, must be 1 to 1000'),
        (recommended, (0, None), 'p_limit is 0, must be 1 to 1000'),
        (recommended, (20, ['t'] * 101), 'p_tags has 101 names, must have 100 at most'),
        (alike, (-1,), 'p_limit is -1, must be 1 to 1000'),
    ]:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=said):
            count(function, *values)
    for ask, name in [(recommend, ANN), (similar, ids(1)[0])]:
        with pytest.raises(OutsideError, match='p_limit is 1001, must be 1 to 1000'):
            ask(shop, name, 1001)


@pytest.mark.parametrize('table', ['twotower_migrations', 'twotower_live_users', 'twotower_taken_in'])
def test_an_older_project_gives_nobody_a_right_to_our_own_tables(empty_database, table):
    with connect(empty_database) as conn:
        conn.execute('ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated')
        migrate(conn)
        for role in ('anon', 'authenticated'):
            for right in ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'):
                granted = conn.execute('SELECT has_table_privilege(%s, %s, %s)', [role, table, right]).fetchone()[0]
                assert not granted, (role, right)


SETTINGS = ['hnsw.iterative_scan', 'hnsw.ef_search', 'hnsw.max_scan_tuples']
ASK = [
    f"recommend_videos('{ANN}')",
    f"recommend_videos('{ANN}', 20, ARRAY['t'])",
    f"similar_videos('{ids(1)[0]}')",
    "recommend_videos('00000000-0000-0000-0000-000000000000')",  # whom nobody knows
]


@pytest.mark.parametrize('ask', ASK)
def test_the_settings_of_the_caller_are_theirs_again(shop, ask):
    def settings(conn):
        return [conn.execute(f'SHOW {name}').fetchone()[0] for name in SETTINGS]

    with connect(shop.info.dsn) as conn, conn.transaction():
        conn.execute("SELECT '[1]'::halfvec")  # loads pgvector
        before = settings(conn)
        conn.execute(f'SELECT count(*) FROM {ask}')
        assert settings(conn) == before == ['off', '40', '20000']
        theirs = ['relaxed_order', '7', '4000']
        for name, value in zip(SETTINGS, theirs, strict=True):
            conn.execute(f'SET LOCAL {name} = {value}')
        conn.execute(f'SELECT count(*) FROM {ask}')
        assert settings(conn) == theirs
        with pytest.raises(psycopg.errors.InvalidParameterValue), conn.transaction():
            conn.execute(f"SELECT * FROM similar_videos('{ids(1)[0]}', 0)")
        assert settings(conn) == theirs


@pytest.mark.fault(
    "a visitor binds a function of ours that has its owner's rights to a table of their own",
    sees='permission denied',
)
@pytest.mark.parametrize('role', ['anon', 'authenticated'])
def test_nobody_borrows_the_rights_of_a_trigger(empty_database, role):
    bound = 'EXECUTE FUNCTION public.twotower_forget()'
    with connect(empty_database) as conn:
        conn.execute('ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated')
        migrate(conn)
        save_embeddings(conn, vectors([ANN], key=USER), USER, 'm1')
        conn.execute(f'SET ROLE {role}')
        conn.execute('CREATE TEMP TABLE mine (user_id uuid)')
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(
                f'CREATE TRIGGER t AFTER DELETE ON mine REFERENCING OLD TABLE AS gone FOR EACH STATEMENT {bound}'
            )
        rows = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND has_function_privilege(%s, oid, 'EXECUTE') AND prorettype = 'trigger'::regtype"
        assert conn.execute(rows, [role]).fetchall() == []
