"""The CUDA kernels compiled by NVIDIA's compiler: no spills, no local memory, and 16-byte loads, for every shipped architecture.

The default run covers one architecture; `make check-cuda` (SPECSAMPLE_CHECK_CUDA=1) covers all of them, in some minutes. The
compiler is nvcc from CUDA_HOME or the path, or CUDA 12's from the package index (`make check-cuda12`; nvidia_tools.py).
"""

import re
import subprocess

import machine_code
import native
import pytest
from machine_code import GATE, SOURCES, shipped
from nvidia_tools import ALL, PACKAGES, cuda_headers, nvcc, nvrtc
from sass import disassembled

SPILLING = "__global__ void kernel(int* x) { int a[64]; for (int i = 0; i < 64; ++i) a[x[i] & 63] = i; x[0] = a[x[64] & 63]; }"


def archs():
    """The architectures of setup.py that the compiler supports (CUDA 12: all of them from 12.8 on): 80, 86, …"""
    text = (native.ROOT / "setup.py").read_text()
    ours = re.search(r'^CUDA_ARCHS = "([\d. ]+)"', text, re.M).group(1).replace(".", "").split()
    if PACKAGES or nvcc() is None:
        return ours if ALL else ["90"]
    listed = subprocess.run([nvcc(), "--list-gpu-code"], capture_output=True, text=True).stdout
    return [a for a in ours if f"sm_{a}" in listed and (ALL or a == "90")]


def compiled(source, folder, arch):
    """-> (cubin, output of ptxas)"""
    if PACKAGES:
        return nvrtc(source, folder, arch, native.ROOT, GATE)
    return machine_code.compiled(source, folder, arch)


def ptxas_report(text):
    """{mangled kernel: (stack bytes, spill store bytes, spill load bytes, registers)}"""
    pattern = (
        r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r"\s+ptxas info\s+: Used (\d+) registers"
    )
    return {name: tuple(map(int, rest)) for name, *rest in re.findall(pattern, text)}


@pytest.mark.parametrize("kernel", SOURCES)
@pytest.mark.parametrize("arch", archs())
def test_no_spills_and_16_byte_loads(tmp_path, arch, kernel):
    if PACKAGES:
        cubin, said = compiled(SOURCES[kernel], tmp_path, arch)
        ptx = (tmp_path / "kernels.ptx").read_text()
    else:
        cubin, said, ptx = shipped(kernel, arch)
    ((name, (stack, stores, loads, _)),) = ptxas_report(said).items()
    assert kernel in name
    assert (stack, stores, loads) == (0, 0, 0), f"sm_{arch}: {stack} bytes of stack, {stores} + {loads} spilled"
    assert "warning" not in said
    for text in disassembled(cubin).values():
        assert "LDG.E.128" in text, "no 16-byte loads"
    # The PTX that the SASS is generated from, in case there is no disassembler.
    (body,) = re.split(r"\.entry\s+", ptx)[1:]
    assert "ld.global.nc.v4" in body, "no 16-byte loads"


def test_control_the_gate_sees_local_memory(tmp_path):
    _, said = compiled(SPILLING, tmp_path, "90")
    ((stack, *_),) = ptxas_report(said).values()
    assert stack > 0 and "warning" in said


def test_the_first_call_on_a_gpu(tmp_path):
    """It may fail and is then repeated, or find no code for an old GPU; it loads every kernel, so that none is loaded while a graph
    is captured."""
    if cuda_headers() is None:
        pytest.skip("no CUDA headers")
    source, program = native.ROOT / "csrc/testing/first_call.cpp", tmp_path / "first_call"
    command = ["c++", "-std=c++17", "-w", *native.TORCH, f"-I{cuda_headers()}", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    calls = dict(line.split(": ", 1) for line in said)
    assert "call any function on this device once before" in calls["captured first"]
    assert "no code for this GPU, of compute capability 7.7" in calls["old"]
    assert "kernel attributes" in calls["failing"]
    assert calls["again"] == "66 and 16 teams, 2 loaded"
    assert calls["captured later"] == "66 and 16 teams, 0 loaded"
