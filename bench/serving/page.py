"""Seconds until the page of `twotower qual` is there, and until each click is answered, in a real Chromium, on made data.

python bench/serving/page.py                                 # two runs of 1,000,000 videos, 100,000 users, 128 dimensions
python bench/serving/page.py --items 10000 --users 1000      # a small one

The data is made in a temporary folder, with titles, three tags, two performers and a maker for each video, and twenty opinions and sixty pseudo-negatives for each
user. Time is taken in the browser: from the click until the page shows the answer and has been drawn. Each click is done several times, with other values each time.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
from IPython.utils.capture import capture_output
from playwright.sync_api import Page, sync_playwright

from twotower.base.tables import (
    INTERACTIONS,
    ITEM_FEATURES,
    KIND,
    LABEL,
    STARS,
    TIME,
    USER,
    VIDEO,
    embeddings_schema,
    embeddings_table,
    write_table,
)  # fmt: skip
from twotower.page.desk import show
from twotower.page.open_run import open_run
from twotower.runs.run import ITEMS, TRAIN, USER_EMBEDDINGS, VIDEO_EMBEDDINGS, Run, create_run

QUIET = ('gpu', 'quic', 'background-networking', 'component-update', 'sync')
OPTIONS = ['--no-sandbox', '--no-first-run', *(f'--disable-{name}' for name in QUIET)]
# resolves when a section has changed and the browser has drawn it
CHANGED = """([section, act]) => new Promise((done, fail) => {
    setTimeout(() => fail(new Error(`no answer to ${act}`)), 20000)
    const place = document.querySelectorAll('.tt-page .widget-html-content')[section], start = performance.now()
    const watch = new MutationObserver(() => { watch.disconnect()
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))) })
    watch.observe(place, {childList: true, subtree: true, characterData: true})
    const [label, value] = act
    const box = [...document.querySelectorAll('.tt-page label')].find(l => l.innerText.trim() === label)
    const control = box ? document.getElementById(box.htmlFor) || box.querySelector('input')
        : [...document.querySelectorAll('.tt-page button')].find(b => b.innerText.trim() === label)
    if (control.tagName === 'SELECT') { control.selectedIndex = value; control.dispatchEvent(new Event('change', {bubbles: true})) }
    else if (control.type === 'text') { control.value = value
        for (const kind of ['keydown', 'input', 'keyup', 'change']) control.dispatchEvent(new Event(kind, {bubbles: true})) }
    else control.click()
})"""


def texts(numbers: np.ndarray, form: str) -> pa.Array:
    return pa.array([form.format(n) for n in numbers.tolist()])


def lists(rng: np.random.Generator, n: int, each: int, names: pa.Array) -> pa.Array:
    "`each` of the names for each of n videos, the first names most often."
    codes = np.minimum(rng.zipf(1.3, n * each), len(names)) - 1
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * each), names.take(pa.array(codes)))


def make(run: Run, seed: int, n_items: int, n_users: int) -> None:
    rng = np.random.default_rng(seed)
    for folder in (run.prep, run.model):
        folder.mkdir()
    videos, users = (
        texts(np.arange(n_items), '{:08x}-0000-4000-8000-000000000000'),
        texts(np.arange(n_users), 'user-{:06}'),
    )
    column = {
        VIDEO: videos,
        'title': texts(rng.permutation(n_items), 'Title of video {}'),
        'tags': lists(rng, n_items, 3, texts(np.arange(2000), 'tag {}')),
        'performers': lists(rng, n_items, 2, texts(np.arange(10_000), 'performer {}')),
        'maker': texts(np.arange(500), 'maker {}').take(pa.array(rng.integers(0, 500, n_items))),
        'popularity': pa.array(rng.zipf(1.5, n_items).clip(max=10_000).astype(np.int32)),
    }
    columns = [column.get(f.name, pa.nulls(n_items, f.type)) for f in ITEM_FEATURES]
    write_table(run.prep / ITEMS, pa.table(columns, schema=ITEM_FEATURES), ITEM_FEATURES)
    each = min(80, n_items)
    user = np.repeat(np.arange(n_users), each)
    item = (rng.integers(0, n_items, n_users)[:, None] + np.arange(each) * 7919).ravel() % n_items
    kind = pa.array(['like', 'pseudo', 'pseudo', 'pseudo'] * (len(user) // 4 + 1)).slice(0, len(user))
    liked = pc.equal(kind, 'like')
    column = {
        USER: users.take(pa.array(user)),
        VIDEO: videos.take(pa.array(item)),
        KIND: kind,
        LABEL: liked.cast(pa.int8()),
    }
    column[STARS] = pc.if_else(liked, pa.scalar(5, pa.float32()), None)
    column[TIME] = pa.array(rng.integers(0, 2**50, len(user))).cast(INTERACTIONS.field(TIME).type)
    write_table(run.prep / TRAIN, pa.table([column[n] for n in INTERACTIONS.names], schema=INTERACTIONS), INTERACTIONS)
    vectors = rng.standard_normal((n_items, 128), np.float32)
    tastes = vectors[item.reshape(n_users, each)[:, ::4]].sum(
        1
    )  # near to what they like, so that the known videos are in the lists
    for name, key, ids, of in ((USER_EMBEDDINGS, USER, users, tastes), (VIDEO_EMBEDDINGS, VIDEO, videos, vectors)):
        of /= np.linalg.norm(of, axis=1, keepdims=True)
        write_table(run.model / name, embeddings_table(key, ids, of), embeddings_schema(key))


def clicks(page: Page, rng: np.random.Generator, repeats: int, n_users: int, n_items: int) -> dict[str, list[float]]:
    "Milliseconds of each answer, by what was done."
    sections = page.locator('.tt-page .widget-html-content').count()
    place = {name: next(i for i in range(sections) if page.locator('.tt-page .widget-html-content').nth(i).inner_text().startswith(head)) + after for name, head, after in [('lists', 'One user', 1), ('bias', 'The data', 1), ('near', 'Neighbours', 1)]}  # fmt: skip
    steps = {
        'another user': ('lists', lambda i: ['Another user', None]),
        'leave out known videos': ('lists', lambda i: ['Leave out known videos', None]),
        'length of the lists': ('lists', lambda i: ['Length of the lists', (i + 1) % 3]),
        'a user from the matches': ('lists', lambda i: ['User', 1 + i]),
        'search a user': ('lists', lambda i: ['Find a user', f'{rng.integers(n_users):06}']),
        'attribute': ('bias', lambda i: ['Look at', (i + 1) % 3]),
        'search a video': ('near', lambda i: ['Find a video', f'{rng.integers(n_items)}']),
        'a video from the matches': ('near', lambda i: ['Video', 1 + i % 2]),
    }
    found = {}
    for name, (section, act) in steps.items():
        if name == 'a video from the matches':
            page.evaluate(CHANGED, [place['near'], ['Find a video', 'video 1']])
            page.wait_for_timeout(500)
        found[name] = []
        for i in range(repeats):
            found[name].append(page.evaluate(CHANGED, [place[section], act(i)]))
            page.wait_for_timeout(400)  # until what follows from it is there as well
    return found


def answers(outputs: Path, rng: np.random.Generator, a: argparse.Namespace, runs: tuple[str, ...]) -> None:
    "Print what each answer costs in this process, without a browser; CPU seconds don't change with other work on the machine."
    with capture_output():
        desk = show(*runs, outputs=outputs)
    boxes = desk.controls
    steps = {
        'another user': lambda i: boxes['other'].click(),
        'leave out known videos': lambda i: boxes['known'].set_trait('value', bool(i % 2)),
        'length of the lists': lambda i: boxes['k'].set_trait('index', (i + 1) % 3),
        'a user from the matches': lambda i: boxes['user'].set_trait('index', 1 + i),
        'search a user': lambda i: boxes['user_part'].set_trait('value', f'{rng.integers(a.users):06}'),
        'attribute': lambda i: boxes['attribute'].set_trait('index', (i + 1) % 3),
        'search a video': lambda i: boxes['video_part'].set_trait('value', f'{rng.integers(a.items)}'),
        'all videos again': lambda i: boxes['video_part'].set_trait('value', 'video 1' if i % 2 else ''),
    }
    print(f'\n| {len(runs)} run(s), answers alone | CPU ms | wall ms, median | load |\n| --- | ---: | ---: | ---: |')
    for name, step in steps.items():
        spent = []
        for i in range(a.repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            step(i)
            spent.append((1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)))
        cpu, wall = (statistics.median(x) for x in zip(*spent, strict=True))
        print(f'| {name} | {cpu:.0f} | {wall:.0f} | {os.getloadavg()[0]:.1f} |', flush=True)


def browse(address: str, rng: np.random.Generator, a: argparse.Namespace) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which('chromium'), args=OPTIONS)
        page = browser.new_page(viewport={'width': 1280, 'height': 900})
        page.set_default_timeout(300_000)
        start = time.perf_counter()
        page.goto(address)
        page.get_by_text('Run A would show').wait_for()
        print(
            f'until the lists are there, from nothing: {time.perf_counter() - start:.1f} s (load {os.getloadavg()[0]:.1f})'
        )
        page.get_by_text('ten videos for each').first.wait_for()
        print(f'until the distribution is there: {time.perf_counter() - start:.1f} s')
        for what in ('one run', 'two runs'):
            if what == 'two runs':
                start = time.perf_counter()
                page.get_by_label('Run B, to compare').select_option(index=2)
                page.get_by_text('Run B would show').wait_for()
                print(f'\nuntil run B is there: {time.perf_counter() - start:.1f} s')
                page.get_by_text('Run B, tags: ten videos').wait_for()
            print(f'\n| {what}: click | median ms | slowest ms | load |\n| --- | ---: | ---: | ---: |')
            for name, spent in clicks(page, rng, a.repeats, a.users, a.items).items():
                print(
                    f'| {name} | {statistics.median(spent):.0f} | {max(spent):.0f} | {os.getloadavg()[0]:.1f} |',
                    flush=True,
                )
        kernels = [
            p
            for p in psutil.process_iter(['cmdline'])
            if 'ipykernel_launcher' in (p.info['cmdline'] or []) and p.ppid() == a.server
        ]
        for kernel in kernels:
            print(f'\nmemory of the kernel with both runs: {kernel.memory_info().rss / 1e9:.1f} GB')
        browser.close()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {'items': 1_000_000, 'users': 100_000, 'repeats': 7}.items():
        ask.add_argument(f'--{name}', type=int, default=default)
    ask.add_argument('--no-browser', dest='browser', action='store_false', help='only the answers')
    a, rng = ask.parse_args(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as home:
        for seed, run_id in enumerate(('second', 'first')):
            make(create_run(run_id, Path(home) / 'outputs'), seed, a.items, a.users)
            time.sleep(1.1)  # the newer one comes first
        wall, cpu = time.perf_counter(), time.process_time()
        open_run(Run(Path(home) / 'outputs' / 'runs' / 'first'))
        print(
            f'{a.items:,} videos, {a.users:,} users, 20 opinions each; open_page alone: {time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} s of CPU'
        )
        for runs in (('first',), ('first', 'second')):
            answers(Path(home) / 'outputs', rng, a, runs)
        if not a.browser:
            return
        command = [
            sys.executable,
            '-c',
            'from twotower.cli import main; main()',
            'qual',
            '--no-browser',
            '--port',
            '8995',
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {'TWOTOWER_HOME': home})
        try:
            a.server = server.pid
            browse(re.search(r'http\S+', server.stdout.readline())[0], rng, a)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


if __name__ == '__main__':
    main()
