"What the workflows install is known to the byte: requirements/*.txt holds the versions of constraints.txt, with hashes, and nothing that nobody needs."

import re
import tomllib

import pytest
from actions import TOP
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

OF_TORCH = re.compile(r'(torch|triton|cuda-|nvidia-)')
AGAIN = 'run `make lock`'


def locked(file: str) -> dict[str, Requirement]:
    "The entries of a file by name; each must be one version with a hash for each of its files, and nothing else."
    lines = (TOP / f'requirements/{file}.txt').read_text().replace('\\\n', ' ').splitlines()
    found = {}
    for line in lines[1:]:
        need, *hashes = line.split('--hash=sha256:')
        assert hashes, line
        assert all(re.fullmatch('[0-9a-f]{64}', h.strip()) for h in hashes), line
        one = Requirement(need)
        assert re.fullmatch(r'==[\w.!]+', str(one.specifier)), line
        assert not one.url, line
        assert not one.extras, line
        assert found.setdefault(canonicalize_name(one.name), one) is one, f'{one.name} is there twice'
    return found


def versions(entries: dict[str, Requirement]) -> dict[str, str]:
    "Those for this system."
    return {
        name: str(one.specifier)[2:] for name, one in entries.items() if one.marker is None or one.marker.evaluate()
    }


def project() -> dict:
    return tomllib.loads((TOP / 'pyproject.toml').read_text())


LINUX = pytest.mark.skipif(
    default_environment()['sys_platform'] != 'linux' or default_environment()['python_version'] != '3.11',
    reason='constraints.txt names what the tests ran with: Linux and Python 3.11',
)


@LINUX
def test_the_locked_versions_are_those_that_the_tests_ran_with():
    run, torch, notify = (versions(locked(file)) for file in ('run', 'torch', 'notify'))
    constraints = dict(
        line.split('==') for line in (TOP / 'constraints.txt').read_text().splitlines() if not line.startswith('#')
    )
    constraints = {canonicalize_name(name): version for name, version in constraints.items()}
    assert all(OF_TORCH.match(name) for name in torch)
    assert not any(OF_TORCH.match(name) for name in run)
    assert (run | {'torch': torch['torch']}).items() <= constraints.items(), AGAIN
    assert set(notify.items()) <= set(run.items()), AGAIN


def test_all_that_the_project_asks_for_is_locked_within_its_bounds():
    entries = {name: one for file in ('run', 'torch') for name, one in locked(file).items()}
    for text in project()['project']['dependencies']:
        need = Requirement(text)
        [version] = entries[canonicalize_name(need.name)].specifier
        assert need.specifier.contains(version.version), f'{text}: {AGAIN}'


def test_nothing_of_the_tests_is_installed_beside_secrets():
    facts, run = project()['project'], locked('run')
    beside = {canonicalize_name(Requirement(t).name) for t in facts['optional-dependencies']['test']}
    needed = {canonicalize_name(Requirement(t).name) for t in facts['dependencies']}
    assert not (beside - needed) & set(run)
    for need in project()['build-system']['requires']:
        assert canonicalize_name(Requirement(need).name) in run  # pip builds with it, and asks for no other


def test_each_lower_bound_is_one_version_that_the_lowest_job_can_install():
    facts = project()['project']
    for text in facts['dependencies']:
        need = Requirement(text)
        bounds = [Version(one.version) for one in need.specifier if one.operator == '>=']
        assert len(bounds) == 1, f'{text}: no lower bound, so nobody knows with what it works'
        assert {one.operator for one in need.specifier} <= {'>=', '<'}
        assert all(bounds[0] < Version(one.version) for one in need.specifier if one.operator == '<')
    assert 'make lowest' in (TOP / '.github/workflows/ci.yml').read_text()


def test_no_place_of_packages_is_written_down():
    for path in (*(TOP / 'requirements').glob('*.txt'), TOP / 'constraints.txt', TOP / 'Makefile', TOP / '.ci/lock.py'):
        assert not re.search(r'(index-url|find-links|--index|://|file:)', path.read_text()), path.name
