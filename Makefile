# `make demo` and `make test` each build what they need in .venv and work alone and in either order.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint types format fuzz clean
help:
	@echo "make demo    train, prove, verify and attack on a small data set (reports in demo-output/)"
	@echo "make test    lint, types and tests"
	@echo "make fuzz    N=100000 mutated proofs against the reader (exit status 1 on a finding)"
	@echo "make clean   remove the virtual environment and what the demo wrote"

$(STAMP): pyproject.toml tools/setup.sh
	PYTHON="$(PYTHON)" sh tools/setup.sh "$(VENV)"
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

N ?= 100000
fuzz: $(STAMP)
	$(BIN)/python tools/fuzz.py -n $(N)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo-output
