"SETTINGS.md from the class of settings: what each variable and secret is for, what can't do without it, and who reads it."

import re
from pathlib import Path

from pydantic import SecretStr

from twotower.base.settings import Environment

TOP = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((TOP / '.github/workflows').glob('*.yml'))
HEAD = """# Variables and secrets

Made by `make readme` from `twotower.base.settings.Environment`. They come from the environment, or from a file `.env` beside `settings.ini`; on GitHub from the settings of the
repository, under Secrets and variables, Actions. Where there are several names, the first one that is set is taken.
Without any of them everything runs on an embedded PostgreSQL and a local folder.
The values of the secrets, also of those that nobody here reads, are what `twotower run` and `twotower secrets` look for in all that was written.
Beside them count `TWOTOWER_HOME` (the folder of the project, instead of the one one stands in) and what PostgreSQL's driver reads by itself, such as `PGPASSWORD`.

| name | kind | required | what it is | read by |
| --- | --- | --- | --- | --- |
"""


def workflows(names: list[str]) -> list[str]:
    "The workflows that pass one of these names on."
    passed = re.compile(rf'\b(?:secrets|vars)\.(?:{"|".join(names)})\b')
    return [path.name for path in WORKFLOWS if passed.search(path.read_text(encoding='utf-8'))]


def modules(field: str) -> list[str]:
    "The modules that read a field of the settings."
    read = re.compile(rf'\b(?:env|environment\(\))\.{field}\b')
    return [
        path.relative_to(TOP / 'twotower').as_posix()
        for path in sorted((TOP / 'twotower').rglob('*.py'))
        if read.search(path.read_text(encoding='utf-8'))
    ]


def row(field: str) -> str:
    "One line of the table."
    facts = Environment.model_fields[field]
    names, secret = facts.validation_alias.choices, SecretStr in getattr(facts.annotation, '__args__', ())
    users = [*(f'`{name}`' for name in modules(field)), *(f'`{name}`' for name in workflows(names))]
    kind = 'secret' if secret else 'variable'
    if not secret and any(
        re.search(rf'\bsecrets\.{names[0]}\b', path.read_text(encoding='utf-8')) for path in WORKFLOWS
    ):
        kind = 'variable or secret'
    purpose = facts.json_schema_extra['needed']
    cells = (
        ', '.join(f'`{name}`' for name in names),
        kind,
        f'for {purpose}' if purpose else 'no',
        facts.description,
        ', '.join(users) or 'nobody here',
    )
    return f'| {" | ".join(cells)} |\n'


def text() -> str:
    "The whole file."
    return HEAD + ''.join(map(row, Environment.model_fields))


if __name__ == '__main__':
    (TOP / 'SETTINGS.md').write_text(text(), encoding='utf-8')
