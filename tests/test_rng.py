"""Philox4x32-10 and the stream map: published known answers, Python against C++ (scalar and every instruction set), and an
exact argument that the clocks keep the law of rare tokens."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import native
from specsample.reference import rng

KNOWN = json.loads((Path(__file__).parent / "data" / "philox.json").read_text())


def as_ints(words):
    return [int(w, 16) for w in words]


@pytest.mark.parametrize("case", KNOWN["philox4x32_10"], ids=lambda c: c["counter"][0])
def test_known_answers_of_random123(case):
    counter, key, answer = (as_ints(case[name]) for name in ("counter", "key", "answer"))
    got = rng.philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert [int(g) for g in got] == answer
    assert list(native.load().philox(counter, key)) == answer


@pytest.mark.parametrize("case", KNOWN["streams"], ids=lambda c: f"purpose {c['purpose']}")
def test_known_answers_of_the_stream_map(case):
    """The file pins key, counter and word layout: what every backend must reproduce."""
    seed, position, purpose, slot = (case[k] for k in ("seed", "position", "purpose", "slot"))
    for refine in (False, True):
        want = as_ints(case["refine" if refine else "words"])
        got = rng.words(*(torch.tensor([x]) for x in (seed, position)), purpose, torch.tensor([slot]), len(want), refine)
        assert got[0].tolist() == want
        assert native.load().words(seed, position, purpose, slot, len(want), refine) == want


@pytest.mark.parametrize("seed, position, purpose, slot", [(0, 0, 0, 0), (-5, 2**40 + 3, 4, 1023), (2**62, -1, 5, 77)])
def test_vector_words_equal_scalar_words(seed, position, purpose, slot):
    module = native.load()
    want = rng.words(torch.tensor([seed]), torch.tensor([position]), purpose, torch.tensor([slot]), 64 * 5)[0].tolist()
    for isa in module.capabilities():
        got = [w for first in range(0, 320, 64) for w in module.words_by_lanes(isa, seed, position, purpose, slot, first)]
        assert got == want, isa


WORDS = [0, 1, 5, 4095, 4096, 4097, 2**20, 2**31 - 1, 2**31, 2**32 - 4097, 2**32 - 2, 2**32 - 1]


@pytest.mark.parametrize("word", WORDS)
def test_uniforms_and_clocks_of_given_words(word, monkeypatch):
    """The ends of the word's range: u in (0, 1), the clock positive and finite, the same in Python and C++, and accurate in
    relative terms against 60-digit arithmetic."""
    mpmath = pytest.importorskip("mpmath")
    seed, position, purpose, slot, token = 11, 22, 0, 3, 17
    second = native.load().words(seed, position, purpose, slot, token + 1, True)[token]
    with mpmath.workdps(60):
        low = (mpmath.mpf(second) + 0.5) / 2**32 if word < 4096 else mpmath.mpf(0.5)
        u = (word + low) / 2**32
        log_clock = mpmath.log(-mpmath.log(1 - u))
        assert native.load().uniform(seed, position, purpose, slot, token, word) == float(u)
        got = native.load().log_clock(seed, position, purpose, slot, token, word)
        assert abs(got - log_clock) < 1e-13 * max(1, abs(log_clock))
    original = rng.words

    def forced(*args, refine=False):
        out = original(*args, refine=refine)
        return out if refine else torch.full_like(out, word)

    monkeypatch.setattr(rng, "words", forced)
    args = (torch.tensor([seed]), torch.tensor([position]), purpose, torch.tensor([slot]), token + 1)
    assert rng.uniforms(*args)[0, token].item() == float(u)
    clock = rng.clocks(*args)[0, token].item()
    assert 0 < clock < math.inf and abs(math.log(clock) - log_clock) < 1e-13 * max(1, abs(log_clock))


def win_probability(weight, refined, vocab=128_256):
    """Exact probability, over the values of its word, that a token of probability `weight` wins against vocab − 1 others of
    equal weight, whose best E/w is exponential of rate 1 − weight: Σ over u of P(rest > E(u)/weight)."""
    rate = (1 - weight) / weight
    win = lambda u: np.exp(rate * np.log1p(-u))  # noqa: E731  exp(−rate·E(u))
    r = np.arange(1 << 22, dtype=np.float64)  # beyond, u > 1e-3 and nothing is left at these weights
    total = win((r + 0.5) * 2.0**-32).sum() * 2.0**-32
    if refined:
        # The 2³² values of the second word fill each of the first 4096 cells so evenly that the integral stands for the sum:
        # ∫ (1 − u)^rate du.
        edges = np.arange(4097) * 2.0**-32
        cells = -np.diff(np.exp((rate + 1) * np.log1p(-edges))) / (rate + 1)
        total += cells.sum() - win((r[:4096] + 0.5) * 2.0**-32).sum() * 2.0**-32
    return total


@pytest.mark.parametrize("weight", [1e-7, 1e-8, 1e-10, 1e-12])
def test_rare_tokens_win_at_their_rate(weight):
    """∫ (1 − u)^((1−w)/w) du = w: with the second word the lattice of u gives it to 1e-6; with one word it would not."""
    assert win_probability(weight, refined=True) == pytest.approx(weight, rel=1e-6, abs=0)


@pytest.mark.parametrize("weight", [1e-10, 1e-12])
def test_control_without_the_second_word_rare_tokens_lose_their_law(weight):
    assert win_probability(weight, refined=False) != pytest.approx(weight, rel=1e-2, abs=0)


def test_uniforms_are_uniform_and_streams_differ():
    """Moments of one stream and no correlation between neighbouring ones (8σ bounds)."""
    n = 1 << 16
    make = lambda seed, position, purpose, slot: rng.uniforms(  # noqa: E731
        torch.tensor([seed]), torch.tensor([position]), purpose, torch.tensor([slot]), n
    )[0]
    base = make(1, 2, 0, 0)
    assert abs(base.mean() - 0.5) < 8 / math.sqrt(12 * n) and abs(base.var() - 1 / 12) < 8 / math.sqrt(180 * n)
    for other in (make(2, 2, 0, 0), make(1, 3, 0, 0), make(1, 2, 1, 0), make(1, 2, 0, 1), make(1 + 2**32, 2, 0, 0)):
        assert abs(torch.corrcoef(torch.stack([base, other]))[0, 1]) < 8 / math.sqrt(n)
