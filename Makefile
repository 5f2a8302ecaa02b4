# Every target sets up what it needs: a virtual environment in .venv with the pinned dependencies.
#
#   make tutorial                 run all notebooks with the quick profile
#   make test                     all checks
#   make PYTHON=/path/to/python3.12 TORCH_INDEX=https://download.pytorch.org/whl/cpu tutorial

# The first interpreter that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# An extra package index for torch, such as the CPU-only one above; empty: the default index, whose
# Linux wheels bring CUDA (several gigabytes).
TORCH_INDEX ?=
VENV ?= .venv
# What train runs, how often soak repeats the tutorial, what refresh executes.
PROFILE ?= standard
SOAK ?= 3
NOTEBOOKS ?= $(sort $(wildcard notebooks/*.ipynb))
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

# nbval compares every cell of the strict ones, and the marked cells of those that train.
NBVAL_STRICT := 00 01 03 04 06
NBVAL_LAX := 02 05 07 08
notebooks_of = $(foreach number,$(1),$(wildcard notebooks/$(number)_*.ipynb))

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup tutorial lab train bench soak site refresh clean test lint test-library \
	test-nbval-strict test-nbval-lax test-browser
.NOTPARALLEL:
.DEFAULT_GOAL := help

help:
	@echo "make tutorial   run all notebooks (quick profile), some minutes on two cores"
	@echo "make test       lint, types, library tests, notebook policy, nbval, browser tests"
	@echo "make lab        open JupyterLab on 00_quickstart"
	@echo "make train      run the training stages: make train PROFILE=full"
	@echo "make bench      measure the speed of every stage, a few minutes"
	@echo "make soak       run the tutorial SOAK times over: make soak SOAK=10"
	@echo "make site       render the notebooks to HTML in site/"
	@echo "make refresh    execute notebooks in place: make refresh NOTEBOOKS=notebooks/01_synthetic_shapes.ipynb"
	@echo "make clean      remove what the targets made, except runs/ and the environment"
	@echo "Variables: PYTHON, TORCH_INDEX (CPU-only: https://download.pytorch.org/whl/cpu), VENV"

setup: $(READY)

$(READY): pyproject.toml constraints.txt tools/ensure_opencv.py
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ echo "the venv module is missing (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "installing torch, then the package with its dependencies, into $(VENV)"
	@$(PIP) install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint constraints.txt torch
	@$(PIP) uninstall --quiet --yes opencv-python-headless 2>/dev/null
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[notebooks,test]"
	@$(BIN)/python tools/ensure_opencv.py constraints.txt
	@touch $@

tutorial: $(READY)
	@$(BIN)/superpoint run --profile quick --cell-timeout 900

lab: $(READY)
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

train: $(READY)
	$(BIN)/superpoint run --profile $(PROFILE) --only 02,03,05,06 --resume

bench: $(READY)
	$(BIN)/python tools/bench.py

soak: $(READY)
	@round=1; while [ $$round -le $(SOAK) ]; do \
		echo "round $$round of $(SOAK)"; rm -rf runs/soak/$$round; \
		$(BIN)/superpoint run --profile quick --cell-timeout 900 --run-dir runs/soak/$$round || exit 1; \
		round=$$((round + 1)); \
	done

site: $(READY)
	@$(BIN)/python -c "from superpoint_lib.pipeline import write_site; print(write_site())"

# Compared outputs depend on the number of threads and on linked data: both are fixed here.
test-library test-nbval-strict test-nbval-lax refresh: export OMP_NUM_THREADS := 2
test-library test-nbval-strict test-nbval-lax refresh: export MKL_NUM_THREADS := 2
test-library test-nbval-strict test-nbval-lax refresh: export OPENBLAS_NUM_THREADS := 2
test-library test-nbval-strict test-nbval-lax refresh: export SUPERPOINT_DATA := none

refresh: $(READY)
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--KernelManager.transport_encryption=auto $(NOTEBOOKS)
	$(BIN)/nbstripout --keep-output --keep-count --keep-id $(NOTEBOOKS)
	$(BIN)/python tools/drop_progress_bars.py $(NOTEBOOKS)

test: $(READY)
	@$(MAKE) --keep-going --no-print-directory \
		lint test-library test-nbval-strict test-nbval-lax test-browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-library: $(READY)
	$(BIN)/python -m pytest tests --ignore=tests/browser

test-nbval-strict: $(READY)
	$(BIN)/python -m pytest --nbval $(call notebooks_of,$(NBVAL_STRICT))

test-nbval-lax: $(READY)
	$(BIN)/python -m pytest --nbval-lax $(call notebooks_of,$(NBVAL_LAX))

test-browser: $(READY)
	@if [ ! -d tests/browser ]; then echo "no browser tests"; \
	elif [ -z "$(CHROMIUM)" ]; then echo "Chromium is not installed: browser tests left out"; \
	else CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest tests/browser; fi

clean:
	rm -rf site build dist .pytest_cache .ruff_cache .mypy_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
	@echo "kept: runs/ (results) and $(VENV) (environment)"
