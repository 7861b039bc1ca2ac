"""The backend "cuda on cpu": the CUDA ops compiled by the C++ compiler and run on the CPU, a fibre for every CUDA thread.

`load()` builds csrc/testing/cuda_on_cpu.cpp, defines its ops with the schemas of the real ones, and adds them to the backends,
so that tests call them like any other: `ss.verify(..., backend="cuda on cpu")`.
"""

import contextlib
import ctypes
import functools
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import native
from specsample import backends, ops

NAME = "cuda on cpu"
LIBRARY = "specsample_cuda_on_cpu"
USUAL = (64, 0, 1, 0)  # threads, …: small blocks run faster here, and results do not depend on it


def build(folder, flags=()):
    """-> the shared object"""
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    sources = [native.ROOT / "csrc/testing/cuda_on_cpu.cpp"]
    flags = [*flags, "-DTORCH_TARGET_VERSION=0x020a000000000000", *includes]
    return native.build(folder, flags, sources, folder / f"{LIBRARY}.so", libraries)


@functools.cache
def load():
    """The library's handle; skips the test where no C++ compiler is installed."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++) on the path")
    if os.environ.get("SPECSAMPLE_TESTING_BUILD"):
        pytest.skip("fibres need a sanitized build of their own: test_cuda_on_cpu.py")
    # The sanitizer tests point at a build of their own, made before their process starts.
    ready = os.environ.get("SPECSAMPLE_CUDA_ON_CPU_BUILD")
    path = Path(ready) if ready else build(native.ROOT / "build/cuda_on_cpu")
    load.definitions = torch.library.Library(LIBRARY, "DEF")  # lives as long as the process
    for name, schema in ops.SCHEMAS.items():
        load.definitions.define(name + schema)
    torch.ops.load_library(str(path))
    ready = backends.BACKENDS["cuda"]._replace(functions=getattr(torch.ops, LIBRARY), device="cpu", missing=None)
    backends.BACKENDS[NAME] = ready
    handle = ctypes.CDLL(str(path))
    handle.specsample_cuda_on_cpu_settings(*USUAL)
    return handle


@contextlib.contextmanager
def launches(threads=0, shuffle=0, team=1, ahead=False):
    """Within it, crews have `threads` threads (0: as on a GPU), run in an order shuffled by the seed `shuffle` (0: by index), in
    teams of `team` blocks; `ahead`: all rows are read before the round."""
    handle = load()
    handle.specsample_cuda_on_cpu_settings(threads, shuffle, team, int(ahead))
    try:
        yield
    finally:
        handle.specsample_cuda_on_cpu_settings(*USUAL)
