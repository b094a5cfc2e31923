"What came after the model: videos and users, embedded from its files and the database alone."

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from toys import blessed_run, decide, rows_written, videos

from twotower.base.errors import GateError
from twotower.base.files import read_json
from twotower.base.tables import EMBEDDING, USER, USER_FEATURES, VIDEO, as_uuid, embeddings_schema, read_table
from twotower.database.changes import NOW, changed_users, load_taste
from twotower.database.people import load_decisions, load_profiles
from twotower.database.videos import load_videos, missing_videos, save_videos
from twotower.embedding.live import TASTES, embed_live, live_features
from twotower.embedding.reflect import reflect
from twotower.parallel.engine import LOCAL, Local
from twotower.prep import prepare_files
from twotower.runs.run import META, ONNX, SUMMARY, USER_EMBEDDINGS, USERS, VIDEO_EMBEDDINGS
from twotower.runs.settings import EmbedSettings, PrepSettings

DAILY = {
    **{'rows': 'missing', 'live_users': True, 'include_existing': False},
    **{'min_interactions': 2, 'limit_users': 0, 'batch': 3},
}


def live(conn, run, place, **changes):
    return embed_live(conn, run, EmbedSettings(**DAILY | changes), place)


def vectors(conn, key):
    table = {USER: 'user_embeddings', VIDEO: 'video_embeddings'}[key]
    return dict(conn.execute(f'SELECT {key}::text, embedding::text FROM {table}').fetchall())


@pytest.fixture
def run(database):
    "A blessed run with twelve videos."
    save_videos(database, videos(range(12)))
    return blessed_run(database, 'r1')


@pytest.fixture
def people(database, run):
    "Ann with three likes, Bob with two, Cleo with one."
    rows = [('ann', 'c0', 'like', 1), ('ann', 'c1', 'like', 30), ('ann', 'c2', 'like', 31), ('ann', 'c3', 'dislike', 5)]
    rows += [('bob', 'c0', 'like', 2), ('bob', 'c5', 'like', 3), ('cleo', 'c1', 'like', 4), ('cleo', 'c2', 'skip', 9)]
    decide(database, *rows)
    return {name: as_uuid(name) for name in ('ann', 'bob', 'cleo')}


def test_new_videos_are_embedded_and_the_others_left_alone(database, run, home):
    reflect(database, run, dry_run=False)
    save_videos(database, videos(range(12, 20)))
    before = database.execute('SELECT video_id, embedding::text, ctid::text FROM video_embeddings').fetchall()
    folder = live(database, run, home / 'live')
    assert reflect(database, run, 'missing', live=folder).iloc[1].tolist() == ['videos', 8, 8, 0, 0, 0, '']
    assert reflect(database, run, 'missing', dry_run=False, live=folder).iloc[1].tolist() == [
        'videos',
        8,
        8,
        0,
        0,
        0,
        '',
    ]
    assert live(database, run, home / 'live') is None
    after = database.execute('SELECT video_id, embedding::text, ctid::text FROM video_embeddings').fetchall()
    assert set(before) < set(after)
    assert len(after) == 20
    assert list(missing_videos(database, run.id)) == []


def test_the_daily_way_gives_the_vectors_of_the_training(database, run, home):
    reflect(database, run, 'missing', dry_run=False, live=live(database, run, home / 'live'))
    stored = vectors(database, VIDEO)
    written = read_table(run.model / VIDEO_EMBEDDINGS, embeddings_schema(VIDEO)).to_pydict()
    assert len(stored) == 12
    for video, vector in zip(written[VIDEO], written[EMBEDDING], strict=True):
        np.testing.assert_allclose(json.loads(stored[video]), vector, atol=1e-3)


def test_a_live_user_has_the_features_of_a_training_user(database, people, tmp_path):
    (tmp_path / 'reviews.csv').write_text('product_url,reviewer_id,stars,reviewed_at\nc7,someone,5,2025-12-01\n')
    config = PrepSettings(
        mode='reviews', input=str(tmp_path / 'reviews.csv'), decisions_csv='', time_zone='UTC', max_invalid_share=0, min_stars=4,
        max_negative_stars=2, neg_per_pos=0, val_ratio=0, split_by='user', seed=0, max_history=2, memory_limit='', snapshot_inputs=False,
    )  # fmt: skip
    known = load_decisions(database), load_profiles(database)
    prepare_files(tmp_path / 'prep', load_videos(database), config, *known)
    trained = read_table(tmp_path / 'prep' / USERS, USER_FEATURES)
    trained = trained.filter(pc.not_equal(trained[USER], 'someone'))

    found = changed_users(database, 'r1')
    decisions, profiles = load_taste(database, found[USER].to_pylist())
    chosen = load_videos(database, pc.unique(decisions[VIDEO]).to_pylist())  # not the whole catalogue
    assert live_features(decisions, profiles, chosen, found[NOW][0], max_history=2).equals(trained)
    assert trained['like_count_30d'].to_pylist() == [
        {'ann': 2, 'bob': 2, 'cleo': 1}[n] for n in sorted(people, key=people.get)
    ]


def test_users_whose_decisions_changed_are_embedded_and_no_others(database, run, people, home):
    place, ann, bob, cleo = home / 'live', *people.values()

    def embedded_now(**changes):
        folder = live(database, run, place, rows='none', **changes)
        if folder is None:
            return set()
        reflect(database, run, 'none', dry_run=False, live=folder)
        return set(pq.read_table(folder / USER_EMBEDDINGS)[USER].to_pylist())

    assert embedded_now(limit_users=1) == {min(ann, bob)}
    assert embedded_now() == {max(ann, bob)}
    assert embedded_now() == set()
    assert embedded_now(min_interactions=1) == {cleo}
    before = vectors(database, USER)
    decide(database, ('bob', 'c3', 'like', 6))
    assert embedded_now() == {bob}
    after = vectors(database, USER)
    assert {user for user in before if before[user] != after[user]} == {bob}
    assert embedded_now(include_existing=True) == {ann, bob}
    assert vectors(database, USER) == after  # the same decisions, the same vectors
    database.execute("UPDATE user_embeddings SET model_version = 'r0' WHERE user_id = %s", [ann])
    assert embedded_now() == {ann}


class Rearranging(Local):
    "An engine that keeps the order of the rows but not the tables, as a cluster may."

    def pool(self, worker, arguments, tables):
        for made in super().pool(worker, arguments, tables):
            yield from (made.slice(start, 1) for start in range(len(made)))  # none of a table without rows


def test_whose_vectors_they_are_does_not_depend_on_the_tables(database, run, people, home):
    expected, found = (
        embed_live(database, run, EmbedSettings(**DAILY), home / name, engine)
        for name, engine in (('whole', LOCAL), ('parts', Rearranging()))
    )
    for name in (USER_EMBEDDINGS, VIDEO_EMBEDDINGS, TASTES):
        if (expected / name).is_file():
            one, other = pq.ParquetFile(expected / name), pq.ParquetFile(found / name)
            assert one.read().select([0]).equals(other.read().select([0])), name
    assert read_json(expected / SUMMARY)['unknown_words'] == read_json(found / SUMMARY)['unknown_words']
    tastes, users = pq.ParquetFile(found / TASTES), pq.ParquetFile(found / USER_EMBEDDINGS)
    assert pq.read_table(found / TASTES).equals(pq.read_table(expected / TASTES))
    assert users.num_row_groups == tastes.num_row_groups > 1
    for i in range(users.num_row_groups):
        assert users.read_row_group(i)[USER].equals(tastes.read_row_group(i)[USER])


def test_a_dry_run_and_one_without_upsert_leave_the_database_alone(database, run, people, home):
    before, folder = rows_written(database), live(database, run, home / 'live')
    assert reflect(database, run, 'missing', dry_run=True, live=folder)['inserted'].tolist() == [2, 12]
    assert rows_written(database) == before
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [META, SUMMARY, TASTES, USER_EMBEDDINGS, VIDEO_EMBEDDINGS]
    )
    assert read_json(folder / META) == read_json(run.model / META)
    summary = read_json(folder / SUMMARY)
    assert (summary['model_version'], summary['videos'], summary['users']) == ('r1', 12, 2)
    assert summary['created_at'].endswith('+09:00')
    for key, name in [(USER, USER_EMBEDDINGS), (VIDEO, VIDEO_EMBEDDINGS)]:
        read_table(folder / name, embeddings_schema(key))


@pytest.mark.fault(
    'a fetched model was damaged on the disk', sees='two_tower_latest.onnx is not the file that metrics.json judged'
)
@pytest.mark.parametrize('name', [ONNX, META, VIDEO_EMBEDDINGS])
def test_a_damaged_model_embeds_nothing(database, run, people, home, name):
    content = (run.model / name).read_bytes()
    (run.model / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = rows_written(database)
    with pytest.raises(GateError, match=f'{name} is not the file that'):
        live(database, run, home / 'live')
    with pytest.raises(GateError, match=f'{name} is not the file that'):
        reflect(database, run, dry_run=False)
    assert (rows_written(database), (home / 'live').exists()) == (before, False)


def in_child(work) -> str:
    "Do work in a fork; what its error says."
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        try:
            work()
        except BaseException as error:
            os.write(theirs, f'{type(error).__name__}: {error}'.encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours) as said:
        return said.read()


@pytest.mark.fault(
    'the disk is full while new embeddings are written',
    sees='the error of the system, such as OSError: No space left on device',
)
def test_a_full_disk_leaves_no_half_a_folder(database, run, people, home):
    from twotower.database.connections import connect

    save_videos(database, videos(range(12, 100)))
    before = rows_written(database)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with connect() as conn:
            live(conn, run, home / 'live')

    assert 'File too large' in in_child(fill)
    assert [p.name for p in (home / 'live').iterdir()] == ['.lock']
    assert rows_written(database) == before
    assert len(pq.read_table(live(database, run, home / 'live') / VIDEO_EMBEDDINGS)) == 100


TESTS = Path(__file__).parents[1]
PEAK = """
import resource, sys
from pathlib import Path
from twotower.database.connections import connect
from twotower.embedding.live import embed_live
from twotower.runs.run import find_run
from test_embed import DAILY, EmbedSettings
with connect() as conn:
    embed_live(conn, find_run('r1'), EmbedSettings(**DAILY | {'batch': 2000}), Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_catalogue(database, run, home):
    peaks, known = [], 12
    for n in (5_000, 40_000):
        database.execute(
            """
            INSERT INTO videos (id, content_id, product_url, title)
            SELECT gen_random_uuid(), 'n' || i, 'https://v.example/n' || i, 'video number ' || i
            FROM generate_series(%s::int, %s) i
            """,
            [known, n],
        )
        known = n + 1
        command = [sys.executable, '-c', PEAK, str(home / 'live')]
        places = os.pathsep.join(map(str, (TESTS / 'embedding', TESTS)))
        done = subprocess.run(
            command, env=os.environ | {'PYTHONPATH': places}, check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stdout))
        (folder,) = [p for p in (home / 'live').iterdir() if p.is_dir()]
        assert pq.read_metadata(folder / VIDEO_EMBEDDINGS).num_rows > n
        shutil.rmtree(folder)
    assert peaks[1] - peaks[0] < 15, peaks  # MB; the vectors alone are 18 MB more
