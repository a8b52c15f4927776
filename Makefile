# Everything runs in .venv, made from requirements.lock. A fresh machine needs make and Python 3.11 to 3.14, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-fast test-faults test-load test-fuzz browser lint bench lock

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# where every package of the lock has a wheel; elsewhere some are built, or can't be
define SUPPORTED
import platform, sys
here = (platform.system(), platform.machine().lower())
known = {("Linux", "x86_64"), ("Darwin", "arm64")}
if here not in known or (here[0] == "Linux" and platform.libc_ver()[0] != "glibc"):
    print(f"Caudal isn't supported on {' '.join(here)}: some of its packages have no wheel there (see README, Supported platforms). Trying all the same.")
endef
export SUPPORTED

setup: $(STAMP)  ## install everything into .venv, pinned and checked by hash

# pip's chatter goes to standard error: the targets' own output stays clean for pipes
$(STAMP): requirements.lock pyproject.toml
	@if [ ! -x $(BIN)/python ]; then \
	  for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then break; fi; \
	    python=; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "Caudal needs Python 3.11 to 3.14 with the venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$python" --version)" >&2; \
	  "$$python" -m venv $(VENV); \
	fi
	@$(BIN)/python -c "$$SUPPORTED" >&2
	@echo "installing the packages of requirements.lock" >&2
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock >&2
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . >&2
	@touch $@

demo: setup  ## three systems, one customer, live; ARGS="--once --json" for a summary
	@$(BIN)/caudal demo $(ARGS)

test: lint browser  ## lint, then every test
	@$(BIN)/python -m pytest --numprocesses 3 --dist worksteal $(ARGS)

test-fast: setup  ## the tests that need no server
	@$(BIN)/python -m pytest tests/unit tests/connectors $(ARGS)

test-faults: setup  ## 200 seeded runs under faults; ARGS="--seed 7" repeats one, "--seeds 20" takes fewer
	@PYTHONPATH=tests/faults:tests/integration:tests/e2e $(BIN)/python -m driver $(ARGS)

test-load: setup  ## half of the capacity for 30 minutes, a burst, a slow PostgreSQL; ARGS="--scale 0.1" for 3 minutes
	@$(BIN)/python -m benchmarks load $(ARGS)

test-fuzz: setup  ## the tests of bad input, with fifty times as many examples, ever new ones
	@$(BIN)/python -m pytest tests/fuzz --hypothesis-profile long $(ARGS)

# tests of what people open in a browser need one; without it they are skipped, and say so (CI=true: fail)
browser:  ## Chromium for the tests; installed when it is missing and this is root on Debian or Ubuntu
	@if ! command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Chromium" >&2; \
	    apt-get update -qq -o Acquire::Retries=5 >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -o Acquire::Retries=5 --no-install-recommends chromium >&2; \
	  else \
	    echo "no Chromium was found: install it for the tests in a browser (on Debian and Ubuntu: apt install chromium)." >&2; \
	  fi; \
	fi

# the import contracts are read off the built wheel: the linter can't follow the editable install to the root folders
lint: setup  ## ruff, mypy and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@rm -rf build && $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/lint .
	@cd build/lint && PYTHONPATH=. $(abspath $(BIN))/lint-imports --config ../../pyproject.toml --no-cache --no-logo

bench: setup  ## measure: ARGS="drain --json"; benchmarks/README.md lists them
	@$(BIN)/python -m benchmarks $(ARGS)

# needs uv; --upgrade in ARGS takes newer versions
COMPILE := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock:  ## resolve pyproject.toml into the lock files again
	@$(COMPILE) --extra dev --output-file requirements.lock $(ARGS)
	@$(COMPILE) --constraint requirements.lock --no-annotate --output-file deploy/requirements.lock
