# Every target uses .venv, which `env` installs from the lock unless it is up to date.

.DEFAULT_GOAL := help
.PHONY: help env env-slurm demo test test-all test-real test-gpu gpu faults soak test-slurm test-hosts mutations mutants bench bench-scale readme documents lint audit mlflow lock

BIN := .venv/bin
# The first suitable Python that runs; a name on the PATH may not run.
PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; \
	done),python3)
# Two workers of one thread each: more threads would only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: ## install the lock into .venv (PYTHON=python3.12, TORCH=cpu|cuda)
	@$(PYTHON) envs/make_env.py $(if $(TORCH),--torch $(TORCH))

env-slurm: ## install the lock with Snakemake's Slurm plugin into .venv-slurm (docs/cluster.md)
	@$(PYTHON) envs/make_env.py --slurm $(if $(TORCH),--torch $(TORCH))

demo: env ## run the default study and print its main table
	@echo "make demo: the default study; some 6 minutes on two cores, 0.8 GB of memory, 50 MB in results/"
	@$(BIN)/sams run

test: env ## run the tests
	$(PYTEST)

test-all: env ## run the tests, including slow ones
	$(PYTEST) -m "not gpu and not cluster and not faults and not real"

test-real: env ## train, export and use a real model, in 11 minutes (downloads 93 MB once)
	$(BIN)/python -m tests.real.model
	OMP_NUM_THREADS=1 $(BIN)/pytest -m real -rs -s tests/real

test-slurm: env env-slurm ## run a study under Slurm, installed and removed again (needs root)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster -rs tests/cluster/test_slurm.py

test-hosts: env ## run a training on two hosts whose link is cut (needs root)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster -rs tests/cluster/test_hosts.py

faults: env ## make faults happen: kills, signals, hangs, full disks, bad input (docs/reliability.md)
	$(PYTEST) -m faults tests
	$(PYTEST) -m "faults or slow" tests/training/test_crash_points.py
	$(PYTEST) tests/bad_input tests/test_security.py tests/faults

soak: env ## run 100,000 steps of a very small model, killed once, and check growth and records
	SAMS_SOAK_STEPS=100000 OMP_NUM_THREADS=1 $(BIN)/pytest -m faults -s tests/faults/test_soak.py

test-gpu: env ## run the tests that need an NVIDIA GPU; without one they are skipped
	$(BIN)/pytest -m gpu -rs tests/gpu

gpu: env ## measure all that needs one NVIDIA GPU, in six minutes (results/bench/gpu.md)
	$(BIN)/python -m benchmarks.gpu

mutations: env ## break the code on purpose; each fault must fail a test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutations

# A stopped run goes on; without the folder mutants/, everything is tried again.
mutants: env ## mutate every expression of losses and scheduling with mutmut (ROOM=losses: 4 minutes)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[mutants]'
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/mutmut run $(if $(ROOM),"sams.$(ROOM).*")
	$(BIN)/python -m tests.mutants

bench: env ## compare training steps with TRL's, ours and those of sams.trl (25 minutes; needs an idle machine)
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.trl

bench-scale: env ## measure a step by pairs, tokens, layers, vocabulary and processes
	$(BIN)/python -m benchmarks.scale

readme: env ## run the default study with three seeds and write its figures into README.md (20 minutes)
	$(BIN)/python -m benchmarks.readme --measure

documents: env ## run the commands of README and docs (needs the results of `make demo`)
	$(BIN)/python -m tests.documents

lint: env ## check style, types, workflow and schema
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy sams workflow/scripts
	$(BIN)/sams schema --check

# Without --strict, packages whose advisories cannot be fetched would pass.
audit: env ## check the lock for published advisories (needs a network: PyPI's, or AUDIT=osv)
	$(BIN)/uv tool run pip-audit --strict --disable-pip --no-deps --vulnerability-service $(or $(AUDIT),pypi) \
		--requirement envs/lock/cuda.txt

mlflow: env ## serve MLflow's pages for the runs in results/
	$(BIN)/sams mlflow

lock: env ## write the lock from pyproject.toml (LOCK=--upgrade: newest versions)
	$(BIN)/python envs/lock.py $(LOCK)
