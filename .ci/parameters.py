"PARAMETERS.md and the cell tagged `parameters` of each stage, from the classes of settings."

import json
from pathlib import Path

from twotower.runs.parameters import parameter_rows, parameters_cell
from twotower.runs.settings import SETTINGS

TOP = Path(__file__).resolve().parent.parent
HEAD = """# All parameters

Made by `make readme` from the classes in [runs/settings](nbs/runs/settings.ipynb). A profile in `params/` lists what differs from these defaults, `-p name=value` changes one for a run
of `twotower run`, and a program passes an object of the class, such as `TrainSettings(epochs=10)`. A value of another type or out of its range is refused before anything runs.
"""


def page() -> str:
    "The whole page: a table for each stage."
    parts = [HEAD]
    for stage, settings in SETTINGS.items():
        rows = [
            ' | '.join(f'`{v}`' if k in ('name', 'default') else v for k, v in row.items())
            for row in parameter_rows(settings)
        ]
        head = f'\n## {stage}\n\n`{settings.__name__}`: {settings.__doc__}\n\n| name | type | default | range | what for |\n| --- | --- | --- | --- | --- |\n'
        parts.append(head + ''.join(f'| {row} |\n' for row in rows))
    return ''.join(parts)


def with_parameters(notebook: dict, source: str) -> dict:
    "The notebook with this source in its tagged cell."
    for cell in notebook['cells']:
        if 'parameters' in cell['metadata'].get('tags', []):
            cell['source'] = source.splitlines(keepends=True)
    return notebook


if __name__ == '__main__':
    (TOP / 'PARAMETERS.md').write_text(page(), encoding='utf-8')
    for stage, settings in SETTINGS.items():
        path = TOP / f'nbs/{stage}.ipynb'
        notebook = with_parameters(json.loads(path.read_text(encoding='utf-8')), parameters_cell(settings))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
