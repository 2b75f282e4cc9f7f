# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait make processes that share cores slow each other.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check bench clean

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Weft needs Python 3.11 or later: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/.bench: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	touch $@

demo: .venv/.installed
	$(BIN)/weft demo --overwrite

check: .venv/.installed
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

bench: .venv/.bench
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv build dist
