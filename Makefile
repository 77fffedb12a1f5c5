# `make train` and `make test` set up all they need on a machine with Python 3.11 or newer; see .ci/setup.
# ARGS is handed on: make train ARGS="--epochs 2", make test ARGS="-k attention"

VENV = .venv
RUN = $(VENV)/bin/python
PYTEST = OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 16 --dist worksteal
COMPILE = .ci/setup uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet
OLDEST = $(wildcard tests/loss tests/kernels) tests/package/test_import.py

.DEFAULT_GOAL = help
.PHONY: help train test test-oldest test-slow test-all soak ptx ptx-mutants bench gate lint docs requirements clean venv venv-oldest

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1#\2/p' Makefile | awk -F'#' '{ printf "%-20s %s\n", $$1, $$2 }'

train: venv ## train on the embedded synthetic faces, or as ARGS says (ARGS=--help lists it)
	$(RUN) -m train $(ARGS)

test: venv ## every test but the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

test-oldest: VENV = .venv-oldest
test-oldest: venv-oldest ## a selection on the oldest supported PyTorch, Triton and the rest
	$(PYTEST) -m "not slow" $(OLDEST) $(ARGS)

test-slow: venv ## only the slow tests
	$(PYTEST) -m slow $(ARGS)

test-all: venv ## every test, with every case of those that the others sample and a soak of ten minutes
	ADCORRE_SAMPLE=all ADCORRE_SOAK=600 $(PYTEST) $(ARGS)

soak: venv ## ten minutes of random commands with faults (ARGS="--seconds 60 --seed 1")
	PYTHONPATH=.:kernels $(RUN) -m tests.train.soak $(ARGS)

ptx: venv ## the compiled kernels in a machine on the CPU, over the whole covering set
	ADCORRE_SAMPLE=all $(PYTEST) tests/ptx --ptx-table bench/results/ptx.csv $(ARGS)

ptx-mutants: venv ## plant faults in the compiled kernels and count those found (ARGS=--help: how many)
	PYTHONPATH=.:kernels OMP_NUM_THREADS=1 TRITON_DEFAULT_FP_FUSION=1 $(RUN) -m tests.ptx.mutants $(ARGS)

bench: venv ## the benchmarks, then their tables and pictures (ARGS="--device cuda")
	$(RUN) -m bench all $(ARGS)

gate: venv ## what must not get worse, against bench/gate.csv
	OMP_NUM_THREADS=1 $(RUN) -W ignore -m bench gate $(ARGS)

lint: venv ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy $(wildcard adcorre train bench)

docs: VENV = .venv-docs
docs: ## the documentation site, into build/site; a warning is an error (ARGS=--help lists options)
	@.ci/setup venv $(VENV) requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --config-file docs/mkdocs.yml $(ARGS)

requirements: ## resolve the requirements files again (ARGS=--upgrade: to the newest versions)
	$(COMPILE) $(ARGS) $(foreach extra,train bench weights integrations demo dev,--extra $(extra)) \
		--output-file requirements.txt pyproject.toml
	$(COMPILE) $(ARGS) --extra train --extra dev --resolution lowest-direct --constraints requirements-oldest.in \
		--output-file requirements-oldest.txt pyproject.toml
	sed -n '/^docs = \[/,/^\]/s/^ *"\(.*\)",.*/\1/p' pyproject.toml | $(COMPILE) $(ARGS) --output-file requirements-docs.txt -
	echo uv | $(COMPILE) $(ARGS) --output-file requirements-uv.txt -

clean: ## remove the environments and everything built, but no run folder
	rm -rf .venv .venv-oldest .venv-docs .venv-uv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find adcorre kernels train bench tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

venv: ## only the environment: .venv, to be entered by `source .venv/bin/activate`
	@.ci/setup venv $(VENV) requirements.txt

venv-oldest:
	@.ci/setup venv .venv-oldest requirements-oldest.txt
