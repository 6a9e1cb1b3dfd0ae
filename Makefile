# Every target works from a fresh clone: .venv is built from pyproject.toml and the constraints when it is missing.
PYTHON ?= python3.11
BIN := .venv/bin
# One thread per test worker: two workers on two cores, and figures that do not depend on the machine's size.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test nightly mutants check docs format bench clean

demo: .venv/ready
	$(BIN)/privguard demo

# One seed for order and generators, so that a failure comes back; without it each run has an order of its own.
test: .venv/ready
	$(THREADS) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu" --randomly-seed=20261 -q

# What takes minutes: kills, fuzzers, whole simulations, planted bugs.
nightly: .venv/ready
	$(THREADS) $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not gpu" --timeout 7200 -q

# Changes of the source that the module's own tests do not notice (an hour); `python tests/mutants.py WORD` runs a part.
mutants: .venv/ready
	$(THREADS) $(BIN)/python tests/mutants.py

check: .venv/ready docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: .venv/ready
	$(BIN)/zensical build --strict

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/ready
	$(BIN)/python -m benchmarks

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs,recipes]'
	touch $@

clean:
	rm -rf .venv
