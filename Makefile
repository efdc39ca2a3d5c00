# Needs make and Python 3.11 or newer; each target sets up what it needs in .venv.
#
#   PYTHON       the interpreter to make .venv with                     make PYTHON=python3.12 demo
#   TORCH        the torch to install                                   make TORCH=torch==2.12.1 demo
#   TORCH_INDEX  the package index for torch alone, if not the one that pip is configured to use. Where that has a CPU
#                build, it is taken; PyPI's build for Linux brings several GB of CUDA: name PyTorch's CPU index instead
#                (its address is on PyTorch's "Get started" page).         make TORCH_INDEX=https://... demo
# They count when .venv is made: `make clean` first to change them.

PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
TORCH_INDEX ?=
REQUIREMENTS ?= -e '.[embedded,dev,ocr]'
VENV ?= .venv
ARGS ?=
# A file's tests stay together, since some share a scene. Each worker has a PostgreSQL and a Milvus of its own.
WORKERS := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
INSTALLED := $(VENV)/.installed
CONSTRAINTS := $(VENV)/constraints.txt

ifneq ($(wildcard ../shared/data),)
export FLTR_TEST_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help demo up down test test-faults lint bench clean install
.DEFAULT_GOAL := help

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: install ## Run the main job from nothing, on real parts, and check all of its results.
	@$(BIN)/fltr-pipeline demo $(ARGS)

up: install ## Start the embedded stack with the Dagster UI; Ctrl-C ends it.
	@$(BIN)/fltr-pipeline up $(ARGS)

down: install ## Stop the embedded stack, should it run in the background.
	@$(BIN)/fltr-pipeline down $(ARGS)

test: install ## Run all tests; ARGS goes to pytest, e.g. ARGS='-k credits', ARGS='-n 0 --pdb'.
	@$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-faults: install ## Run the tests that kill, stop and storm at full length: hours; FLTR_SEED replays a run.
	@FLTR_FAULTS=long $(BIN)/python -m pytest fltr_pipeline_tests/faults $(ARGS)

lint: install ## Check style, types and import contracts.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: install ## Measure what the README's numbers come from.
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## Stop the embedded stack, remove .venv and all caches; the stack's data in .fltr stays.
	@test ! -x $(BIN)/fltr-pipeline || $(BIN)/fltr-pipeline down
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(INSTALLED) ## Make .venv with all that the other targets need.

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer, or say where it is: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is `$(PYTHON) --version`, needed is 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@echo "[1/3] virtual environment in $(VENV), `$(PYTHON) --version`"
	@$(PYTHON) -m venv $(VENV) || { rm -f $(BIN)/python; echo "Python's venv module is missing: install it (Debian and Ubuntu: apt install python3-venv), then repeat."; exit 1; }

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@sed 's/^torch==.*/$(TORCH)/' constraints.txt > $(CONSTRAINTS)
	@echo "[2/3] $(TORCH) (200 MB; CPU build where there is one)"
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") -c $(CONSTRAINTS) "$(TORCH)" \
	  || { echo "torch could not be installed: is the package index reachable? See TORCH and TORCH_INDEX at the top of the Makefile."; exit 1; }
	@echo "[3/3] everything else, pinned by constraints.txt (minutes, the first time)"
	@$(PIP) -c $(CONSTRAINTS) $(REQUIREMENTS) || { echo "The packages could not be installed: pip says why above; what is there stays, so just repeat."; exit 1; }
	@touch $@
