"Write README.md from nbs/index.ipynb and README.ja.md from nbs/index_ja.ipynb: the cells in their order, links as seen from the top."

import json
import posixpath
import re
from pathlib import Path

TOP = Path(__file__).parent.parent


def seen_from_top(link: re.Match) -> str:
    target = link[2]
    inside = not re.match(r'[a-z]+:|#', target)
    return f'{link[1]}({posixpath.normpath(posixpath.join("nbs", target)) if inside else target})'


def text(cell: dict) -> str:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'code':
        return '```python\n' + re.sub(r'^#\|.*\n', '', source, flags=re.M) + '\n```'
    return re.sub(r'(!?\[[^\]]*\])\(([^)\s]+)\)', seen_from_top, source)


for name, notebook in {'README.md': 'index', 'README.ja.md': 'index_ja'}.items():
    cells = json.loads((TOP / f'nbs/{notebook}.ipynb').read_text(encoding='utf-8'))['cells']
    (TOP / name).write_text('\n\n'.join(text(c).strip() for c in cells) + '\n', encoding='utf-8')
