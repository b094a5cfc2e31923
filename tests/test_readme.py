"The READMEs are made from their notebooks and say the same; their code runs, their figures are those of the benches, their links lead somewhere."

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from typer.main import get_command

from twotower import cli
from twotower.database.schema import migrate
from twotower.operations.plan import chain, named_values, plan

TOP = Path(__file__).parent.parent
ENGLISH, JAPANESE = ((TOP / name).read_text(encoding='utf-8') for name in ('README.md', 'README.ja.md'))
USER = '00000000-0000-4000-8000-000000000002'


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    found = re.findall(r'^```(\w+)\n(.*?)^```$', text, re.S | re.M)
    return [(language, code) for language, code in found if not languages or language in languages]


def without_words(code: str) -> list[str]:
    "A block without its comments, and a tree without what stands beside its names."
    return [re.sub(r'(?<=── )(\S+)\s+.*|\s*(?:#|//) .*', r'\1', line) for line in code.splitlines()]


def tables(text: str) -> list[list[str]]:
    "The rows of each table."
    outside = re.sub(r'^```.*?^```$', '', text, flags=re.S | re.M)
    return [found.splitlines() for found in re.findall(r'(?:^\|.*\n)+', outside, re.M)]


def numbers(text: str) -> Counter:
    return Counter(re.findall(r'\d[\d,]*(?:\.\d+)?', text))


def test_readmes_are_made_from_the_notebooks(tmp_path):
    for name in ('.ci', 'nbs'):
        shutil.copytree(TOP / name, tmp_path / name)
    shutil.copy(TOP / 'CONTRIBUTING.md', tmp_path)
    subprocess.run([sys.executable, tmp_path / '.ci/readme.py'], check=True)
    for name in ('README.md', 'README.ja.md', 'CONTRIBUTING.md'):
        assert (tmp_path / name).read_text() == (TOP / name).read_text()


def test_both_languages_have_the_same_code():
    ours, theirs = blocks(ENGLISH), blocks(JAPANESE)
    assert [language for language, _ in ours] == [language for language, _ in theirs]
    for (_, english), (_, japanese) in zip(ours, theirs, strict=True):
        assert without_words(english) == without_words(japanese)


def test_both_languages_have_the_same_figures():
    ours, theirs = tables(ENGLISH), tables(JAPANESE)
    assert [len(table) for table in ours] == [len(table) for table in theirs]
    for english, japanese in zip(ours, theirs, strict=True):
        for row, other in zip(english, japanese, strict=True):
            assert numbers(row) == numbers(other), (row, other)
    decimals = r'\d+\.\d+'
    assert set(re.findall(decimals, ENGLISH)) == set(re.findall(decimals, JAPANESE))


def test_both_languages_have_the_same_sections_and_links():
    def links(text: str) -> set[str]:
        return set(re.findall(r'\]\(([^)\s]+)\)', text)) - {'README.md', 'README.ja.md'}

    assert links(ENGLISH) == links(JAPANESE)
    assert re.findall(r'^#+', ENGLISH, re.M) == re.findall(r'^#+', JAPANESE, re.M)


def test_every_notebook_is_linked():
    there = {
        path.relative_to(TOP).as_posix()
        for path in (TOP / 'nbs').rglob('*.ipynb')
        if path.stem not in ('index', 'index_ja')
    }
    for text in (ENGLISH, JAPANESE, (TOP / 'CONTRIBUTING.md').read_text(encoding='utf-8')):
        assert there <= set(re.findall(r'\((nbs/[\w/]+\.ipynb)\)', text))


def test_the_figures_are_those_of_the_benches():
    bench = (TOP / 'bench/README.md').read_text(encoding='utf-8')
    [quality, speed] = [table for table in tables(ENGLISH) if 'nDCG@20' in table[0] or 'figure' in table[0]]
    rows = {}  # by split and model: the figures of its row
    for split in re.split(r'^### ', bench, flags=re.M)[1:]:
        for line in split.splitlines():
            cells = [cell.strip() for cell in line.strip('|').split('|')]
            rows[split.split(':')[0], cells[0]] = [cell.split()[0] for cell in cells[1:] if cell]
    names = {
        'RecTools DSSM, a feature two-tower': 'RecTools DSSM',
        'LightFM, WARP, same features': 'LightFM',
        'ALS (implicit)': 'ALS',
    }
    names |= {'EASE, all stars weighted': 'EASE (all stars)', '`twotower`': 'our towers'}
    for line in quality[2:]:
        name, *figures, cold = [cell.strip() for cell in line.strip('|').split('|')]
        name = names.get(name, name)
        known, new = rows['random', name], rows['users', name]
        assert figures == [known[1], known[3], new[1], new[3]], name  # recall@20, nDCG@20
        if cold:
            assert cold.split()[0] == rows['cold', 'popularity by genre' if name == 'popularity' else name][0]
    # the day is the sum of two columns: 0.32 + 0.38 + 0.10 + 0.56 + 0.04 + 2.06
    told = set(numbers(bench.replace(' million', ',000,000'))) | {'3.5'}
    for line in speed[2:]:
        assert set(numbers(line)) <= told, line


def test_the_faults_are_in_the_table_of_faults():
    listed = {
        tuple(row.split(' | ')[i].strip('| ') for i in (0, 2))
        for row in (TOP / 'FAULTS.md').read_text().splitlines()
        if ' | ' in row
    }
    [faults] = [table for table in tables(ENGLISH) if table[0].startswith('| fault |')]
    for row in faults[2:]:
        assert tuple(cell.strip() for cell in row.strip('|').split('|')) in listed


def test_python_blocks_parse():
    for _, code in blocks(ENGLISH, 'python'):
        ast.parse(code)


def commands() -> list[str]:
    return [line for _, code in blocks(ENGLISH, 'sh') for line in code.splitlines() if line]


@pytest.mark.parametrize('line', commands())
def test_commands_exist(line):
    subprocess.run(['bash', '-n', '-c', re.sub(r'<[\w -]+>', 'x', line)], check=True)
    program, *words = shlex.split(line, comments=True)
    match program:
        case 'make':
            assert re.search(rf'^{words[0]}:', (TOP / 'Makefile').read_text(), re.M)
        case 'papermill':
            assert all((TOP / word).exists() for word in (words[0], words[words.index('-f') + 1]))
        case 'twotower':
            command = get_command(cli.app).commands[words[0]]
            params = command.make_context(words[0], words[1:]).params
            if words[0] == 'run':  # raises if a stage or a parameter is unknown
                names = chain(params['profile'], params['first'], params['last'])
                plan(params['profile'], names, named_values(params['param']), 'r')
        case _:
            assert re.fullmatch(r'[A-Z_]+=.*', program), program
            assert program.split('=')[0] in json.dumps((TOP / 'twotower/base/settings.py').read_text())


def test_sql_blocks_run(database):
    migrate(database)
    database.execute("""
        CREATE SCHEMA IF NOT EXISTS extensions; CREATE SCHEMA IF NOT EXISTS storage;
        CREATE TABLE storage.buckets (id text PRIMARY KEY, name text, public boolean);
        CREATE TABLE auth.users (id uuid);
        INSERT INTO public.videos (id, content_id, product_url) VALUES ('00000000-0000-4000-8000-000000000001', 'v1', 'https://shop.example/1')
    """)
    answers = []
    for _, code in blocks(ENGLISH, 'sql'):
        if 'auth.uid()' in code:  # a user signs up, and is logged in
            database.execute(f"INSERT INTO auth.users VALUES ('{USER}')")
            database.execute("SELECT set_config('request.jwt.claims', %s, false)", [json.dumps({'sub': USER})])
        cursor = database.execute(code)
        answers.append(cursor.fetchall() if cursor.description else cursor.rowcount)
    assert database.execute('SELECT user_id::text, decision_type FROM public.user_video_decisions').fetchall() == [
        (USER, 'like')
    ]
    assert database.execute('SELECT public FROM storage.buckets').fetchall() == [(False,)]
    assert [likes for _, likes in answers[-1]] == [1]
