# Every target makes what it needs: a virtual environment, and in it the extras of pyproject.toml.
# A stamp file a set of extras, `.venv/.with-EXTRAS`, makes the next run quick.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick test-gpu mutants soak sanitize bench figures docs lint wheel venv clean

PYTHON ?= python3
VENV := .venv
ifneq ($(PYTHON),python3)
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif
BIN := $(VENV)/bin

# The CuPy that the NVIDIA driver can run; empty where there is no driver.
ifeq ($(origin CUDA_EXTRA),undefined)
CUDA_EXTRA := $(shell $(PYTHON) -c 'import ctypes; v = ctypes.c_int(); \
	ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(v)); \
	print("cuda13x" if v.value >= 13000 else "cuda12x")' 2>/dev/null)
endif

FOR_DEMO := $(VENV)/.with-$(or $(CUDA_EXTRA),numpy)
COMMA := ,
# Tests compile the kernels for GPUs that need not be there.
FOR_TEST := $(VENV)/.with-test,$(if $(TORCH),torch$(COMMA))$(or $(CUDA_EXTRA),cuda12x)
FOR_BENCH := $(VENV)/.with-bench,$(or $(CUDA_EXTRA),cuda12x)
FOR_LINT := $(VENV)/.with-lint
FOR_DOCS := $(VENV)/.with-docs,plot

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "PYTHON=python3.13   use this interpreter, in an environment of its own"
	@echo "CUDA_EXTRA=cuda12x  or cuda13x: install this CuPy, whatever the driver says"
	@echo "TORCH=1             install torch too: the tests that need it run from then on"
	@echo "JOBS=1              run the tests in one process, not in one a core"

demo: $(FOR_DEMO) ## pack real documents, build their columns, check and draw them
	@$(BIN)/python -m maskq_cupy demo

# Those that need a GPU share one process.
JOBS ?= $(shell nproc)
PARALLEL = $(if $(filter-out 1,$(JOBS)),--numprocesses $(JOBS) --dist loadgroup)

test: $(FOR_TEST) ## run the tests; those that need a GPU too where there is one
	$(BIN)/python -m pytest $(PARALLEL)

quick: $(FOR_TEST) ## run each kernel once and what takes no time: half a minute
	$(BIN)/python -m pytest $(PARALLEL) --quick -m "not gpu"

test-gpu: $(FOR_TEST) ## run the tests that need a GPU, and no others
	$(BIN)/python -m pytest -m gpu

mutants: $(FOR_TEST) ## break changed kernels: the tests must notice; MUTANTS=--all: minutes
	$(BIN)/python tests/mutants.py --jobs $(JOBS) $(MUTANTS)

CALLS ?= 1000000
soak: $(FOR_TEST) ## call a million times (on a GPU): memory and time are steady; CALLS=...
	$(BIN)/python tests/soak.py --calls $(CALLS)

# A fault of any tool ends the run with its report.
sanitize: $(FOR_TEST) ## run every kernel (on a GPU) under each tool of compute-sanitizer
	for tool in memcheck racecheck initcheck synccheck; do \
	    echo "compute-sanitizer --tool $$tool"; \
	    compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python tests/sanitize_run.py || exit 1; \
	done

bench: $(FOR_BENCH) ## time everything on a GPU, and say which goals are reached
	@rm -f benchmarks.json
	@failed=0; $(BIN)/python -m pytest tests/benchmarks --benchmark-only --benchmark-sort=name \
	    --benchmark-columns=median,iqr,rounds --benchmark-json=benchmarks.json || failed=$$?; \
	$(BIN)/python tests/benchmarks/report.py benchmarks.json && exit $$failed

figures: $(FOR_BENCH) ## draw and count what the documentation shows, but for times on a GPU
	$(BIN)/python tests/simulate_shards.py --write

docs: $(FOR_DOCS) ## draw the masks and build the documentation into site/, without a dead link
	$(BIN)/python docs/draw_masks.py
	$(BIN)/python -m mkdocs build

# Of users' files: with what is installed of torch, and without this package's own settings.
AS_USERS_DO := --strict --config-file= --cache-dir .mypy_cache/users --ignore-missing-imports \
	--follow-imports silent tests/typed

lint: $(FOR_LINT) ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy $(AS_USERS_DO)
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel: $(FOR_DEMO) ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

venv: $(FOR_TEST) ## only make the environment that the tests run in

clean: ## remove the environments and everything else that was made here
	rm -rf .venv .venv-* build dist benchmarks.json .kernels site .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "maskq-cupy needs Python 3.11 or later, which '$(PYTHON)' is not: set PYTHON=python3.13, say"; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The stem names the extras; `numpy` stands for none.
EXTRAS = $(if $(filter-out numpy,$*),[$*])

$(VENV)/.with-%: pyproject.toml | $(BIN)/python
	@echo "installing maskq-cupy$(EXTRAS) into $(VENV): a minute or two, the first time only"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".$(EXTRAS)"
	@touch $@
