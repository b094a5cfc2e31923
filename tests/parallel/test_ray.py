"""The cluster makes what one machine makes, on any number of parts, and also when a machine is lost on the way.

One cluster of several node processes for all tests here. `-m 'not ray'` leaves them out.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import test_judging
from moto.server import ThreadedMotoServer
from scipy import sparse
from test_bad_input import GOOD, HEAD, REFUSED
from test_bad_input import MASTER as FIVE
from test_embed import DAILY
from test_judging import RULES
from test_prep import CONFIG, FILES, MASTER, reviews
from toys import blessed_run, decide, videos

from twotower.base.errors import InputError, OutsideError, SettingError
from twotower.base.files import read_json
from twotower.base.settings import PACKAGE
from twotower.base.tables import DECISIONS, USER, VIDEO, WEIGHTED, as_uuid, embeddings_schema, read_table
from twotower.data import on_ray
from twotower.data.fields import read_users
from twotower.data.on_ray import prepare_on_cluster
from twotower.database.videos import save_videos
from twotower.embedding import encoder
from twotower.embedding.live import TASTES, embed_live
from twotower.evaluate import judge_run
from twotower.evaluation import scores
from twotower.page.open_run import open_run
from twotower.parallel import engine
from twotower.parallel.engine import LOCAL, OnRay, check_engine
from twotower.prep import prepare_files
from twotower.runs.run import SUMMARY, TRAIN, USER_EMBEDDINGS, VIDEO_EMBEDDINGS, Run
from twotower.runs.settings import EmbedSettings, EvalSettings, PrepSettings

pytestmark = pytest.mark.ray
first = test_judging.first  # a fixture
ray = pytest.importorskip('ray')
node = pytest.importorskip('ray._private.node')
really_start_raylet = node.Node.start_raylet
TESTS = Path(__file__).parents[1]
MB = 2**20


PORTS = ('metrics_agent_port', 'dashboard_agent_listen_port', 'runtime_env_agent_port', 'metrics_export_port')


def ports() -> dict[str, int]:
    "Free ports for the agents of a node."
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return dict(zip(PORTS, (one.getsockname()[1] for one in sockets), strict=True))


def start_raylet(self, *args, **kwargs):
    "A node dies if its agents have not told their ports after 15 seconds, which a busy machine may need: they are told before."
    for name in PORTS:
        path = Path(self._session_dir, node.get_port_filename(self._node_id, name))
        path.write_text(str(getattr(self._ray_params, name)))
    return really_start_raylet(self, *args, **kwargs)


class Machines:
    "A cluster on this machine: a head that runs nothing, and nodes that can be killed."

    def __init__(self):
        from ray.cluster_utils import Cluster

        head = {'num_cpus': 0, **ports(), 'object_store_memory': 200 * MB, 'include_dashboard': False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add() for _ in range(4)]

    def add(self):
        return self.cluster.add_node(num_cpus=1, object_store_memory=200 * MB, **ports())

    def kill(self, node_id: str) -> None:
        "SIGKILL for a node and all of its processes."
        [node] = [node for node in self.nodes if node.node_id == node_id]
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope='module')
def bucket():
    "An S3 service on this machine: yields the settings by which its clients find it."
    server = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        'AWS_ENDPOINT_URL': f'http://{host}:{port}',
        'AWS_ACCESS_KEY_ID': 'anybody',
        'AWS_SECRET_ACCESS_KEY': 'anything',
        'AWS_DEFAULT_REGION': 'us-east-1',
    }
    server.stop()


@pytest.fixture(scope='module')
def machines(bucket):
    folder = Path(tempfile.mkdtemp(prefix='ray'))  # a socket's path must be short
    (folder / 'ray').mkdir()
    known = {
        'RAY_TMPDIR': str(folder),
        'RAY_USAGE_STATS_ENABLED': '0',
        'RAY_memory_monitor_refresh_ms': '0',
        'RAY_worker_niceness': '0',
        **bucket,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in known.items():
            patch.setenv(name, value)
        patch.setenv(
            'PYTHONPATH',
            os.pathsep.join(
                map(
                    str,
                    (
                        PACKAGE.parent,
                        TESTS,
                        *(TESTS / room for room in ('parallel', 'evaluation', 'embedding', 'data')),
                    ),
                )
            ),
        )
        patch.setattr(node.Node, 'start_raylet', start_raylet)
        machines = Machines()
        ray.init(machines.cluster.address, log_to_driver=False, logging_level='ERROR', configure_logging=False)
        yield machines
        ray.shutdown()
        machines.cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def both(home, machines):
    "Prepare on both engines, and compare every file row by row."
    names = iter(range(10**6))

    def run(master: pa.Table = MASTER, parts: int = 0, decisions=None, profiles=None, **others) -> Path:
        config, n = PrepSettings(**CONFIG | others), next(names)
        expected = prepare_files(home / f'local{n}', master, config, decisions, profiles)
        found = prepare_on_cluster(home / f'ray{n}', master, config, decisions, profiles, parts)
        assert json.dumps(found) == json.dumps(expected)
        assert (home / f'ray{n}' / SUMMARY).read_text() == (home / f'local{n}' / SUMMARY).read_text()
        for name, schema in FILES.items():
            assert read_table(home / f'ray{n}' / name, schema).equals(read_table(home / f'local{n}' / name, schema)), (
                name
            )
        return home / f'ray{n}'

    return run


def as_files(folder: Path, rows: list[str], n: int) -> None:
    "The rows in `n` files of a folder, every other one Parquet."
    folder.mkdir()
    for i in range(n):
        path = folder / f'{i}.csv'
        path.write_text(HEAD + ''.join(rows[i::n]))
        if i % 2:
            pq.write_table(pa.csv.read_csv(path), path.with_suffix('.parquet'))
            path.unlink()


@pytest.mark.parametrize(('parts', 'split_by'), [(1, 'user'), (2, 'time'), (7, 'user'), (40, 'time')])
def test_any_number_of_parts_gives_the_same_rows(both, home, parts, split_by):
    as_files(home / 'in', reviews(), 3)
    folder = both(input='in', parts=parts, split_by=split_by, min_stars=3.0, max_negative_stars=1.0)
    assert len(list((folder / TRAIN).iterdir())) == min(parts, len({row.split(',')[1] for row in reviews()}))


MEANINGS = {
    'events': {'event_weights': 'view=seen, click=0.3, purchase=like', 'keep': 'most', 'use_weights': True},
    'found limits': {'stars_scale': 'auto', 'stars_limits': 'found', 'unrated': 'seen'},
}


@pytest.mark.parametrize('settings', MEANINGS.values(), ids=MEANINGS)
def test_rows_mean_the_same_on_a_cluster(both, home, settings):
    events = 'keep' in settings
    (home / 'in').mkdir()
    for part in range(3):
        rows = ['reviewer_id,product_url,stars,event,weight,created_at\n']
        for i in range(part, 240, 3):
            stars, event = ('', ('view', 'click', 'purchase')[i % 7 % 3]) if events else (i % 11, '')
            rows.append(f'u{i % 17},v{i * 7 % 29},{stars},{event},{1 + i % 4},2024-01-{1 + i % 28:02}\n')
        (home / 'in' / f'{part}.csv').write_text(''.join(rows))
    folder = both(input='in', parts=3, **settings)
    alone = read_table(home / 'local0' / TRAIN, WEIGHTED)
    assert read_table(folder / TRAIN, WEIGHTED).equals(alone)
    assert (alone['weight'].null_count < len(alone)) is events


def test_a_file_without_rows_is_read_like_the_others(both, home):
    as_files(home / 'in', reviews(60), 1)
    (home / 'in' / '1.csv').write_text(HEAD)
    both(input='in', parts=2)


def test_a_bucket_is_read_like_a_folder(both, home):
    as_files(home / 'in', reviews(), 3)
    expected = prepare_files(home / 'disk', MASTER, PrepSettings(**CONFIG | {'input': 'in'}))
    store = fsspec.filesystem('s3')
    store.mkdir('reviews')
    store.put(f'{home}/in/', 's3://reviews/2026/', recursive=True)
    store.pipe('reviews/2026/_SUCCESS', b'')
    folder = both(input='s3://reviews/2026/', parts=3)
    assert read_json(folder / SUMMARY)['interactions'] == expected['interactions']
    for name, schema in FILES.items():
        assert read_table(folder / name, schema).equals(read_table(home / 'disk' / name, schema)), name
    store.pipe('reviews/2026/notes.txt', b'')
    for prepare in (prepare_files, prepare_on_cluster):
        with pytest.raises(InputError, match=r's3://reviews/2026/ holds s3://reviews/2026/notes\.txt \(1 such\)'):
            prepare(home / 'prep', MASTER, PrepSettings(**CONFIG | {'input': 's3://reviews/2026/'}))


def test_decisions_find_the_reviewer_they_belong_to(both, home):
    (home / 'reviews.csv').write_text(HEAD + ''.join(reviews()))
    (home / 'd.csv').write_text('user_id,item_id,decision\nu1,v1,DISLIKE\nu1,c2,SKIP\nu9,c3,LIKE\nonly here,v4,LIKE\n')
    stranger, at = '00000000-0000-4000-8000-000000000001', 1_700_000_000_000_000
    rows = [
        (as_uuid(f'u{u}'), f'v{v}', d, at + v) for u in range(4) for v, d in ((3, 'like'), (5, 'dislike'), (6, 'skip'))
    ]
    rows += [(stranger, 'v1', 'like', at), (stranger, 'v2', 'dislike', at), (stranger, 'v99', 'like', at)]
    decisions = pa.table([pa.array(c) for c in zip(*rows, strict=True)], DECISIONS.names).cast(DECISIONS)
    profiles = pa.table(
        {
            USER: [as_uuid('u1'), stranger, as_uuid('nobody')],
            'created_at': pa.array([0, 1, 2], DECISIONS.field('created_at').type),
        }
    )
    both(input='reviews.csv', decisions_csv='d.csv', decisions=decisions, profiles=profiles, parts=5)


def test_explicit_labels_and_rows_that_are_counted(both, home):
    good = [f'v{v},u{u},{int(v % 2 == 0 or u == 3)}\n' for u in range(9) for v in range(9)]
    bad = ['v1,u9,9\n', 'v1,,1\n', 'v1,u1\n', 'v1,u1,1,x\n', 'gone,u1,1\n', 'v1,u1,SKIP\n']
    (home / 'in').mkdir()
    for i in range(2):
        (home / 'in' / f'{i}.csv').write_text('product_url,reviewer_id,label\n' + ''.join((good + bad)[i::2]))
    folder = both(input='in', mode='explicit', max_invalid_share=0.1, parts=3, snapshot_inputs=True)
    counts = read_json(folder / SUMMARY)['sources']['explicit']
    assert (counts['rows_in'], sum(counts['invalid'].values()), counts['unmatched'], counts['skipped']) == (87, 4, 1, 1)
    assert [path.name for path in sorted((folder / 'inputs').iterdir())] == ['0.csv', '1.csv']


def test_what_a_shop_says_of_its_users_is_laid_beside_them(both, home):
    (home / 'reviews.csv').write_text(HEAD + ''.join(reviews()))
    rows = ''.join(f'u{u},{["jp", "us", ""][u % 3]},{u / 4}\n' for u in range(4, 24))
    (home / 'users.csv').write_text('user_id,country,spent\n' + rows)
    folder = both(input='reviews.csv', user_fields='users.csv', parts=5, snapshot_inputs=True)
    users, local = read_users(folder), read_users(home / folder.name.replace('ray', 'local'))
    assert users.equals(local)
    row = next(r for r in users.to_pylist() if r['user_id'] == 'u10')
    assert (row['own:country'], row['own:spent']) == ('us', 2.5)
    assert sorted(path.name for path in (folder / 'inputs').iterdir()) == ['reviews.csv', 'users.csv']


def test_what_is_refused_is_refused_in_the_same_words(home, machines):
    for what, (content, _) in REFUSED.items():
        if what not in (
            'missing column',
            'line after a quoted newline',
            'invalid UTF-8',
            'quote never closed',
            'only a header',
            'only unknown URLs',
        ):
            continue
        (home / 'reviews.csv').write_bytes(content if isinstance(content, bytes) else content.encode())
        config, said = PrepSettings(**CONFIG), []
        for prepare in (prepare_files, prepare_on_cluster):
            with pytest.raises(InputError) as error:
                prepare(home / 'prep', FIVE, config)
            said.append((type(error.value), str(error.value)))
        assert said[0] == said[1], what
    assert [path.name for path in home.iterdir()] == ['reviews.csv']
    (home / 'reviews.csv').write_text(HEAD + GOOD)
    with pytest.raises(SettingError, match='must be below min_stars'):
        prepare_on_cluster(home / 'prep', FIVE, PrepSettings(**CONFIG | {'max_negative_stars': 4.0}))


@contextmanager
def lost(machines: Machines, mark: Path):
    "Kill the first machine that says in the file that it works; another takes its place afterwards."

    def wait() -> None:
        while not (mark.is_file() and (node_id := mark.read_text())):
            if over.wait(0.05):
                return
        machines.kill(node_id)
        killed.append(node_id)

    over, killed = threading.Event(), []
    killer = threading.Thread(target=wait)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()
    assert killed, 'no machine was killed while it worked'
    machines.nodes.append(machines.add())


def at_work(mark: Path) -> None:
    "Say so, once, and take time enough to be lost."
    if not mark.exists():
        mark.write_text(ray.get_runtime_context().get_node_id())
    time.sleep(1)


def slow(function, mark: Path):
    "The same function, with time enough for its machine to be lost."

    def slowed(*args, **kwargs):
        at_work(mark)
        return function(*args, **kwargs)

    return slowed


@pytest.mark.fault('a machine of the cluster is lost during prep', sees='nothing: the result of one machine')
def test_a_machine_is_lost_during_prep(both, home, machines, monkeypatch):
    as_files(home / 'in', reviews(), 3)
    for name in ('opine', 'divided'):
        monkeypatch.setattr(on_ray, name, slow(getattr(on_ray, name), home / 'mark'))
    with lost(machines, home / 'mark'):
        both(input='in', parts=4)


def dies(part: int) -> int:
    os._exit(1)


@pytest.mark.fault(
    'a process of the cluster dies of what it was given',
    sees='after some tries, an error: the Ray cluster failed',
)
def test_what_always_dies_is_given_up(machines, monkeypatch):
    monkeypatch.setattr(engine, 'RETRIES', 1)
    with pytest.raises(OutsideError, match='the Ray cluster failed'):
        list(OnRay().each(dies, [1]))


def judged_users(n: int = 9_000, m: int = 300) -> scores.Judged:
    "Users and videos at random."
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(k, 128)).astype(np.float32) for k in (n, m))
    seen, liked = (sparse.random(n, m, 0.02, 'csr', np.float32, rng) for _ in range(2))
    rows, labels = rng.integers(0, n, 20_000), rng.integers(0, 2, 20_000)
    return scores.Judged(
        pa.array([f'u{i}' for i in range(n)]),
        users,
        items,
        seen,
        seen,
        liked,
        rows,
        rng.integers(0, m, 20_000),
        labels,
        0,
    )


def close(one, other) -> bool:
    "Equal, numbers to 1e-9."
    if isinstance(one, dict):
        return list(one) == list(other) and all(close(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, rel=1e-9, abs=1e-9) if isinstance(one, float) else one == other


@pytest.mark.fault('a machine of the cluster is lost during evaluation', sees='nothing: the result of one machine')
def test_a_machine_is_lost_during_evaluation(home, machines, monkeypatch):
    judged = judged_users()
    options = {'calibration': {'scale': 1.0, 'bias': 0.0}, 'k': 10, 'memory_mb': 1}
    monkeypatch.setattr(scores.rank, '__defaults__', (1, LOCAL, 2_000))  # six parts
    expected, by_user = scores.score_model(judged, **options)
    monkeypatch.setattr(scores, '_listed', slow(scores._listed, home / 'mark'))
    with lost(machines, home / 'mark'):
        found, theirs = scores.score_model(judged, **options, engine=OnRay())
    assert close(found, expected)
    for name in by_user.column_names[1:]:
        np.testing.assert_allclose(theirs[name].to_numpy(), by_user[name].to_numpy(), rtol=1e-9, atol=1e-9)


def test_the_verdict_is_the_same(first, machines):
    run, _ = first
    config = EvalSettings(**RULES)
    assert close(judge_run(run, config, OnRay()), judge_run(run, config))


@pytest.mark.fault('a machine of the cluster is lost while it embeds', sees='nothing: the embeddings of one machine')
def test_a_machine_is_lost_while_embedding(database, home, machines, monkeypatch):
    save_videos(database, videos(range(40)))
    run = blessed_run(database, 'r1')
    save_videos(database, videos(range(100)))
    decide(database, *((u, f'c{v}', 'like', 1 + v) for u in ('ann', 'bob') for v in range(3)))
    params = EmbedSettings(**DAILY)
    expected = embed_live(database, run, params, home / 'local')

    class Slow(encoder.Embedder):
        def __call__(self, rows: pa.Table) -> pa.Table:
            at_work(mark)
            return super().__call__(rows)

    mark = home / 'mark'
    monkeypatch.setattr(encoder, 'Embedder', Slow)
    with lost(machines, mark):
        found = embed_live(database, run, params, home / 'ray', OnRay())
    for name, key in ((VIDEO_EMBEDDINGS, VIDEO), (USER_EMBEDDINGS, USER)):
        one, other = (read_table(folder / name, embeddings_schema(key)) for folder in (expected, found))
        assert one[key].equals(other[key])
        ours, theirs = (t['embedding'].combine_chunks().flatten().to_numpy() for t in (one, other))
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
    summaries = [read_json(folder / SUMMARY) | {'created_at': ''} for folder in (expected, found)]
    assert summaries[0] == summaries[1]
    assert pq.read_table(expected / TASTES).equals(pq.read_table(found / TASTES))


def test_the_notebooks_run_on_a_cluster(home, database, machines, monkeypatch):
    "`engine` as a setting of the whole chain: each stage in its own kernel, and the same run, which can be looked at."
    monkeypatch.setenv('RAY_ADDRESS', machines.cluster.address)

    def twotower(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, '-c', 'from twotower.cli import main; main()', *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    twotower('movielens')
    for where, workers in (('local', 1), ('ray', 2)):
        settings = [f'engine={where}', f'workers={workers}', 'rows=missing']
        twotower('run', 'ci', '--run-id', where, '--to', '04_embed', *(f'-p{setting}' for setting in settings))
    one, other = (Run(home / 'outputs' / 'runs' / name) for name in ('local', 'ray'))
    for name, schema in FILES.items():
        assert read_table(one.prep / name, schema).equals(read_table(other.prep / name, schema)), name
    assert len(list((other.prep / TRAIN).iterdir())) == 4
    pages = [open_run(run) for run in (one, other)]
    assert pages[0].opinions.equals(pages[1].opinions)
    stages = [read_json(run.path / 'run.json')['stages'] for run in (one, other)]
    assert [{stage['parameters']['engine'] for stage in done.values()} for done in stages] == [{'local'}, {'ray'}]
    assert list(stages[0]) == list(stages[1]) == ['01_prep', '02_train', '03_eval', '04_embed']
    lives = [Path(done['04_embed']['live']) for done in stages]
    for folders, name, key in (
        ((one.model, other.model), USER_EMBEDDINGS, USER),
        (lives, VIDEO_EMBEDDINGS, VIDEO),
    ):
        ours, theirs = (read_table(folder / name, embeddings_schema(key)) for folder in folders)
        assert ours[key].equals(theirs[key])
        vectors = [table['embedding'].combine_chunks().flatten().to_numpy() for table in (ours, theirs)]
        np.testing.assert_allclose(*vectors, rtol=0, atol=1e-4)
    verdicts = [read_json(run.metrics) for run in (one, other)]
    assert [verdict['verdict'] for verdict in verdicts] == ['pass', 'pass']
    assert verdicts[1]['metrics'] == pytest.approx(verdicts[0]['metrics'], abs=1e-3)


def test_the_advice_for_too_little_memory_is_short(machines):
    said = ray.exceptions.OutOfMemoryError('low on memory\nObject store memory usage: [- objects spillable: 0')
    with pytest.raises(OutsideError, match='low on memory; use machines with more') as error, engine.plain_errors():
        raise said
    assert 'spillable' not in str(error.value)


def test_an_engine_without_ray_says_how_to_install_it(home, monkeypatch):
    monkeypatch.setattr(engine.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SettingError, match=r"engine is 'ray', and Ray is not installed: pip install 'twotower\[ray\]'"):
        check_engine('ray')
