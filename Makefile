# `make paper` and `make test` start from a fresh clone and need only Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
# The first of these that is new enough; choose another with `make PYTHON=/path/to/python ...`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: paper test thorough pages slow lint format lowest docs serve study benchmarks clean

paper: $(VENV)/installed
	$(BIN)/kernel-eft paper --overwrite

PYTEST = -m pytest -n auto --maxprocesses 8 --dist worksteal

test: $(VENV)/installed-dev
	$(BIN)/python $(PYTEST)

# The tests that take long. Continuous integration runs `make test` and `make thorough`.
thorough: $(VENV)/installed-dev
	$(BIN)/python $(PYTEST) -m thorough

# The code of the pages, of the README and of the notebooks.
pages: $(VENV)/installed-dev
	$(BIN)/python $(PYTEST) --nbmake notebooks tests/pages

slow: $(VENV)/installed-dev
	XLA_FLAGS= $(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

format: $(VENV)/installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The tests of `make test` and of `make thorough`, with the oldest release of every dependency that pyproject.toml allows.
lowest: $(VENV)/installed-dev
	$(PIP) install uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/lowest
	$(BIN)/uv pip install --quiet --python $(VENV)/lowest/bin/python --resolution lowest-direct -e '.[test]'
	$(VENV)/lowest/bin/python $(PYTEST) -m "not slow"

# The documentation, into site/. It is made of files that need no server and no network, search included.
docs: $(VENV)/installed-docs
	@rm -rf site; find .cache -maxdepth 1 -type f -delete 2>/dev/null || true  # the tests' programs in .cache/jax stay
	$(BIN)/python -m zensical build --strict
	@rm -f site/404.html  # a page for web servers: its links are wrong in a folder of files
	@echo "To read it, open site/index.html in a browser, or type: make serve"

serve: docs
	@echo "Reading site/ at http://127.0.0.1:8000 (Ctrl-C ends it)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000

# The figures and tables of the pages on the published study.
study: $(VENV)/installed
	$(BIN)/kernel-eft paper --all --out results --overwrite
	$(BIN)/python docs/study.py results

# The benchmarks of a CPU, on an idle machine, and what changed since the results that are committed.
benchmarks: $(VENV)/installed
	for b in closures ensemble gradients; do $(BIN)/python benchmarks/$$b.py || exit 1; done
	$(BIN)/python benchmarks/compare.py

clean:
	rm -rf $(VENV) results site .cache .pytest_cache .hypothesis .ruff_cache

$(VENV)/created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found. Install it, or name one: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, but $(PYTHON) is not."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml
	@echo "Installing into $(VENV), once."
	$(PIP) install --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --editable '.[test,dev]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) install --editable '.[docs]'
	@touch $@
