"""The notebooks and Markdown files as a site in a folder: `python .ci/docs.py [FOLDER]`. It needs no server and no network, and its links are checked."""

import ast
import html
import json
import posixpath
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from links import broken_in_markdown, broken_in_site, markdown_files
from prose import coloured, plain, renderer
from pygments.formatters import HtmlFormatter

TOP = Path(__file__).resolve().parent.parent
SITE = Path(__file__).parent / 'site'
MARK = (SITE / 'site.js').read_text(encoding='utf-8').partition('\n')[0]  # by which an older site is known
FRONT = {
    'README.md': 'Introduction',
    'README.ja.md': '日本語',
    'api.html': 'All functions',
    'SETTINGS.md': 'Settings',
    'FAULTS.md': 'Faults',
    'bench/README.md': 'Benchmarks',
    'bench/SCALE.md': 'Beyond one machine',
    'examples/node/README.md': 'The model without Python',
    'CONTRIBUTING.md': 'Contributing',
    'CHANGELOG.md': 'Changes',
}
LAYERS = {
    'The six stages': '01 02 03 04 05 06',
    'Every day': '22',
    'Commands, runs, pages': '07 08 09 29 30 31 34 25',
    'On a machine or on GitHub': '33 32 35 36',
    'From columns to a model': '11 12 19 28 26',
    'Judging': '13 23',
    'Beyond one machine': '39 40 41 42 43',
    'Doors to the outside': '10 38 37 14 21 27 15 20 24 16 17 18',
    'Core': '00',
}  # by architecture.md; a notebook that is not here is listed under `Further`
HIDDEN = re.compile(r'^#\|\s*(default_exp|hide)\b', re.M)


@dataclass
class Page:
    "One page of the site."

    source: str  # its file in the repository
    target: str  # its file in the site
    name: str = ''  # in the menu
    title: str = ''  # its first heading
    claim: str = ''  # the line under it
    body: str = ''  # HTML
    language: str = 'en'
    sections: list = field(default_factory=list)  # level, anchor, text
    words: list = field(default_factory=list)  # anchor, heading, text; for the search


def address(source: str) -> str:  # of a file in the repository
    "Where a file of the repository is in the site."
    special = {
        'README.md': 'index.html',
        'README.ja.md': 'ja.html',
        'nbs/index.ipynb': 'index.html',
        'nbs/index_ja.ipynb': 'ja.html',
    }
    return special.get(source) or re.sub(r'\.(ipynb|md)$', '.html', source)


def linker(page: Page, files: set[str]):
    "Addresses in the source of `page` as addresses in the site; the files they lead to are noted in `files`."

    def link(url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme or not parts.path:
            return url
        source = posixpath.normpath(posixpath.join(posixpath.dirname(page.source), parts.path))
        target = address(source)
        if target == source and (TOP / source).is_file():
            target = source if '.' in posixpath.basename(source) else f'{source}.txt'
            files.add(source)
        if (TOP / source).is_dir():  # a folder has no page: its list of files has
            target = f'{source}/index.html'
            files.add(source)
        there = posixpath.relpath(target, posixpath.dirname(page.target) or '.')
        return there + (f'#{parts.fragment}' if parts.fragment else '')

    return link


def defined(source: str) -> list[str]:  # names
    "The public functions and classes of a cell."
    return [node.name for node in ast.parse(source).body if hasattr(node, 'name') and not node.name.startswith('_')]


def code_cell(source: str, tags: list[str]) -> str:
    "A cell of code: of the library, a test, a parameter, or what papermill runs."
    flags = re.findall(r'^#\|\s*(\w+)', source, re.M)
    code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')
    kind = (
        'parameters'
        if 'parameters' in tags
        else 'library'
        if 'export' in flags
        else 'run'
        if 'run' in flags
        else 'test'
    )
    label = {'parameters': 'parameters', 'library': 'library', 'run': 'runs in a chain', 'test': 'test'}[kind]
    anchors = ''.join(f'<span id="def-{name}"></span>' for name in defined(code)) if kind == 'library' else ''
    block = f'<pre tabindex="0"><code>{coloured(code, "python")}</code></pre>'
    if set(map(type, ast.parse(code).body)) <= {ast.Import, ast.ImportFrom}:
        return f'<details class="cell {kind}"><summary>imports</summary>{block}</details>\n'
    return f'<div class="cell {kind}">{anchors}<span class="kind">{label}</span>{block}</div>\n'


def render(page: Page, files: set[str]) -> Page:
    "Fill a page from its source."
    path = TOP / page.source
    if path.suffix == '.ipynb':
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        texts = [(cell['cell_type'], ''.join(cell['source']), cell['metadata'].get('tags', [])) for cell in cells]
    else:
        texts = [('markdown', path.read_text(encoding='utf-8'), [])]
    parse, made = renderer(linker(page, files))
    parts = []
    for kind, text, tags in texts:
        if kind == 'markdown':
            parts.append(parse(text))
        elif text.strip() and not HIDDEN.search(text):
            parts.append(code_cell(text, tags))
    page.body, page.sections = ''.join(parts), made.headings
    page.title = next((text for level, _, text in made.headings if level == 1), page.name)
    page.claim = plain(quote[1]) if (quote := re.search(r'<blockquote>(.*?)</blockquote>', page.body, re.S)) else ''
    page.words = words(page)
    return page


def words(page: Page) -> list[tuple[str, str, str]]:  # anchor, heading, text
    "What the search looks through: the prose of each section, and the functions by name."
    pieces = re.split(r'<h[1-6] id="([^"]+)">(.*?) <a class="anchor".*?</h[1-6]>', page.body, flags=re.S)
    prose = [
        re.sub(r'<pre\b.*?</pre>|<summary>.*?</summary>|<span class="kind">.*?</span>', ' ', p, flags=re.S)
        for p in pieces[3::3]
    ]
    sections = [
        (anchor, plain(heading), re.sub(r'\s+', ' ', plain(text)))
        for anchor, heading, text in zip(pieces[1::3], pieces[2::3], prose, strict=True)
    ]
    functions = [(f'def-{name}', f'{name}()', '') for name in re.findall(r'<span id="def-(\w+)"></span>', page.body)]
    return sections + functions


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    "How a function is called, in a line."
    if isinstance(node, ast.ClassDef):
        return f'class {node.name}'
    returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    return f'{node.name}({ast.unparse(node.args)}){returns}'


def api(pages: list[Page], notebooks: dict[str, str]) -> Page:
    "A page with every public function, by module; the code and its reasons are behind the links."
    page, known, out = (
        Page('api.html', 'api.html', FRONT['api.html'], 'All functions'),
        {p.source: p for p in pages},
        [],
    )
    for module in sorted((TOP / 'twotower').glob('[a-z]*.py')):
        tree = ast.parse(module.read_text(encoding='utf-8'))
        public = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_')
        ]
        source = notebooks.get(module.stem)
        if not public or source not in known:
            continue
        there = known[source].target
        lines = [
            f'<dt><a href="{there}#def-{node.name}"><code>{coloured(signature(node), "python").strip()}</code></a></dt>'
            f'<dd>{html.escape((ast.get_docstring(node) or "").split(chr(10))[0])}</dd>\n'
            for node in public
        ]
        page.sections.append((2, module.stem, f'twotower.{module.stem}'))
        claim = html.escape((ast.get_docstring(tree) or '').strip())
        out.append(
            f'<h2 id="{module.stem}">twotower.{module.stem}</h2>\n<p>{claim}</p>\n<dl class="api">\n{"".join(lines)}</dl>\n'
        )
    page.body = (
        '<h1>All functions</h1>\n<p>Parameters have their unit, shape and range beside them: follow a name to its code.</p>\n'
        + ''.join(out)
    )
    return page


def menu(pages: list[Page], here: Page) -> str:
    "The list of all pages."
    by_number = {Path(p.source).name[:2]: p for p in pages if p.source.startswith('nbs/')}
    front = [p for p in pages if not p.source.startswith('nbs/')]
    groups = {'Start': front} | {
        name: [by_number.pop(n) for n in ns.split() if n in by_number] for name, ns in LAYERS.items()
    }
    groups |= {'Further': list(by_number.values())} if by_number else {}
    out = []
    for name, members in groups.items():
        if not members:
            continue
        links = []
        for page in members:
            there = posixpath.relpath(page.target, posixpath.dirname(here.target) or '.')
            current = ' aria-current="page"' if page is here else ''
            links.append(
                f'<li><a href="{there}"{current} title="{html.escape(page.claim)}">{html.escape(page.name)}</a></li>'
            )
        out.append(f'<section><h2>{name}</h2><ul>{"".join(links)}</ul></section>\n')
    return ''.join(out)


def outline(page: Page) -> str:
    "The sections of a page."
    links = [
        f'<li><a href="#{anchor}">{html.escape(text)}</a></li>' for level, anchor, text in page.sections if level == 2
    ]
    heading = 'このページ' if page.language == 'ja' else 'On this page'
    return (
        f'<aside><nav aria-label="{heading}"><h2>{heading}</h2><ul>{"".join(links)}</ul></nav></aside>'
        if len(links) > 1
        else ''
    )


def whole(page: Page, pages: list[Page]) -> str:
    "The HTML file of a page."
    values = {
        'language': page.language,
        'title': html.escape(page.title if page.title == 'twotower' else f'{page.title} · twotower'),
        'description': html.escape(page.claim),
        'root': posixpath.relpath('.', posixpath.dirname(page.target) or '.'),
        'menu': menu(pages, page),
        'body': page.body,
        'outline': outline(page),
    }
    return re.sub(r'\{\{(\w+)\}\}', lambda found: values[found[1]], (SITE / 'page.html').read_text(encoding='utf-8'))


def module_of(notebook: Path) -> str | None:
    "The module that a notebook exports to."
    found = re.search(r'#\| default_exp (\w+)', notebook.read_text(encoding='utf-8'))
    return found[1] if found else None


def copy_files(files: set[str], site: Path) -> None:
    "What pages link to or show, beside them; of a folder a list of its files."
    for name in files:
        source = TOP / name
        if source.is_dir():
            entries = ''.join(
                f'<li>{html.escape(path.name)}</li>'
                for path in sorted(source.iterdir())
                if not path.name.startswith(('.', '__'))
            )
            (site / name).mkdir(parents=True, exist_ok=True)
            (site / name / 'index.html').write_text(
                f'<!doctype html><meta charset="utf-8"><title>{name}</title><h1>{name}</h1><ul>{entries}</ul>',
                encoding='utf-8',
            )
            continue
        target = site / (name if source.suffix else f'{name}.txt')
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def colours() -> str:
    "The style sheet of the code, by day and by night."
    day, night = (HtmlFormatter(style=style).get_style_defs('pre') for style in ('friendly', 'github-dark'))
    keep = [re.sub(r'^pre \{.*?\}\n', '', text, flags=re.M) for text in (day, night)]
    return f'{keep[0]}\n@media (prefers-color-scheme: dark) {{\n{keep[1]}\n}}\n'


def build(site: Path) -> list[Page]:
    "Write the whole site into an empty or a new folder, or in the place of an older site."
    notebooks = [path for path in sorted((TOP / 'nbs').glob('*.ipynb')) if not path.stem.startswith('index')]
    front = [Page(source, address(source), name) for source, name in FRONT.items() if (TOP / source).is_file()]
    pages = [*front, *(Page(f'nbs/{path.name}', f'nbs/{path.stem}.html', path.stem) for path in notebooks)]
    files: set[str] = set()
    for page in pages:
        page.language = 'ja' if page.source == 'README.ja.md' else 'en'
        render(page, files)
    pages.insert(min(2, len(pages)), api(pages, {module_of(path): f'nbs/{path.name}' for path in notebooks}))
    if site.exists() and any(site.iterdir()):
        script = site / 'site.js'  # written first, so that a site that was interrupted is known as well
        if not script.is_file() or script.read_text(encoding='utf-8').partition('\n')[0] != MARK:
            sys.exit(f'{site} holds something else than a site: name an empty or a new folder')
        shutil.rmtree(site)
    site.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SITE / 'site.js', site / 'site.js')
    for page in pages:
        (site / page.target).parent.mkdir(parents=True, exist_ok=True)
        (site / page.target).write_text(whole(page, pages), encoding='utf-8')
    copy_files(files, site)
    (site / 'site.css').write_text((SITE / 'site.css').read_text(encoding='utf-8') + colours(), encoding='utf-8')
    entries = [[p.target + f'#{anchor}', p.name, heading, text] for p in pages for anchor, heading, text in p.words]
    (site / 'search.js').write_text(f'window.SEARCH = {json.dumps(entries, ensure_ascii=False)};\n', encoding='utf-8')
    return pages


if __name__ == '__main__':
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else TOP / '_site'
    pages = build(site)
    if broken := broken_in_markdown(markdown_files()) + broken_in_site(site):
        sys.exit('\n'.join(['links that lead nowhere:', *broken]))
    print(f'{len(pages)} pages: {site}/index.html')
