# Everything a clone needs, from nothing but Python 3.11 or newer: `make test`, `make demo`.

# Another activated environment, or a user's pip settings for one, must not leak into ours.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
export PIP_USER := 0
export PIP_REQUIRE_VIRTUALENV := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Nobody asked Ray's makers to be told that these tests ran.
export RAY_USAGE_STATS_ENABLED := 0

VENV := .venv
RUN := $(VENV)/bin/python
# The stamp carries the checkout's place, since an editable install is bound to it.
STAMP := $(VENV)/installed-$(shell printf '%s' '$(CURDIR)' | cksum | cut -d ' ' -f 1)
# Tests run in as many processes as there are cores; those that start a Ray share one of them.
PYTEST_PROCESSES ?= auto
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install fmt lint types unit check test test-all azurite slow fuzz demo bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*##  *\(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) \
		| awk -F '@' '{ printf "%-15s %s\n", $$1, $$2 }'

install: $(STAMP)  ## create .venv with this project and its tools, when they are not there yet

$(STAMP): pyproject.toml
	@$(RUN) -m pip --version >/dev/null 2>&1 || { \
		for python in python3 python3.14 python3.13 python3.12 python3.11; do \
			$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
				2>/dev/null && exec $$python -m venv --clear $(VENV); \
		done; \
		echo 'Python 3.11 or newer with its venv module is needed, and none is in PATH.' >&2; \
		exit 1; \
	}
	@# Dependency groups need a newer pip than the one Python 3.11 brings.
	$(RUN) -m pip install --quiet --upgrade 'pip>=25.1'
	$(RUN) -m pip install --quiet --editable . --group dev
	@rm -f $(VENV)/installed-*
	@touch $@

fmt: $(STAMP)  ## format the code and sort its imports
	$(RUN) -m ruff format
	$(RUN) -m ruff check --fix --select I

lint: $(STAMP)  ## check format and style
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check

types: $(STAMP)  ## check types
	$(RUN) -m mypy

# Azure's own emulator, for the tests of the store on Azure; without node they are skipped.
AZURITE := $(VENV)/azurite/node_modules/.bin/azurite-blob
azurite: $(STAMP)  ## install Azure's emulator for the tests, where node and its registry are there
	@test -x $(AZURITE) || ! command -v npm >/dev/null || npm install --silent --no-audit --no-fund \
		--fetch-retries=1 --fetch-timeout=20000 \
		--prefix $(VENV)/azurite azurite@3 >/dev/null 2>&1 || echo 'no azurite: its tests are skipped'

PYTEST := $(RUN) -m pytest -n $(PYTEST_PROCESSES) --dist loadgroup

unit: $(STAMP)  ## run the tests that start neither a Ray nor an isolate; PYTEST_ARGS adds arguments
	$(PYTEST) -m 'not slow' tests/unit $(PYTEST_ARGS)

# One after the other, also under `make -j`: the order is from cheap to dear.
check: $(STAMP)  ## format, style, types and unit tests: before each commit
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory unit

test: $(STAMP) azurite  ## install, then format, style, types and tests: what CI runs
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

slow: $(STAMP) azurite  ## run the tests of many seeds and long histories
	$(RUN) -m pytest -m slow $(PYTEST_ARGS)

test-all: $(STAMP)  ## all tests, the slow ones too
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory slow

FUZZ_SECONDS ?= 600
fuzz: $(STAMP)  ## make up bytes against all that reads them, for FUZZ_SECONDS (600) in all
	$(RUN) -m pip install --quiet --group fuzz
	$(RUN) tests/security/fuzz/run.py --seconds $(FUZZ_SECONDS)

demo: $(STAMP)  ## four tenants, one crash, SQL at the end; again to go on from the same log
	@# Python cannot hear of Ctrl-C in its first moments: until the demo does, it does nothing.
	@trap '' INT; exec $(RUN) examples/demo.py

bench: $(STAMP)  ## measure this machine; bench/RESULTS.md holds earlier figures
	@for question in w1 w2 w3 w7; do $(RUN) bench/$$question.py || exit 1; done

clean:  ## remove what these targets made, the demo's log included
	rm -rf $(VENV) build dist data .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache *.egg-info
