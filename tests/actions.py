"""As much of GitHub Actions as our workflows need: each job on a machine of its own, its steps one after the other.

The commands are the workflow's own. Steps that install are left out, since the package under test is installed; of the actions, checkout copies the files
that the commands read, artifacts are listed, and the cache is a folder.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

TOP = Path(__file__).parent.parent
WORKFLOWS = TOP / '.github' / 'workflows'
INSTALL = re.compile(
    r'python -m pip (check|install( --only-binary :all: --require-hashes --no-deps( -r requirements/\w+\.txt)+'
    r'| --no-deps --no-build-isolation \.))'
)
STATUS = re.compile(r'\b(always|success|failure|cancelled)\(\)')


def read_workflow(name: str) -> dict:
    content = yaml.safe_load((WORKFLOWS / f'{name}.yml').read_text(encoding='utf-8'))
    content['on'] = content.pop(True)  # what YAML 1.1 takes `on` for
    return content


def evaluate(expression: str, context: dict) -> object:
    "The value of an expression; `context` holds the objects, and the state of the job under `status`."

    def look(path: str) -> object:
        found = context
        for part in path.split('.'):
            found = found.get(part) if isinstance(found, dict) else None
        return '' if found is None else found

    def translated(match: re.Match) -> str:
        text = match[0]
        if text[0] == "'":
            return text
        words = {'&&': ' and ', '||': ' or ', '!': ' not ', 'true': 'True', 'false': 'False'}
        return words.get(text) or (f'status["{text[:-2]}"]' if text.endswith('()') else f'look("{text}")')

    token = r"'[^']*'|&&|\|\||!(?!=)|[A-Za-z_][\w.-]*(?:\(\))?"
    return eval(re.sub(token, translated, expression), {'look': look, 'status': context['status']})


def filled(value: object, context: dict) -> str:
    "A text with its expressions replaced."
    shown = {True: 'true', False: 'false', None: ''}

    def text(found: object) -> str:
        return shown[found] if isinstance(found, bool) or found is None else str(found)

    return re.sub(r'\$\{\{(.+?)\}\}', lambda m: text(evaluate(m[1], context)), text(value))


def wanted(condition: str | None, context: dict) -> bool:
    "Whether a step or a job runs: only after success, unless its condition asks for the state."
    condition = re.sub(r'^\$\{\{(.*)\}\}$', r'\1', str(condition or 'success()'))
    return bool((STATUS.search(condition) or context['status']['success']) and evaluate(condition, context))


def states(failed: bool) -> dict[str, bool]:
    return {'always': True, 'success': not failed, 'failure': failed, 'cancelled': False}


def _names(node: ast.stmt) -> list[str]:
    "What an import or a function brings."
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return [node.name] if isinstance(node, ast.FunctionDef) else []


def without_tests(notebook: Path) -> str:
    "A notebook without the cells that test it, but for the imports and functions that others use: they run elsewhere, and take longer than a small run."
    content = json.loads(notebook.read_text(encoding='utf-8'))
    cells = [cell | {'source': ''.join(cell['source'])} for cell in content['cells']]
    tests = [
        c for c in cells if c['cell_type'] == 'code' and not (c['source'].startswith('#|') or c['metadata'].get('tags'))
    ]

    def used(cell: dict) -> list[ast.stmt]:
        rest = '\n'.join(c['source'] for c in cells if c not in tests)
        nodes = ast.parse(cell['source']).body
        return [node for node in nodes if any(re.search(rf'\b{name}\b', rest) for name in _names(node))]

    for cell in [*tests]:  # one that only defines what Run draws with is no test
        if all(isinstance(n, ast.FunctionDef | ast.Assign) for n in ast.parse(cell['source']).body) and used(cell):
            tests.remove(cell)
    for cell, kept in [(cell, used(cell)) for cell in tests]:
        cell['source'] = '\n'.join(map(ast.unparse, kept))
    return json.dumps(content | {'cells': cells})


@dataclass
class Job:
    "What became of a job."

    result: str = 'skipped'
    outputs: dict = field(default_factory=dict)
    log: str = ''
    summary: str = ''
    ran: list[str] = field(default_factory=list)  # names of the steps
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    workspace: Path | None = None


@dataclass
class Actions:
    "A repository with its secrets, its variables and its cache."

    folder: Path
    secrets: dict[str, str]
    variables: dict[str, str]
    runs: int = 0
    machines: int = 0

    def run(self, name: str, event: str, inputs: dict | None = None) -> dict[str, Job]:
        "Run a workflow as after this event; the jobs of a called workflow stand under the job that calls it."
        self.runs += 1
        workflow = read_workflow(name)
        asked = workflow['on'].get(event) or {}
        declared = asked.get('inputs', {}) if isinstance(asked, dict) else {}
        assert set(inputs or {}) <= set(declared), 'unknown inputs'
        values = {key: facts.get('default') for key, facts in declared.items()} | (inputs or {})
        github = {'event_name': event, 'server_url': 'https://ci.example', 'repository': 'we/tower'}
        github |= {'run_id': str(self.runs), 'run_attempt': '1'}
        return self.jobs(
            workflow, {'github': github, 'inputs': values, 'secrets': self.secrets, 'vars': self.variables}
        )

    def jobs(self, workflow: dict, context: dict) -> dict[str, Job]:
        done: dict[str, Job] = {}
        for name, job in workflow['jobs'].items():
            needs = [job['needs']] if isinstance(job.get('needs'), str) else job.get('needs', [])
            results = {n: {'result': done[n].result, 'outputs': done[n].outputs} for n in needs}
            failed = any(r['result'] != 'success' for r in results.values())
            here = context | {'needs': results, 'status': states(failed)}
            done[name] = self.job(name, job, here) if wanted(job.get('if'), here) else Job()
        return done

    def job(self, name: str, job: dict, context: dict) -> Job:
        if 'uses' in job:
            called = read_workflow(Path(job['uses']).stem)
            inputs = {key: filled(value, context) for key, value in job['with'].items()}
            secrets = {key: filled(value, context) for key, value in job['secrets'].items()}
            [inner] = self.jobs(called, context | {'inputs': inputs, 'secrets': secrets}).values()
            return inner
        self.machines += 1
        machine = self.folder / f'{self.machines}-{name}'
        done = Job('success', workspace=machine / 'work')
        for part in ('work', 'temp'):
            (machine / part).mkdir(parents=True)
        context |= {'status': states(False), 'steps': {}, 'env': {}}
        env = self.machine_env(machine) | {key: filled(value, context) for key, value in job.get('env', {}).items()}
        for step in job['steps']:
            if wanted(step.get('if'), context):
                done.ran.append(step.get('name') or step['uses'])
                well = self.step(step, context, env, done, machine)
                context['steps'].setdefault(step.get('id'), {})['outcome'] = 'success' if well else 'failure'
                if not well:
                    done.result, context['status'] = 'failure', states(True)
        done.outputs = {key: filled(value, context) for key, value in job.get('outputs', {}).items()}
        summary = machine / 'summary'
        done.summary = summary.read_text(encoding='utf-8') if summary.exists() else ''
        return done

    def machine_env(self, machine: Path) -> dict[str, str]:
        "What a step finds in its environment beside what the workflow says; nothing of this process but where programs are."
        path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
        kept = {key: os.environ[key] for key in ('HOME', 'XDG_CACHE_HOME', 'LANG') if key in os.environ}
        return kept | {'PATH': path, 'PYTHONPATH': str(TOP), 'CI': 'true', 'RUNNER_TEMP': str(machine / 'temp')}

    def step(self, step: dict, context: dict, env: dict, done: Job, machine: Path) -> bool:
        own = {key: filled(value, context) for key, value in step.get('env', {}).items()}
        if 'uses' in step:
            with_ = {key: filled(value, context) for key, value in step.get('with', {}).items()}
            action = re.sub(r'^actions/|@.*', '', step['uses'])
            return getattr(self, re.sub('[/-]', '_', action))(with_, done)
        if all(INSTALL.fullmatch(line) for line in step['run'].strip().splitlines()):
            return True
        files = {f'GITHUB_{name.upper()}': machine / name for name in ('output', 'env')}
        for file in files.values():
            file.write_text('')
        files |= {'GITHUB_STEP_SUMMARY': machine / 'summary'}
        command = ['bash', '--noprofile', '--norc', '-eo', 'pipefail', '-c', step['run']]
        told = env | own | {name: str(path) for name, path in files.items()}
        ended = subprocess.run(
            command,
            cwd=done.workspace,
            env=told,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
        done.log += f'{done.ran[-1]}\n{ended.stdout}'
        env |= dict(line.split('=', 1) for line in files['GITHUB_ENV'].read_text().splitlines())
        if 'id' in step:
            outputs = dict(line.split('=', 1) for line in files['GITHUB_OUTPUT'].read_text().splitlines())
            context['steps'][step['id']] = {'outputs': outputs}
        return ended.returncode == 0

    # the actions that our workflows use

    def checkout(self, with_: dict, done: Job) -> bool:
        shutil.copytree(TOP / 'params', done.workspace / 'params')
        shutil.copyfile(TOP / 'settings.ini', done.workspace / 'settings.ini')
        for path in (TOP / 'nbs').rglob('*.ipynb'):
            place = done.workspace / path.relative_to(TOP)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(without_tests(path), encoding='utf-8')
        return with_['persist-credentials'] == 'false'

    def setup_python(self, with_: dict, done: Job) -> bool:
        return bool(with_['python-version'])

    def upload_artifact(self, with_: dict, done: Job) -> bool:
        found = set()
        for pattern in with_['path'].split():
            for path in done.workspace.glob(pattern):
                found |= {p for p in [path, *path.rglob('*')] if p.is_file()}
        done.artifacts[with_['name']] = sorted(str(path.relative_to(done.workspace)) for path in found)
        return bool(found) or with_.get('if-no-files-found') != 'error'

    def cache_restore(self, with_: dict, done: Job) -> bool:
        kept = sorted((self.folder / 'cache').glob(f'{with_["restore-keys"]}*'))
        if kept:
            shutil.copytree(kept[-1], done.workspace / with_['path'], symlinks=True)
        return True

    def cache_save(self, with_: dict, done: Job) -> bool:
        shutil.copytree(done.workspace / with_['path'], self.folder / 'cache' / with_['key'], symlinks=True)
        return True
