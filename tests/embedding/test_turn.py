"One writer, one model: whoever embeds takes turns, and what is in the database is what the store says."

import os
import signal
import time

import pytest
from toys import blessed_run, decide, rows_written, state, videos

from twotower.base.errors import GateError, OutsideError
from twotower.base.tables import USER, as_uuid, embeddings_schema, read_table
from twotower.daily import bring_model
from twotower.database.connections import connect
from twotower.database.embeddings import recommend, save_embeddings
from twotower.database.people import save_profiles
from twotower.database.schema import migrate
from twotower.database.videos import save_videos
from twotower.embedding.live import embed_live
from twotower.embedding.reflect import reflect
from twotower.embedding.turn import turn
from twotower.runs.run import USER_EMBEDDINGS, create_run
from twotower.runs.settings import EmbedSettings
from twotower.store.models import activate, rollback, upload
from twotower.store.opening import open_store

DAILY = EmbedSettings(rows='missing', live_users=True, min_interactions=2, batch=5)
WEEKLY = DAILY.but(rows='run')


def write(conn, run, home, params=DAILY, **options):
    "What 04_embed does."
    with turn(conn, run, **{'wait': 5} | options) as check:
        live = embed_live(conn, run, params, home / 'outputs' / 'live')
        more = {'min_interactions': params.min_interactions, 'check': check}
        return reflect(conn, run, params.rows, params.include_users, False, live, **more)


def publish(run):
    upload(open_store(), run)
    activate(open_store(), run.id)


def daily(home, name):
    run = create_run(name)
    bring_model(run, home / 'outputs' / 'active')
    return run


def models(conn):
    return {
        version
        for table in ('video_embeddings', 'user_embeddings')
        for (version,) in conn.execute(f'SELECT DISTINCT model_version FROM {table}')
    }


@pytest.fixture
def weeks(database, home):
    "Two models, of which the first is active and in the database."
    save_videos(database, videos(range(12)))
    decide(database, ('ann', 'c0', 'like', 1), ('ann', 'c1', 'like', 30), ('bob', 'c0', 'like', 2))
    one, two = (
        blessed_run(database, name, day, ('bob', 'reviewer 7'), day) for day, name in enumerate(['one', 'two'], 1)
    )
    write(database, one, home, WEEKLY.but(include_users=True))
    publish(one)
    return one, two


@pytest.mark.fault(
    'a daily run began with the model of before, and a weekly run has published another since',
    sees='nothing: it goes on with the model that is active now',
)
def test_a_daily_run_goes_on_with_what_is_active_when_its_turn_comes(database, weeks, home):
    before = daily(home, 'd1')
    write(database, weeks[1], home, WEEKLY)
    publish(weeks[1])
    write(database, before, home)
    assert models(database) == {'two'}


@pytest.mark.fault(
    'another model is activated while a daily run embeds',
    sees='which one is active now; the state before; run it again',
)
def test_who_writes_looks_again(database, weeks, home):
    run = daily(home, 'd1')
    save_videos(database, videos(range(12, 15)))
    written = rows_written(database)
    with turn(database, run) as check:
        live = embed_live(database, run, DAILY, home / 'outputs' / 'live')
        publish(weeks[1])
        with pytest.raises(GateError, match='has run two as the active model, and this run has the model of one'):
            reflect(database, run, 'missing', dry_run=False, live=live, check=check)
    assert rows_written(database) == written


def test_a_daily_run_waits_for_what_is_about_to_be_published(database, weeks, home):
    write(database, weeks[1], home, WEEKLY)  # its 05_publish is still to come
    run = daily(home, 'd1')
    with pytest.raises(OutsideError, match='for run two to be published, promised by run two'):
        write(database, run, home, wait=0.5)
    assert models(database) == {'two'}
    publish(weeks[1])
    write(database, run, home)
    assert models(database) == {'two'}


@pytest.mark.fault(
    'a weekly run dies before it publishes', sees='nothing; the next daily run brings the active model back'
)
def test_a_promise_that_is_not_kept_ends(database, weeks, home):
    write(database, weeks[1], home, WEEKLY, promised_for=0.2)
    time.sleep(0.3)
    write(database, daily(home, 'd1'), home)
    assert models(database) == {'one'}


@pytest.mark.fault(
    'a process falls silent while it embeds, and another one takes over', sees='who has taken over, and since when'
)
def test_who_lost_their_turn_writes_nothing(database, weeks, home):
    run = daily(home, 'd1')
    save_videos(database, videos(range(12, 15)))
    with turn(database, run, lifetime=60) as check:
        live = embed_live(database, run, DAILY, home / 'outputs' / 'live')
        database.execute("UPDATE twotower_lease SET expires = now() - interval '1 second'")
        with connect(os.environ['REMOTE_DATABASE_URL']) as other:
            write(other, daily(home, 'd2'), home)
            written = rows_written(database)
            lost = pytest.raises(OutsideError, match=r'lost its turn to write embeddings \(run d1 .* has it since')
            with turn(other, run), lost:
                reflect(database, run, 'missing', dry_run=False, live=live, check=check)
    assert rows_written(database) == written


@pytest.mark.fault(
    'a process is killed while it holds the turn', sees='nothing: the next one on this machine takes it at once'
)
def test_a_killed_process_is_not_waited_for(database, weeks, home):
    run = daily(home, 'd1')
    if (child := os.fork()) == 0:
        with connect(os.environ['REMOTE_DATABASE_URL']) as conn, turn(conn, run):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert database.execute('SELECT token IS NOT NULL FROM twotower_lease').fetchone() == (True,)
    started = time.monotonic()
    write(database, run, home)
    assert time.monotonic() - started < 10


def test_a_rollback_brings_store_and_database_back_together(database, weeks, home):
    before = state(database)
    assert len(before['user_embeddings']) == 3  # Ann by her likes, Bob and the reviewer by training
    save_videos(database, videos(range(12, 14)))
    write(database, weeks[1], home, WEEKLY.but(include_users=True))
    publish(weeks[1])
    rollback(open_store())
    write(database, daily(home, 'd1'), home)
    after = state(database)
    assert after['user_embeddings'] == before['user_embeddings']
    assert set(before['video_embeddings']) < set(after['video_embeddings'])
    assert (len(after['video_embeddings']), models(database)) == (14, {'one'})
    for user in ('ann', 'bob', 'reviewer 7'):
        assert len(recommend(database, user, 3)) == 3


def test_whom_the_older_model_did_not_know_keeps_an_answer(database, weeks, home):
    decide(database, ('cleo', 'c3', 'like', 4))
    two = blessed_run(database, 'three', 3, ('bob', 'cleo'), 3)
    write(database, two, home, WEEKLY.but(include_users=True))
    publish(two)
    rollback(open_store())
    for name in ('d1', 'd2'):  # the second finds nothing to do, and takes nothing away
        write(database, daily(home, name), home)
        assert len(recommend(database, 'cleo', 3)) == 3
    assert models(database) == {'one'}


def test_a_model_that_was_taken_back_is_not_written_again(database, weeks, home):
    publish(weeks[1])
    rollback(open_store())
    with pytest.raises(GateError, match='which was taken back: activate it first, or set allow_older'):
        write(database, weeks[1], home, WEEKLY)
    write(database, weeks[1], home, WEEKLY, allow_older=True)
    assert 'two' in models(database)


# Erasure


def gone(conn, user):
    tables = {'user_embeddings', 'twotower_live_users'}
    return all(conn.execute(f'SELECT FROM {t} WHERE user_id = %s', [as_uuid(user)]).fetchone() is None for t in tables)


@pytest.mark.parametrize('theirs', [False, True], ids=['ours', 'theirs'])
def test_who_leaves_leaves_nothing(database, weeks, home, theirs):
    if theirs:  # nothing cascades, nothing is triggered
        database.execute('ALTER TABLE user_video_decisions DROP CONSTRAINT user_video_decisions_user_id_fkey')
        database.execute('DROP TRIGGER twotower_forget ON profiles')
    for user in ('ann', 'bob'):  # by their likes, and by training
        database.execute('DELETE FROM profiles WHERE user_id = %s', [as_uuid(user)])
        assert gone(database, user) is not theirs
    write(database, daily(home, 'd1'), home)
    assert gone(database, 'ann')
    assert gone(database, 'bob')
    assert len(recommend(database, 'reviewer 7', 3)) == 3  # never had an account, and was asked for


ELI = 'eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee'  # the id of an account, as a product makes it


@pytest.fixture
def their_profiles(empty_database, home, monkeypatch):
    "A database whose table of people, with Bob and Eli in it, belongs to somebody else; users have embeddings since a training."
    monkeypatch.setenv('REMOTE_DATABASE_URL', empty_database)
    with connect(empty_database) as conn:
        conn.execute('CREATE TABLE profiles (user_id uuid PRIMARY KEY, nickname text)')
        migrate(conn)
        assert conn.execute("SELECT FROM pg_trigger WHERE tgname = 'twotower_forget'").fetchone() is None
        conn.execute('INSERT INTO profiles VALUES (%s), (%s)', [as_uuid('bob'), ELI])
        save_videos(conn, videos(range(12)))
        yield conn


@pytest.mark.fault(
    'somebody whom training embedded leaves, and the table of accounts is not ours',
    sees='nothing; the next run that writes leaves nothing of them',
)
@pytest.mark.parametrize(
    'how', ['written by a run', 'saved by a program', 'there before this release', 'there before migrate']
)
def test_whom_training_embedded_and_who_leaves_at_once_leaves_nothing(their_profiles, home, how):
    conn, users = their_profiles, ('bob', ELI, 'reviewer 7')
    run = blessed_run(conn, 'one', 0, users)
    if how == 'written by a run':
        write(conn, run, home, WEEKLY.but(include_users=True))
    else:
        save_embeddings(conn, read_table(run.model / USER_EMBEDDINGS, embeddings_schema(USER)), USER, run.id)
        write(conn, run, home, WEEKLY)
    publish(run)
    if how.startswith('there before'):
        conn.execute('DELETE FROM twotower_live_users')
    if how == 'there before migrate':
        conn.execute("DELETE FROM twotower_migrations WHERE name = '0044_accounts.sql'")
        migrate(conn)
    save_profiles(conn, ['fay'])
    conn.execute('DELETE FROM profiles WHERE user_id = ANY (%s)', [[as_uuid('bob'), ELI]])
    write(conn, daily(home, 'd1'), home)
    assert gone(conn, ELI)
    assert gone(conn, 'bob') is (
        how != 'there before this release'
    )  # by his id he could be a reviewer, and nobody noted it
    assert len(recommend(conn, 'reviewer 7', 3)) == 3


def test_where_nobody_has_an_account_nobody_has_left(their_profiles, home):
    conn = their_profiles
    conn.execute('DELETE FROM profiles')
    run = blessed_run(conn, 'one', 0, (ELI, 'reviewer 7'))
    write(conn, run, home, WEEKLY.but(include_users=True))
    publish(run)
    write(conn, daily(home, 'd1'), home)
    for user in (ELI, 'reviewer 7'):
        assert len(recommend(conn, user, 3)) == 3


def test_what_only_another_model_knew_goes_with_it(database, weeks, home):
    """A reviewer of the second model's training: after the rollback their vector would find no video, and stay for ever."""
    decide(database, ('cleo', 'c3', 'dislike', 4))
    three = blessed_run(database, 'three', 3, ('bob', 'cleo', 'reviewer 8'), 3)
    write(database, three, home, WEEKLY.but(include_users=True))
    publish(three)
    assert not gone(database, 'reviewer 8')
    rollback(open_store())
    write(database, daily(home, 'd1'), home)
    assert models(database) == {'one'}
    assert gone(database, 'reviewer 8')
    assert gone(database, 'cleo')  # who likes nothing
    assert not gone(database, 'bob')


def test_a_like_of_a_video_that_is_gone_does_not_count(database, home):
    save_videos(database, videos(range(12)))
    decide(database, ('bob', 'c0', 'like', 2), ('cleo', 'c1', 'like', 2))
    database.execute('ALTER TABLE user_video_decisions DROP CONSTRAINT user_video_decisions_video_id_fkey')
    database.execute("DELETE FROM videos WHERE content_id = 'c1'")
    run = blessed_run(database, 'one', 0, ('bob', 'cleo'))
    counts = reflect(database, run, include_users=True, dry_run=False, min_user_interactions=1)
    assert counts.loc[0, ['rows', 'inserted', 'too few likes']].tolist() == [2, 1, 1]
    assert gone(database, 'cleo')


def test_who_leaves_while_they_are_embedded_leaves_nothing(database, weeks, home):
    decide(database, ('ann', 'c5', 'like', 30))
    run = daily(home, 'd1')
    with turn(database, run) as check:
        live = embed_live(database, run, DAILY, home / 'outputs' / 'live')
        database.execute('DELETE FROM profiles WHERE user_id = %s', [as_uuid('ann')])
        reflect(database, run, 'missing', dry_run=False, live=live, check=check)
    assert gone(database, 'ann')


def test_a_training_set_brings_nobody_back(database, home):
    save_videos(database, videos(range(12)))
    dora = as_uuid('dora')
    save_profiles(database, ['ann', dora])
    run = blessed_run(database, 'one', 0, (dora, 'reviewer 7'))
    database.execute('DELETE FROM profiles WHERE user_id = %s', [dora])
    write(database, run, home, WEEKLY.but(include_users=True))
    assert gone(database, dora)
    assert database.execute('SELECT count(*) FROM user_embeddings').fetchone() == (1,)


def test_who_falls_below_is_removed(database, weeks, home):
    database.execute(
        'DELETE FROM user_video_decisions WHERE user_id = %s AND video_id = (SELECT id FROM videos WHERE content_id = %s)',
        [as_uuid('ann'), 'c1'],
    )
    counts = write(database, daily(home, 'd1'), home)
    assert counts.attrs['removed'] == {'have_left': 0, 'too_few': 1, 'videos_gone': 0}
    assert gone(database, 'ann')
    assert not gone(database, 'bob')  # training has embedded him, not his likes


def test_a_video_that_is_gone_takes_its_likes_with_it(database, weeks, home):
    for table in ('video_embeddings', 'user_video_decisions', 'video_tags'):  # as in tables of somebody else
        database.execute(f'ALTER TABLE {table} DROP CONSTRAINT {table}_video_id_fkey')
    database.execute("DELETE FROM videos WHERE content_id = 'c1'")
    counts = write(database, daily(home, 'd1'), home)
    assert counts.attrs['removed'] == {'have_left': 0, 'too_few': 1, 'videos_gone': 1}
    assert gone(database, 'ann')
    assert len(state(database)['video_embeddings']) == 11


def test_reviewers_are_written_only_if_asked_for(database, home):
    save_videos(database, videos(range(12)))
    decide(database, ('bob', 'c0', 'like', 2))
    run = blessed_run(database, 'one', 0, ('bob', 'reviewer 7'))
    assert EmbedSettings().include_users is False
    write(database, run, home, WEEKLY)
    assert state(database)['user_embeddings'] == []
    counts = reflect(database, run, include_users=True, dry_run=False, min_user_interactions=1)
    assert counts.loc[0, ['rows', 'inserted', 'too few likes']].tolist() == [2, 1, 1]
    assert gone(database, 'reviewer 7')
    assert not gone(database, 'bob')
