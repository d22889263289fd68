# What a contributor does, by name. `make` alone lists it.

# `make setup` puts it there.
UV ?= $(abspath .venv/bin/uv)
PYTHON ?= python3.11
BIN := .venv/bin

.DEFAULT_GOAL := help

.PHONY: help
## This list.
help:
	@awk '/^## / { said = substr($$0, 4); next } \
		/^[a-z][a-z-]*:/ && said { name = $$1; sub(":.*", "", name); printf "  make %-12s %s\n", name, said; said = "" } \
		!/^## / && !/^\.PHONY/ { said = "" }' Makefile

.PHONY: setup
## An environment in .venv with everything that tests, linters and docs need, at the versions of constraints.txt.
setup:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[all]' --group dev

.PHONY: test
## The whole suite, on two workers.
test:
	$(BIN)/pytest -q -n 3

.PHONY: explore
## The property tests with examples that no run has drawn before, for who has time to look for faults.
explore:
	$(BIN)/pytest -q -n 2 --hypothesis-profile "new examples" $$(grep -l "^from hypothesis" -r tests --include="test_*.py")

.PHONY: fast
## What says within a minute whether a change broke something: values, prices, wire formats, budgets, meter, SQLite.
fast:
	$(BIN)/pytest -q -x -n 2 -m 'not slow' $(FAST)

FAST := tests/test_imports.py tests/test_dimensions.py tests/test_warm_call.py tests/acceptance/test_promises.py \
	tests/unit/test_money.py tests/unit/test_periods.py tests/unit/test_attribution.py tests/unit/test_config.py \
	tests/unit/test_meter.py tests/unit/test_errors.py tests/unit/test_rating_rules.py tests/unit/test_budget_rules.py \
	tests/providers/test_golden_costs.py tests/contract/test_store_sqlite.py

.PHONY: lint
## Style, format, layers and types, as CI checks them. `make format` mends what can be mended.
lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright

.PHONY: format
## Format, and mend what the linter can.
format:
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

.PHONY: docs
## The site, served on this machine as you write; `mkdocs build --strict` is what CI runs.
docs:
	$(BIN)/mkdocs serve

.PHONY: docs-version
## The site of a release beside those before it, on the branch gh-pages of this clone: make docs-version VERSION=0.1
docs-version:
	$(if $(VERSION),,$(error say which: make docs-version VERSION=0.1))
	PATH="$(abspath $(BIN)):$$PATH" mike deploy --update-aliases $(VERSION) latest
	PATH="$(abspath $(BIN)):$$PATH" mike set-default latest

.PHONY: bench
## What a call costs, paired with the plain SDK's; the others are beside it in benchmarks/.
bench:
	$(BIN)/python benchmarks/overhead.py

.PHONY: compare
## Other tools on the same calls, each in an environment of its own; rewrites docs/explanation/compare.md.
compare:
	$(BIN)/python benchmarks/compare.py --uv $(UV)

# -- what is too slow, or needs too much, for the core test run

MATRIX := .venv-sdk
WITH := pytest pytest-asyncio pytest-timeout pytest-xdist hypothesis respx 'websockets<16'

.PHONY: sdk-matrix
## The capture tests on three pairs of SDK versions, each in an environment of its own; rewrites the coverage page.
sdk-matrix: $(MATRIX)/oldest.json $(MATRIX)/middle.json $(MATRIX)/newest.json
	$(MATRIX)/newest/bin/python tests/capture/write_coverage.py docs/reference/coverage.md $^

$(MATRIX)/oldest.json: SDKS := openai==1.40.0 anthropic==0.34.0 google-genai==1.0.0 'httpx<0.28'
$(MATRIX)/middle.json: SDKS := openai==2.54.0 anthropic==0.125.0 google-genai==2.10.0
$(MATRIX)/newest.json: SDKS := 'openai>=3.54' 'anthropic>=2.12' 'google-genai>=3.6'

.PHONY: FORCE
$(MATRIX)/%.json: FORCE
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(MATRIX)/$*
	$(UV) pip install --quiet --python $(MATRIX)/$*/bin/python $(SDKS) $(WITH) -e .
	TOKENMETER_COVERAGE=$@ $(MATRIX)/$*/bin/python -m pytest -q tests/capture

FRAMEWORKS := autogen haystack instructor langchain litellm llama_index magentic mem0 openai_agents pydantic_ai smolagents
FRAMEWORK_ENVS := .venv-frameworks

.PHONY: frameworks $(FRAMEWORKS:%=framework-%)
## Programs of other projects with our clients, each in an environment of its own; -k goes on after a failure.
frameworks: $(FRAMEWORKS:%=framework-%)

$(FRAMEWORKS:%=framework-%): framework-%:
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(FRAMEWORK_ENVS)/$*
	$(UV) pip install --quiet --python $(FRAMEWORK_ENVS)/$*/bin/python -e . -r examples/frameworks/with_$*.py \
		hypothesis pytest pytest-asyncio pytest-timeout
	$(FRAMEWORK_ENVS)/$*/bin/python examples/frameworks/with_$*.py
	TOKENMETER_FRAMEWORK=$* $(FRAMEWORK_ENVS)/$*/bin/python -m pytest -q -W ignore \
		tests/frameworks/test_$*.py tests/frameworks/test_how_to.py

TRACING := logfire openinference-instrumentation-openai langfuse sentry-sdk ddtrace opentelemetry-sdk

.PHONY: tracing
## Other instrumentation beside ours on one client, in an environment of its own.
tracing:
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-tracing
	$(UV) pip install --quiet --python .venv-tracing/bin/python -e '.[openai]' $(TRACING) $(WITH)
	.venv-tracing/bin/python -m pytest -q -W ignore tests/frameworks/test_beside_tracing.py

SUITES := .venv-suites
SUITE_OPTIONS ?= -n 2

.PHONY: sdk-suites
## The SDKs' own test suites: with the plain clients, with ours under their names, and with theirs wrapped.
sdk-suites: suite-openai suite-anthropic suite-google

suite-openai: EXTRAS := aiohttp,bedrock,realtime,vertex
suite-anthropic: EXTRAS := aiohttp,bedrock,vertex
suite-anthropic: PLUGINS := -p tests._alias_httpx
suite-google: EXTRAS := aiohttp
suite-google: DISTRIBUTION := google-genai
suite-%: FORCE
	$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $(SUITES)/$*
	$(UV) pip install --quiet --python $(SUITES)/$*/bin/python "$(or $(DISTRIBUTION),$*)[$(EXTRAS)]" \
		-r tests/sdk_suites/requirements.txt -e .
	tests/sdk_suites/run.sh $* $(SUITES)/$* $(PLUGINS) $(SUITE_OPTIONS)

FOCUS := .venv-focus

.PHONY: focus
## The FOCUS 1.2 export by the rules of its publisher, whose validator needs a Python 3.12 of its own (FOCUS_PYTHON).
focus:
	$(UV) venv --quiet --allow-existing --python $(FOCUS_PYTHON) $(FOCUS)
	$(UV) pip install --quiet --python $(FOCUS)/bin/python focus-validator==2.2.1 'pyarrow<21'
	$(BIN)/pytest -q tests/unit/reports/test_export_focus.py -k publisher

FOCUS_PYTHON ?= python3.12

.PHONY: release
## Build and prove a release in empty environments; on a commit without a tag, a dry run.
release:
	.ci/release $(if $(shell git describe --tags --exact-match 2>/dev/null),,--dry-run)
