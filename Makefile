# The environment is .venv in the checkout; every target makes it if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Real data sets lie beside the checkout where the project is developed; elsewhere the tests that need them are skipped.
ifneq ($(wildcard ../shared/data),)
export KINGPOST_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test check bench docs clean help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## train on handwritten digits, then prove what helps and what does not; two minutes after installation
	$(BIN)/kingpost train recipes/digits.yaml
	$(BIN)/kingpost prove recipes/digits.yaml budget.epochs=3 model.norm=none --name demo --max-pairs 12 \
	  --arm batch-norm model.norm=batch --arm dropout 'techniques+={name: dropout, p: 0.5}'

test: $(READY)  ## everything that CI runs: style, types, layers, tests, examples in the docs
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

check: $(READY)  ## style, types and layers only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## overhead against a bare loop and peers, and the kill exam; about an hour
	$(BIN)/python benchmarks/overhead.py --setup-peers
	$(BIN)/python benchmarks/kill_resume.py

docs: $(READY)  ## build the documentation in docs/_build
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build

clean:  ## remove the environment and everything built
	rm -rf $(VENV) docs/_build docs/api runs .mypy_cache .ruff_cache .pytest_cache
