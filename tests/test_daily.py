"The daily chain: what is new comes in once, and whatever happens on the way, the next run ends where an unhurt one would have."

import contextlib
import itertools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import psycopg
import pytest
from shop import KEYS, cut, half_json, hang, hang_up, item, refuse, status, text
from toys import blessed_run, decide, rows_written, state, videos

from twotower.base.errors import GateError, InputError, OutsideError
from twotower.base.tables import as_uuid
from twotower.catalogue import intake
from twotower.catalogue.intake import sync
from twotower.daily import bring_model, take_new
from twotower.database import embedded
from twotower.database.changes import taken_through
from twotower.database.connections import connect
from twotower.database.schema import migrate
from twotower.database.videos import save_videos
from twotower.embedding import reflect as reflecting
from twotower.embedding.live import embed_live
from twotower.embedding.reflect import reflect
from twotower.embedding.turn import turn
from twotower.runs.run import create_run
from twotower.runs.settings import DailySettings, EmbedSettings
from twotower.store.models import activate, rollback, upload
from twotower.store.opening import open_store
from twotower.store.records import active

NOW = datetime(2025, 3, 9, 18, 30, tzinfo=UTC)  # 3:30 on the 10th in Japan
SWITCHES = DailySettings(dry_run=False)
NEW_ROWS = EmbedSettings(rows='missing', live_users=True, min_interactions=2, batch=5)
SOURCE = 'FANZA/digital/videoa'


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv('FANZA_API_ID', KEYS['api_id'])
    monkeypatch.setenv('FANZA_API_AFFILIATE_ID', KEYS['affiliate_id'])


def prepare(conn) -> None:
    "A catalogue of yesterday, all embedded, people with decisions, and a published model."
    save_videos(conn, videos(range(12)))
    trained = blessed_run(conn, 'trained')
    upload(open_store(), trained)
    activate(open_store(), trained.id)
    reflect(conn, trained, dry_run=False)
    decide(
        conn, ('ann', 'c0', 'like', 1), ('ann', 'c1', 'like', 30), ('bob', 'c0', 'like', 2), ('bob', 'c5', 'like', 3)
    )


def take(conn, shop, **options):
    options = {'interval': 0, 'timeout': 0.3, 'hits': 10, 'attempts': 3, 'sleep': lambda _: None} | options
    return take_new(conn, SWITCHES, base_url=shop.url, now=NOW, **options)


def day(conn, shop, home, **options) -> None:
    "What the two stages of the chain do."
    run = create_run('daily')
    bring_model(run, home / 'outputs' / 'active')
    take(conn, shop, **options)
    live = embed_live(conn, run, NEW_ROWS, home / 'outputs' / 'live')
    reflect(conn, run, 'missing', dry_run=False, live=live)


def test_a_second_run_writes_nothing(database, shop, home):
    prepare(database)
    day(database, shop, home)
    assert database.execute('SELECT count(*) FROM video_embeddings').fetchone() == (
        24,
    )  # twelve, and those of four days
    assert database.execute('SELECT count(*) FROM user_embeddings').fetchone() == (2,)
    written, folders = rows_written(database), sorted((home / 'outputs' / 'live').iterdir())
    day(database, shop, home)
    assert rows_written(database) == written
    assert sorted((home / 'outputs' / 'live').iterdir()) == folders

    shop.list(item(99, day=9))
    decide(database, ('bob', 'c1', 'dislike', 4))
    day(database, shop, home)
    (new,) = set((home / 'outputs' / 'live').iterdir()) - set(folders)
    assert database.execute('SELECT count(*) FROM video_embeddings').fetchone() == (25,)
    assert '"videos": 1,\n  "users": 1,' in (new / 'summary.json').read_text()


FILL = """
    INSERT INTO videos (id, content_id, product_url, title)
    SELECT gen_random_uuid(), 'old' || i, 'https://v.example/old' || i, 'old video ' || i FROM generate_series(1, 20000) i;
    INSERT INTO video_tags SELECT videos.id, tags.id FROM videos, tags ON CONFLICT DO NOTHING;
    INSERT INTO performers (name) SELECT 'performer ' || i FROM generate_series(1, 2000) i;
    INSERT INTO video_performers SELECT videos.id, (SELECT id FROM performers LIMIT 1) FROM videos;
    DROP INDEX video_embeddings_nearest;
    INSERT INTO video_embeddings
    SELECT id, array_fill(1, ARRAY[128])::halfvec(128), 'trained' FROM videos ON CONFLICT DO NOTHING
"""


def test_no_step_reads_the_whole_catalogue(database, shop, home):
    prepare(database)
    database.execute(FILL)
    database.execute('VACUUM ANALYZE')
    large = ['videos', 'video_tags', 'performers', 'video_performers', 'video_embeddings']

    def rows_scanned():
        database.execute('SELECT pg_stat_force_next_flush()')
        query = 'SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE relname = ANY (%s)'
        return dict(database.execute(query, [large]).fetchall())

    before = rows_scanned()
    day(database, shop, home)
    assert database.execute('SELECT count(*) FROM video_embeddings').fetchone() == (20_024,)
    after = rows_scanned()
    read = {name: after[name] - before[name] for name in large}
    assert max(read.values()) < 10, read  # to see that a table is not empty takes a row


# Killed


def deadly_statements(monkeypatch, n: int) -> None:
    "Die before the n-th statement that is sent to the database, BEGIN and COMMIT included."
    step = itertools.count(1)
    for owner, name in [
        (psycopg.Connection, 'execute'),
        (psycopg.Cursor, 'copy'),
        (psycopg.Connection, '_exec_command'),
    ]:

        def call(*args, real=getattr(owner, name), **kwargs):
            if next(step) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)


def undo(conn) -> None:
    "Back to what `prepare` made."
    conn.execute("""
        DELETE FROM videos WHERE content_id LIKE 'walk%';
        DELETE FROM user_embeddings;
        DELETE FROM twotower_live_users;
        DELETE FROM twotower_taken_in
    """)


def died(work) -> bool:
    "Do work in a fork; False if it ended by itself."
    if (child := os.fork()) == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, how = os.waitpid(child, 0)
    assert os.WIFSIGNALED(how) or os.WEXITSTATUS(how) == 0, 'the work failed before it was killed'
    return os.WIFSIGNALED(how)


@pytest.mark.fault(
    'SIGKILL between the statements to the database in the daily chain', sees='nothing; the next run finishes'
)
def test_killed_between_statements(database, shop, home, monkeypatch):
    shop.items = dict(itertools.islice(shop.items.items(), 4, 10))
    prepare(database)
    day(database, shop, home)
    unhurt, step, deaths = state(database), 17, 0
    for n in itertools.count(1, step):
        undo(database)

        def work(n=n):
            deadly_statements(monkeypatch, n)
            with connect() as conn:
                day(conn, shop, home)

        if not died(work):
            break
        hurt = state(database)
        assert not (hurt['marks'] and len(hurt['videos']) < len(unhurt['videos']))  # the mark never runs ahead
        assert len(hurt['known']) == len(hurt['user_embeddings'])
        day(database, shop, home)
        assert state(database) == unhurt
        deaths += 1
    assert deaths > 6


@pytest.mark.fault(
    'SIGKILL at any step on the disk in the daily chain', sees='nothing; the next run sweeps out what was left'
)
def test_killed_at_any_step_on_the_disk(database, home, killed_at):
    prepare(database)
    run, place = create_run('trained'), home / 'outputs' / 'live'
    save_videos(database, videos(range(12, 20)))

    def work():
        with connect() as conn:
            live = embed_live(conn, run, NEW_ROWS, place)
            reflect(conn, run, 'missing', dry_run=False, live=live)

    work()
    unhurt = state(database)
    for n in itertools.count(1):
        database.execute(
            "DELETE FROM user_embeddings; DELETE FROM video_embeddings WHERE video_id IN (SELECT id FROM videos WHERE title > 'video 15')"
        )
        if not killed_at(n, work):
            break
        assert not [p for p in place.iterdir() if p.name[0] != '.' and len(list(p.iterdir())) != 5]  # whole, or hidden
        if n % 4 == 0:
            work()
            assert state(database) == unhurt
            assert not list(place.glob('.*.tmp'))
    work()
    assert state(database) == unhurt
    assert not list(place.glob('.*.tmp'))
    assert n > 5


# The database goes away


def state_of_another(url: str) -> dict:
    "What somebody else sees at this moment."
    with connect(url) as conn:
        return state(conn)


@pytest.mark.fault(
    'the database is restarted in the middle of the daily chain',
    sees='nothing: the work is done again over a new connection',
)
@pytest.mark.parametrize('when', ['ingest', 'video', 'user'])
def test_the_database_is_restarted(shop, home, monkeypatch, when):
    module, name = (intake, 'save_videos') if when == 'ingest' else (reflecting, 'save_embeddings')
    folder = Path(tempfile.mkdtemp())
    url = embedded.start(folder, linger=2)
    with connect(url) as conn:
        migrate(conn)
        prepare(conn)
        before = state(conn)

        stopped = []

        def stop_first(*args, real=getattr(module, name)):
            if (when == 'ingest' or args[2] == f'{when}_id') and not stopped:
                embedded.stop(folder)
                embedded.start(folder, linger=60)
                stopped.append(state_of_another(url))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop_first)
            day(conn, shop, home)
        [meanwhile] = stopped
        assert meanwhile['video_embeddings'] == before['video_embeddings']
        assert meanwhile['user_embeddings'] == before['user_embeddings']
        assert taken_through(conn, SOURCE) == date(2025, 3, 10)
        assert len(state(conn)['video_embeddings']) == 24
        assert len(state(conn)['known']) == len(state(conn)['user_embeddings']) == 2
    embedded.stop(folder)


# The shop has a bad day


@pytest.mark.fault(
    'the item API is busy, broken, silent or cut off for a while', sees='nothing; how often it was asked again'
)
@pytest.mark.parametrize(
    'fault', [status(503), status(429, Retry_After='1'), hang, hang_up, cut, half_json, text(b'<h1>', 'text/html')]
)
def test_a_passing_fault_is_waited_out(database, shop, fault):
    shop.next = [None, fault, fault]
    counts = take(database, shop)
    assert (counts['items'], counts['changed'], counts['retries']) == (12, 12, 2)
    assert taken_through(database, SOURCE) == date(2025, 3, 10)


@pytest.mark.fault('the item API refuses, or does not recover', sees='its host, its reason, and how often it was asked')
@pytest.mark.parametrize(
    'fault',
    [status(500), status(429, Retry_After='9999'), cut, refuse(403, message='NO'), refuse(200, total_count='x')],
)
def test_a_lasting_fault_stops_the_chain_before_it_claims_anything(database, shop, fault):
    shop.next = [None, *[fault] * 9]
    with pytest.raises(OutsideError, match=r'127\.0\.0\.1'):
        take(database, shop)
    assert len(state(database)['videos']) == 10  # the first page is there
    assert taken_through(database, SOURCE) is None  # but nothing is claimed
    shop.next = []
    assert take(database, shop)['changed'] == 2
    assert taken_through(database, SOURCE) == date(2025, 3, 10)


# Clocks


def ask(database, shop, now, **options):
    return sync(database, now=now, base_url=shop.url, interval=0, **options)


@pytest.mark.fault(
    'the clock of this machine was ahead for a run, or is set back', sees='nothing; a window that begins earlier'
)
@pytest.mark.parametrize('wrong', [timedelta(days=-400), timedelta(days=-5), timedelta(days=5), timedelta(days=400)])
def test_a_wrong_clock_loses_nothing(database, shop, wrong):
    shop.items = {key: one for key, one in shop.items.items() if one['date'] < '2025-03-06'}
    ask(database, shop, NOW - timedelta(days=4))
    assert taken_through(database, SOURCE) == date(2025, 3, 5)
    ask(database, shop, NOW + wrong)
    assert taken_through(database, SOURCE) == date(2025, 3, 5)
    shop.list(*(item(100 + n, day=5 + n) for n in range(6)))
    counts = ask(database, shop, NOW, lookback_days=0)
    assert (counts['start'], counts['changed']) == ('2025-03-05T00:00:00', 6)


@pytest.mark.fault(
    'the daily job did not run for longer than it looks back', sees='a window that begins where the last run ended'
)
def test_a_pause_longer_than_the_window(database, shop):
    ask(database, shop, NOW)
    shop.list(*(item(100 + n, day=11 + n) for n in range(10)))
    counts = ask(database, shop, NOW + timedelta(days=11), lookback_days=1)
    assert (counts['start'], counts['changed']) == ('2025-03-10T00:00:00', 10)
    assert taken_through(database, SOURCE) == date(2025, 3, 20)


def test_days_by_name_move_the_mark_only_if_they_join_up(database, shop):
    ask(database, shop, NOW, start_date='2025-03-01', end_date='2025-03-02')
    assert taken_through(database, SOURCE) is None
    ask(database, shop, NOW - timedelta(days=6))
    assert taken_through(database, SOURCE) == date(2025, 3, 4)
    ask(database, shop, NOW, start_date='2025-03-06', end_date='2025-03-07')
    assert taken_through(database, SOURCE) == date(2025, 3, 4)
    ask(database, shop, NOW, start_date='2025-03-04', end_date='2025-03-07')
    assert taken_through(database, SOURCE) == date(2025, 3, 7)


@pytest.mark.fault('two daily runs at the same time', sees='nothing; the second waits for the first')
def test_two_at_once(database, shop, home):
    prepare(database)
    url, errors = os.environ['REMOTE_DATABASE_URL'], []

    def one(n):
        try:
            with connect(url) as conn:
                run = create_run(f'daily{n}')
                bring_model(run, home / 'outputs' / 'active')
                take(conn, shop)
                live = embed_live(conn, run, NEW_ROWS, home / 'outputs' / 'live')
                reflect(conn, run, 'missing', dry_run=False, live=live)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=[n]) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(state(database)['video_embeddings']) == 24
    written = rows_written(database)
    day(database, shop, home)
    assert rows_written(database) == written


# The command


def test_the_command_runs_twice(database, home):
    prepare(database)
    command = [
        sys.executable,
        '-c',
        'from twotower.cli import main; main()',
        'run',
        'daily',
        '-p',
        'min_interactions=2',
    ]

    def run(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True)

    done = run('--run-id', 'b', '-p', 'mode=embeddings')
    assert (done.returncode, done.stderr) == (0, '')
    assert len(state(database)['known']) == 2
    written = rows_written(database)
    done = run('--run-id', 'c', '-p', 'skip_ingest=true', '-p', 'skip_fetch=true')
    assert (done.returncode, done.stderr) == (0, '')
    assert rows_written(database) == written
    page = (home / 'outputs' / 'runs' / 'c' / 'reports' / '04_embed.html').read_text()
    assert 'nothing is new' in page


# A month of everything at once


WEEKLY = NEW_ROWS.but(rows='run')
SEEDS = [int(seed) for seed in os.environ.get('SEEDS', '1').split()]  # more of them take a minute each


def embed_in_turn(conn, run, home, params) -> None:
    "What 04_embed does; who is about to publish is waited for only a moment."
    with turn(conn, run, wait=30, promised_for=0.3) as check:
        live = embed_live(conn, run, params, home / 'outputs' / 'live')
        reflect(conn, run, params.rows, False, False, live, params.min_interactions, check=check)


def one_day(home, name, pause=0.0) -> None:
    with connect() as conn:
        run = create_run(name)
        bring_model(run, home / 'outputs' / 'active')
        time.sleep(pause)
        embed_in_turn(conn, run, home, NEW_ROWS)


def one_week(home, run, pause=0.0) -> None:
    with connect() as conn:
        embed_in_turn(conn, run, home, WEEKLY)
    time.sleep(pause)
    upload(open_store(), run)
    activate(open_store(), run.id)


def side_by_side(monkeypatch, rng, usual, *works) -> list[int]:
    "Do each work, which usually takes so many seconds, in a fork of its own, at once; some die, at a moment or between two statements."
    children = []
    for work in works:
        fate, moment, statement = rng.choice('lms'), rng.uniform(0, 2 * usual), rng.randrange(1, 120)
        if (child := os.fork()) == 0:
            deadly_statements(monkeypatch, statement if fate == 's' else 10**6)
            try:
                work()
            except (OutsideError, GateError, InputError):
                os._exit(1)
            except BaseException:
                traceback.print_exc()
                os._exit(2)
            os._exit(0)
        handle = os.pidfd_open(child)  # a number of a process may be given again, this is of the child alone
        timer = threading.Timer(moment, kill, [handle])
        if fate == 'm':
            timer.start()
        children.append((child, handle, timer))
    ended = []
    for child, handle, timer in children:
        if not select.select([handle], [], [], 180)[0]:
            os.kill(child, signal.SIGABRT)  # says where it hangs, and fails
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        timer.cancel()
        if timer.is_alive():
            timer.join()
        os.close(handle)
    return ended


def kill(handle: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def people_come_and_go(conn, rng, day) -> None:
    "New videos, likes, dislikes, likes that are taken back, and an account that is deleted."
    save_videos(conn, videos(range(12 + 2 * day, 14 + 2 * day)))
    rows = [
        (
            rng.choice('abcdefghijkl'),
            f'c{rng.randrange(12)}',
            rng.choice(['like', 'like', 'dislike']),
            rng.randrange(1, 31),
        )
        for _ in range(8)
    ]
    decide(conn, *{row[:2]: row for row in rows}.values())
    conn.execute("""
        DELETE FROM user_video_decisions WHERE ctid = (
            SELECT ctid FROM user_video_decisions WHERE created_at < '2026-01-31' ORDER BY video_id, user_id LIMIT 1
        )
    """)
    conn.execute('DELETE FROM profiles WHERE user_id = %s', [as_uuid(rng.choice('abcdefghijkl'))])


def give_the_table_of_people_away(conn) -> None:
    "As if it had been there before: nothing cascades, and no trigger looks after who leaves."
    conn.execute('ALTER TABLE user_video_decisions DROP CONSTRAINT user_video_decisions_user_id_fkey')
    conn.execute('DROP TRIGGER twotower_forget ON profiles')


def stored(conn) -> dict[str, tuple[str, np.ndarray]]:
    query = """
        SELECT video_id::text, model_version, embedding::text FROM video_embeddings
        UNION ALL SELECT user_id::text, model_version, embedding::text FROM user_embeddings
    """
    return {key: (model, np.array(json.loads(vector))) for key, model, vector in conn.execute(query)}


@pytest.mark.fault(
    'thirty days of daily and weekly runs at once, killed at random, rollbacks, people who come and go',
    sees='nothing in the end: store, database and a clean recomputation agree to 1e-6',
)
@pytest.mark.parametrize('seed', SEEDS)
def test_a_month_of_everything(database, home, monkeypatch, seed):
    print(f'again with: SEEDS={seed} pytest tests/test_daily.py -k month')
    monkeypatch.setattr(os, 'fsync', lambda _: None)  # a process that dies takes nothing from the page cache
    rng = random.Random(seed)
    save_videos(database, videos(range(12)))
    decide(database, ('ann', 'c0', 'like', 1), ('ann', 'c1', 'like', 31))  # the newest of all, whose days count
    weeks = [blessed_run(database, f'w{n}', n % 3, day=n + 1) for n in range(31)]
    started, ended = time.monotonic(), []
    one_week(home, weeks[0])
    usual = time.monotonic() - started
    for day in range(1, 31):
        people_come_and_go(database, rng, day)
        pauses = rng.uniform(0, 0.2), rng.uniform(0, 0.4)
        works = [partial(one_day, home, f'd{day}', pauses[0])]
        works += [rng.choice([partial(one_week, home, weeks[day]), partial(one_day, home, f'e{day}')])]
        works[1] = partial(works[1], pause=pauses[1])
        ended += side_by_side(monkeypatch, rng, usual, *works)
        if day == 15:
            give_the_table_of_people_away(database)
        if rng.random() < 0.3:
            with contextlib.suppress(InputError):  # nothing to return to
                rollback(open_store())
    print({how: ended.count(how) for how in sorted(set(ended))})
    assert set(ended) <= {0, 1, -9}  # done, refused or killed
    assert ended.count(0) >= 10
    assert ended.count(-9) >= 10

    one_day(home, 'last')
    found, model = stored(database), active(open_store())['run_id']
    assert {version for version, _ in found.values()} == {model}
    database.execute('DELETE FROM video_embeddings; DELETE FROM user_embeddings; DELETE FROM twotower_live_users')
    shutil.rmtree(home / 'outputs' / 'active')
    one_day(home, 'clean')
    clean = stored(database)
    assert len(clean) > 72 + 2  # all videos, and some people
    assert found.keys() == clean.keys()
    ours, theirs = (np.array([rows[key][1] for key in sorted(clean)]) for rows in (found, clean))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
