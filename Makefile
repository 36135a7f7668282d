# `make demo` and `make test` each build what they need in .venv and work alone and in either order.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
RAY_STAMP := $(VENV)/.installed-ray
SETUP := pyproject.toml constraints.txt tools/setup.sh

.PHONY: help demo quick test test-all lint types format docs wheel fuzz clean
help:
	@echo "make demo       train, prove, verify and attack on a small data set (reports in demo-output/)"
	@echo "make quick      lint, types of the package, and tests that touch every part (a minute or two)"
	@echo "make test       lint, types and the tests (under ten minutes on two cores): what continuous integration runs"
	@echo "make test-all   also every experiment and benchmark as small as it gets, and all replay workers as users start them"
	@echo "make docs       the documentation as a site in site/"
	@echo "make wheel      build dist/, and run the wheel's demo in an empty environment outside the checkout"
	@echo "make fuzz       N=100000 mutated proofs against the reader (exit status 1 on a finding)"
	@echo "make format     format, and mend what ruff can"
	@echo "make clean      remove the virtual environment and what the demo wrote"

$(STAMP): $(SETUP)
	PYTHON="$(PYTHON)" sh tools/setup.sh "$(VENV)"
	@touch $@

$(DOCS_STAMP): $(STAMP)
	PYTHON="$(PYTHON)" sh tools/setup.sh "$(VENV)" docs
	@touch $@

$(RAY_STAMP): $(STAMP)
	PYTHON="$(PYTHON)" sh tools/setup.sh "$(VENV)" dev,ray
	@touch $@

demo: $(STAMP)
	$(BIN)/pol demo -o demo-output

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  # of the package, the tests and the programs
	$(BIN)/mypy --config-file tests/mypy.ini

# A file's tests share what they prepared, so one process runs them; which files come first, tests/conftest.py says.
# Bytecode is kept even where PYTHONDONTWRITEBYTECODE says not to: hundreds of processes import the package.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

quick: lint
	$(BIN)/mypy src
	$(PYTEST) -m quick

test: lint types
	sh tools/test-tools.sh
	$(PYTEST) -m "not slow"

test-all: $(RAY_STAMP) lint types
	sh tools/test-tools.sh
	POL_TEST_WORKERS=real $(PYTEST)

docs: $(DOCS_STAMP)  # not --quiet, which would hide from --strict what it counts
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "site/index.html"

wheel: $(STAMP)
	sh tools/wheel.sh $(BIN)/python

N ?= 100000
fuzz: $(STAMP)
	$(BIN)/python tools/fuzz.py -n $(N)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo-output dist site
