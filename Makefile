# Two commands on a fresh machine: `make demo` shows it work, `make test` checks it.
.PHONY: demo test test-fast test-oldest test-newest check licenses wheel docs format setup clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written last by setup, so that an interrupted install is done again.
READY := $(VENV)/.ready

demo: $(READY)  ## train a plain ViT and iFAM on drawn birds, judge both, write demo/report.html (offline, minutes)
	$(BIN)/ifam demo

# All tests in an environment: one thread a process, since two would compete for one core, and no core held while waiting.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(1)/bin/python -m pytest --numprocesses auto --dist worksteal

test: $(READY)  ## all tests
	$(call PYTEST,$(VENV))

test-fast: $(READY)  ## all but the slow tests
	$(call PYTEST,$(VENV)) -m 'not slow'

test-oldest: .venv-oldest/.ready  ## all tests, with the lowest versions that pyproject.toml allows
	$(call PYTEST,.venv-oldest)

test-newest: .venv-newest/.ready  ## all tests, with the newest versions of the index
	$(call PYTEST,.venv-newest)

check: $(READY)  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

licenses: $(READY)  ## every dependency with version and license; fails on GPL, AGPL, none, or a version known to be bad
	$(BIN)/python -m tools.dependencies

wheel: $(READY)  ## the wheel in dist/, of the same bytes whenever and wherever this commit is built
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build --target wheel

# The variable silences the theme's notice about its successor.
docs: $(VENV)/.docs  ## the documentation as a site in site/, which needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

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

$(VENV)/.docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

# Resolved anew by uv, which can take the lowest versions; the base install alone imports everything, too.
.venv-oldest/.ready: RESOLUTION = lowest-direct
.venv-newest/.ready: RESOLUTION = highest
.venv-oldest/.ready .venv-newest/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution $(RESOLUTION) --editable .
	$(@D)/bin/python -c 'import ifam, pkgutil; [__import__(m.name) for m in pkgutil.walk_packages(ifam.__path__, "ifam.")]'
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution $(RESOLUTION) --editable '.[dev]'
	$(@D)/bin/uv pip list --python $(@D)/bin/python
	@touch $@

clean:  ## everything that was made
	rm -rf $(VENV) .venv-oldest .venv-newest demo runs site build dist
