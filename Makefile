# The two commands are `make demo` and `make test`; both set up everything on first use and are quick afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Threads that spin while they wait make a shared machine crawl; torch reads this when it loads.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint setup wheel clean

demo: setup
	$(BIN)/dpeq demo

test: setup lint
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh
	@touch $@

wheel: setup
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
