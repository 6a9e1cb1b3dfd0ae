# Every target works from a fresh clone: .venv is built from pyproject.toml and the constraints when it is missing.
PYTHON ?= python3.11
BIN := .venv/bin
# One thread per test worker: two workers on two cores, and figures that do not depend on the machine's size.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test nightly mutants check docs format bench release clean

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

# Everything of a release in dist/, uploaded nowhere; KEY= names the SSH key that signs it, without one it is a dry run.
release: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[release]'
	@test -z "$$(git status --porcelain)" || { echo "the tree has changes that are not committed; a release is built from a commit"; exit 1; }
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/cyclonedx-py requirements constraints.txt --pyproject pyproject.toml --mc-type library --output-reproducible --output-file dist/privguard.cdx.json
	cd dist && sha256sum -- * > SHA256SUMS && cat SHA256SUMS
	$(if $(KEY),ssh-keygen -Y sign -f $(KEY) -n privguard-release dist/SHA256SUMS,@echo "dry run: SHA256SUMS is not signed; name a key with KEY=")

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs,recipes]'
	touch $@

clean:
	rm -rf .venv
