# Everything runs in .venv, made from constraints.txt. `make demo` and `make test` need nothing but Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
.DEFAULT_GOAL := help
.PHONY: help demo demo-aortic-arch test test-peers lint bench docs clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The marker is rewritten only when what is installed changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## Train MTL-Swin-Unet on the embedded head-CT phantom and evaluate it by hospital
	$(BIN)/threefold demo hematoma --out $(OUT)/demo-hematoma

demo-aortic-arch: $(VENV)/.installed  ## Propagate atlas labels over the embedded fetal-heart phantom, then segment and classify
	$(BIN)/threefold demo aortic-arch --out $(OUT)/demo-aortic-arch

test: $(VENV)/.installed  ## Run the tests
	$(BIN)/python -m pytest -m "not peer" -n 3 --dist worksteal  # on 2 cores: some tests wait for processes

test-peers: $(VENV)/.installed  ## Run the tests that start other programs, such as a Ray cluster
	$(BIN)/python -m pytest -m peer

lint: $(VENV)/.installed  ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed  ## Run the benchmarks; each prints ratios measured in one process
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docs: $(VENV)/.installed  ## Build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

clean:  ## Remove what the other targets made (not your runs)
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
