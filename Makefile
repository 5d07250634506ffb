# Wavespace. `make help` lists the targets. Needs Python >= 3.11 and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench chaos experiments studies image lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv with the pinned packages and this checkout

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wavespace needs Python 3.11 or newer: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## train on rendered scores, score on unseen ones, print the report to open
	$(BIN)/wavespace train experiment=demo

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder -m "not timing"

lint: $(READY) ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## time Wavespace against peers, as ratios
	$(BIN)/python -m pytest -q -m timing
	$(BIN)/python benchmarks/run.py

chaos: $(READY) ## test launches with many failures: 300 in virtual time, one of 200 jobs on 8 pods as processes
	WAVESPACE_CHAOS_SEEDS=300 $(BIN)/python -m pytest -q -n 2 tests/launcher/test_chaos.py
	WAVESPACE_CHAOS_JOBS=$${WAVESPACE_CHAOS_JOBS:-200} $(BIN)/python -m pytest -q -s tests/launcher/test_chaos_processes.py

experiments: $(READY) ## run every experiment and check its claim (hours); data is expected in data/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/experiments.py

studies: $(READY) ## train the runs of the tables in docs/findings.md, and write the tables (hours)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/studies.py

image: ## build the image that pods run, with docker or buildah: docker/README.md
	docker/build.sh

lock: ## pin the newest packages that fit, with hashes
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade -q -o requirements.lock
	sed -n '/^tinysoundfont==/,/[^\\]$$/p' requirements.lock > src/wavespace/data/synthesis/tinysoundfont.txt

clean: ## remove .venv and caches, keep runs
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
