# Every target sets up what it needs in .venv. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOAK_EXAMPLES ?= 10000
BENCH_JSON ?= bench.json

.DEFAULT_GOAL := help
.PHONY: help install demo test soak scaling bench bench-check profile lint format revision drift clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP) ## create .venv with the package (editable) and the development tools

demo: install ## the whole job once, on an embedded PostgreSQL and the sample files
	@$(BIN)/python examples/demo.py

test: install ## the whole suite on a real Postgres (TEST_POSTGRES=auto|container|embedded|URL)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

soak: install ## the model of tests/property with SOAK_EXAMPLES (10000) random examples
	@SOAK_EXAMPLES=$(SOAK_EXAMPLES) $(BIN)/python -m pytest -q -s --show-capture=no tests/property/test_model.py

scaling: install ## measure what docs/scaling.md says (12 minutes; SCALING_ARGS="--runs 100000")
	@$(BIN)/python -m benchmarks.scaling $(SCALING_ARGS)

bench: install ## measure what docs/performance.md says, into BENCH_JSON (BENCH_ARGS="--sizes 100 1000")
	@$(BIN)/python -m benchmarks.speed --json "$(BENCH_JSON)" $(BENCH_ARGS)

bench-check: install ## fail where an operation takes longer, beside its floor, than promised
	@$(BIN)/python -m benchmarks.speed --check --groups tasks runs threads peers $(BENCH_ARGS)

profile: install ## where the time of an operation goes (PROFILE_ARGS="--only update_task")
	@$(BIN)/python -m benchmarks.speed.profiling $(PROFILE_ARGS)

lint: install ## format, lint, types, layers, and drift between tables and revisions
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(MAKE) --no-print-directory drift

revision: install ## a new revision from the template: make revision m="verb noun"
	@echo "$(m)" | grep -Eq '^[a-z]+( [a-z]+)+$$' || \
		{ echo 'say what it does in small letters: make revision m="verb noun"' >&2; exit 2; }
	@$(BIN)/alembic revision --message "$(m)" --rev-id "$$($(BIN)/python -c \
		'from datahound_storage.migrations.state import next_revision; print(next_revision())')"

drift: install ## tables in the code against tables made by the revisions
	@$(BIN)/python -m pytest -q tests/migrations/test_drift.py

format: install ## rewrite the code in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove .venv and what the tools left
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
