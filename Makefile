# Everything runs from one environment, .venv, made on first use (torch with CUDA: about 6.5 GB, some minutes)
# and brought up to date when a pyproject.toml changes. Further options go in ARGS, as in
#   make fit ARGS="--sparsity 0.95 --out runs/first"        make test ARGS="-k masks"

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))

# One thread a test worker: workers that each start a thread a core slow one another down. It also makes weights
# comparable between runs, which are equal bit for bit at equal thread counts only.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install fit test slow docs-test faults exhaustive fuzz bench gpu-bundle studies-digits studies-fashion lint types format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make .venv with sparsekit, its test tools and every package under plugins/, all editable

fit: $(STAMP) ## prune and merge a small ResNet on digits; options in ARGS
	$(BIN)/sparsekit fit --method gmp --merge uniform $(ARGS)

test: $(STAMP) ## the tests that take seconds: within four minutes on two idle cores
	$(PYTEST) -m "not slow and not docs and not exhaustive" $(ARGS)

slow: $(STAMP) ## the long tests, and the property tests on more examples
	$(PYTEST) -m "(slow or hypothesis) and not docs and not faults and not exhaustive" --hypothesis-profile=full --timeout 1800 $(ARGS)

docs-test: $(STAMP) ## the tests of the documentation, configs, studies, benchmarks and the release
	$(PYTEST) -m "docs and not exhaustive" --timeout 1800 $(ARGS)

faults: $(STAMP) ## the long fault suite alone: kills, full disks, locks
	$(PYTEST) -m faults --timeout 1800 $(ARGS)

exhaustive: $(STAMP) ## every combination, and what takes minutes for one figure; before a release
	$(PYTEST) -m exhaustive --timeout 1800 $(ARGS)

fuzz: $(STAMP) ## the property tests on thousands of new examples
	$(PYTEST) -m "hypothesis and not slow" --timeout 1800 --hypothesis-profile=fuzz $(ARGS)

bench: $(STAMP) ## every benchmark, into docs/benchmarks.md; ARGS=--quick takes some minutes
	$(BIN)/python benchmarks/run.py $(ARGS)

gpu-bundle: $(STAMP) ## dist/gpu, to be carried to a machine with a GPU and no network; benchmarks/README.md says more
	$(BIN)/python benchmarks/carry.py $(ARGS)

studies-digits: $(STAMP) ## train the studies on digits (some hours on two cores; they resume), and write docs/results/ from them
	$(BIN)/python benchmarks/studies.py $(ARGS)

studies-fashion: $(STAMP) ## the studies on Fashion-MNIST (three, about an hour each on two cores)
	$(BIN)/python benchmarks/studies.py fashion fashion-bimp fashion-saturated $(ARGS)

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

.PHONY: docs
docs: $(STAMP) ## the documentation site, into site/; look at it with python -m http.server -d site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(STAMP) ## let ruff fix and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches, built packages and the site; .venv and runs/ stay
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# All in one pip command, so that a plugin's dependency on sparsekit-soups is met by this checkout.
$(STAMP): pyproject.toml sparsekit/_version.py $(PLUGINS:%=%/pyproject.toml)
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' $(PLUGINS:%=-e ./%)
	@touch $@
