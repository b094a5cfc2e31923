"The site: every notebook is a page with its results, every link leads somewhere, nothing comes from elsewhere, functions and parameters are found."

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat.v4 as nbf
import playwright.sync_api as playwright
import pytest

TOP = Path(__file__).parent.parent
MARKDOWN = [
    path.relative_to(TOP)
    for pattern in ('*.md', 'bench/*.md', 'examples/*/*.md', 'site/*.md')
    for path in sorted(TOP.glob(pattern))
]


def build(source: Path, place: Path) -> subprocess.CompletedProcess:
    "Sphinx as `make docs` calls it, in one process."
    options = ['-q', '-E', '-W', '--keep-going', '-c', TOP / 'site', '-d', place / 'doctrees']
    command = [sys.executable, '-m', 'sphinx', *options, source, place / 'site']
    return subprocess.run(command, capture_output=True, text=True)


class Page(HTMLParser):
    "The anchors of a page, where it leads, and what a browser fetches for it."

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get('id'))
        self.links += [given['href']] if tag == 'a' and given.get('href') else []
        if tag in ('script', 'img', 'iframe', 'source') or (tag == 'link' and given.get('rel') != 'canonical'):
            self.loads += [given[name] for name in ('src', 'href') if given.get(name)]


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp('docs')
    done = build(TOP, place)
    assert done.returncode == 0, done.stderr
    return place / 'site'


@pytest.fixture(scope='module')
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding='utf-8')) for path in site.rglob('*.html')}


@pytest.fixture(scope='module')
def browser():
    program = shutil.which('chromium')
    assert program, 'chromium is not on the PATH: apt-get install chromium'
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=['--no-sandbox', '--disable-gpu'])
        yield opened
        opened.close()


def test_every_notebook_and_every_markdown_file_is_a_page_and_in_the_sidebar(site, pages):
    links = set(pages[site / 'README.html'].links)
    notebooks = [
        path.relative_to(TOP) for path in (TOP / 'nbs').rglob('[!.]*.ipynb') if not path.stem.startswith('index')
    ]
    notebooks = [path for path in notebooks if '.ipynb_checkpoints' not in path.parts]
    assert len(notebooks) > 40
    for source in [*notebooks, *MARKDOWN]:
        page = source.with_suffix('.html').as_posix()
        assert (site / page).is_file()
        assert page in links or page == 'README.html'


def test_every_link_of_the_site_leads_somewhere(pages):
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.path == '' == parts.fragment:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f'{path}: {link}'
            assert not parts.fragment or unquote(parts.fragment) in pages[target].ids, f'{path}: {link}'


def test_nothing_is_fetched_from_elsewhere(site, pages):
    assert not [load for page in pages.values() for load in page.loads if re.match(r'(https?:)?//', load)]
    for style in site.rglob('*.css'):
        assert not re.search(r'@import|url\(["\']?(https?:)?//', style.read_text(encoding='utf-8')), style


def test_formulas_are_mathml(site, pages):
    formulas = 0
    for path in pages:
        text = path.read_text(encoding='utf-8')
        formulas += text.count('<math')
        assert not re.findall(r'\$\\?\w[^$<\n]*\$', re.sub(r'<(pre|code|script)\b.*?</\1>', '', text, flags=re.S)), path
    assert formulas > 20


def test_every_public_function_is_listed_with_its_comments_and_its_notebook(site):
    text = (site / 'site/functions.html').read_text(encoding='utf-8')
    for module in (TOP / 'twotower').rglob('[a-z]*.py'):
        source = module.read_text(encoding='utf-8')
        notebook = re.search(r'File to edit: \S*(nbs/\S+)\.ipynb', source)
        for name in re.findall(r'^(?:def|class) ([a-z]\w*)', source, re.M) if notebook else []:
            anchor = '.'.join([*module.relative_to(TOP).with_suffix('').parts, name])
            assert f'id="{anchor}"' in text, anchor
            assert f'href="../{notebook[1]}.html#def-{name}"' in text, anchor
    assert '<strong>k</strong> – length of the lists, &gt; 0' in text


def test_a_browser_finds_functions_and_parameters_from_a_file(site, browser):
    page, asked = browser.new_page(viewport={'width': 390, 'height': 800}, color_scheme='dark'), []
    page.on('request', lambda request: asked.append(urlsplit(request.url).scheme))
    for word, expected in {'min_stars': 'prep', 'history_dropout': 'train', 'top_k': 'metrics'}.items():
        page.goto(f'file://{site}/search.html?q={word}')
        page.locator('#search-results li a', has_text=expected).first.wait_for()  # the list grows while one looks
    page.goto(f'file://{site}/README.html')
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')  # a phone shows it all
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') != 'rgb(255, 255, 255)'
    assert set(asked) <= {'file', 'data'}


def project(top: Path, prose: str = 'See [the rows](#rows), [all](../../README.md) and [a file](split.py).') -> Path:
    "A small repository with one notebook that has run, and one of a stage that has not."
    for path in MARKDOWN:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(f'# {path}\n')
    (top / 'README.md').write_text('# Small\n\n[Split](nbs/data/split.ipynb#rows), [in a folder](nbs/data)\n')
    sources = [
        '#| default_exp data.split',
        '#| export\nimport os',
        '#| export\ndef part(): ...',
        "#| run\nprint('yes')",
    ]
    cells = [nbf.new_markdown_cell(f'# split\n\n{prose}\n\n## Rows\n\n$x_1$'), *map(nbf.new_code_cell, sources)]
    for folder in (top / 'nbs/data', top / '_ran/nbs/data'):
        folder.mkdir(parents=True)
        (folder / 'split.ipynb').write_text(json.dumps(nbf.new_notebook(cells=cells)))
        (folder / 'split.py').write_text('')
        cells[3].outputs = [nbf.new_output('stream', text='from the tests')]
    (top / 'nbs/01_prep.ipynb').write_text(
        json.dumps(nbf.new_notebook(cells=[nbf.new_markdown_cell('# prep'), cells[4]]))
    )
    return top


def test_a_page_shows_the_results_and_no_directives(tmp_path):
    top = project(tmp_path)
    done = build(top, tmp_path / '_built')
    assert done.returncode == 0, done.stderr
    text = (tmp_path / '_built/site/nbs/data/split.html').read_text()
    assert 'from the tests' in text
    assert '#|' not in text
    assert 'default_exp' not in text
    assert '<span id="def-part"></span>' in text
    assert re.search(r'<details class="[^"]*hide', text)
    menu = re.search(r'<div class="sidebar-tree">.*?</div>', text, re.S)[0]
    assert re.findall(r'<span class="caption-text">(\w+)', menu) == ['start', 'stages', 'data']
    text = (tmp_path / '_built/site/nbs/01_prep.html').read_text()
    assert 'has not been run' in text


def test_a_stage_shows_its_newest_run(tmp_path):
    top = project(tmp_path)
    nb = json.loads((top / 'nbs/01_prep.ipynb').read_text())
    nb['cells'][1]['outputs'] = [nbf.new_output('stream', text='from the run')]
    nb['cells'].insert(1, nbf.new_code_cell('injected = 1'))
    (top / 'outputs/latest/reports').mkdir(parents=True)
    (top / 'outputs/latest/reports/01_prep.ipynb').write_text(json.dumps(nb))
    assert build(top, tmp_path / '_built').returncode == 0
    text = (tmp_path / '_built/site/nbs/01_prep.html').read_text()
    assert 'from the run' in text
    assert 'injected' not in text


def test_a_dead_link_stops_the_build(tmp_path):
    dead = ['gone.ipynb', 'split.ipynb#no-section', '#nowhere', '../../LOST.md', '../../README.md#missing']
    done = build(project(tmp_path, ' '.join(f'[dead]({link})' for link in dead)), tmp_path / '_built')
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if 'nbs/data/split.ipynb' in line and 'xref_missing' in line]
    assert len(warnings) == len(dead)
    for word in ('gone.ipynb', 'no-section', 'nowhere', 'LOST.md', 'missing'):
        assert any(word in line for line in warnings), word
