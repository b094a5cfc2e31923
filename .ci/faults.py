"""FAULTS.md from the tests: every test marked `fault` says what goes wrong and what the user sees; what is lost is always nothing, or the test fails."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# What goes wrong, and what is lost

Made by `make readme` from the tests: each row is a test that makes the fault happen and checks that nothing is lost, nothing is half-written and nothing bad is published.

| fault | lost | what the user sees | test |
| --- | --- | --- | --- |
"""


def faults(path: Path) -> list[tuple[str, str, str]]:  # fault, what the user sees, test
    "The marked tests of a file, in its order."
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == 'pytest.mark.fault':
                [what], [sees] = mark.args, [k.value for k in mark.keywords if k.arg == 'sees']
                found.append((ast.literal_eval(what), ast.literal_eval(sees), f'{path.name}::{node.name}'))
    return found


def text() -> str:
    "The whole file."
    rows = [
        row for path in sorted((ROOT / 'tests').rglob('test_*.py'), key=lambda path: path.name) for row in faults(path)
    ]
    return HEAD + ''.join(f'| {what} | nothing | {sees} | `{test}` |\n' for what, sees, test in rows)


if __name__ == '__main__':
    (ROOT / 'FAULTS.md').write_text(text(), encoding='utf-8')
