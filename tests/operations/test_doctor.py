"What the doctor finds on a machine where something is missing, and that it tells no secret."

import pytest
from storage_server import ANON_KEY, SECRET_KEY, StorageServer
from typer.testing import CliRunner

from twotower.base.settings import project_file
from twotower.cli import app
from twotower.operations.leaks import known_secrets


@pytest.fixture
def examined():
    "States by subject, all that was printed, and the exit status; no secret is ever in it."

    def look() -> tuple[dict[str, str], str, int]:
        done = CliRunner().invoke(app, ['doctor'])
        for _, secret in known_secrets():
            assert secret.get_secret_value() not in done.output
        lines = [line.split() for line in done.output.splitlines() if line.startswith(('ok', 'note', 'missing '))]
        return {words[1]: words[0] for words in lines}, ' '.join(done.output.split()), done.exit_code

    return look


@pytest.fixture
def storage(monkeypatch):
    server = StorageServer()
    monkeypatch.setenv('SUPABASE_URL', server.url)
    monkeypatch.setenv('SUPABASE_SERVICE_ROLE_KEY', SECRET_KEY)
    yield server
    server.close()


def test_on_a_fresh_machine_nothing_is_missing_and_nothing_is_made(home, examined):
    states, said, status = examined()
    assert set(states) == {
        'python',
        'packages',
        'project',
        'disk',
        'database',
        'pgvector',
        'schema',
        'store',
        'secrets',
    }
    assert (status, set(states.values())) == (0, {'ok', 'note'})
    assert 'no tables yet next: twotower movielens' in said
    assert not list(home.iterdir())


def test_a_database_without_tables_is_told_from_one_with(empty_database, examined, monkeypatch):
    monkeypatch.setenv('REMOTE_DATABASE_URL', empty_database)
    states, said, status = examined()
    assert (states['database'], states['schema'], status) == ('ok', 'missing', 1)
    assert 'next: twotower migrate' in said
    assert CliRunner().invoke(app, ['migrate']).exit_code == 0
    states, _, status = examined()
    assert (states['pgvector'], states['schema'], status) == ('ok', 'ok', 0)


def test_tables_of_unknown_origin_and_half_migrated_ones(database, examined):
    database.execute("DELETE FROM twotower_migrations WHERE name LIKE '00_0%'")
    states, said, status = examined()
    assert (states['schema'], status) == ('missing', 1)
    assert '0020_daily.sql' in said
    database.execute('DROP TABLE twotower_migrations')
    states, said, status = examined()
    assert (states['schema'], status) == ('note', 0)
    assert 'has left no record' in said


@pytest.mark.fault(
    'a database that nobody can reach', sees='`twotower doctor` says so with what to do, without the password'
)
def test_a_database_that_is_not_there(examined, monkeypatch):
    monkeypatch.setenv('REMOTE_DATABASE_URL', 'postgresql://me:hunt7er2@127.0.0.1:1/x')
    states, said, status = examined()
    assert (states['database'], status) == ('missing', 1)
    assert 'nobody listens at port 1' in said
    assert 'hunt7er2' not in said
    assert states['store'] == 'ok'  # one failure doesn't hide the others


def test_the_store_answers(database, storage, examined):
    states, said, status = examined()
    assert (states['store'], status) == ('ok', 0)
    assert 'the key may write, move and remove; nothing is published yet' in said
    assert storage.count('POST /object/move') == 1
    assert storage.objects == {}


@pytest.mark.parametrize('request_', ['POST /object/models', 'POST /object/move', 'DELETE'])
@pytest.mark.fault('a key may read the bucket, but not write to it', sees='`twotower doctor` says what is refused')
def test_a_store_that_may_only_be_read(database, storage, examined, request_):
    storage.fail(403, request_, times=9)
    states, said, status = examined()
    assert (states['store'], status) == ('missing', 1)
    assert 'refuses the key' in said


@pytest.mark.fault('SUPABASE_URL leads to a server that is no storage', sees='`twotower doctor` says so')
@pytest.mark.parametrize('how', ['html 200', 'html 404', 'html 403'])
def test_an_address_that_is_no_storage(database, storage, examined, how):
    storage.fail(how, times=99)
    states, said, status = examined()
    assert (states['store'], status) == ('missing', 1)
    assert 'SUPABASE_URL' in said


@pytest.mark.parametrize(
    ('variable', 'value', 'says'),
    [
        ('SUPABASE_SERVICE_ROLE_KEY', ANON_KEY, 'holds the anon key, which may not write'),
        ('SUPABASE_SERVICE_ROLE_KEY', 'sb_secret_' + 'z' * 31, 'refuses the key'),
        ('SUPABASE_SERVICE_ROLE_KEY', '', 'but SUPABASE_SERVICE_ROLE_KEY is not'),
        ('SUPABASE_URL', 'http://127.0.0.1:1', 'asked 2 times'),
    ],
)
def test_a_store_that_can_not_be_used(database, storage, examined, monkeypatch, variable, value, says):
    monkeypatch.setenv(variable, value)
    states, said, status = examined()
    assert (states['store'], status) == ('missing', 1)
    assert says in said


def test_a_bucket_that_is_not_there(database, storage, examined, home):
    text = project_file('settings.ini').read_text()
    (home / 'settings.ini').write_text(text.replace('bucket = models', 'bucket = other'))
    states, said, status = examined()
    assert (states['store'], status) == ('missing', 1)
    assert 'does not exist: create it' in said


def test_a_password_that_is_no_secret_is_a_note(database, examined, monkeypatch):
    monkeypatch.setenv('PGPASSWORD', 'postgres')
    done = CliRunner().invoke(app, ['doctor']).output
    assert 'note     secrets' in done
    assert 'PGPASSWORD' in done
