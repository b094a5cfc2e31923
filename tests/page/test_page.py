"""The page for people, in a real browser: what one sees, hears and can press, what changes when it is pressed, and what is said when nothing can be shown."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from IPython.utils.capture import capture_output
from playwright.sync_api import expect, sync_playwright
from toys import TITLES, run_to_look_at

from twotower.base.files import write_json
from twotower.base.tables import DECISION, DECISIONS, DIMENSION, TIME, USER, VIDEO, as_uuid, embeddings_table
from twotower.base.tables import VIDEOS as COLUMNS
from twotower.database.connections import connect
from twotower.database.embeddings import save_embeddings
from twotower.database.people import save_decisions, save_profiles
from twotower.database.videos import save_videos
from twotower.page.desk import show
from twotower.runs.run import TRAIN, create_run

_QUIET = ('quic', 'sync', 'background-networking', 'component-update')
OPTIONS = ['--no-sandbox', '--disable-gpu', '--no-first-run', *(f'--disable-{name}' for name in _QUIET)]
PATIENCE = 60_000  # milliseconds, for a machine with other work
LABELS = ['Run A', 'Run B, to compare', 'Users', 'Find a user', 'User', 'Another user', 'Length of the lists', 'Leave out known videos', 'Look at', 'Find a video', 'Video']  # fmt: skip
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope='module')
def outputs(tmp_path_factory) -> Path:
    "Two runs that rank differently, and one that is damaged."
    outputs = tmp_path_factory.mktemp('project') / 'outputs'
    for day, (run_id, verdict) in enumerate([('broken', 'pass'), ('second', 'fail'), ('first', 'pass')], 1):
        run = run_to_look_at(run_id, day, outputs)
        write_json(run.path / 'run.json', {'run_id': run_id, 'created_at': f'2026-01-0{day}T10:00:00+00:00'})
        write_json(run.metrics, {'verdict': verdict})
    broken = outputs / 'runs' / 'broken' / 'prep' / TRAIN
    broken.write_bytes(broken.read_bytes()[:200])
    return outputs


@pytest.fixture(scope='module')
def live(server) -> str:
    "The address of a database where `user-0`, embedded by run `first`, has since liked a video."
    server.execute('CREATE DATABASE page TEMPLATE migrated')
    url = psycopg.conninfo.make_conninfo(server.info.dsn, dbname='page')
    with connect(url) as conn:
        user, video = as_uuid('user-0'), as_uuid('v9')
        shop = [dict.fromkeys(COLUMNS.names) | {VIDEO: video, 'product_url': 'https://v.example/9', 'content_id': '9'}]
        save_videos(conn, pa.Table.from_pylist(shop, COLUMNS))
        save_profiles(conn, [user])
        save_decisions(
            conn, pa.Table.from_pylist([{USER: user, VIDEO: video, DECISION: 'like', TIME: None}], DECISIONS)
        )
        save_embeddings(conn, embeddings_table(USER, pa.array([user]), np.eye(1, DIMENSION)), USER, 'first')
    yield url
    server.execute('DROP DATABASE page WITH (FORCE)')


@pytest.fixture(scope='module')
def served(outputs, live):
    "`twotower qual` as a program: its address and its process."
    command = [sys.executable, '-c', 'from twotower.cli import main; main()', 'qual', '--no-browser', '--port', '8990']
    environment = os.environ | {'TWOTOWER_HOME': str(outputs.parent), 'REMOTE_DATABASE_URL': live}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    address = re.search(r'http://localhost:\d+/\?token=\S+', process.stdout.readline())
    assert address, process.stdout.read()
    yield address[0], process
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert process.stdout.read().split() == ['Ctrl-C', 'ends', 'it']  # and no warnings


@pytest.fixture(scope='module')
def chromium():
    program = shutil.which('chromium')
    assert program, 'chromium is not on the PATH: apt-get install chromium'
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def opened(chromium, served):
    "The page, opened once, and whatever went wrong in the browser meanwhile."
    page, wrong = chromium.new_page(viewport={'width': 1280, 'height': 900}), []
    page.set_default_timeout(PATIENCE)
    page.on('console', lambda message: wrong.append(message.text) if message.type == 'error' else None)
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('response', lambda answer: wrong.append(f'{answer.status} {answer.url}') if answer.status >= 400 else None)
    page.on('request', lambda asked: None if asked.url.startswith(('http://localhost:8990/', 'ws://localhost:8990/', 'data:', 'blob:')) else wrong.append(asked.url))  # fmt: skip
    page.goto(served[0])
    expect(page.get_by_role('table', name='Run A would show')).to_be_visible()
    return page, wrong


@pytest.fixture
def page(opened):
    "The page as it is when it is opened."
    page, wrong = opened
    page.set_viewport_size({'width': 1280, 'height': 900})
    for label, value in {'Run A': 'first', 'Run B, to compare': 'none', 'Users': 'of the training files', 'Length of the lists': '10'}.items():  # fmt: skip
        choose(page, label, value)
    page.get_by_label('Leave out known videos').check()
    for label in ('Find a user', 'Find a video'):
        page.get_by_label(label).fill('')
    expect(page.get_by_text('would show · first')).to_have_count(1)
    yield page
    assert not wrong


def choose(page, label: str, text: str) -> None:
    "Choose the first option that begins with a text."
    box = page.get_by_label(label, exact=True)
    options = box.locator('option').evaluate_all('options => options.map(option => option.textContent)')
    places = [i for i, option in enumerate(options) if option.replace('\xa0', ' ').startswith(text)]
    assert places, f'{label}: {options}'
    box.select_option(index=places[0])


def titles(page, table: str) -> list[str]:
    "The titles of a list, without year, mark and tags."
    cells = page.get_by_role('table', name=table).locator('tbody th')
    return cells.evaluate_all('cells => cells.map(cell => cell.firstChild.textContent)')


def find_user(page, part: str) -> None:
    page.get_by_label('Find a user').fill(part)
    expect(page.get_by_text(f'{part} liked, newest first')).to_be_visible()


def test_lists_change_with_the_user_the_run_and_the_toggle(page):
    find_user(page, 'user-7')
    assert sorted(titles(page, 'user-7 liked')) == ['Film 49', 'Film 50', 'Film 51']
    seven = titles(page, 'Run A would show')
    assert len(seven) == 10
    assert not set(seven) & set(titles(page, 'user-7 liked'))
    find_user(page, 'user-8')
    assert titles(page, 'Run A would show') != seven

    find_user(page, 'user-7')
    choose(page, 'Length of the lists', '50')
    page.get_by_label('Leave out known videos').uncheck()
    expect(page.get_by_role('table', name='Run A would show').locator('.tt-known').first).to_be_visible()
    known = page.get_by_role('table', name='Run A would show').locator('tr', has_text='known')
    assert 1 <= known.count() <= 3
    page.get_by_label('Leave out known videos').check()
    expect(known).to_have_count(0)
    choose(page, 'Length of the lists', '10')
    expect(page.get_by_role('table', name='Run A would show').locator('tbody tr')).to_have_count(10)

    choose(page, 'Run B, to compare', 'second')
    expect(page.get_by_role('table', name='Run B would show')).to_be_visible()
    assert titles(page, 'Run A would show') == seven
    second = titles(page, 'Run B would show')
    moves = page.get_by_role('table', name='Run B would show').locator('tbody td:last-child').all_inner_texts()
    for rank, (title, move) in enumerate(zip(second, moves, strict=True)):
        step = seven.index(title) - rank if title in seven else None
        assert re.sub(r'\W+', '', move) == ('new' if step is None else 'same' if not step else f'{"up" if step > 0 else "down"}{abs(step)}')  # fmt: skip

    choose(page, 'Run A', 'second')
    expect(page.get_by_role('table', name='Run A would show · second')).to_be_visible()
    assert titles(page, 'Run A would show') == titles(page, 'Run B would show') == second


def test_somebody_else_at_random(page):
    before = page.get_by_label('User', exact=True).input_value()
    for _ in range(5):
        page.get_by_role('button', name='Another user').click()
        page.wait_for_timeout(300)
        if page.get_by_label('User', exact=True).input_value() != before:
            break
    now = page.get_by_label('User', exact=True).input_value()
    assert now != before
    expect(page.get_by_text(f'{now} liked, newest first')).to_be_visible()


def test_data_recommendations_neighbours_and_the_map_by_attribute(page):
    expect(page.get_by_role('table', name='Run A, tags: videos and likes')).to_be_visible()
    expect(page.get_by_role('table', name='Run A, tags: ten videos for each of 30 users')).to_be_visible()
    choose(page, 'Look at', 'maker')
    bias = page.get_by_role('table', name='Run A, maker: videos and likes').locator('tbody tr')
    expect(bias).to_have_count(3)
    assert bias.first.locator('th').inner_text() == '<b>Bolt</b>'
    assert bias.first.locator('td').first.inner_text() == '15'
    expect(page.get_by_role('table', name='Run A, maker: ten videos').locator('tbody tr')).to_have_count(3)
    expect(page.get_by_role('img', name='Map of 60 videos by maker')).to_be_visible()
    choose(page, 'Look at', 'tags')
    page.get_by_label('Find a video').fill('film 41')
    expect(page.get_by_label('Video', exact=True)).to_have_value('Film 41')
    near = page.get_by_role('table', name='Run A · first')
    expect(near.locator('tbody tr')).to_have_count(10)
    assert 'Film 41' not in titles(page, 'Run A · first')


def test_titles_from_outside_are_text(page):
    choose(page, 'Length of the lists', '50')
    page.get_by_label('Find a video').fill('script')
    expect(page.get_by_label('Video', exact=True)).to_have_value(TITLES[1])
    choose(page, 'Run B, to compare', 'second')
    expect(page.get_by_role('table', name='Run B would show')).to_be_visible()
    shown = (
        set(titles(page, 'Run A would show'))
        | set(titles(page, 'Run B would show'))
        | set(titles(page, 'Run A · first'))
    )
    assert set(TITLES.values()) <= shown
    assert page.evaluate('window.hacked') is None


def test_every_control_has_a_name_and_a_place_in_the_order_of_the_keys(page):
    for label in LABELS:
        control = (
            page.get_by_role('button', name=label) if label == 'Another user' else page.get_by_label(label, exact=True)
        )
        expect(control).to_have_count(1)
    name = """() => { const e = document.activeElement
        return e.labels && e.labels[0] ? e.labels[0].innerText.trim() : (e.getAttribute('aria-label') || e.innerText || '').trim() }"""
    page.get_by_label('Run A', exact=True).focus()
    reached = [page.evaluate(name)]
    while len(reached) < 30 and reached[-1] != 'Video':
        page.keyboard.press('Tab')
        reached.append(page.evaluate(name))
    assert [label for label in reached if label in LABELS] == LABELS

    page.get_by_label('Leave out known videos').focus()
    page.keyboard.press('Space')
    expect(page.get_by_label('Leave out known videos')).not_to_be_checked()
    page.get_by_label('Run B, to compare').focus()
    page.keyboard.press('ArrowDown')
    expect(page.get_by_role('table', name='Run B would show')).to_be_visible()

    heads = page.locator(
        '.tt-page thead th:not([scope=col]), .tt-page tbody th:not([scope=row]), .tt-page table:not(:has(caption))'
    )
    assert heads.count() == 0
    assert page.locator('html').get_attribute('lang') == 'en'
    assert 'What the model sees' in page.title()


def test_a_phone_shows_it_without_sideways_scrolling(page):
    choose(page, 'Run B, to compare', 'second')
    expect(page.get_by_role('table', name='Run B would show')).to_be_visible()
    page.set_viewport_size({'width': 390, 'height': 844})
    assert page.evaluate('document.scrollingElement.scrollWidth') == 390
    lists = [page.get_by_role('table', name=f'Run {name} would show').bounding_box() for name in 'AB']
    assert lists[1]['y'] > lists[0]['y'] + lists[0]['height']  # one below the other
    assert all(box['x'] >= 0 and box['x'] + box['width'] <= 390 for box in lists)
    small = page.locator('.tt-page :is(select, input[type=text], button)').evaluate_all('all => all.filter(e => e.getBoundingClientRect().height < 32).length')  # fmt: skip
    assert small == 0  # large enough for a finger


def test_users_as_they_are_now(page):
    choose(page, 'Users', 'live')
    user = as_uuid('user-0')
    expect(page.get_by_text(f'{user} liked, newest first')).to_be_visible()
    assert titles(page, f'{user} liked') == ['Film 9']
    assert len(titles(page, 'Run A would show')) == 10
    page.get_by_label('Find a user').fill('user-0')  # its id in the files
    expect(page.get_by_label('User', exact=True)).to_have_value(user)
    choose(page, 'Run B, to compare', 'second')
    expect(page.get_by_role('note').get_by_text('as run first sees them')).to_be_visible()
    assert len(titles(page, 'Run A would show')) == 10


def test_a_damaged_run_says_so_and_the_page_goes_on(page):
    choose(page, 'Run B, to compare', 'broken')
    alert = page.get_by_role('alert')
    expect(alert).to_contain_text('interactions_train.parquet is not a Parquet file')
    assert 'Traceback' not in page.inner_text('body')
    expect(page.get_by_role('table', name='Run A would show')).to_have_count(0)
    choose(page, 'Run B, to compare', 'none')
    expect(alert).to_have_count(0)
    expect(page.get_by_role('table', name='Run A would show')).to_be_visible()


def test_only_who_has_the_address_may_look(chromium, served):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(served[0].partition('?')[0])
    assert '/login' in page.url
    assert 'would show' not in page.inner_text('body')
    context.close()
    listening = subprocess.run(['ss', '-ltnH'], capture_output=True, text=True).stdout
    assert {line.split()[3] for line in listening.splitlines() if ':8990' in line} <= {'127.0.0.1:8990', '[::1]:8990'}


@pytest.mark.fault(
    'the database does not answer while somebody looks at the page', sees='which database, and what to do'
)
def test_no_database_is_a_sentence(outputs, monkeypatch):
    monkeypatch.setenv('REMOTE_DATABASE_URL', 'postgresql://postgres:secret-word@127.0.0.1:1/none')
    with capture_output():
        desk = show('first', '', outputs)
    desk.controls['source'].value = 'live, from the database'
    said = desk.sections['message'].value
    assert '127.0.0.1:1' in said
    assert 'secret-word' not in said
    assert desk.controls['user'].value is None
    assert desk.sections['lists'].value == ''
    assert 'marked with a star' not in desk.sections['map'].value
    desk.controls['run_a'].value = 'second'
    assert '127.0.0.1:1' in desk.sections['message'].value
    assert 'Run A · second' in desk.sections['near'].value
    assert 'Run A · second' in desk.sections['map'].value
    desk.controls['source'].value = 'of the training files'
    assert desk.sections['message'].value == ''


def test_an_empty_database_is_a_sentence(outputs, empty_database, monkeypatch):
    monkeypatch.setenv('REMOTE_DATABASE_URL', empty_database)
    with capture_output():
        desk = show('first', '', outputs)
    desk.controls['source'].value = 'live, from the database'
    assert 'there is no such table: apply the migrations first' in desk.sections['message'].value


def test_without_runs_it_says_how_to_make_one(home):
    with capture_output():
        desk = show()
    assert 'twotower run demo' in desk.sections['message'].value
    create_run('begun')
    with capture_output():
        desk = show('begun')
    assert 'does not exist: has the stage that writes it run?' in desk.sections['message'].value


def test_a_fault_of_the_program_is_one_line_and_goes_on_to_the_log(outputs, monkeypatch):
    with capture_output():
        desk = show('first', '', outputs)
    desk.runs['A'] = None  # as nobody could do from the page
    with pytest.raises(AttributeError):
        desk.controls['known'].value = False
    assert 'A fault of the program, AttributeError' in desk.sections['message'].value
