"The README is made from its notebook, its code runs, and its links lead somewhere."

import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent


def test_readme_is_made_from_the_notebook(tmp_path):
    for name in ('.ci/readme.py', 'nbs/index.ipynb'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((TOP / name).read_bytes())
    subprocess.run([sys.executable, tmp_path / '.ci/readme.py'], check=True)
    assert (tmp_path / 'README.md').read_text() == (TOP / 'README.md').read_text()


def test_links_lead_somewhere():
    for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'):
        for target in re.findall(r'\]\(([^)\s]+)\)', (TOP / name).read_text()):
            assert re.match(r'https?:', target) or (TOP / target).exists(), f'{name}: {target}'
