"""`kseq` in Triton; the reference is specsample/schemes/kseq.py."""

import triton
import triton.language as tl

from .histogram import LANES, bins_for, histogram, sums_of, totals
from .recursive import clipped_mass
from .tree import MAX_SIBLINGS, child, draft_prob, residual, target_prob, verify_tree
from .walk import accept, at_node, first_of


@triton.jit
def gamma_of(beta, k):
    """(1 − (1 − β)^k)/β as the sum of (1 − β)^j, j < k: accurate for small β"""
    gamma = beta * 0.0
    for _ in range(0, k):
        gamma = 1.0 + (1.0 - beta) * gamma
    return gamma


@triton.jit
def threshold(bins):
    """The lowest bin edge c in [1, k] at and above which γ((1 − Z(c))/c) <= c: float64"""
    total_t, total_d = totals(bins)
    over_t, over_d = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    lowest = bins.per_unit + 1  # the first bin whose edge is not below 1
    for first in range(0, bins.count, LANES):
        bin = bins.count - 1 - first - tl.arange(0, LANES)
        t, d = sums_of(bins, bin, total_t, total_d)
        above_t, above_d = over_t + tl.cumsum(t, 0), over_d + tl.cumsum(d, 0)
        c = tl.maximum((bin - 0.5).to(tl.float64) / bins.per_unit, 1.0)
        beta = (1.0 - tl.maximum(above_t - c * above_d, 0.0)) / c
        bad = (bin > bins.per_unit) & (gamma_of(beta, bins.k) > c)
        lowest = tl.maximum(lowest, tl.max(tl.where(bad, bin + 1, 0), 0))
        over_t, over_d = over_t + tl.sum(t, 0), over_d + tl.sum(d, 0)
    k = bins.k.to(tl.float64)
    return tl.where(lowest < bins.count, tl.minimum((lowest.to(tl.float64) - 0.5) / bins.per_unit, k), k)


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """Test all children alike: accept if u·c·d(x) < t(x)."""
    c, gamma = tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
    if at.count > 1:
        bins = histogram(at.pair, bins_for(at.count, at.bins, at.pair.vocab, at.sums, at.tables), BLOCK)
        c, k = threshold(bins), at.count.to(tl.float64)
        gamma = c + 1.0
        while gamma > c:  # Z(c) is exact here; the tail's bin is approximate, so the root may lie just above c
            mass = clipped_mass(at, c, BLOCK)
            gamma = tl.minimum(gamma_of((1.0 - mass) / c, at.count), k)
            c = tl.where(gamma > c, tl.minimum(c + 1.0 / bins.per_unit, k), c)
    lanes = tl.arange(0, MAX_SIBLINGS)
    x, node = child(at, lanes)
    good = accept(at.seed, at.position, node, target_prob(at, x), c * draft_prob(at, x)) & (lanes < at.count)
    j = first_of(lanes, good)
    return tl.where(j >= 0, at_node(x, lanes, j), -1), residual(at, 1.0 / gamma, 1.0 / gamma - 1.0 / c, ()), 0


def verify(call):
    verify_tree(call, step, bins=int(call.options[0]))
