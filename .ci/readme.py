"README.md from nbs/index.ipynb and README.ja.md from nbs/index_ja.ipynb: the cells in their order, links as seen from the top; and the house in CONTRIBUTING.md."

import json
import posixpath
import re
from pathlib import Path

from house import picture

TOP = Path(__file__).parent.parent
HOUSE = '<!-- house -->'


def seen_from_top(link: re.Match) -> str:
    target = link[2]
    inside = not re.match(r'[a-z]+:|#', target)
    return f'{link[1]}({posixpath.normpath(posixpath.join("nbs", target)) if inside else target})'


def text(cell: dict, language: str) -> str:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'code':
        return '```python\n' + re.sub(r'^#\|.*\n', '', source, flags=re.M) + '\n```'
    seen = re.sub(r'(!?\[[^\]]*\])\(([^)\s]+)\)', seen_from_top, source)
    return seen.replace(HOUSE, picture(language).strip()) if HOUSE in seen else seen


if __name__ == '__main__':
    for name, notebook, language in (('README.md', 'index', 'en'), ('README.ja.md', 'index_ja', 'ja')):
        cells = json.loads((TOP / f'nbs/{notebook}.ipynb').read_text(encoding='utf-8'))['cells']
        (TOP / name).write_text('\n\n'.join(text(c, language).strip() for c in cells) + '\n', encoding='utf-8')
    path = TOP / 'CONTRIBUTING.md'
    before, _, after = path.read_text(encoding='utf-8').partition(HOUSE)
    _, _, after = after.partition('\n\n## ')
    path.write_text(f'{before}{HOUSE}\n\n{picture()}\n## {after}', encoding='utf-8')
