# Needs nothing but make and Python 3.10 or later; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs soak clean

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.core ## Ingest Python's own documentation, and ask it three questions
	$(BIN)/nexus-vdb demo

# Threads that spin while they wait would take the cores from the other processes: a third of the time.
test: lint ## Check style and types, and run all tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev ## Build the documentation into site/, warnings as errors
	$(BIN)/mkdocs build --strict

soak: $(VENV)/.dev ## Kill ingests a thousand times, and compare (SOAK_KILLS, SOAK_SEED)
	$(BIN)/python -m tests.soak

clean: ## Remove what was built and cached, but not the environment
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else \
	  "Python 3.10 or later is needed; name one by: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# The stamps record what was installed, so that a second run starts at once.
$(VENV)/.core: $(INPUTS) | $(BIN)/pip
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(BIN)/pip
	$(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.core
