"""The backend "cuda on cpu": the CUDA ops compiled by the C++ compiler and run on the CPU, one fibre per CUDA thread.

`load()` builds csrc/emulator/ops.cpp, defines its ops with the schemas of the real ones, and adds them to the backends, so that
tests call them like any other: `ss.verify(..., backend="cuda on cpu")`. They are linked into one shared object with the CPU ops, as in
the extension, where the linker keeps only one of two functions with the same name (test_one_library.py). The latter are a backend too.
"""

import contextlib
import ctypes
import functools
import os
import shutil
from pathlib import Path

import native
import pytest
import torch

NAME, BESIDE = "cuda on cpu", "cpu beside cuda"
LIBRARIES = {NAME: "specsample_cuda_on_cpu", BESIDE: "specsample_cpu_beside_cuda"}
CPU = sorted((native.ROOT / "csrc/cpu").glob("*.cpp"))  # in the order of setup.py
CUDA = [native.ROOT / "csrc/emulator/ops.cpp"]
USUAL = (64, 0, 1, 0, 0)  # threads, …: small blocks run faster here, and results do not depend on it


def build(folder=native.FOLDER, flags=native.FLAGS, sources=(*CPU, *CUDA), name=LIBRARIES[NAME]):
    """-> the shared object"""
    return native.build(folder, flags, sources, folder / f"{name}.so", native.TORCH_LIBRARIES)


@functools.cache
def load():
    """The library's handle; skips the test if no C++ compiler is installed."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++) on the path")
    if os.environ.get("SPECSAMPLE_TESTING_BUILD"):
        pytest.skip("fibres need a sanitized build of their own: test_cuda_on_cpu.py")
    # The sanitizer tests point to their own build, made before their process starts.
    ready = os.environ.get("SPECSAMPLE_CUDA_ON_CPU_BUILD")
    path = Path(ready) if ready else build()
    # Kept alive as long as the process.
    load.definitions = [native.declare(name, LIBRARIES[name], like) for name, like in ((NAME, "cuda"), (BESIDE, "cpu"))]
    torch.ops.load_library(str(path))
    handle = ctypes.CDLL(str(path))
    handle.specsample_cuda_on_cpu_settings(*USUAL)
    return handle


@contextlib.contextmanager
def launches(threads=0, shuffle=0, team=1, ahead=False, perturb=0):
    """Context in which crews have `threads` threads (0: as on a GPU), run in an order shuffled by the seed `shuffle` (0: by index), in
    teams of `team` blocks; `ahead`: all rows are read before the round; `perturb`: seed of errors in approximations, within the
    documented bounds (0: none)."""
    handle = load()
    handle.specsample_cuda_on_cpu_settings(threads, shuffle, team, int(ahead), perturb)
    try:
        yield
    finally:
        handle.specsample_cuda_on_cpu_settings(*USUAL)
