"""The optimal selection among k i.i.d. draws, in Triton: from a histogram to the law b of the selected draw, and the coupling
that draws it. The reference, with the derivation, is specsample/reference/coupling.py.

Everything is O(bins), in float64, LANES bins at a time. Tables are indexed by segment of [0, 1]: segment i is bin count − 1 − i,
largest ratio first.
"""

import triton
import triton.language as tl

from ..reference.coupling import EMPTY
from .histogram import LANES, sums_of, totals
from .streams import SELECT, stream, uniform_pair

TABLES = tl.constexpr(5)  # the first holds the ratios, which histogram.py reads
EDGE, CROSS, PLUS, MINUS = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)
_EMPTY = tl.constexpr(EMPTY)  # a bin with less draft mass than this is never drawn from; its midpoint stands in for its ratio


@triton.jit
def power(x, k):
    out = x * 0.0 + 1.0
    while k > 0:
        out = tl.where(k % 2 == 1, out * x, out)
        x = x * x
        k = k // 2
    return out


@triton.jit
def gain(k, ratio, a, x):
    """∫ₐˣ (G − ratio), G(u) = k(1 − u)^(k−1) the density of the smallest of k uniforms"""
    return power(1.0 - a, k) - power(1.0 - x, k) - ratio * (x - a)


@triton.jit
def density(k, u):
    return k * power(1.0 - u, k - 1)


@triton.jit
def solve(bins):
    """Compute the law b (its ratio for each bin) and the coupling's tables from the sums."""
    total_t, total_d = totals(bins)
    lanes = tl.arange(0, LANES)
    k, count, zero = bins.k, bins.count, tl.full((), 0.0, tl.float64)
    rejection, tv, under_t, under_d = zero, zero, zero, zero
    for first in range(0, count, LANES):  # D = max over lower sets of d(S)^k − t(S), at most Z(1), where b = d
        t, d = sums_of(bins, first + lanes, total_t, total_d)
        below_t, below_d = under_t + tl.cumsum(t, 0), under_d + tl.cumsum(d, 0)
        rejection = tl.maximum(rejection, tl.max(power(tl.minimum(below_d, 1.0), k) - below_t, 0))
        tv += tl.sum(tl.maximum(t - d, 0.0), 0)
        under_t, under_d = under_t + tl.sum(t, 0), under_d + tl.sum(d, 0)
    rejection = tl.minimum(rejection, tv)

    c1, c2 = zero - float("inf"), zero + float("inf")  # clipping at c1 removes D at the top, c2 adds it at the bottom
    under_t, under_d, over_t, over_d = zero, zero, zero, zero
    for first in range(0, count, LANES):
        t, d = sums_of(bins, first + lanes, total_t, total_d)
        below_t, below_d = under_t + tl.cumsum(t, 0), under_d + tl.cumsum(d, 0)
        lift = (below_t + rejection) / tl.where(below_d > 0, below_d, 1.0)
        c2 = tl.minimum(c2, tl.min(tl.where(below_d > 0, lift, float("inf")), 0))
        under_t, under_d = under_t + tl.sum(t, 0), under_d + tl.sum(d, 0)
        t, d = sums_of(bins, count - 1 - first - lanes, total_t, total_d)
        above_t, above_d = over_t + tl.cumsum(t, 0), over_d + tl.cumsum(d, 0)
        cut = (above_t - rejection) / tl.where(above_d > 0, above_d, 1.0)
        c1 = tl.maximum(c1, tl.max(tl.where(above_d > 0, cut, float("-inf")), 0))
        over_t, over_d = over_t + tl.sum(t, 0), over_d + tl.sum(d, 0)
    meet = c2 >= c1
    c1, c2 = tl.where(meet, 1.0, c1), tl.where(meet, 1.0, c2)

    edge, plus, minus = zero, zero, zero
    for first in range(0, count + 1, LANES):  # the last entry of a table is the end of the last segment
        segment = first + lanes
        bin = count - 1 - segment
        t, d = sums_of(bins, bin, total_t, total_d)
        own = tl.where(d > _EMPTY, t / tl.where(d > _EMPTY, d, 1.0), bin.to(tl.float64) / bins.per_unit)
        ratio = tl.minimum(tl.maximum(own, c2), c1)
        ends = edge + tl.cumsum(d, 0)
        start, end = tl.minimum(ends - d, 1.0), tl.minimum(ends, 1.0)
        x = tl.minimum(ratio / k, 1.0)
        cross = 1.0 - tl.where(x > 0, tl.exp(tl.log(tl.where(x > 0, x, 1.0)) / (k - 1)), 0.0)  # G(cross) = ratio
        cross = tl.minimum(tl.maximum(cross, start), end)
        more, less = gain(k, ratio, start, cross), -gain(k, ratio, cross, end)
        tables, inside = bins.tables + segment, segment <= count
        tl.store(tables, ratio, mask=inside)
        tl.store(tables + EDGE * bins.width, start, mask=inside)
        tl.store(tables + CROSS * bins.width, cross, mask=inside)
        tl.store(tables + PLUS * bins.width, plus + tl.cumsum(more, 0) - more, mask=inside)
        tl.store(tables + MINUS * bins.width, minus + tl.cumsum(less, 0) - less, mask=inside)
        edge += tl.sum(d, 0)
        plus, minus = plus + tl.sum(more, 0), minus + tl.sum(less, 0)
    tl.debug_barrier()


@triton.jit
def partners(bins, v, segment):
    """The w for each v: Φ⁻(w) = Φ⁺(v) if G(v) > R(v), else Φ⁺(w) = Φ⁻(v)"""
    width, k = bins.width, bins.k
    ratio, cross = tl.load(bins.tables + segment), tl.load(bins.tables + CROSS * width + segment)
    start = tl.load(bins.tables + EDGE * width + segment)
    plus, minus = tl.load(bins.tables + PLUS * width + segment), tl.load(bins.tables + MINUS * width + segment)
    gains = v < cross
    goal = tl.where(gains, plus + gain(k, ratio, start, v), minus - gain(k, ratio, cross, v))
    table = tl.where(gains, MINUS, PLUS) * width
    low, high = segment * 0, segment * 0 + bins.count
    step = bins.count
    while step > 0:  # the last segment whose table is below the goal
        middle = (low + high) // 2
        short = tl.load(bins.tables + table + middle) < goal
        low, high = tl.where(short, middle, low), tl.where(short, high, middle)
        step = step // 2
    ratio, turn = tl.load(bins.tables + low), tl.load(bins.tables + CROSS * width + low)
    start, end = tl.load(bins.tables + EDGE * width + low), tl.load(bins.tables + EDGE * width + low + 1)
    base, sign = tl.load(bins.tables + table + low), tl.where(gains, -1.0, 1.0)
    left, right = tl.where(gains, turn, start), tl.where(gains, end, turn)
    begin = left
    for _ in range(0, 60):
        middle = 0.5 * (left + right)
        short = base + sign * gain(k, ratio, begin, middle) < goal
        left, right = tl.where(short, middle, left), tl.where(short, right, middle)
    return 0.5 * (left + right)


@triton.jit
def priorities(bins, segment, seed, position, nodes):
    """The priorities of draws of the segments' tokens: uniform over all draws, with E[G(priority) | token] = ρ, so the draw with
    the smallest priority has law b. -> (float64, ρ)"""
    place, move = uniform_pair(stream(seed, position, SELECT, nodes))
    edges = bins.tables + EDGE * bins.width + segment
    start, end = tl.load(edges), tl.load(edges + 1)
    v = start + (end - start) * place
    w, ratio = partners(bins, v, segment), tl.load(bins.tables + segment)
    moves = move * tl.abs(density(bins.k, v) - density(bins.k, w)) < tl.abs(density(bins.k, v) - ratio)
    return tl.where(moves, w, v), ratio
