# What is too slow, or needs too much, for the core test run.

UV ?= uv
PYTHON ?= python3.11
MATRIX := .venv-sdk
WITH := pytest pytest-asyncio pytest-timeout pytest-xdist hypothesis 'websockets<16'

.PHONY: sdk-matrix
## The capture tests on three pairs of SDK versions, each in an environment of its own; rewrites the coverage page.
sdk-matrix: $(MATRIX)/oldest.json $(MATRIX)/middle.json $(MATRIX)/newest.json
	$(MATRIX)/newest/bin/python tests/capture/write_coverage.py docs/reference/coverage.md $^

$(MATRIX)/oldest.json: SDKS := openai==1.40.0 anthropic==0.34.0 'httpx<0.28'
$(MATRIX)/middle.json: SDKS := openai==2.54.0 anthropic==0.125.0
$(MATRIX)/newest.json: SDKS := 'openai>=3.54' 'anthropic>=2.12'

.PHONY: FORCE
$(MATRIX)/%.json: FORCE
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(MATRIX)/$*
	$(UV) pip install --quiet --python $(MATRIX)/$*/bin/python $(SDKS) $(WITH) -e .
	TOKENMETER_COVERAGE=$@ $(MATRIX)/$*/bin/python -m pytest -q tests/capture
