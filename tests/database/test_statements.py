"Every statement of the package and of its migrations is one that PostgreSQL 15 can read."

import inspect
import re
from datetime import date
from importlib import import_module
from pkgutil import iter_modules
from types import SimpleNamespace
from uuid import UUID

import pglast
import psycopg
import pyarrow as pa
import pytest
from test_database import ANN, BEN, ids, vectors, videos

import twotower.database
from twotower.base.tables import DECISION, DECISIONS, TIME, USER, VIDEO
from twotower.database import changes, connections, dates, doubles, embeddings, erasure, lease, people, schema
from twotower.database import videos as catalogue
from twotower.operations.doctor import check_database
from twotower.page.open_run import live_person

DAY = date(2026, 1, 1)
OPINIONS = {USER: [ANN, ANN, BEN], VIDEO: ids(3), DECISION: ['like', 'dislike', 'like'], TIME: [None] * 3}


def language(stmt):
    "Of a function or DO block; None for any other statement."
    if isinstance(stmt, pglast.ast.DoStmt):
        return 'plpgsql'
    if isinstance(stmt, pglast.ast.CreateFunctionStmt):
        return next(option.arg.sval for option in stmt.options if option.defname == 'language')


def unreadable(statement):
    "What the grammar of 15 says against a statement, also inside functions and DO blocks."
    try:
        for one in pglast.parse_sql(statement):
            if language(one.stmt) == 'plpgsql':
                start, length = one.stmt_location, one.stmt_len or None
                pglast.parse_plpgsql(statement[start : length and start + length])
    except pglast.parser.ParseError as error:
        return str(error)


def test_the_parser_is_that_of_15():
    nameless = 'SELECT count(*) FROM (SELECT 1)'
    said = 'subquery in FROM must have an alias'
    assert said in unreadable(nameless)
    assert said in unreadable(
        f'CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN ({nameless}); END $$'
    )
    assert said in unreadable(f"SELECT 'ä'; DO $$ BEGIN PERFORM ({nameless}); END $$")
    assert unreadable(f'{nameless} AS one') is None


@pytest.mark.parametrize('path', sorted(schema.MIGRATIONS.glob('*.sql')), ids=lambda path: path.stem)
def test_migrations_are_readable_by_15(path):
    assert unreadable(path.read_text(encoding='utf-8')) is None


@pytest.fixture
def statements(monkeypatch):
    "What is sent to the server, with placeholders as the server sees them."
    seen = set()

    def noted(real):
        def send(cursor, query, params=None, **options):
            text = query if isinstance(query, str) else query.as_string(None)
            if params is not None:
                numbers = iter(range(1, 1000))
                text = re.sub(r'%%|%s|%\(\w+\)s', lambda m: '%' if m[0] == '%%' else f'${next(numbers)}', text)
            seen.add(text)
            return real(cursor, query, params, **options)

        return send

    for name in ('execute', 'copy'):
        monkeypatch.setattr(psycopg.Cursor, name, noted(getattr(psycopg.Cursor, name)))
    return seen


def some(n):
    "Embeddings of n videos that are not there, in pieces."
    names = [str(UUID(int=i + 1)) for i in range(n)]
    return lambda: [vectors(names[: n // 2]), vectors(names[n // 2 :], seed=1)]


def write_all(conn):
    "Everything that fills the tables, as the stages do it."
    schema.migrate(conn)
    catalogue.save_videos(conn, videos(20, release_date=[DAY] * 20, tags=[['t']] * 20))
    people.save_profiles(conn, [ANN, BEN])
    people.save_decisions(conn, pa.table(OPINIONS, DECISIONS))
    embeddings.save_embeddings(conn, vectors(ids(20)), VIDEO, 'm1')
    embeddings.save_embeddings(conn, lambda: [vectors(ids(9)), vectors(ids(20)[9:])], VIDEO, 'm2', dry_run=True)
    embeddings.save_embeddings(conn, some(4), VIDEO, 'm1')  # in pieces, and missing
    for least in (0, 1):
        embeddings.save_embeddings(conn, vectors([ANN, BEN], key=USER), USER, 'm1', min_user_interactions=least)
    _, taste = changes.load_taste(conn, [ANN])
    with connections.transaction(conn, 'noting'):
        changes.remember_taste(conn, taste)
        changes.move_mark(conn, 'x', DAY, DAY)


def take_turns(conn):
    "Hold the lease, write under it, and promise a model."
    with lease.leased(conn, 'embeddings', 'm1') as held, connections.transaction(conn, 'writing'):
        held.check(conn)
        lease.promise(conn, held, 'm2')
    lease.promised(conn, 'embeddings')


def insert_now_describe_later(conn):
    "A video under an address, its double under an id, and a row that brings them together."
    page = 'https://s.example/v/?id=n1'
    for id, (content_id, url) in enumerate([(page, page), ('n1', 'https://s.example/w')], 900):
        insert = 'INSERT INTO videos (id, content_id, product_url) VALUES (%s, %s, %s)'
        conn.execute(insert, [UUID(int=id), content_id, url])
    catalogue.save_videos(conn, videos(1, content_id=['n1'], product_url=['https://s.example/v?id=n1']))
    doubles.join_doubles(conn, doubles.find_doubles(conn)[0])


# one line for each public function of the room that takes a connection, and for SQL that lies in other rooms
WORK = {
    'sql.advisory_lock sql.build sql.copy_in schema.migrate videos.save_videos people.save_profiles people.save_decisions '
    'embeddings.save_embeddings changes.remember_taste changes.load_taste changes.move_mark '
    'connections.transaction connections.retried': write_all,
    'connections.target connections.describe': lambda conn: connections.describe(conn),
    'connections.sessions': lambda conn: connections.sessions(conn),
    'sql.copy_out videos.load_videos': lambda conn: [catalogue.load_videos(conn), catalogue.load_videos(conn, ids(2))],
    'videos.missing_videos': lambda conn: [
        [*catalogue.missing_videos(conn, 'm2', include_existing=every)] for every in (False, True)
    ],
    'people.note_accounts': lambda conn: people.note_accounts(conn),
    'people.load_profiles': lambda conn: people.load_profiles(conn),
    'people.load_decisions': lambda conn: people.load_decisions(conn),
    'people.live_from people.find_live': lambda conn: [people.find_live(conn, part) for part in ('', 'a0')],
    'changes.changed_users': lambda conn: changes.changed_users(conn, 'm1'),
    'changes.embedded_live': lambda conn: changes.embedded_live(conn, 'm1'),
    'changes.taken_through': lambda conn: changes.taken_through(conn, 'x'),
    'embeddings.recommend': lambda conn: [embeddings.recommend(conn, ANN), embeddings.recommend(conn, ANN, tags=['t'])],
    'embeddings.similar': lambda conn: embeddings.similar(conn, ids(1)[0]),
    'schema.schema_problems schema.check_schema schema.vector_problems schema.lost': lambda conn: schema.check_schema(
        conn
    ),
    '': lambda conn: live_person(conn, SimpleNamespace(run_id='m1', videos=videos(1)), ANN),
    'schema.applied': lambda conn: schema.applied(conn),
    'lease.take_turn lease.give_back lease.leased lease.promise lease.promised': take_turns,
    'erasure.without_account': lambda conn: erasure.without_account(conn, pa.array([ANN, BEN])),
    'erasure.remove_erased': lambda conn: [
        erasure.remove_erased(conn, least, dry_run, 'm2') for least in (None, 2) for dry_run in (True, False)
    ],
    'videos.known_words': lambda conn: catalogue.known_words(conn, 'tags'),
    'videos.lacking_videos': lambda conn: catalogue.lacking_videos(conn, 'm1', ids(2)),
    'videos.refers_to_videos changes.opinions': lambda conn: changes.opinions(conn),
    'changes.stranded_users': lambda conn: changes.stranded_users(conn, 'm2'),
    'dates.odd_dates': lambda conn: dates.odd_dates(conn),
    'identity.settle doubles.find_doubles doubles.join_doubles': insert_now_describe_later,
}


def with_connection():
    "The public functions of the room that take a connection, as module.name."
    for info in iter_modules(twotower.database.__path__):
        module = import_module(f'twotower.database.{info.name}')
        for name in module.__all__:
            if inspect.isfunction(work := getattr(module, name)) and 'conn' in inspect.signature(work).parameters:
                yield f'{info.name}.{name}'


def test_every_function_of_the_room_is_tried():
    assert {name for names in WORK for name in names.split()} == {*with_connection()}


def test_what_is_sent_is_readable_by_15(statements, empty_database, monkeypatch):
    with connections.connect(empty_database) as conn:
        for work in WORK.values():
            work(conn)
        monkeypatch.setenv('REMOTE_DATABASE_URL', empty_database)
        assert [finding.state for finding in check_database()] == ['ok'] * 3
    assert len(statements) > 60
    assert {text: said for text in statements if (said := unreadable(text))} == {}
