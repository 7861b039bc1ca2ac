"""No token depends on whether a compiler fuses a product with the sum that uses it.

The kernels' PTX is executed (ptx_machine.py) with everything fused that a compiler may fuse, and with nothing fused beyond what the
source fuses. By default, both versions of the row kernel and the fused one of the verify kernel are run; `make check-ptx` runs all.
"""

import re

import contraction
import ptx_machine
import pytest
import torch
from conftest import numbers
from ptx_cases import DTYPES, KINDS, NAMES, SAMPLINGS, args_of, same
from ptx_machine import ALL, ARCHS, NAME, edited, on

import specsample as ss


@pytest.fixture(scope="module", autouse=True)
def machine():
    return ptx_machine.load()


def texts(kernel, arch):
    return {"fused": contraction.fused, "split": lambda _: contraction.split(kernel, arch)}


def test_fusing():
    text = "\t.reg .pred \t%p<2>;\n\tmul.f32 \t%f3, %f1, %f2;\n{}\n"
    for before, after in [
        ("\tadd.f32 \t%f5, %f3, %f4;", "\tfma.rn.f32 \t%f5, %f1, %f2, %f4;"),
        ("\tadd.f32 \t%f5, %f4, %f3;", "\tfma.rn.f32 \t%f5, %f1, %f2, %f4;"),
        ("@%p1 sub.f32 \t%f5, %f3, %f4;", "@%p1 neg.f32 \t%sign_f32, %f4;\n@%p1 fma.rn.f32 \t%f5, %f1, %f2, %sign_f32;"),
        ("\tsub.f32 \t%f5, %f4, %f3;", "\tneg.f32 \t%sign_f32, %f1;\n\tfma.rn.f32 \t%f5, %sign_f32, %f2, %f4;"),
        ("\tadd.rn.f32 \t%f5, %f3, %f4;", "\tadd.rn.f32 \t%f5, %f3, %f4;"),  # the source requires both to be rounded
        ("\tmov.f32 \t%f3, %f4;\n\tadd.f32 \t%f5, %f3, %f4;", "\tmov.f32 \t%f3, %f4;\n\tadd.f32 \t%f5, %f3, %f4;"),
    ]:
        assert contraction.fused(text.format(before)).endswith(text.format(after).partition("<2>;\n")[2]), before
    exact = "\tmul.rn.f32 \t%f3, %f1, %f2;\n\tadd.f32 \t%f5, %f3, %f4;\n"
    assert contraction.fuse(exact) == (exact, 0)


@pytest.mark.parametrize("kernel, least", [("row", 20), ("verify", 50)])
def test_there_is_something_to_fuse(kernel, least):
    assert contraction.fuse(ptx_machine.text(kernel, "sm_90"))[1] >= least


def test_control_what_is_fused_is_executed():
    """With its sums left out, tokens or statistics change."""

    def without_sums(text):
        known, lines = set(text.splitlines()), contraction.fused(text).splitlines()
        product = lambda line: re.sub(r"fma\.rn\.(f\d+)(\s+[^,]+, [^,]+, [^,]+), [^;]+;", r"mul.rn.\1\2;", line)
        return "\n".join(line if line in known else product(line) for line in lines)

    rows = numbers(3, 130, seed=1, scale=2.0)
    settings = {"seed": 1, "position": 2, "sampling": SAMPLINGS[1]}
    expected = ss.draft(rows, 3, **settings, backend="reference"), ss.row_stats(rows, sampling=SAMPLINGS[1], backend="reference")
    with on("sm_90"), edited("row", "sm_90", without_sums):
        got = ss.draft(rows, 3, **settings, backend=NAME), ss.row_stats(rows, sampling=SAMPLINGS[1], backend=NAME)
    close = all(torch.allclose(x, y, rtol=1e-5, atol=1e-5) for x, y in zip(got[1], expected[1]))
    assert not close or not torch.equal(got[0], expected[0])


def test_control_nothing_is_fused_in_the_other_text():
    """Except what the source itself fuses"""
    usual, split = ptx_machine.text("row", "sm_90"), contraction.split("row", "sm_90")
    count = lambda text: len(re.findall(r"\bfma\.rn\.f64", text))
    assert 0 < count(split) < count(usual) and not re.search(r"\b(mul|add|sub)\.f(32|64)", split)


@pytest.mark.parametrize("what", ("fused", "split"))
@pytest.mark.parametrize("arch", ARCHS if ALL else ARCHS[1:])
def test_rows(arch, what):
    with on(arch), edited("row", arch, texts("row", arch)[what]):
        for i, V in enumerate((7, 130, 1025, 5641)):
            rows = numbers(3, V, seed=V, scale=2.0, dtype=DTYPES[i % 3])
            for sampling in SAMPLINGS if ALL else (SAMPLINGS[i], SAMPLINGS[(i + 1) % 5]):
                at = {"sampling": sampling, "seed": i, "position": 5}
                assert torch.equal(ss.sample(rows, **at, backend=NAME), ss.sample(rows, **at, backend="reference"))
                kind = KINDS[i]
                expected = ss.draft(rows, 3, kind=kind, **at, backend="reference")
                assert torch.equal(ss.draft(rows, 3, kind=kind, **at, backend=NAME), expected)


@pytest.mark.parametrize("what", ("fused", "split") if ALL else ("fused",))
@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize("arch", ARCHS if ALL else ARCHS[1:])
def test_schemes(arch, scheme, what):
    at, accepted = NAMES.index(scheme), 0
    with on(arch), edited("verify", arch, texts("verify", arch)[what]):
        for seed in range(1, 7 if ALL else 3):
            args = args_of(
                scheme, 4, (500, 33)[seed % 2], dtype=DTYPES[seed % 3], seed=at + seed, sampling=SAMPLINGS[(at + seed) % 5]
            )
            accepted += int(same(args).num_accepted.sum())
    assert accepted > 0
