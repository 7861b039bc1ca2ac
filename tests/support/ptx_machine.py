"""The backend "ptx": the kernels as nvcc compiles them, their PTX executed on the CPU (csrc/emulator/ptx), launched by the shipped code.

`load()` compiles csrc/cuda/*.cu with nvcc for two architectures, links them with a stand-in for the CUDA run time, and adds the ops to
the backends, so that tests call them like any other: `ss.verify(**args, backend=ptx_machine.NAME)`, within `on("sm_90")`.
"""

import contextlib
import ctypes
import functools
import os
import re
import shutil

import native
import pytest
import torch
from nvidia_tools import cuda_headers, nvcc

NAME, LIBRARY = "ptx", "specsample_ptx"
ARCHS = ("sm_80", "sm_90")
ALL = os.environ.get("SPECSAMPLE_CHECK_PTX", "0") not in ("", "0")  # every case (make check-ptx)
FOLDER = native.ROOT / "build/ptx"
MACHINE = native.ROOT / "csrc/emulator/ptx"
KERNELS = {"row": "row_kernel", "verify": "verify_kernel"}
# The machine's arithmetic must equal the kernel's, operation by operation: the compiler must not fuse anything.
CXX = ("-std=c++17", "-O2", "-fPIC", "-march=native", "-ffp-contract=off", "-fvisibility=hidden", "-w")


def build(folder=FOLDER):
    """-> the shared object; only what changed is compiled again"""
    texts = " ".join(f"-gencode=arch=compute_{a[3:]},code=compute_{a[3:]}" for a in ARCHS)
    torch_flags = " ".join(native.TORCH)
    lines = [
        "rule cc",
        f"  command = c++ -MMD -MF $out.d {' '.join(CXX)} {torch_flags} -I{cuda_headers()} -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",  # PTX only, as text; the run time extracts it from the object as a driver does
        f"  command = {nvcc()} -MD -MF $out.d -std=c++17 -O3 --no-compress --threads=2 -Xcompiler=-fPIC,-fvisibility=hidden,-w "
        f"-include {MACHINE}/on_cpu.h {torch_flags} {texts} -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = c++ -shared -Wl,-Bsymbolic $in -o $out {' '.join(native.TORCH_LIBRARIES)} -ldl",
    ]
    objects = []
    for source in sorted((native.ROOT / "csrc/cuda").glob("*.cu")):
        objects.append(f"{source.stem}_cu.o")
        lines.append(f"build {objects[-1]}: nvcc {source}")
    for source in sorted(MACHINE.glob("*.cpp")):
        objects.append(f"{source.stem}.o")
        lines.append(f"build {objects[-1]}: cc {source}")
    output = folder / f"{LIBRARY}.so"
    lines.append(f"build {output}: link {' '.join(objects)}")
    native.ninja(folder, lines)
    return output


class Small(ctypes.Structure):  # SmallLaunch of bindings.cpp
    _fields_ = [(name, ctypes.c_int) for name in ("blocks", "threads", "cluster", "launches", "buffers", "number")]
    _fields_ += [("shuffle", ctypes.c_uint32), ("perturb", ctypes.c_uint32), ("steps", ctypes.c_uint64)]


@functools.cache
def load():
    """The library's handle; skips the test if there is no nvcc or no C++ compiler."""
    if nvcc() is None or cuda_headers() is None:
        pytest.skip("no nvcc in CUDA_HOME or on the path: there is no PTX to execute")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++) on the path")
    path = build()
    load.definitions = native.declare(NAME, LIBRARY, "cuda")  # live as long as the process
    torch.ops.load_library(str(path))
    handle = ctypes.CDLL(str(path))
    for name in ("log", "text", "unknown", "run", "ran"):
        getattr(handle, f"{LIBRARY}_{name}").restype = ctypes.c_char_p
    handle.specsample_ptx_steps.restype = ctypes.c_uint64
    return handle


_devices = {}


@contextlib.contextmanager
def on(arch="sm_90", processors=132, clusters=8, *, shuffle=0, perturb=0, resident=8, fresh=False):
    """Context in which CPU tensors are on a device of `arch` with the given number of multiprocessors and blocks per cluster at most.

    shuffle: seed for the order in which warps run; perturb: seed for errors in approximations; fresh: the device has had no call yet
    """
    handle, what = load(), (arch, processors, clusters)
    index = len(_devices) if fresh else _devices.setdefault(what, len(_devices))
    if fresh:
        _devices[what, index] = index
    handle.specsample_ptx_device(index, int(arch[3:]), processors, clusters)
    handle.specsample_ptx_settings(shuffle, perturb, resident, 1)
    handle.specsample_ptx_use(index)
    handle.specsample_ptx_log()
    try:
        yield handle
    finally:
        handle.specsample_ptx_settings(0, 0, 8, 1)


def launches():
    """The launches since the last call: [(kernel, architecture, blocks, blocks per cluster, whether early)]"""
    text = load().specsample_ptx_log().decode()
    pattern = r"launch \w*?(row_kernel|verify_kernel)\w* (sm_\d+): (\d+) blocks in clusters of (\d+)(, early)?"
    return [(k, a, int(b), int(c), bool(e)) for k, a, b, c, e in re.findall(pattern, text)]


def text(kernel, arch):
    """The PTX that is executed"""
    found = load().specsample_ptx_text(kernel.encode(), int(arch[3:])).decode()
    assert found, f"no PTX of {kernel} for {arch}"
    return found


@contextlib.contextmanager
def edited(kernel, arch, edit):
    """Context in which a kernel's text is replaced by edit(PTX)."""
    handle, before = load(), text(kernel, arch)
    after = edit(before)
    assert after != before, "the edit changed nothing"
    replace = lambda new: handle.specsample_ptx_replace(kernel.encode(), ctypes.c_int(int(arch[3:])), new.encode())
    replace(after)
    try:
        yield
    finally:
        replace("")


def run(source, *buffers, blocks=1, threads=32, cluster=1, launches=1, number=0, known=None, shuffle=0, perturb=0, steps=0):
    """Run the only kernel of a PTX text. Its parameters are the addresses of the tensors `buffers`, then, if it has more, the launch's
    number and `number` as two ints. known: for each buffer, whether its content counts as written. -> the faults found ('': none)"""
    how = Small(blocks, threads, cluster, launches, len(buffers), number, shuffle, perturb, steps)
    data = (ctypes.c_void_p * max(1, len(buffers)))(*(b.data_ptr() for b in buffers))
    sizes = (ctypes.c_int64 * max(1, len(buffers)))(*(b.numel() * b.element_size() for b in buffers))
    are_known = (ctypes.c_int * max(1, len(buffers)))(*(known or [1] * len(buffers)))
    return load().specsample_ptx_run(source.encode(), ctypes.byref(how), data, sizes, are_known).decode()
