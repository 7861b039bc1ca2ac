"""The row passes of every instruction set of this machine: against float64, and bit-identical between instruction sets."""

import native
import numpy as np
import pytest
import torch

from specsample.reference import rng

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = (1, 2, 15, 16, 17, 63, 64, 65, 1000, 2048, 4097)
LARGEST = float(np.finfo(np.float32).max)


def row(size, dtype, seed=0, scale=3.0):
    """(array for the bindings, the same logits in float64)"""
    return as_row(torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale, dtype)


def as_row(logits, dtype):
    logits = logits.to(DTYPES[dtype])
    array = logits.numpy() if dtype == "float32" else logits.view(torch.int16).numpy().view(np.uint16)
    return array, logits.double().numpy()


def capabilities():
    return native.load().capabilities()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_max_and_sum(size, dtype):
    module = native.load()
    array, z = row(size, dtype)
    scale, top = 1 / 0.7, float(z.max())
    for cutoff in (-LARGEST, float(np.median(z))):
        want = np.exp((z[z >= cutoff] - top) * scale).sum()
        sums = {isa: module.row_sum(isa, array, dtype, scale, top, cutoff, 0, size) for isa in capabilities()}
        for isa, got in sums.items():
            assert module.row_max(isa, array, dtype, 0, size) == top, isa
            assert got == pytest.approx(want, rel=3e-7), isa
        exact = {got for isa, got in sums.items() if isa != "base"}
        assert len(exact) <= 1, sums  # AVX2 and AVX-512 bit for bit; `base` has no fused multiply-add on x86
    want = np.exp((z - top) * scale).sum()
    tiles = {isa: module.row_tile(isa, array, dtype, scale, 0, size) for isa in capabilities()}
    for isa, (most, got) in tiles.items():
        assert most == top and got >= 1 and got == pytest.approx(want, rel=2e-7), isa
    assert len({got for isa, got in tiles.items() if isa != "base"}) <= 1, tiles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1 / 0.7, 1 / 1e30, 1e-38, 1e5, 1e30])
def test_sum_of_unusual_tiles(scale, dtype):
    """Maxima found from the bits; NaN of either sign, infinities, weights that underflow, scales beyond the exponent's range."""
    module = native.load()
    nans = [np.uint32(0x7FC00000), np.uint32(0xFFC00000), np.uint32(0x7F800001 | 1 << 16), np.uint32(0xFF800001 | 1 << 16)]
    rows = {
        "negative": -1 - np.arange(100.0),
        "positive": 1 + np.arange(100.0),
        "zeros": np.array([0.0, -0.0] * 40),
        "minus zeros": np.full(33, -0.0),
        "far": np.concatenate([[50.0], np.full(70, -1000.0), [49.0]]),
        "one": np.concatenate([np.full(70, -np.inf), [3.0], np.full(7, -np.inf)]),
        "one negative": np.concatenate([np.full(70, -np.inf), [-3.0], np.full(7, -np.inf)]),
        "none": np.full(70, -np.inf),
    }
    for name, values in rows.items():
        for nan in (None, *nans):
            z = values.astype(np.float32)
            if nan is not None:
                z = np.insert(z, [0, 5, len(z)], nan.view(np.float32))
            array, z = as_row(torch.from_numpy(z), dtype)
            kept = z[z > -np.inf]  # without NaN
            top = kept.max() if len(kept) else -np.inf
            want = np.exp((kept - top) * scale).sum() if len(kept) else 0
            for isa in capabilities():
                assert module.row_max(isa, array, dtype, 0, len(z)) == top, (isa, name)
                most, got = module.row_tile(isa, array, dtype, scale, 0, len(z))
                assert most == top and got == pytest.approx(want, rel=2e-7), (isa, name)
                if name.startswith("one"):
                    assert got == 1
    z = np.zeros(50, np.float32)
    z[7] = np.inf
    for isa in capabilities():
        array, _ = as_row(torch.from_numpy(z), dtype)
        assert module.row_tile(isa, array, dtype, scale, 0, 50) == (LARGEST, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size, draft_size", [(1, 1), (7, 7), (64, 64), (1000, 1000), (1000, 990), (1000, 1013), (65, 3)])
def test_residual_mass(size, draft_size, dtype):
    module = native.load()
    (target, z), (draft, y) = row(size, dtype, 1), row(draft_size, dtype, 2)
    for scale in (1.0, 0.3):
        weights = [np.exp(x - x.max()) for x in (z, y)]
        d = np.zeros(max(size, draft_size))
        d[:draft_size] = weights[1] / weights[1].sum()
        want = np.maximum(scale * weights[0] / weights[0].sum() - d[:size], 0).sum()
        settings = [(1.0, float(x.max()), -LARGEST, float(w.sum())) for x, w in zip((z, y), weights)]
        got = {isa: module.residual_mass(isa, target, draft, dtype, scale, *settings) for isa in capabilities()}
        for isa, value in got.items():
            assert value == pytest.approx(want, rel=1e-6, abs=2e-7), isa


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1.0, 1 / 0.05, 1 / 3.0])
def test_race_finds_the_exact_winner(size, scale, dtype):
    """The one-comparison filter never loses the winner: against the plain argmax over all tokens in float64."""
    module = native.load()
    array, z = row(size, dtype, 3)
    for seed in range(20):
        words = (torch.tensor([seed]), torch.tensor([77]), rng.CLOCK, torch.tensor([0]), size)
        score = z * scale - rng.clocks(*words)[0].log().numpy()
        for isa in capabilities():
            winner, best, infinite = module.race(isa, array, dtype, scale, -LARGEST, seed, 77, -1)
            assert (winner, infinite) == (int(score.argmax()), False), isa
            assert best == pytest.approx(score.max(), rel=1e-12, abs=1e-12)
            if size > 1:
                others = np.where(np.arange(size) == winner, -np.inf, score)
                assert module.race(isa, array, dtype, scale, -LARGEST, seed, 77, winner)[0] == int(others.argmax()), isa


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_race_without_a_finite_logit_has_no_winner(value):
    array = np.full(100, value, np.float32)
    for isa in capabilities():
        assert native.load().race(isa, array, "float32", 1.0, -LARGEST, 1, 2, -1)[0] == -1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 50, 1024, 1025, 3000, 4096, 5000])
def test_kth_largest(k, dtype):
    """The heap for small k and the digit search for large k, with ties, signed zeros and fewer tokens than k."""
    array, z = row(4096, dtype, 4, scale=1.0)
    want = np.sort(z)[::-1][k - 1] if k <= len(z) else -LARGEST
    for isa in capabilities():
        assert native.load().kth_largest(isa, array, dtype, k) == want, isa


@pytest.mark.parametrize("shape", ["normal", "flat", "equal", "two values", "far apart", "ascending"])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.5, 0.9, 0.999, 1 - 1e-6])
def test_top_p_cutoff(shape, top_p):
    """The histogram search against a sort; flat rows need several rounds of it."""
    generator, size = np.random.default_rng(5), 20_000
    z = {
        "normal": generator.normal(0, 3, size),
        "flat": generator.normal(0, 1e-4, size),
        "equal": np.zeros(size),
        "two values": np.where(np.arange(size) % 3 == 0, 1.0, 0.0),
        "far apart": generator.normal(0, 300, size),
        "ascending": np.linspace(-20, 5, size),
    }[shape].astype(np.float32)
    weight = np.exp((z - z.max()).astype(np.float64))
    order = np.argsort(-z, kind="stable")
    goal = top_p * weight.sum()
    above = np.cumsum(weight[order]) - weight[order]
    want = z[order][np.flatnonzero(above < goal)[-1]]
    kept = weight[z >= want].sum()
    for isa in capabilities():
        got = native.load().top_p_cutoff(isa, z, "float32", 1.0, float(z.max()), goal, float(weight.sum()))
        if got != want:  # only if the goal is within float rounding of a token's edge
            assert abs(weight[z >= got].sum() - kept) <= 2e-6 * weight.sum() + weight[z == got].max(), isa
            assert min(abs(above[z[order] == v] - goal).min() for v in (got, want)) < 1e-6 * weight.sum(), isa


def test_infinite_logits_are_told():
    z = np.zeros(300, np.float32)
    z[[5, 200]] = np.inf
    for isa in capabilities():
        assert native.load().race(isa, z, "float32", 1.0, -LARGEST, 1, 2, -1)[2]
        winners = {native.load().race(isa, z, "float32", 0.0, LARGEST, seed, 2, -1)[0] for seed in range(64)}
        assert winners == {5, 200}
