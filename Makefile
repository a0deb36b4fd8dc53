# Two commands: `make demo` and `make test`. Both make .venv first; Python 3.11 or 3.12 is all they need.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PARALLEL := -n logical --dist loadfile --no-loadscope-reorder

TIMES ?= 10
# Tests start some hundred processes, and each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-unit test-long test-search lint setup clean

demo: setup
	$(BIN)/consortium demo

test: setup lint
	$(BIN)/python -m pytest -m "not long" --ignore=tests/integration $(PARALLEL)
	$(BIN)/python -m pytest -m "not long" tests/integration

test-unit: setup
	$(BIN)/python -m pytest -m "not long and not integration" $(PARALLEL)

test-long: setup
	$(BIN)/python -m pytest -m long

# Property tests with examples that no run had before.
test-search: setup
	for time in $$(seq $(TIMES)); do \
	  $(BIN)/python -m pytest -m hypothesis --hypothesis-profile search $(PARALLEL) || exit; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; name it with: make PYTHON=/path/to/python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
