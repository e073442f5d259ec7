# `make demo` and `make test` are all a new user needs; both work on a bare machine with
# Python >= 3.11, make and pip, and do no harm when run twice.
PYTHON ?= python3
VENV   ?= .venv
RUNS   ?= runs
GRID   ?= grids/digits.yaml
BIN    := $(VENV)/bin

.PHONY: demo test clean

demo: $(VENV)/.installed
	$(BIN)/sweeper launch $(GRID) --sweep-dir $(RUNS)/digits -y
	$(BIN)/sweeper analyze all $(RUNS)/digits
	@echo "open $(RUNS)/digits/analysis/report.html in a browser"

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses 2 --dist worksteal

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build *.egg-info
