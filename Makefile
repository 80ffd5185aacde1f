# README's two commands: `make demo` and `make test`. Each creates the environment it needs in a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
# The models are tiny: threads that wait for one another cost more than they give.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-docs test-real test-all fuzz lint format docs study clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" "setuptools>=77"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/ppl-llm demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What a change needs before it is committed: about seven minutes on two free cores.
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not docs"

# Notebooks, command lines of the pages, and the site.
test-docs: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "docs and not slow" tests/docs

# Random Pyro programs under every algorithm; the same command continues an interrupted run.
PROGRAMS ?= 1000
fuzz: $(STAMP)
	mkdir -p build
	$(BIN)/python -m tests.inference.random_programs --programs $(PROGRAMS) --workers $(WORKERS) --resume build/fuzz-$(PROGRAMS).jsonl

# Published models, in the folder that PPL_LLM_REAL_MODELS names; without it they are skipped. 15 minutes on two free cores, 11 GB.
test-real: $(STAMP)
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python -m pytest -m real tests/real

test-all: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -n -b html docs build/docs
	$(BIN)/python docs/check_links.py build/docs

study: $(STAMP)
	$(BIN)/python -m benchmarks.study

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
