"""Every Triton kernel compiles for GPUs that are not present, and none of them spills registers to memory.

By default for one NVIDIA and one AMD target; SPECSAMPLE_TRITON_TARGETS names others (make check-triton runs all).
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = os.environ.get("SPECSAMPLE_TRITON_TARGETS", "sm_90 gfx942").split()
READS_ROWS = {f"{name}_kernel" for name in (
    "laws", "race", "arrivals", "independent", "topk", "rest", "tree", "optimal_block", "lists", "masses", "finish",
    "winners")}  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed; pip install specsample[triton]"
)


def compiled(*arguments):
    """(exit status, the script's lines) of tests/support/triton_compile.py in a separate process: a compiler may crash."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/support/triton_compile.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr[-4000:]
    return done.returncode, lines


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_without_spills(target):
    status, lines = compiled(target)
    bad = [line for line in lines if line.get("spills") != 0]
    assert status == 0 and not bad, bad
    assert all(0 < line["registers"] <= 256 for line in lines)
    read = [line for line in lines if line["dtype"] == "bf16" and line["kernel"] in READS_ROWS]
    assert {line["kernel"] for line in read} == READS_ROWS
    if target.startswith("sm_"):  # with their wider waves, other GPUs have less of a tile per thread
        narrow = [line for line in read if line["wide_loads"] == 0]
        assert not narrow, narrow
        # Every loop over rows has several loads in flight when it waits for one, at least 4 kB per program.
        loops = [(line["kernel"], line.get("scheme"), *loop) for line in read for loop in line["loops"]]
        assert len(loops) > 40 and {line["kernel"] for line in read if line["loops"]} == READS_ROWS
        slow = [loop for loop in loops if loop[2] < 2 or loop[3] < 4096]
        assert not slow, slow
        # No product is fused with a sum, and a token's bin is the same wherever it is looked up.
        assert not [line for line in lines if line["fused"]]
        binned = [line for line in lines if line.get("scheme") in ("kseq", "optimal") or line["kernel"] == "optimal_block_kernel"]
        assert len(binned) == 6 and all(line["binned"] >= 4 and line["forms"] == 1 for line in binned), binned
    names = {line["kernel"] for line in lines}
    defined = {
        line.split("(")[0].removeprefix("def ")
        for path in (ROOT / "specsample/triton").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    assert len(defined) >= 15 and names == defined, f"not compiled: {defined - names}"


def test_calls_that_vary_compile_a_kernel_once_or_twice():
    """Once for rows that can be read 16 bytes at a time, once for any others, whatever the batches, offsets, settings, seeds and
    positions are (a plain race has no laws: one more). Kernels are counted per scheme and layout."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/support/triton_keys.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line.get("scheme") for line in lines} - {None}) == 10 and all(line.get("keys", True) for line in lines)
    warm = [line for line in lines if "after a warm-up" in line]
    assert len(warm) == 72 and not [line for line in warm if any(line["after a warm-up"].values())]
    tested = [line for line in lines if "in the GPU run" in line]
    assert len(tested) == 10 and not [line for line in tested if any(line["in the GPU run"].values())], tested
    lines = [line for line in lines if "varies" in line]
    for line in lines:
        alike = line["varies"] in ("batch", "position", "seed")
        for kernel, count in line["keys"].items():
            plain = kernel in ("winners_kernel", "race_kernel", "independent_kernel") and line["varies"] == "all"
            assert count <= (1 if alike else 3 if plain else 2), line
    offsets = [n for line in lines if line["varies"] == "offset" for n in line["keys"].values()]
    assert offsets.count(2) > len(offsets) / 2  # the counter does count


@pytest.mark.parametrize("target", TARGETS)
def test_control_a_spilling_kernel_is_caught(target):
    status, (line,) = compiled(target, "--control")
    assert status == 1 and line["spills"] > 0, line


def test_control_a_bin_computed_in_another_way_is_seen():
    import triton_ptx

    copies = "".join(
        f"\tdiv.full.f32 %f{i}, %f9{i}, %f8{i};\n\tmul.rn.f32 \t%f3{i}, %f{i}, %f70;\n"
        f"\tadd.rn.f32 %f4{i}, %f3{i}, 0f3F000000;\n\tcvt.rzi.s32.f32 %r{i}, %f4{i};\n"
        for i in (1, 2)
    )
    assert triton_ptx.forms(copies)[0] == 2 and len(triton_ptx.forms(copies)[1]) == 1 and triton_ptx.fused(copies) == 0
    other = copies.replace(
        "mul.rn.f32 \t%f32, %f2, %f70;\n\tadd.rn.f32 %f42, %f32, 0f3F000000", "fma.rn.f32 %f42, %f2, %f70, 0f3F000000"
    )
    assert len(triton_ptx.forms(other)[1]) == 2 and triton_ptx.fused(other) == 1
    assert triton_ptx.fused(copies.replace(".rn", "")) == 4  # otherwise the assembler may fuse them
    packed = copies.replace(  # arithmetic on a pair is arithmetic on its halves
        "mul.rn.f32 \t%f32, %f2, %f70;",
        "mov.b64 %rd1, {%f2, %f5};\n\tmov.b64 %rd2, {%f70, %f71};\n\tmul.rn.f32x2 %rd3, %rd1, %rd2;\n\tmov.b64 {%f32, %f33}, %rd3;",
    )
    assert len(triton_ptx.forms(packed)[1]) == 1 and triton_ptx.fused(packed) == 0
    assert len(triton_ptx.forms(packed.replace("mul.rn.f32x2", "add.rn.f32x2"))[1]) == 2
    assert triton_ptx.fused(packed.replace("mul.rn.f32x2 %rd3,", "fma.rn.f32x2 %rd3, %rd1,")) == 1
