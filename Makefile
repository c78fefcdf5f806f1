# make demo: install and run the main job.  make test: install if needed and run the tests.
# make test-slurm: the tests on a real SLURM, which they install and start (Debian, root).
# make test-slow: tests of minutes; a browser and LaTeX are installed for them (Debian, root).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: all demo test test-slow test-slurm check format install

all: check test

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed'"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/harness sweep sweeps/table3.yaml sweeps/watch.yaml
	$(BIN)/harness report watch table3 --preset demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not slurm and not alone"
	$(BIN)/python -m pytest -m alone

test-slow: $(INSTALLED)
	bash tests/slow_tools.sh
	$(BIN)/python -m pytest -m slow

test-slurm: $(INSTALLED)
	$(BIN)/python -m pytest -m slurm tests/slurm

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
