# Every target builds .venv from constraints.txt itself and reuses it; PYTHON picks the interpreter.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs clean

help:  ## say what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info[:2] >= (3, 11) or sys.exit("mobileprune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[tflite]'
	@touch $(READY)

$(DEV): $(READY)
	$(INSTALL) '.[dev,docs,tflite,executorch,ray,datasets]'
	@touch $(DEV)

demo: $(READY)  ## prune the bundled digits model to half its latency on this machine
	$(BIN)/mobileprune optimize --device host --budget 50% --run runs/demo

test: $(DEV)  ## run the whole test suite: peers and exporters beside the rest
	@log=$$(mktemp); $(BIN)/python -m pytest tests/peers tests/exporters > $$log 2>&1 & peers=$$!; \
	trap 'kill $$peers 2> /dev/null' INT TERM; \
	$(BIN)/python -m pytest --ignore=tests/peers --ignore=tests/exporters; rest=$$?; \
	wait $$peers; found=$$?; cat $$log; rm -f $$log; exit $$((rest > found ? rest : found))

lint: $(DEV)  ## ruff (lint, format), mypy and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)  ## let ruff format and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV)  ## build the documentation into site/
	$(BIN)/python -m mkdocs build --strict

clean:  ## remove the environment and caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache site
