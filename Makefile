# Two commands on a machine with only Python (3.11 or later) and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow fuzz bench install clean

install: $(VENV)/.installed

# PyTorch from the registry brings CUDA packages of several gigabytes; the first run takes a few minutes.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable ".[all]"
	touch $@

demo: install
	$(BIN)/python -m recipes.train -m sweep=halfmoons panel=a output_dir=outputs/demo

test: install
	$(BIN)/ruff format --check agt_lightning recipes tests
	$(BIN)/ruff check agt_lightning recipes tests
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --durations=30 -m "not slow"

# All other cases: most cases of each test with several, and what takes longer; an hour or so.
slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m slow

# Random certified trainings, poisoned (docs/fuzzing.md): an hour, before each release. Stops at the first finding.
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes 30 --workers 2
	for part in processes optimizers lemmas flips outputs checkpoints; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.$$part --minutes 5 || exit 1; \
	done
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.floats.fuzz --minutes 5

# Costs of the paper's workloads against those that are stored; minutes, on an idle machine (docs/performance.md).
bench: install
	$(BIN)/python -m recipes.benchmark --parts table --repeats 3 --gate

clean:
	rm -rf $(VENV) outputs
