"The types of the library are usable: a program of a user passes a strict type checker, and what is wrong in it is seen."

import ast
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent


def test_a_program_of_a_user_is_typed():
    options = ['--strict', '--follow-imports=silent', '--ignore-missing-imports']
    checked = subprocess.run(
        [sys.executable, '-m', 'mypy', *options, 'tests/typed_program.py'], cwd=TOP, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_public_function_has_types():
    bare = []
    for path in sorted((TOP / 'twotower').rglob('[a-z]*.py')):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
                args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                bare += [
                    f'{path.relative_to(TOP)} {node.name}: {arg.arg}'
                    for arg in args
                    if not arg.annotation and arg.arg != 'axes'
                ]  # matplotlib is imported only to draw
                bare += [] if node.returns else [f'{path.relative_to(TOP)} {node.name}: what it returns']
    assert bare == []


def test_the_package_says_that_it_is_typed():
    assert (TOP / 'twotower/py.typed').is_file()
