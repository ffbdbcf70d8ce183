# Two commands on a machine with only Python (3.11 or later) and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow fuzz bench dist matrix matrix-oldest matrix-newest install clean

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
	$(BIN)/ruff format --check agt_lightning recipes release tests
	$(BIN)/ruff check agt_lightning recipes release tests
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

# Wheel and source archive of the last commit, built twice and compared, then the wheel alone in a bare environment: its
# files, `agt --help`, and the examples of all docstrings, from a folder without sources. PyTorch is installed anew.
dist: install
	$(BIN)/python -m release.distribution
	rm -rf .venv-bare
	$(PYTHON) -m venv .venv-bare
	.venv-bare/bin/python -m pip install --disable-pip-version-check --quiet dist/*.whl
	cd dist && OMP_NUM_THREADS=1 ../.venv-bare/bin/python -P ../release/installed.py

# What the bounds rest on, without experiments: the tests that must pass with every version that pyproject.toml admits.
CORE := tests/rules/test_rule_laws.py tests/optimizers tests/engine/test_engine.py tests/engine/test_soundness.py \
	tests/engine/test_optimizers.py tests/lightning/test_callback.py tests/lightning/test_certificate_file.py \
	tests/lightning/test_mixin_and_strategy.py tests/lightning/test_training_step.py \
	tests/lightning/test_lightning_cli.py tests/lightning/test_packages.py tests/test_deprecation.py

matrix: matrix-oldest matrix-newest

# The lower limits of pyproject.toml, all at once.
matrix-oldest: install
	$(PYTHON) -m venv .venv-oldest
	$(BIN)/python -m release.floors > .venv-oldest/floors.txt
	.venv-oldest/bin/python -m pip install --disable-pip-version-check --quiet \
		--constraint .venv-oldest/floors.txt --editable ".[test]"
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q -n auto -m "not slow" $(CORE)

# Whatever the registry has today.
matrix-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --disable-pip-version-check --quiet --upgrade --upgrade-strategy eager \
		--editable ".[test]"
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -q -n auto -m "not slow" $(CORE)

clean:
	rm -rf $(VENV) .venv-bare .venv-oldest .venv-newest dist outputs
