# make run | test | check | faults | mutants | bench | bench-quick | bench-peers | bench-growth | bench-readme | lock
PYTHON ?= python3
BIN := .venv/bin
DATA ?= .peruse

.PHONY: run test check faults faults-quick mutants bench bench-quick bench-peers bench-growth bench-readme lock clean

run: .venv/installed
	$(BIN)/peruse serve --data $(DATA)

test: check
	$(BIN)/pytest -n 4 --dist loadfile

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

faults: .venv/installed
	$(BIN)/pytest -m faults

faults-quick: .venv/installed
	$(BIN)/pytest -n 2 --dist loadfile -m "faults and not long"

# Breaks the product in copies, one promise at a time: its tests must see each.
mutants: .venv/installed
	$(BIN)/python -m tests.mutants

bench: .venv/installed
	$(BIN)/python -m tests.bench

# Held against the last full run: fails when a ratio fell by more than 15 %.
bench-quick: .venv/installed
	$(BIN)/python -m tests.bench --quick

# What the peers need and no run installs by itself, into bench-out/peers; says what is left to do as root.
bench-peers: .venv/installed
	$(BIN)/python -m tests.bench.peers.needs

bench-growth: .venv/installed
	$(BIN)/python -m tests.bench.growth

# The README's table and the figures of deploy/CAPACITY.md, from the last full runs.
bench-readme: .venv/installed
	$(BIN)/python -m tests.bench.readme
	$(BIN)/python -m tests.bench.capacity

# Everything with hashes, then ourselves; the stamp is written last, so that a broken install is done again.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "Peruse needs Python 3.11 to 3.14, this is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

lock:
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv bench-out
