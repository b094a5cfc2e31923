# make demo    from nothing to recommendations, on real ratings
# make test    lint, the notebooks' own tests, and the tests beside them
# make lab     open the notebooks
# make readme  write README.md and README.ja.md from their notebooks, FAULTS.md from the tests, SETTINGS.md and PARAMETERS.md from the classes of settings
# make docs    the notebooks with the results of their last run as a site, _site/index.html, with its links checked
# make ci      all that must hold before a change lands
# make lock    write requirements/*.txt anew, after pyproject.toml or constraints.txt has changed
# make lowest  install the lowest versions that pyproject.toml allows into .lowest, import every module, and run the smallest profiles
# make clean   remove the virtual environment and caches; data/ and outputs/ stay

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(firstword $(shell cat pyproject.toml constraints.txt | cksum))
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
UV := .lowest/bin/uv pip

.PHONY: help install demo test lab readme docs ci lock lowest clean
.SILENT:

help:
	sed -n 's/^# make/make/p' Makefile

install: $(STAMP)

$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; choose one: make PYTHON=python3.12 ...")'
	echo 'installing into $(VENV) (once, a few minutes)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[docs,test]'
	touch $@

demo: install
	$(BIN)/twotower movielens
	$(BIN)/twotower run demo

test: install
	$(BIN)/ruff check -q
	$(BIN)/lint-imports
	echo 'notebooks'
	$(BIN)/python .ci/notebooks.py --n-workers 2
	echo 'tests'
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
	echo 'tests of the database with PostgreSQL 16'
	$(BIN)/python -m pytest -n auto --maxprocesses 4 tests/database --postgres 16

lab: install
	$(BIN)/jupyter lab nbs

readme: install
	$(BIN)/python .ci/readme.py
	$(BIN)/python .ci/faults.py
	$(BIN)/python .ci/settings.py
	$(BIN)/python .ci/parameters.py

docs: install
	rm -rf _ran/site
	$(BIN)/sphinx-build -q -E -W --keep-going -j auto -c site -d _ran/doctrees . _ran/site
	cp _ran/site/README.html _ran/site/index.html
	rm -rf _site && mv _ran/site _site
	echo '_site/index.html'

lock: install
	$(BIN)/python .ci/lock.py

lowest:
	$(PYTHON) -m venv --clear .lowest
	.lowest/bin/python -m pip --disable-pip-version-check -qq install -c constraints.txt uv
	$(UV) compile -q --python .lowest/bin/python --resolution lowest-direct -o .lowest/lowest.txt pyproject.toml
	$(UV) install -q --python .lowest/bin/python --no-deps -r .lowest/lowest.txt .
	cd .lowest && bin/python -c 'import pkgutil, twotower; [__import__(m.name) for m in pkgutil.walk_packages(twotower.__path__, "twotower.")]'
	mkdir .lowest/shop
	export PATH="$$PWD/.lowest/bin:$$PATH" && cd .lowest/shop && twotower movielens && twotower run ci && twotower run daily -p mode=embeddings && twotower doctor

ci:
	.ci/run

clean:
	rm -rf $(VENV) .lowest _ran _site .mypy_cache .pytest_cache .ruff_cache .hypothesis nbs/.hypothesis dist build
	find nbs tests twotower bench -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
