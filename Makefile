# The environment lives in .venv and is made again when pyproject.toml changes. Each target installs what it needs.

ifndef PYTHON
# The first that really runs: a shim of pyenv can be there without its Python.
PYTHON := $(shell for python in python3.11 python3 python3.12 python3.13; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$python && break; done)
endif
ARGS ?=
BIN := .venv/bin

# Two pip runs at once would spoil one environment.
.NOTPARALLEL:

.PHONY: help demo test check bench docs clean

help:
	@echo "make demo [ARGS='--rounds 2']   four hospitals and a server train a lesion detector together"
	@echo "make test [ARGS='-k envelope']  every test that needs no GPU"
	@echo "make check                      lint, format, types, import rules, contracts, documentation"
	@echo "make bench [ARGS=...]           time and memory a round, beside a plain loop"
	@echo "make docs                       the documentation as HTML in docs/_build/html"
	@echo "make clean                      remove what these targets made, .venv included"

demo: .venv/.train
	$(BIN)/consilia demo $(ARGS)

# Two workers, because most tests use one core (tests/conftest.py says which stay together).
test: .venv/.train .venv/.dev
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadgroup $(ARGS)

check: .venv/.train .venv/.dev .venv/.docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m consilia.contracts.build --check
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: .venv/.train .venv/.dev
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: .venv/.docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf .venv build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# On Debian `python3 -m venv` is there without python3-venv and fails half-way: look for ensurepip, which is not.
.venv/.made: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed, and none was found." >&2; \
	  echo "On Debian: apt-get install python3 python3-venv, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or later is needed; $(PYTHON) is $$("$(PYTHON)" --version)." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
	  || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	    && apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv; } \
	  || { echo "$(PYTHON) cannot make virtual environments." >&2; \
	    echo "On Debian, as root: apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	@touch $@

.venv/.train .venv/.dev .venv/.docs: .venv/.%: .venv/.made
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable ".[$*]"
	@touch $@
