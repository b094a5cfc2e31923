"""Write requirements/*.txt, what the workflows install beside secrets, each file with its hash: `make lock`, after pyproject.toml or constraints.txt has changed.

run.txt is what the package needs and what builds it; torch.txt is torch as PyPI has it, with what it brings for CUDA. notify.txt is the little that a message to a chat needs.
"""

import re
import subprocess
from pathlib import Path

from uv import find_uv_bin

TOP = Path(__file__).resolve().parent.parent
BUILD = ['hatchling>=1.27']  # so that the package is built without asking a registry for a builder
NOTIFY = ['httpx', 'numpy', 'pyarrow', 'pydantic-settings', 'pyyaml', 'typer']  # what the command imports; a test looks
OF_TORCH = re.compile(r'(torch|triton|cuda-|nvidia-)')


def compiled(
    *needs: str,  # requirements beside those of the project
    project: bool = True,  # False: only `needs`
) -> dict[str, str]:  # lines of a requirements file by name: version, marker, hashes
    "Resolve to the versions of constraints.txt, for every system and Python that the project allows."
    command = [
        find_uv_bin(),
        'pip',
        'compile',
        '-q',
        '--universal',
        '--generate-hashes',
        '--no-annotate',
        '--no-header',
    ]
    command += ['--python-version', '3.11', '-c', 'constraints.txt', '-', *['pyproject.toml'] * project]
    text = subprocess.run(
        command, input='\n'.join(needs), check=True, text=True, stdout=subprocess.PIPE, cwd=TOP
    ).stdout
    return {re.match(r'[\w.-]+', entry)[0]: entry for entry in re.split(r'\n(?=\S)', text.strip())}


def locked() -> dict[str, dict[str, str]]:  # entries by name of the file
    "What stands in each file."
    run = compiled(*BUILD)
    return {
        'run': {name: entry for name, entry in run.items() if not OF_TORCH.match(name)},
        'torch': {name: entry for name, entry in run.items() if OF_TORCH.match(name)},
        'notify': compiled(*BUILD, *NOTIFY, project=False),
    }


if __name__ == '__main__':
    for file, entries in locked().items():
        path = TOP / 'requirements' / f'{file}.txt'
        path.parent.mkdir(exist_ok=True)
        path.write_text('\n'.join(['# Made by `make lock`.', *entries.values(), '']), encoding='utf-8')
