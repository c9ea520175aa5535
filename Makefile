# Everything a developer runs; CI runs `make check` and `make test`.

PYTHON ?= $(shell for candidate in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	"$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$candidate"; break; }; done)
VENV    := .venv
RUN     := $(VENV)/bin/python -m
STAMP   := $(VENV)/.installed
DEMO    ?= examples.library_census
WORKERS ?= auto
ARGS    ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PYTHONUNBUFFERED := 1

# A virtual environment keeps absolute paths, so a copied or moved tree installs anew.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format failpoints simulate chaos soak costs bench bench-quick bench-scale bench-soak docs clean

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with the library and its development tools

demo: setup ## Run the demonstration
	@$(RUN) $(DEMO)

test: setup ## Run the tests in parallel (ARGS="-k name" narrows)
	@$(RUN) pytest -q -n $(WORKERS) $(ARGS) || $(MAKE) --no-print-directory test-again

# Thousands of tests with real processes on a busy machine: one that fails has a second chance, alone. It stays in the
# output above, and is to be mended all the same.
.PHONY: test-again
test-again:
	@echo '== what failed, once more and alone'
	@$(RUN) pytest -q -n 0 --last-failed --last-failed-no-failures none --maxfail 5

check: setup ## Check formatting, lint, types and import contracts
	@$(MAKE) --no-print-directory --keep-going check-format check-lint check-types check-public check-imports

.PHONY: check-format check-lint check-types check-public check-imports
check-format:
	@echo '== ruff format'
	@$(RUN) ruff format --quiet --check . || { echo 'make format rewrites them'; exit 1; }
check-lint:
	@echo '== ruff check'
	@$(RUN) ruff check --quiet .
check-types:
	@echo '== mypy'
	@$(RUN) mypy
check-public:
	@echo '== basedpyright'
	@$(RUN) basedpyright --warnings
check-imports:
	@echo '== lint-imports'
	@$(VENV)/bin/lint-imports --no-logo

format: setup ## Format the code and sort its imports
	@$(RUN) ruff check --quiet --select I --fix .
	@$(RUN) ruff format .

failpoints: setup ## Let every call to the database fail, in every way (some eight minutes)
	@DBOS_FAILPOINTS=all $(RUN) pytest -q -n $(WORKERS) tests/failpoints $(ARGS)

simulate: setup ## Play a thousand random histories against the model, on each database
	@DBOS_TEST_SIMULATION_EXAMPLES=1000 $(RUN) pytest -q -n 0 --timeout 0 tests/simulation $(ARGS)

chaos: setup ## Run the long tests under faults (about a quarter of an hour)
	@$(RUN) pytest -q -n 0 -s -m chaos tests/chaos $(ARGS)

soak: setup ## See that nothing grows in a process that runs ever more workflows (DBOS_SOAK_WORKFLOWS=100000)
	@DBOS_SOAK_WORKFLOWS=$${DBOS_SOAK_WORKFLOWS:-100000} $(RUN) pytest -q -n 0 --timeout 0 tests/integration/test_soak.py $(ARGS)

costs: setup ## Count round trips, commits, thread hops and memory for each operation
	@$(RUN) bench.costs

bench: setup ## Run the usual benchmarks (a quarter of an hour)
	@$(RUN) bench $(ARGS)

bench-quick: setup ## Run them so short that they show no more than that they work
	@$(RUN) bench --quick $(ARGS)

bench-scale: setup ## Measure large tables, many processes, many schedules, large payloads, slow networks (twenty minutes)
	@$(RUN) bench --group scale $(ARGS)

bench-soak: setup ## Run a million workflows in one process, on each database
	@$(RUN) bench --group soak --repeats 1 $(ARGS)

docs: setup ## Build the documentation site
	@$(RUN) pip install -qq --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --quiet --strict

clean: ## Remove everything that the other targets made
	@rm -rf $(VENV) site build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .demo bench/.peer-venv
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@test -n '$(PYTHON)' || { echo 'make: no Python 3.11 or later with venv found; name one: make setup PYTHON=/path/to/python3' >&2; exit 1; }
	@echo 'setup: installing into $(VENV) (about a minute the first time)'
	@test "$$(cat $@ 2>/dev/null)" = '$(CURDIR)' && $(VENV)/bin/python -c '' 2>/dev/null || '$(PYTHON)' -m venv --clear $(VENV)
	@{ $(RUN) pip install -qq --upgrade pip && $(RUN) pip install -qq --editable '.[console,otel,dev]'; } || { echo \
		'make: pip could not install the dependencies; its message is above. Without a network, point pip at' \
		'a mirror or at a directory of wheels (PIP_INDEX_URL, PIP_FIND_LINKS) and run make setup again.' >&2; exit 1; }
	@echo '$(CURDIR)' > $@
