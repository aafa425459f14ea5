# Needs GNU make, Python 3.11 to 3.13 with pip, and nothing else. `make help` lists the goals.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
CLIP ?= examples/digits_theo.flac
JOBS ?= 2
PYTEST_ARGS ?=

# One environment for users (bare install) and one for developers; VENV=<folder> puts either elsewhere.
VENV ?=
DEMO_VENV := $(or $(VENV),.venv-demo)
DEV_VENV := $(or $(VENV),.venv-dev)
DEV_EXTRAS := onnx,train,eval,serve,mic,dev

PIP_INSTALL = -m pip install --quiet --retries 5 --timeout 120 -c constraints.txt
TORCH_PIN = $$(grep '^torch==' constraints.txt)
# Several test processes each with a full thread pool slow one another down many times over.
ONE_THREAD = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}

# $(call install,<venv>,<what>): an environment with torch at the tested version first, so that no dependency
# chooses another build of it.
define install
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	f"Python {v[0]}.{v[1]} is not supported: choose 3.11, 3.12 or 3.13, as in make PYTHON=python3.11")'
@echo "setting up $(1): a first time downloads a few hundred MB"
@$(PYTHON) -m venv "$(1)"
@"$(1)/bin/python" $(PIP_INSTALL) "$(TORCH_PIN)"
@"$(1)/bin/python" $(PIP_INSTALL) -e "$(2)"
@touch "$@"
endef

.PHONY: help demo test lint format types layers style clean

help: ## list the goals
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

$(DEMO_VENV)/.installed-bare: setup.cfg constraints.txt
	$(call install,$(DEMO_VENV),.)

$(DEV_VENV)/.installed-dev: setup.cfg constraints.txt
	$(call install,$(DEV_VENV),.[$(DEV_EXTRAS)])

demo: $(DEMO_VENV)/.installed-bare ## set up the bare package and transcribe the bundled clip with the bundled model
	@"$(DEMO_VENV)/bin/whisper-hailo" transcribe "$(CLIP)"

test: $(DEV_VENV)/.installed-dev ## set up everything for development and run the tests
	@$(ONE_THREAD) "$(DEV_VENV)/bin/python" -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(DEV_VENV)/.installed-dev ## ruff: errors and form
	@"$(DEV_VENV)/bin/ruff" check .
	@"$(DEV_VENV)/bin/ruff" format --check .

format: $(DEV_VENV)/.installed-dev ## ruff: mend what it can mend by itself
	@"$(DEV_VENV)/bin/ruff" check --fix .
	@"$(DEV_VENV)/bin/ruff" format .

types: $(DEV_VENV)/.installed-dev ## mypy
	@"$(DEV_VENV)/bin/mypy"

layers: $(DEV_VENV)/.installed-dev ## import-linter: imports go one way
	@"$(DEV_VENV)/bin/lint-imports" --no-cache --no-logo

style: lint types layers ## lint, types and layers

clean: ## remove the environments made here, caches and build leftovers
	@rm -rf .venv-demo .venv-dev build/lib build/bdist.* dist src/*.egg-info
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
