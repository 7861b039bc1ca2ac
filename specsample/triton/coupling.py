"""The optimal selection among k i.i.d. draws, in Triton: a histogram of target/draft ratios, the law b that the selected draw
gets, and the coupling that draws it. The reference, with the reasons, is specsample/reference/coupling.py.

Sums of bins are added by atomics in 64-bit fixed point, so they do not depend on the order. What follows is O(bins), in float64 and
in tiles of BINS. Tables are in the program's own scratch, by segment of [0, 1]: segment i is bin count − 1 − i, the largest ratio
first. A barrier stands between what one thread writes there and another reads.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .law import load_logits, weights
from .streams import SELECT, stream, uniform_pair

BINS = tl.constexpr(256)
SPARE = tl.constexpr(2)  # entries of scratch beyond the option `bins`: the last bin, and where the last segment ends
TABLES = tl.constexpr(5)
RATIO, EDGE, CROSS, PLUS, MINUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)
_UNIT = tl.constexpr(2.0**60)  # of the fixed point: a law's mass is at most 1
_EMPTY = tl.constexpr(2.0**-53)  # a bin whose draft mass is below this is never drawn from; its middle stands for its ratio
_TAIL = tl.constexpr(1e-4)  # tokens whose probabilities are both below this, over V, share one bin


class Pair(NamedTuple):
    """A target row and the draft row that its children were drawn from, with their laws."""

    row: object
    vocab: object
    target: object
    draft_row: object
    draft_vocab: object
    draft: object


class Bins(NamedTuple):
    """Which bin a ratio t/d falls in, floor(per_unit·t/d + ½) but the last at most, and where sums and tables are."""

    k: object  # int32 draws; below 2 the ratio is 1 throughout
    per_unit: object  # int32
    count: object  # int32, one more than the last
    tail: object  # float32: tokens with both probabilities below it are in tail_bin
    tail_bin: object  # int32
    sums: object  # pointer to int64 [2, width]: of t and of d
    tables: object  # pointer to float64 [TABLES, width]
    width: object


@triton.jit
def bins_for(k, bins, vocab, sums, tables):
    """`bins` linear bins over ratios in [0, k] and one for the rest."""
    per_unit = tl.maximum(bins // tl.maximum(k, 1), 1)
    tail = (tl.full((), _TAIL, tl.float64) / vocab).to(tl.float32)
    return Bins(k, per_unit, per_unit * k + 1, tail, k * 0, sums, tables, bins + SPARE)


@triton.jit
def with_tail(bins, k, tail_bin):
    return Bins(k, bins.per_unit, bins.count, bins.tail, tail_bin, bins.sums, bins.tables, bins.width)


@triton.jit
def binned(pair, ids, bins):
    """(t, d float32, bin int32, not in the tail) of tokens of the target's vocabulary. The histogram and the look-up of a single
    token both come here: they must agree on every token, to the bit."""
    t = weights(load_logits(pair.row, ids, pair.vocab), pair.target) * (1.0 / pair.target.mass).to(tl.float32)
    shared = tl.minimum(pair.vocab, pair.draft_vocab)
    d = weights(load_logits(pair.draft_row, ids, shared), pair.draft) * (1.0 / pair.draft.mass).to(tl.float32)
    d = tl.where(pair.draft.only >= 0, ((ids == pair.draft.only) & (ids < pair.vocab)).to(tl.float32), d)
    heavy = (t >= bins.tail) | (d >= bins.tail)
    last = (bins.count - 1).to(tl.float32)
    position = tl.where(d > 0, tl.minimum(t / tl.where(d > 0, d, 1.0) * bins.per_unit.to(tl.float32) + 0.5, last), last)
    return t, d, tl.where(heavy, position, 0.0).to(tl.int32), heavy


@triton.jit
def ratios_of(pair, ids, bins):
    """ρ of each token, float64"""
    _t, _d, bin, heavy = binned(pair, ids, bins)
    segment = bins.count - 1 - tl.where(heavy, bin, bins.tail_bin)
    return tl.load(bins.tables + segment, mask=(ids < pair.vocab) & (bins.k > 1), other=1.0)


@triton.jit
def fixed(x):
    return (x.to(tl.float64) * _UNIT).to(tl.int64)


@triton.jit
def histogram(pair, bins, BLOCK: tl.constexpr):
    """Add up t and d by bin in bins.sums. -> Bins with the tail's bin, that of its own joint ratio"""
    tl.debug_barrier()  # what was there before has been read
    for first in range(0, 2 * bins.width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(bins.sums + at, tl.zeros((BLOCK,), tl.int64), mask=at < 2 * bins.width)
    tl.debug_barrier()
    tail_t, tail_d = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for first in range(0, pair.vocab, BLOCK):
        t, d, bin, heavy = binned(pair, first + tl.arange(0, BLOCK), bins)
        tail_t += tl.where(heavy, 0.0, t)
        tail_d += tl.where(heavy, 0.0, d)
        if tl.max(heavy.to(tl.int32), 0) > 0:
            tl.atomic_add(bins.sums + bin, fixed(t), mask=heavy, sem="relaxed")
            tl.atomic_add(bins.sums + bins.width + bin, fixed(d), mask=heavy, sem="relaxed")
    beyond = tl.zeros((BLOCK,), tl.float64)  # what the draft has beyond the target's vocabulary has ratio 0
    for first in range(pair.vocab, pair.draft_vocab, BLOCK):
        beyond += weights(load_logits(pair.draft_row, first + tl.arange(0, BLOCK), pair.draft_vocab), pair.draft)
    outside = tl.sum(beyond, 0) / pair.draft.mass
    outside = tl.where(pair.draft.only >= 0, (pair.draft.only >= pair.vocab).to(tl.float64), outside)
    t, d, last = tl.sum(tail_t, 0), tl.sum(tail_d, 0), (bins.count - 1).to(tl.float64)
    own = tl.where(d > 0, tl.minimum(t / tl.where(d > 0, d, 1.0) * bins.per_unit + 0.5, last), tl.where(t > 0, last, 0.0))
    tail_bin = own.to(tl.int32)
    tl.atomic_add(bins.sums + tail_bin, fixed(t), sem="relaxed")
    tl.atomic_add(bins.sums + bins.width + tail_bin, fixed(d), sem="relaxed")
    tl.atomic_add(bins.sums + bins.width, fixed(outside), sem="relaxed")
    tl.debug_barrier()
    return with_tail(bins, bins.k, tail_bin)


@triton.jit
def raw_sums(bins, i):
    """Sums of the bins i in fixed point: (T, D), 0 beyond the bins"""
    inside = (i >= 0) & (i < bins.count)
    t = tl.load(bins.sums + i, mask=inside, other=0, cache_modifier=".cg")  # where atomics put them
    return t, tl.load(bins.sums + bins.width + i, mask=inside, other=0, cache_modifier=".cg")


@triton.jit
def totals(bins):
    """(Σ T, Σ D), which are 1 up to rounding, as float64 in fixed point"""
    t, d = tl.zeros((BINS,), tl.int64), tl.zeros((BINS,), tl.int64)
    for first in range(0, bins.count, BINS):
        one, two = raw_sums(bins, first + tl.arange(0, BINS))
        t, d = t + one, d + two
    return tl.sum(t, 0).to(tl.float64), tl.sum(d, 0).to(tl.float64)


@triton.jit
def sums_of(bins, i, total_t, total_d):
    t, d = raw_sums(bins, i)
    return t.to(tl.float64) / total_t, d.to(tl.float64) / total_d


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
    """From the sums to the law b (its ratio by bin) and the coupling's tables."""
    total_t, total_d = totals(bins)
    lanes = tl.arange(0, BINS)
    k, count, zero = bins.k, bins.count, tl.full((), 0.0, tl.float64)
    rejection, tv, under_t, under_d = zero, zero, zero, zero
    for first in range(0, count, BINS):  # D = max over lower sets of d(S)^k − t(S), but never above Z(1): there b = d
        t, d = sums_of(bins, first + lanes, total_t, total_d)
        below_t, below_d = under_t + tl.cumsum(t, 0), under_d + tl.cumsum(d, 0)
        rejection = tl.maximum(rejection, tl.max(power(tl.minimum(below_d, 1.0), k) - below_t, 0))
        tv += tl.sum(tl.maximum(t - d, 0.0), 0)
        under_t, under_d = under_t + tl.sum(t, 0), under_d + tl.sum(d, 0)
    rejection = tl.minimum(rejection, tv)

    c1, c2 = zero - float("inf"), zero + float("inf")  # c1 takes D off the top, c2 adds it below
    under_t, under_d, over_t, over_d = zero, zero, zero, zero
    for first in range(0, count, BINS):
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
    for first in range(0, count + 1, BINS):  # the last entry of a table is where the last segment ends
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
        tl.store(tables + RATIO * bins.width, ratio, mask=inside)
        tl.store(tables + EDGE * bins.width, start, mask=inside)
        tl.store(tables + CROSS * bins.width, cross, mask=inside)
        tl.store(tables + PLUS * bins.width, plus + tl.cumsum(more, 0) - more, mask=inside)
        tl.store(tables + MINUS * bins.width, minus + tl.cumsum(less, 0) - less, mask=inside)
        edge += tl.sum(d, 0)
        plus, minus = plus + tl.sum(more, 0), minus + tl.sum(less, 0)
    tl.debug_barrier()


@triton.jit
def partners(bins, v, segment):
    """w of each v: Φ⁻(w) = Φ⁺(v) where G(v) > R(v), else Φ⁺(w) = Φ⁻(v)"""
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
    """Priorities of draws of the segments' tokens: uniform over all draws, and E[G(priority) | token] = ρ, so the draw of the
    smallest has law b. -> (float64, ρ)"""
    place, move = uniform_pair(stream(seed, position, SELECT, nodes))
    edges = bins.tables + EDGE * bins.width + segment
    start, end = tl.load(edges), tl.load(edges + 1)
    v = start + (end - start) * place
    w, ratio = partners(bins, v, segment), tl.load(bins.tables + segment)
    moves = move * tl.abs(density(bins.k, v) - density(bins.k, w)) < tl.abs(density(bins.k, v) - ratio)
    return tl.where(moves, w, v), ratio
