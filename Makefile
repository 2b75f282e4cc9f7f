# `make demo` and `make test` set up everything they need in .venv, in the versions of constraints/lock.txt.
#   PYTHON=python3.12   the Python to begin with (3.11 to 3.13)
#   TORCH_INDEX=URL     an index with the build of PyTorch that you want, beside pip's own
#   CUDA=1              PyTorch for CUDA also where there is no NVIDIA GPU
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(PYTHON) tools/install.py $(if $(TORCH_INDEX),--index $(TORCH_INDEX)) $(if $(CUDA),--cuda)
# Threads that spin while they wait make processes that share cores slow each other.
export OMP_WAIT_POLICY ?= PASSIVE
TESTS = HF_HUB_OFFLINE=1 $(1)/python -m pytest -n 2 --dist loadgroup
# Other releases than those of the lock may deprecate what Weft calls: that is listed, and fails nothing.
LISTED = -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning

.PHONY: demo test test-all test-slow test-oldest test-newest check bench lock dist clean

.venv/.installed: pyproject.toml constraints/lock.txt tools/install.py
	$(INSTALL) .venv
	touch $@

.venv/.bench: .venv/.installed
	$(INSTALL) .venv --extras dev,bench
	touch $@

demo: .venv/.installed
	$(BIN)/weft demo --overwrite

check: .venv/.installed
	$(BIN)/ruff format --check src tests benchmarks tools setup.py
	$(BIN)/ruff check src tests benchmarks tools setup.py
	$(BIN)/mypy
	$(BIN)/lint-imports

# What a change needs, in 20 to 40 minutes on two cores (aim: 8).
test: check
	$(call TESTS,$(BIN)) -m "not slow"

# The rest, after it: every combination rather than every pair, real data, processes that are cut off and come back.
test-all: test test-slow

test-slow: .venv/.installed
	$(call TESTS,$(BIN)) -m slow

# The two ends of the ranges that `pip install weft` may choose from, each in an environment of its own.
test-oldest:
	$(INSTALL) .venv-oldest --ends oldest
	$(call TESTS,.venv-oldest/bin) -m "not slow" $(LISTED)

test-newest:
	$(INSTALL) .venv-newest --ends newest
	$(call TESTS,.venv-newest/bin) -m "not slow" $(LISTED)

# All ratios that the project claims, each with its bound, in one table at the end; some 30 minutes on two cores.
bench: .venv/.bench
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/run.py

# Remakes constraints/lock.txt: the newest of everything that the ranges of pyproject.toml allow.
lock:
	$(PYTHON) tools/lock.py

dist: .venv/.installed
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf .venv .venv-lock .venv-oldest .venv-newest build dist
