# make train       install, then train ResNeXt-50 on the digits
# make test        install, then every test that needs no GPU
# make test-slow   the tests that take minutes
# make test-faults every fault at random moments, table to profiles/faults.json; FAULTS="--moments 5 --dear 2" for fewer
# make test-gpu    the tests that need an NVIDIA GPU
# make test-emulated  the same, and more, on an emulated one; needs g++
# make lint        ruff
# make bench       regressions against the baselines under profiles/
# make gpu-report  first contact with this machine's GPU in BUDGET (8m), results to profiles/; installs nothing

SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.13; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)

export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: train test test-slow test-faults test-gpu test-emulated lint bench gpu-report

train: .venv/installed
	accelerate launch launch/train.py --arch resnext --config configs/quickstart.yaml

test: .venv/installed-test
	python -m pytest -m "not gpu and not slow and not emulated" --numprocesses 2 --dist loadfile

test-slow: .venv/installed-test
	python -m pytest -m "slow and not gpu and not emulated" --ignore tests/benchmarks

test-faults: .venv/installed-test
	python -m tests.faults.run $(or $(FAULTS),--output profiles/faults.json)

test-gpu: .venv/installed-test
	python -m pytest -m gpu

test-emulated: .venv/installed-test
	python tests/emulated_gpu/run.py python -m pytest -m "(gpu or emulated) and not real_gpu"

lint: .venv/installed-test
	ruff check .
	ruff format --check .

bench: .venv/installed-test
	python -m pytest tests/benchmarks -m slow

BUDGET ?= 8m

gpu-report:
	$(or $(wildcard .venv/bin/python),$(PYTHON)) launch/bench.py --report --budget $(BUDGET)

.venv/bin/python:
	@$(or $(PYTHON),false) -c '$(SUPPORTED)' 2>/dev/null || \
	{ echo "error: Python 3.11, 3.12 or 3.13 is needed and $(or $(PYTHON),none) is not one; make PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: setup.py constraints.txt | .venv/bin/python
	python -m pip install --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/installed-test: .venv/installed
	python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	@touch $@
