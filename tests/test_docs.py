"The documentation site: every link leads somewhere, nothing comes from elsewhere, formulas and functions are there."

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
sys.path.insert(0, str(TOP / '.ci'))

import docs  # noqa: E402
import links  # noqa: E402
import prose  # noqa: E402


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp('site')
    docs.build(place)
    (place / 'gone.html').write_text('<a href="nowhere.html">')
    docs.build(place)
    return place


def test_every_link_of_the_site_leads_somewhere(site):
    assert links.broken_in_site(site) == []


def test_every_link_of_the_markdown_files_leads_somewhere():
    assert links.broken_in_markdown(links.markdown_files()) == []


def test_every_notebook_is_a_page_and_in_the_menu(site):
    menu = re.search(r'<nav id="site-menu".*?</nav>', (site / 'index.html').read_text(), re.S)[0]
    for notebook in (TOP / 'nbs').glob('[0-9]*.ipynb'):
        assert f'href="nbs/{notebook.stem}.html"' in menu


def test_formulas_are_mathml(site):
    text = (site / 'nbs/13_metrics.html').read_text()
    assert '<math' in text
    assert '<msub>' in text
    for page in site.rglob('*.html'):
        words = re.sub(r'<(pre|code)\b.*?</\1>', '', page.read_text(), flags=re.S)
        assert not re.findall(r'\$\\?\w[^$<\n]*\$', words), page


def test_cells_say_what_they_are(site):
    text = (site / 'nbs/13_metrics.html').read_text()
    assert '<div class="cell library"><span id="def-top_k"></span>' in text
    assert {'library', 'test'} <= set(re.findall(r'class="cell (\w+)"', text))
    assert {'parameters', 'run'} <= set(re.findall(r'class="cell (\w+)"', (site / 'nbs/03_eval.html').read_text()))
    assert '#|' not in text


def test_every_public_function_is_listed(site):
    text = (site / 'api.html').read_text()
    for name in (
        'nbs/13_metrics.html#def-top_k',
        'nbs/14_database.html#def-recommend',
        'nbs/00_core.html#def-atomic_file',
    ):
        assert f'href="{name}"' in text


def test_the_search_knows_sections_and_functions(site):
    entries = json.loads((site / 'search.js').read_text().removeprefix('window.SEARCH = ').rstrip().removesuffix(';'))
    assert ['nbs/13_metrics.html#def-top_k', '13_metrics', 'top_k()', ''] in entries
    [lists] = [
        text for target, _, heading, text in entries if target.startswith('nbs/13_metrics') and heading == 'The lists'
    ]
    assert lists.startswith('With unit vectors, the score of every video')
    assert 'torch.topk' not in lists


def test_a_site_replaces_an_older_one(site):
    assert not (site / 'gone.html').exists()


def test_nothing_but_a_site_is_replaced(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    (tmp_path / 'site.js').write_text('// of somebody else')
    with pytest.raises(SystemExit, match='holds something else than a site'):
        docs.build(tmp_path)
    assert (tmp_path / 'thesis.txt').read_text() == 'mine'


def test_faults_of_a_site_are_found(tmp_path):
    (tmp_path / 'a.html').write_text(
        '<h1 id="one">1</h1><h2 id="one">1</h2><a href="b.html#there">ok</a><a href="#one">ok</a><a href="https://x.example/no">not asked</a>'
        '<a href="b.html#gone">x</a><a href="c.html">x</a><a href="../secret">x</a><script src="https://cdn.example/x.js"></script><img src="p.png">'
    )
    (tmp_path / 'b.html').write_text('<p id="there">')
    assert links.broken_in_site(tmp_path) == [
        'a.html: the anchor one is there 2 times',
        'a.html: https://cdn.example/x.js is fetched from elsewhere',
        'a.html: b.html#gone: no such anchor',
        'a.html: c.html: no such file',
        'a.html: ../secret: leads out of the folder',
        'a.html: p.png: no such file',
    ]


def test_faults_of_markdown_files_are_found(tmp_path):
    (tmp_path / 'a.md').write_text(
        '# Own CSV, twice?\n\n[a](#own-csv-twice) [b](b.md#x) [c](b.md#y) [d](c.md) ![e](d.png) `[f](g.md)`\n'
    )
    (tmp_path / 'b.md').write_text('# X\n')
    files = [tmp_path / 'a.md', tmp_path / 'b.md']
    assert links.broken_in_markdown(files, tmp_path.resolve()) == [
        'a.md: b.md#y: no such anchor',
        'a.md: c.md: no such file',
        'a.md: d.png: no such file',
    ]


def test_anchors_are_those_of_github():
    used = Counter()
    told = [
        prose.slug(heading, used)
        for heading in ('Your own CSV', 'How good, how fast', '6 つのステージ', 'bench.py', 'Your own CSV')
    ]
    assert told == ['your-own-csv', 'how-good-how-fast', '6-つのステージ', 'benchpy', 'your-own-csv-1']


def test_markdown_becomes_safe_html():
    parse, page = prose.renderer(lambda url: f'to/{url}')
    assert parse('<script>x</script>') == '<p>&lt;script&gt;x&lt;/script&gt;</p>\n'
    assert parse('[a](b.md)') == '<p><a href="to/b.md">a</a></p>\n'
    assert '<msqrt>' in parse(r'It is $\sqrt{2}$.')
    assert '<span class="k">SELECT</span>' in parse('```sql\nSELECT 1;\n```')
    assert 'a &lt; b' in parse('```csv\na < b\n```')
    parse('## One `two`')
    assert page.headings == [(2, 'one-two', 'One two')]
