"The lower bounds of pyproject.toml as constraints for pip: `make lowest` installs just these, and imports every module."

import re
import tomllib
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


def lowest(requirement: str) -> str:
    "The lowest version that a requirement allows, such as `numpy==2` of `numpy>=2`."
    name, bound = re.fullmatch(r'([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)(?:,.*)?', requirement).groups()
    return f'{name}=={bound}'


if __name__ == '__main__':
    project = tomllib.loads((TOP / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    print('\n'.join(map(lowest, project['dependencies'])))
