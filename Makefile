# `make demo` and `make test` are all a new user needs; both work on a bare machine with
# Python >= 3.11, make and pip, and do no harm when run twice.
PYTHON ?= python3
VENV   ?= .venv
RUNS   ?= runs
GRID   ?= grids/digits.yaml
BIN    := $(VENV)/bin
STEPS  := pyproject.toml setup.py analysis/bhattacharyya/cpu.c docker/install.sh docker/requirements.lock

.PHONY: demo test test-cluster lock clean

demo: $(VENV)/.installed
	$(BIN)/sweeper launch $(GRID) --sweep-dir $(RUNS)/digits -y
	$(BIN)/sweeper analyze all $(RUNS)/digits
	@echo "open $(RUNS)/digits/analysis/report.html in a browser"

# On two processors: of three processes one mostly waits, for clusters; more threads would only spin.
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 3 --dist worksteal

test-cluster: $(VENV)/.installed-dev    # Slurm, several hosts: as root; skips what is not installed
	$(BIN)/pytest -m cluster tests/cluster

$(VENV)/.installed: $(STEPS)
	PYTHON=$(PYTHON) sh docker/install.sh $(VENV)
	@touch $@

$(VENV)/.installed-dev: $(STEPS)
	PYTHON=$(PYTHON) sh docker/install.sh $(VENV) dev
	@touch $(VENV)/.installed $@

# Pins what pyproject.toml asks for, with what that needs, to the newest that fits.
lock: NAMES = import json, sys; print(*("{name}=={version}".format(**found["metadata"]) \
  for found in json.load(sys.stdin)["install"]), sep="\n")
lock:
	$(BIN)/pip install --quiet --dry-run --ignore-installed --report docker/report.json '.[cluster,s3]'
	$(BIN)/python -c '$(NAMES)' < docker/report.json | grep -v '^sweeper=' | sort > docker/requirements.lock
	rm docker/report.json

clean:
	rm -rf $(VENV) build *.egg-info
