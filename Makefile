# One command sets everything up. PYTHON picks the interpreter (3.11 or newer), VENV where its environment goes.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
# Tests run in one process per core, four at most: each takes about a gigabyte. WORKERS=0 runs them in one, one after the other.
WORKERS ?= auto
BIN := $(VENV)/bin

.PHONY: help demo test test-slow faults conformance bench notebooks docs links lint types clean

help:
	@echo "make demo         set up, train a baseline and MS-DETR on the embedded data, compare them, draw the figures"
	@echo "make test         set up, run the tests"
	@echo "make test-slow    the marked slow tests: overfitting photographs, browser, full fault counts"
	@echo "make faults       the fault catalogue with the counts reached"
	@echo "make conformance DIR=...  compare with numbers of the published implementation"
	@echo "make bench        the benchmarks that need nothing else; results go to benchmarks/results"
	@echo "make lint types   style; types of the public modules"
	@echo "make notebooks    run every notebook in its fast mode, check the exercises"
	@echo "make docs         the site with course, how-to pages and API: build/site/index.html; make links: links to other sites"

$(VENV)/.ready: pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed; this is ' + sys.version.split()[0] + '. Try: make PYTHON=python3.12 ...') if sys.version_info < (3, 11) else None"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[notebooks,dev]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/msdetr demo --runs $(RUNS)

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q -rs -n $(WORKERS) --maxprocesses 4 --dist worksteal -m "not slow" tests

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -q -rs -m slow tests

faults: $(VENV)/.ready
	$(BIN)/python tests/faults.py

conformance: $(VENV)/.ready
	$(BIN)/python tests/conformance.py $(or $(DIR),tests/golden_small)

# data.py needs photographs, fuzz_ms_deform_attn.py is part of faults: see their --help
bench: $(VENV)/.ready
	for name in ms_deform_attn step matching evaluation checkpoint recording; do $(BIN)/python benchmarks/$$name.py || exit 1; done

notebooks: $(VENV)/.ready
	$(BIN)/python -m pytest -q -rs tests/test_notebooks.py tests/test_exercises.py

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/site

links: $(VENV)/.docs
	$(BIN)/python -m sphinx -b linkcheck docs build/links

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@

lint: $(VENV)/.ready
	$(BIN)/ruff check msdetr tests benchmarks docs
	$(BIN)/ruff format --check msdetr tests benchmarks docs/*.py

types: $(VENV)/.ready
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build *.egg-info
