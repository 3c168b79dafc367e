# Each target sets up .venv first if pyproject.toml is newer than it, and needs nothing but a Python >= 3.10.
PYTHON ?= python3
# Build of fbgemm: cpu or cuda.
FBGEMM ?= cpu

VENV := $(CURDIR)/.venv
STAMP := $(VENV)/.installed
TYPED := build/typed

# deepspeed finds ninja, and the tests find `deepspeed` and `dmt`, on PATH.
export PATH := $(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Requirements of the torchrec extra: torchrec alone (its own metadata asks for the CUDA build of fbgemm), or the rest.
define TORCHREC_EXTRA
from importlib.metadata import requires
from packaging.requirements import Requirement
from sys import argv
rs = [r for r in map(Requirement, requires("dmt-plugin")) if 'extra == "torchrec"' in str(r.marker)]
print(*(r.name + str(r.specifier) for r in rs if (r.name == "torchrec") == (argv[1] == "itself")))
endef
export TORCHREC_EXTRA

.PHONY: help venv demo test test-all zoo bench bench-quick bench-more bench-overhead bench-memory plan-check quality wire-quality campaign lint clean

help:  ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

venv: $(STAMP)  ## set up .venv with everything the other targets need

demo: $(STAMP)  ## train the example four ways through the deepspeed launcher and compare
	python -m examples.demo

# Workers of the tests; ranks of one test are processes of their own beside them.
WORKERS ?= 2
# What one process has compiled of the sources is there for all that follow, whatever the shell says.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 python -m pytest -q -n $(WORKERS)

test: $(STAMP)  ## run the tests
	$(PYTEST)

test-all: $(STAMP)  ## run the tests and their campaigns: by hand, and for a release
	$(PYTEST) -m "campaign or not campaign"

zoo: $(STAMP)  ## which public models the compiler takes, and how; writes build/zoo.json
	OMP_NUM_THREADS=1 python -m tests.zoo.survey

# QUALITY="--data a.npz b.npz --seeds 5 --random 10 --rows 0 --tune" is how figures are made.
quality: $(STAMP)  ## quality of flat, SPTT and DMT by partition strategy, on data by path; small without QUALITY
	OMP_NUM_THREADS=1 python -m benchmarks.quality $(QUALITY)

wire-quality: $(STAMP)  ## AUC of the demo's towers by wire format between hosts, over seeds; five minutes
	OMP_NUM_THREADS=1 python -m benchmarks.wire_quality

# CAMPAIGN="--seed 1 --hours 0.5" is half an hour; CAMPAIGN=--help says what there is.
campaign: $(STAMP)  ## faults of every kind, each taken rightly or refused by name; three minutes without CAMPAIGN
	OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu python -W ignore -m benchmarks.faults $(CAMPAIGN)

bench-quick: $(STAMP)  ## time of a step on an emulated cluster of 2 x 2, in a minute; needs root
	OMP_NUM_THREADS=1 python -m benchmarks.step --profile quick --check

plan-check: $(STAMP)  ## steps that the planner predicts beside measured ones, on emulated clusters, half an hour; needs root
	OMP_NUM_THREADS=1 python -m benchmarks.plan_check --check

bench-overhead: $(STAMP)  ## step times beside stock DeepSpeed's and a step written by hand, on two ranks
	OMP_NUM_THREADS=1 python -m benchmarks.overhead

bench-memory: $(STAMP)  ## peaks of memory of four ranks by phase, with 8 GiB of tables, and waits for saves; eight minutes
	OMP_NUM_THREADS=1 python -m benchmarks.memory --check

bench-more: $(STAMP)  ## the same on real flights, on bags of ten ids and on 8 x 2, half an hour; needs root
	OMP_NUM_THREADS=1 python -m benchmarks.step --profile more --check --output build/bench/more.json

bench: $(STAMP)  ## time of a step beside TorchRec's on an emulated cluster of 4 x 2, half an hour; needs root
	OMP_NUM_THREADS=1 python -m benchmarks.step --profile full --check

# passes/ and integrations/ are dmt_plugin.passes and dmt_plugin.integrations only once installed; mypy looks at
# folders, so it is shown a tree of links that has them where they belong.
lint: $(STAMP)  ## ruff and mypy
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/dmt_plugin
	@ln -s $(CURDIR)/dmt_plugin/* $(CURDIR)/passes $(CURDIR)/integrations $(TYPED)/dmt_plugin/
	@failed=0; set -x; ruff check . || failed=1; cd $(TYPED) && \
	mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache dmt_plugin || failed=1; \
	exit $$failed

clean:  ## remove what the targets made, but for .venv
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	python -m pip install -q -e '.[$(FBGEMM),demo,dev,partition,report]'
	python -m pip install -q $$(python -c "$$TORCHREC_EXTRA" rest)
	python -m pip install -q --no-deps $$(python -c "$$TORCHREC_EXTRA" itself)
	touch $(STAMP)
