"Whoever is signed in writes the dates of their own decisions, and must not be able to spoil the work for the others."

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys import blessed_run, decide, videos

from twotower.base.errors import OutsideError
from twotower.base.tables import TIME, USER, USER_FEATURES, as_uuid, read_table
from twotower.database.changes import NOW, changed_users, load_taste
from twotower.database.connections import connect
from twotower.database.dates import odd_dates
from twotower.database.people import load_decisions, load_profiles
from twotower.database.schema import migrate
from twotower.database.videos import load_videos, save_videos
from twotower.embedding.live import embed_live
from twotower.embedding.reflect import reflect
from twotower.prep import prepare_files
from twotower.runs.run import USER_EMBEDDINGS, USERS
from twotower.runs.settings import EmbedSettings, PrepSettings

NEW_ROWS = EmbedSettings(rows='missing', live_users=True, min_interactions=2, batch=5)
ODD = ['infinity', '-infinity', '0044-03-15 BC', '20000-01-01', '9998-12-31']
UNBOUND = """
    ALTER TABLE user_video_decisions DROP CONSTRAINT twotower_date_can_be_held;
    ALTER TABLE profiles DROP CONSTRAINT twotower_date_can_be_held;
    ALTER TABLE videos DROP CONSTRAINT twotower_date_can_be_held;
    DROP TRIGGER twotower_bound_created_at ON user_video_decisions
"""  # as in tables of somebody else


@pytest.fixture
def people(database):
    "Ann and Bob have two likes each, Mal has three."
    save_videos(database, videos(range(12)))
    rows = [('ann', 'c0', 'like', 1), ('ann', 'c1', 'like', 30), ('bob', 'c0', 'like', 2), ('bob', 'c5', 'like', 3)]
    decide(database, *rows, *[('mal', f'c{i}', 'like', 2) for i in range(3)])
    return {name: as_uuid(name) for name in ('ann', 'bob', 'mal')}


def sign_in(conn: psycopg.Connection, user: str) -> None:
    claims = json.dumps({'sub': user, 'role': 'authenticated'})
    conn.execute("SELECT set_config('request.jwt.claims', %s, false)", [claims])
    conn.execute('SET ROLE authenticated')


@pytest.mark.parametrize('odd', [*ODD, '1970-01-01'])
def test_who_is_signed_in_decides_now_or_in_the_past(database, people, odd):
    mal = people['mal']
    sign_in(database, mal)
    database.execute('UPDATE user_video_decisions SET created_at = %s', [odd])  # their own rows: they see no others
    [(video,)] = database.execute('SELECT video_id FROM user_video_decisions LIMIT 1').fetchall()
    database.execute('DELETE FROM user_video_decisions WHERE video_id = %s', [video])
    database.execute("INSERT INTO user_video_decisions VALUES (%s, %s, 'like', %s)", [mal, video, odd])
    database.execute('RESET ROLE')
    since = 'SELECT min(created_at), max(created_at) FROM user_video_decisions WHERE user_id = %s'
    first, last = database.execute(since, [mal]).fetchone()
    assert datetime.now(UTC) - first < timedelta(minutes=5)
    assert last <= datetime.now(UTC)
    assert len(odd_dates(database)) == 0


def test_who_is_signed_in_may_tell_late(database, people):
    sign_in(database, people['mal'])
    database.execute("UPDATE user_video_decisions SET created_at = '2025-05-05Z'")
    assert database.execute('SELECT DISTINCT created_at FROM user_video_decisions').fetchall() == [
        (datetime(2025, 5, 5, tzinfo=UTC),)
    ]


def test_the_service_may_date_but_not_beyond_what_can_be_held(database, people):
    with pytest.raises(psycopg.errors.CheckViolation, match='twotower_date_can_be_held'):
        database.execute("UPDATE user_video_decisions SET created_at = 'infinity'")
    with pytest.raises(psycopg.errors.CheckViolation, match='twotower_date_can_be_held'):
        database.execute("UPDATE videos SET release_date = '0044-03-15 BC'")
    with pytest.raises(psycopg.errors.CheckViolation, match='twotower_date_can_be_held'):
        database.execute("UPDATE profiles SET created_at = '20000-01-01'")
    database.execute("UPDATE videos SET release_date = '2999-01-01'")  # announced


def test_what_is_there_is_mended_when_the_database_is_brought_up_to_date(database, people):
    database.execute(UNBOUND)
    database.execute("UPDATE user_video_decisions SET created_at = 'infinity' WHERE user_id = %s", [people['mal']])
    database.execute("UPDATE videos SET release_date = '-infinity'")
    database.execute("DELETE FROM twotower_migrations WHERE name = '0040_dates.sql'")
    assert migrate(database) == ['0040_dates.sql']
    assert len(odd_dates(database)) == 0
    assert load_decisions(database)[TIME].null_count == 0
    database.execute("DELETE FROM twotower_migrations WHERE name = '0040_dates.sql'")
    assert migrate(database) == ['0040_dates.sql']  # and again


def test_tables_of_somebody_else_stay_as_they_are(empty_database):
    with connect(empty_database) as conn:
        conn.execute("""
            CREATE TABLE profiles (user_id uuid PRIMARY KEY, created_at timestamptz);
            INSERT INTO profiles VALUES (gen_random_uuid(), 'infinity')
        """)
        migrate(conn)
        assert conn.execute('SELECT created_at::text FROM profiles').fetchall() == [('infinity',)]
        assert load_profiles(conn)[TIME].to_pylist() == [None]


def trained_features(conn, folder):
    "What training knows of these users."
    (folder / 'none.csv').write_text('product_url,reviewer_id,stars,reviewed_at\nc7,someone,5,2025-12-01\n')
    config = PrepSettings(input=str(folder / 'none.csv'), neg_per_pos=0, val_ratio=0)
    prepare_files(folder / 'prep', load_videos(conn), config, load_decisions(conn), load_profiles(conn))
    rows = read_table(folder / 'prep' / USERS, USER_FEATURES).to_pylist()
    return {row[USER]: row for row in rows}


@pytest.mark.fault(
    'somebody dates a decision, a profile or a video with infinity, before Christ or 9999, in tables that were there before',
    sees='how many, with table, column and keys; nobody else is affected',
)
@pytest.mark.parametrize('odd', ODD)
def test_one_odd_date_stops_and_spoils_nothing(database, people, home, tmp_path, odd):
    run, ann, mal = blessed_run(database, 'r1'), people['ann'], people['mal']
    before = trained_features(database, tmp_path)
    (tmp_path / 'prep').rename(tmp_path / 'before')
    database.execute(UNBOUND)
    database.execute('UPDATE user_video_decisions SET created_at = %s WHERE user_id = %s', [odd, mal])
    database.execute('UPDATE profiles SET created_at = %s WHERE user_id = %s', [odd, mal])
    database.execute("UPDATE videos SET release_date = %s WHERE content_id = 'c3'", [odd])

    live = embed_live(database, run, NEW_ROWS, home / 'live')
    reflect(database, run, 'missing', dry_run=False, live=live)
    assert set(pq.read_table(live / USER_EMBEDDINGS)[USER].to_pylist()) == set(people.values())
    assert str(changed_users(database, 'r2')[NOW][0].cast(pa.string()))[:10] == '2026-01-30'  # Ann's newest
    assert load_taste(database, [ann])[0][TIME].null_count == 0

    after = trained_features(database, tmp_path)
    assert after[ann] == before[ann]
    assert after[mal]['like_count'] == 3
    counted = odd_dates(database).set_index('table')
    assert counted['rows'].get('public.user_video_decisions') == 3
    assert counted['keys'].str.contains(mal).get('public.user_video_decisions')
    if odd != '9998-12-31':
        assert counted['rows'].to_dict() == {'public.user_video_decisions': 3, 'public.profiles': 1, 'public.videos': 1}


def test_a_wrong_clock_says_when_it_is_refused(database, people):
    with pytest.raises(OutsideError, match='twotower_date_can_be_held'):
        save_videos(database, videos(range(1)).set_column(*far_release()))


def far_release():
    table = videos(range(1))
    i = table.column_names.index('release_date')
    return i, 'release_date', pa.array([2932896 + 5], pa.date32())  # five days after 9999-12-31
