"""Links that lead nowhere: in a built site (pages, files, anchors) and in the Markdown files of the repository. Nothing is fetched."""

import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prose import renderer

TOP = Path(__file__).resolve().parent.parent
LOADS = {
    'script': 'src',
    'img': 'src',
    'link': 'href',
    'iframe': 'src',
    'source': 'src',
}  # what a browser fetches by itself


class Page(HTMLParser):
    "The anchors of a page and where it leads."

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.targets, self.loads = Counter(), [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.update([given['id']] if given.get('id') else [])
        if tag in LOADS and given.get(LOADS[tag]):
            self.loads.append(given[LOADS[tag]])
        if tag == 'a' and given.get('href') is not None:
            self.targets.append(given['href'])


def _missing(target: str, origin: Path, root: Path, anchors: dict[Path, set]) -> str | None:
    "Why a link within `root` leads nowhere."
    parts = urlsplit(target)
    path = (origin.parent / unquote(parts.path)).resolve() if parts.path else origin
    if not path.is_relative_to(root):
        return 'leads out of the folder'
    if not path.exists():
        return 'no such file'
    if parts.fragment and path in anchors and unquote(parts.fragment) not in anchors[path]:
        return 'no such anchor'
    return None


def broken_in_site(
    site: Path,  # a folder of HTML files
) -> list[str]:  # one line for each fault
    "Dead links and anchors, anchors that are there twice, and whatever would be fetched from elsewhere."
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding='utf-8')) for path in sorted(site.rglob('*.html'))}
    anchors, found = {path: set(page.ids) for path, page in pages.items()}, []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f'{name}: the anchor {anchor} is there {n} times' for anchor, n in page.ids.items() if n > 1]
        found += [
            f'{name}: {load} is fetched from elsewhere'
            for load in page.loads
            if urlsplit(load).scheme in ('http', 'https')
        ]
        inside = [target for target in page.targets + page.loads if not urlsplit(target).scheme]
        found += [f'{name}: {target}: {why}' for target in inside if (why := _missing(target, path, site, anchors))]
    return found


def broken_in_markdown(
    files: list[Path],  # Markdown files of the repository
    root: Path = TOP,  # the repository
) -> list[str]:  # one line for each fault
    "Links of Markdown files to files and anchors that are not there."
    anchors, links = {}, []
    for path in [path.resolve() for path in files]:
        targets = []
        parse, page = renderer(lambda url, targets=targets: targets.append(url) or url)
        parse(path.read_text(encoding='utf-8'))
        anchors[path] = {anchor for _, anchor, _ in page.headings}
        links += [(path, target) for target in targets]
    inside = [(path, target) for path, target in links if not urlsplit(target).scheme]
    return [
        f'{path.relative_to(root)}: {target}: {why}'
        for path, target in inside
        if (why := _missing(target, path, root, anchors))
    ]


def markdown_files() -> list[Path]:  # what people read on the site of the repository
    "The Markdown files of the repository."
    return sorted([*TOP.glob('*.md'), *(TOP / 'bench').glob('*.md'), *(TOP / 'examples').glob('*/README.md')])


if __name__ == '__main__':
    sys.exit(
        '\n'.join(
            [
                *broken_in_markdown(markdown_files()),
                *(line for name in sys.argv[1:] for line in broken_in_site(Path(name))),
            ]
        )
        or None
    )
