# `make demo` and `make test` each build what they need in .venv and work alone and in either order.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
SETUP := pyproject.toml constraints.txt tools/setup.sh

.PHONY: help demo test lint types format docs wheel fuzz clean
help:
	@echo "make demo    train, prove, verify and attack on a small data set (reports in demo-output/)"
	@echo "make test    lint, types and tests"
	@echo "make docs    the documentation as a site in site/"
	@echo "make wheel   build dist/, and run the wheel's demo in an empty environment outside the checkout"
	@echo "make fuzz    N=100000 mutated proofs against the reader (exit status 1 on a finding)"
	@echo "make clean   remove the virtual environment and what the demo wrote"

$(STAMP): $(SETUP)
	PYTHON="$(PYTHON)" sh tools/setup.sh "$(VENV)"
	@touch $@

$(DOCS_STAMP): $(STAMP)
	PYTHON="$(PYTHON)" sh tools/setup.sh "$(VENV)" docs
	@touch $@

demo: $(STAMP)
	$(BIN)/pol demo -o demo-output

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

test: lint types
	sh tools/test-tools.sh
	$(BIN)/pytest -n auto --dist loadfile

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
