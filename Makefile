# Two commands matter: `make demo` and `make test`. Each makes its own virtual environment in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat requirements.txt pyproject.toml | cksum | tr ' ' '-')
PIP := $(BIN)/pip install --disable-pip-version-check --quiet
# Many tests wait for processes that they started: three share two cores well.
WORKERS ?= 3

.PHONY: demo test soak lint bench peers pictures format install clean

install: $(READY)

$(READY): requirements.txt pyproject.toml
	@echo "Installing into $(VENV) (about 1.5 GB, once) ..."
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "Python 3.11 is needed; found " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch==2.13.0
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.ready-*
	@touch $(READY)

# exec: the shell makes way, so Ctrl-C reaches the demo itself, which then ends everything that it started.
demo: $(READY)
	@exec $(BIN)/python -m demo

# loadfile: the tests of a file share a worker, so they can share what is dear (a demo, a browser, a portal).
test: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

soak: $(READY)
	$(BIN)/pytest --override-ini norecursedirs= --timeout 3600 tests/soak

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks.round_overhead --json
	$(BIN)/python -m benchmarks.secure_aggregation --json --word-bits 16,32

# The systems that benchmarks/secure_aggregation.py compares with, apart from ours: their pins need not suit our own.
peers: $(PEERS)/.ready-$(shell cksum < benchmarks/peers.txt | tr ' ' '-')

$(PEERS)/.ready-%: benchmarks/peers.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/pip install --disable-pip-version-check --quiet -r benchmarks/peers.txt
	@rm -f $(PEERS)/.ready-*
	@touch $@

# Pictures of the pages for docs/, from the browser test that signs in, approves a study and watches a round end.
pictures: $(READY)
	PICTURES=docs/pictures $(BIN)/pytest -n0 tests/browser/test_admin_watches_a_round.py

clean:
	rm -rf var .venv .venv-peers build dist *.egg-info
