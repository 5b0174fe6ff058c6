# Two commands on a fresh machine: `make demo` shows it work, `make test` checks it.
.PHONY: demo test check format setup clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written last by setup, so that an interrupted install is done again.
READY := $(VENV)/.ready

demo: $(READY)  ## train a plain ViT and iFAM on drawn birds, judge both, write demo/report.html (offline, minutes)
	$(BIN)/ifam demo

test: $(READY)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto

check: $(READY)  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## put the source into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)  ## the environment alone

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "ifam needs Python 3.11 or newer: install it, or name it with PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ifam needs Python 3.11 or newer, but $(PYTHON) is older: name another with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:  ## everything that was made
	rm -rf $(VENV) demo runs build dist
