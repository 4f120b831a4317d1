# Every target sets up what it needs on a fresh machine: Python 3.11 or newer, make and a network for pip are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
BENCHMARKS := networks penalty side_by_side kill chaos export architectures beside_torch_pruning many_trials many_points overhead gpu search_cost rerun_cost parallel_training compensation attention agent
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench $(BENCHMARKS:%=bench-%) constraints clean distclean

help:
	@echo 'make demo         search the digits demo: a frontier in a few minutes, without a GPU'
	@echo 'make test         lint, types, layers, then all tests with coverage'
	@echo 'make check        lint, types and layers only'
	@echo 'make docs         the documentation as a site, in build/site; nothing on it comes from the network'
	@echo 'make bench        every benchmark; one alone: $(BENCHMARKS:%=bench-%)'
	@echo 'make constraints  write constraints.txt anew from what is installed in $(VENV)'
	@echo 'make clean        remove caches and build outputs; make distclean removes $(VENV) too'

demo: $(BASE)
	$(BIN)/orchestrator search search_spaces/digits_cifarnet.toml

test: check
	$(BIN)/pytest --cov -n auto --maxprocesses 8 --dist loadgroup --durations=25

check: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'open build/site/index.html; with its search: python3 -m http.server --bind 127.0.0.1 --directory build/site'

bench: $(BENCHMARKS:%=bench-%)

$(BENCHMARKS:%=bench-%): bench-%: $(DEV)
	$(BIN)/python benchmarks/$*.py

# The stamps make repeated calls quick; a changed pyproject.toml or constraints.txt installs again.
$(BASE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(DEV): $(BASE)
	$(PIP) install -c constraints.txt -e '.[dev,docs,timm,export,bench,cluster]'
	@touch $@

constraints: $(DEV)
	{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude-editable; } > constraints.txt.new
	mv constraints.txt.new constraints.txt
	@touch $(BASE) $(DEV)

clean:
	rm -rf build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find orchestrator tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
