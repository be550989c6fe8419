# Needs make, Python >= 3.11 and pip; below Python 3.13 also a C compiler and Python's headers, for learn2learn.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_CONFIG ?= configs/experiment/initialize/maml_glyphs_5w1s.yaml
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo demo-tables test test-slow test-gpu test-floor benchmark-speed benchmark-speed-check docs docs-serve lint format clean

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*##' '{printf "make %-21s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## create .venv and install requirements.txt in it (PYTHON=python3.12 to choose one)

# A stamp, so that nothing is installed again until the requirements change. pip 23.1 is the first that takes the
# build option on the learn2learn line.
$(VENV)/.installed: requirements.txt constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: try 'PYTHON=python3.11 make install'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 to 3.13 is needed, $(PYTHON) is `$(PYTHON) -V 2>&1`: try 'PYTHON=python3.11 make install'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "pip>=23.1"
	$(BIN)/python -m pip install -r requirements.txt || \
		{ echo "Install failed. If it was learn2learn: it needs a C compiler and Python's headers (Debian, Ubuntu: apt install build-essential python3-dev), or Python 3.13, which goes without it." >&2; exit 1; }
	@touch $@

demo: install  ## meta-train MAML on Glyphs, 5-way 1-shot, on the CPU (ARGS="..." adds options)
	$(BIN)/python -m lightning_meta fit --config $(DEMO_CONFIG) $(ARGS)

demo-tables: install  ## train a small TabPFN for some minutes and put it beside scikit-learn on real tables
	$(BIN)/python -m lightning_meta fit --config tab_pfn_tabularprior_5w10s --trainer.max_steps 2000 --name demo_tables $(ARGS)
	$(BIN)/python -m lightning_meta benchmark tables demo_tables

# One thread for each process: threads of several processes on the same cores slow each other down. Whole files, because
# fixtures of a module may be costly.
test: install  ## run the tests on all cores (ARGS="-k maml" to choose)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(ARGS)

test-slow: install  ## run the slow tests: whole meta-trainings
	$(BIN)/python -m pytest -m slow $(ARGS)

# Several processes share the GPU: tests of small networks spend their time in Python.
test-gpu: install  ## run the tests that need a GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu --numprocesses auto --maxprocesses 8 tests/modules/test_gpu.py $(ARGS)

# Without learn2learn, whose tests are skipped. Python 3.11 has wheels for all of them.
test-floor:  ## run the tests with the oldest versions that are allowed, in .venv-floor (PYTHON=python3.11)
	test -d .venv-floor || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet -r constraints-floor.txt "jsonargparse[signatures]" "setuptools<81"
	OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(ARGS)

# The libraries that ours is compared with; the product does without them.
$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet higher==0.2.1 torchopt==0.7.3
	@touch $@

benchmark-speed: $(VENV)/.peers  ## compare our speed with learn2learn, higher, TorchOpt (half an hour, quiet machine)
	$(BIN)/python -m lightning_meta benchmark speed $(ARGS)
	$(BIN)/python -m lightning_meta benchmark growth $(ARGS)
	$(BIN)/python -m lightning_meta benchmark fit

benchmark-speed-check: install  ## fail if we have become slower than lightning_meta/benchmark/speed.json says
	$(BIN)/python -m lightning_meta benchmark speed --check

# Builds without a network; a broken link or an unknown page fails it.
$(VENV)/.docs: $(VENV)/.installed requirements-docs.txt
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	@touch $@

docs: $(VENV)/.docs  ## build the site into site/
	$(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.docs  ## show the site while it is edited
	$(BIN)/python -m mkdocs serve

lint: install  ## check style and types, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and build leftovers; data/, runs/ and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find lightning_meta tests -name __pycache__ -type d -prune -exec rm -rf {} +
