# Everything that is done to this project, by one word each; `make help` lists them.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
VENV_RQ2 := .venv-rq2
BIN := $(VENV)/bin
READY := $(VENV)/.made
READY_RQ2 := $(VENV_RQ2)/.made
PYTEST := $(BIN)/python -m pytest
# Three at once, the longest first: on two cores they wait for pods and clocks more than half of their time. ARGS="-n0" for one.
SIDE_BY_SIDE := -n 3 --dist loadscope --no-loadscope-reorder
# More arguments for pytest: make test-unit ARGS="-k drain"
ARGS ?=
# Requests for each route in `make fuzz-api`.
EXAMPLES ?= 500
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate

# What the tests run RQ 2 with: the locked one.
export ENGINEROOM_TEST_PYTHON_RQ2 := $(CURDIR)/$(VENV_RQ2)/bin/python

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort \
		| awk -F ':.*## ' '{ printf "  %-18s %s\n", $$1, $$2 }'

# ---- the environment ------------------------------------------------------------------------

$(READY): requirements/dev.txt scripts/venv
	@scripts/venv $(VENV) requirements/dev.txt
	@touch $@

$(READY_RQ2): requirements/rq2.txt scripts/venv
	@scripts/venv $(VENV_RQ2) requirements/rq2.txt
	@touch $@

.PHONY: venv
venv: $(READY) $(READY_RQ2) ## Make .venv (RQ 3) and .venv-rq2 (RQ 2) from the lock files

.PHONY: doctor
doctor: $(READY) ## Install what the tests need of the system, or say what is missing
	@$(BIN)/python -m tests.cluster doctor

# The same without a word where nothing is missing.
.PHONY: system
system: $(READY)
	@$(BIN)/python -m tests.cluster doctor >/dev/null

.PHONY: lock
lock: $(READY) ## Lock the dependencies anew (UPGRADE=--upgrade for newer ones)
	$(LOCK) $(UPGRADE) --all-extras --group dev pyproject.toml -o requirements/dev.txt
	$(LOCK) $(UPGRADE) --all-extras --group dev -c requirements/rq2.in \
		pyproject.toml -o requirements/rq2.txt
	$(LOCK) $(UPGRADE) --extra operator --extra webhooks --extra console --extra limiter --extra cli --extra tracing -c requirements/dev.txt \
		pyproject.toml -o requirements/image.txt
	$(LOCK) $(UPGRADE) -c requirements/dev.txt requirements/build.in -o requirements/build.txt
	$(LOCK) $(UPGRADE) examples/shop/requirements.in -o examples/shop/requirements.txt

# ---- to see it ------------------------------------------------------------------------------

.PHONY: demo
demo: $(READY) system ## Bring up a cluster, install Engineroom and watch a pool at work
	@$(BIN)/python -m tests.demo up

.PHONY: demo-down
demo-down: $(READY) ## Remove the demo's cluster
	@$(BIN)/python -m tests.demo down

# ---- to trust it ----------------------------------------------------------------------------

.PHONY: test
test: $(READY) $(READY_RQ2) system ## Unit, integration, security and e2e tests: what CI runs
	$(PYTEST) $(SIDE_BY_SIDE) tests/e2e tests/integration tests/security tests/unit $(ARGS)

.PHONY: test-unit
test-unit: $(READY) ## Tests that take seconds and need nothing
	$(PYTEST) tests/unit $(ARGS)

.PHONY: test-integration
test-integration: $(READY) $(READY_RQ2) system ## Tests against a real API server and a real Redis
	$(PYTEST) tests/integration $(ARGS)

.PHONY: test-security
test-security: $(READY) ## Attacks on what guards the doors; needs a redis-server and npm
	$(PYTEST) tests/security $(ARGS)

.PHONY: coverage
coverage: $(READY) $(READY_RQ2) system ## Branch coverage by room, started processes too; fails below its limits
	$(BIN)/python -m tests.coverage $(ARGS)

.PHONY: audit
audit: $(READY) system helm ## Bandit, pip-audit, gitleaks and kube-score, each finding fixed or explained
	@$(BIN)/python -m tests.audit $(ARGS)

.PHONY: fuzz
fuzz: $(READY) ## 100,000 documents and files made by mutation (ARGS="--count 1000000 --seed 1")
	@$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: fuzz-api
fuzz-api: $(READY) system ## The API's document by schemathesis, 500 requests a route (EXAMPLES=...)
	ENGINEROOM_TEST_EXAMPLES=$(EXAMPLES) $(PYTEST) --timeout 7200 \
		tests/integration/console/test_schema.py $(ARGS)

.PHONY: attacks
attacks: $(READY) system ## 10,000 writes by authors with random rights (ARGS="--steps 1000 --seed 1")
	@$(BIN)/python -m tests.attacks $(ARGS)

.PHONY: test-e2e
test-e2e: $(READY) system ## Tests with real pods
	$(PYTEST) tests/e2e $(ARGS)

.PHONY: chart-test
chart-test: $(READY) system ## Install, upgrade, test and remove the Helm chart on the local cluster
	$(PYTEST) tests/e2e/test_chart.py $(ARGS)

.PHONY: bench
bench: $(READY) $(READY_RQ2) system ## Run one benchmark: make bench NAME=reaction (ARGS="--help" for its options)
	@$(BIN)/python -m tests.performance $(NAME) $(ARGS)

.PHONY: lint
lint: $(READY) type ## Style, layers, spelling, and the limits of language and shape
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m tests.house

.PHONY: type
type: $(READY) ## Types, strictly
	$(BIN)/mypy

# The kustomize base is rendered by it; built once, together with the rest of the cluster.
.PHONY: helm
helm: $(READY) system ## Have helm, which the local cluster builds
	@command -v helm >/dev/null || $(BIN)/python -m tests.cluster build --shape node >/dev/null

# ---- what is written by programs ------------------------------------------------------------

.PHONY: generate
generate: $(READY) helm ## Write the files that have another source: CRDs, schemas, references
	$(BIN)/python -m engineroom.api.generate
	$(BIN)/python -m engineroom.core.reference
	$(BIN)/python -m engineroom.cli.app.docs
	$(BIN)/python -m engineroom.console.reference
	$(BIN)/python deploy/kustomize/render.py
	$(BIN)/python charts/values_table.py

.PHONY: verify
verify: $(READY) helm ## Check that the generated files are what `make generate` would write
	$(BIN)/python -m engineroom.api.generate --check
	$(BIN)/python -m engineroom.core.reference --check
	$(BIN)/python -m engineroom.cli.app.docs --check
	$(BIN)/python -m engineroom.console.reference --check
	$(BIN)/python deploy/kustomize/render.py --check
	$(BIN)/python charts/values_table.py --check

.PHONY: docs
docs: $(READY) ## Check that every link in the documentation leads somewhere
	$(PYTEST) tests/unit/test_docs.py $(ARGS)

# ---- what is delivered ----------------------------------------------------------------------

.PHONY: images
images: $(READY) system ## Build the container images
	@$(BIN)/python -m tests.demo images

.PHONY: release
release: $(READY) ## Build the wheel and the source distribution into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	@ls -l dist

.PHONY: clean
clean: ## Remove what was built here
	rm -rf $(VENV) $(VENV_RQ2) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
