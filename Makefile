# make train       install, then train ResNeXt-50 on the digits
# make test        install, then every test that needs no GPU
# make test-slow   the tests that take minutes
# make test-gpu    the tests that need an NVIDIA GPU
# make lint        ruff
# make bench       measure this machine, results to profiles/

PYTHON ?= $(shell for python in python3.12 python3.11 python3.13 python3; do command -v $$python && break; done)
EXTRAS ?=
COMMA := ,

export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: train test test-slow test-gpu lint bench

train: .venv/installed
	accelerate launch launch/train.py --arch resnext --config configs/quickstart.yaml

test: .venv/installed-test
	python -m pytest -m "not gpu and not slow"

test-slow: .venv/installed-test
	python -m pytest -m "slow and not gpu"

test-gpu: .venv/installed-test
	python -m pytest -m gpu

lint: .venv/installed-test
	ruff check .
	ruff format --check .

bench: .venv/installed-test
	python launch/bench.py --suite all

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11, 3.12 or 3.13"; exit 2; }
	@$(PYTHON) -c 'import sys; found = sys.version_info[:2]; sys.exit(0 if (3, 11) <= found <= (3, 13) else f"error: Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is {found[0]}.{found[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: setup.py constraints.txt | .venv/bin/python
	python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".$(if $(EXTRAS),[$(EXTRAS)])"
	@touch $@

.venv/installed-test: .venv/installed
	python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[test$(if $(EXTRAS),$(COMMA)$(EXTRAS))]"
	@touch $@
