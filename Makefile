# Every target works in .venv, which `env` makes from the lock and leaves alone where it is up to date.

.DEFAULT_GOAL := help
.PHONY: help env env-slurm demo test test-all test-gpu faults soak test-slurm test-hosts mutations bench bench-scale lint audit mlflow lock

BIN := .venv/bin
# The first Python that fits; a name on the PATH can be that of one that does not run.
PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; \
	done),python3)
# Two workers of one thread each: torch's threads would only wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: ## .venv from the lock (PYTHON=python3.12 or TORCH=cpu|cuda choose for you)
	@$(PYTHON) envs/make_env.py $(if $(TORCH),--torch $(TORCH))

env-slurm: ## .venv-slurm: the same with Snakemake's plugin for Slurm, which only clusters need (docs/cluster.md)
	@$(PYTHON) envs/make_env.py --slurm $(if $(TORCH),--torch $(TORCH))

demo: env ## the default study, from data to tables, and its main table
	$(BIN)/snakemake --cores all
	$(BIN)/sams show

test: env ## the tests
	$(PYTEST)

test-all: env ## the tests, the slow ones too
	$(PYTEST) -m "not gpu and not cluster and not faults"

test-slurm: env env-slurm ## a study under a real Slurm, installed for it and removed again (needs root)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster -rs tests/cluster/test_slurm.py

test-hosts: env ## one training on two hosts whose link is cut (needs root)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster -rs tests/cluster/test_hosts.py

faults: env ## faults made to happen: kills, signals, hangs, two workflows, bad input (docs/reliability.md)
	$(PYTEST) -m faults tests
	$(PYTEST) -m "faults or slow" tests/training/test_crash_points.py
	$(PYTEST) tests/bad_input tests/test_security.py tests/faults

soak: env ## 100,000 steps of a very small model, killed once: nothing grows, no record is lost
	SAMS_SOAK_STEPS=100000 OMP_NUM_THREADS=1 $(BIN)/pytest -m faults -s tests/faults/test_soak.py

test-gpu: env ## the tests that need an NVIDIA GPU; without one they are skipped
	$(BIN)/pytest -m gpu -rs tests/gpu

mutations: env ## deliberate faults, each of which must fail a test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutations

bench: env ## a training step beside TRL's: time, memory, ratios (15 to 23 minutes; an idle machine)
	$(BIN)/python -m benchmarks.step

bench-scale: env ## what a step costs as pairs, tokens, layers, vocabulary and processes grow
	$(BIN)/python -m benchmarks.scale

lint: env ## style, types, workflow, schema
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy sams
	$(BIN)/sams schema --check

# Without --strict a package whose advisories cannot be fetched counts as a sound one.
audit: env ## the lock against the published advisories (network: PyPI's, or AUDIT=osv)
	$(BIN)/uv tool run pip-audit --strict --disable-pip --no-deps --vulnerability-service $(or $(AUDIT),pypi) \
		--requirement envs/lock/cuda.txt

mlflow: env ## MLflow's pages over the runs in results/
	$(BIN)/sams mlflow

lock: env ## the lock anew from pyproject.toml (LOCK=--upgrade: newest versions)
	$(BIN)/python envs/lock.py $(LOCK)
