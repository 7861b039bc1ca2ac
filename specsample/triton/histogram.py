"""The histogram of target/draft ratios of a node, in Triton; the reference is specsample/reference/coupling.py.

Bins are summed by atomics in 64-bit fixed point, so the sums do not depend on the order. They lie in the program's own scratch:
a barrier separates one thread's writes there from another's reads.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .law import finite, stored_logits, weights

_UNIT = tl.constexpr(2.0**60)  # unit of the fixed point: a law's mass is at most 1
_TAIL = tl.constexpr(1e-3)  # tokens whose probabilities are both below this divided by V share one bin
SPARE = tl.constexpr(2)  # entries of scratch beyond the option `bins`: the last bin, and the end of the last segment
LANES = tl.constexpr(256)  # bins processed at a time


class Pair(NamedTuple):
    """A target row and the draft row that the node's children were drawn from, with their laws."""

    row: object
    vocab: object
    target: object
    draft_row: object
    draft_vocab: object
    draft: object


class Bins(NamedTuple):
    """The binning of ratios t/d, floor(per_unit·t/d + ½) but at most the last bin, and the location of sums and tables."""

    k: object  # int32 draws; below 2 the ratio is 1 throughout
    per_unit: object  # int32
    count: object  # int32, one more than the last bin
    tail: object  # float32: tokens with both probabilities below it are in tail_bin
    tail_bin: object  # int32
    sums: object  # pointer to int64 [2, width]: of t and of d
    tables: object  # pointer to float64 [TABLES, width]
    width: object


@triton.jit
def bins_for(k, bins, vocab, sums, tables):
    """`bins` linear bins over ratios in [0, k] and one for larger ratios."""
    per_unit = tl.maximum(bins // tl.maximum(k, 1), 1)
    tail = (tl.full((), _TAIL, tl.float64) / vocab).to(tl.float32)
    return Bins(k, per_unit, per_unit * k + 1, tail, k * 0, sums, tables, bins + SPARE)


@triton.jit
def with_tail(bins, k, tail_bin):
    return Bins(k, bins.per_unit, bins.count, bins.tail, tail_bin, bins.sums, bins.tables, bins.width)


@triton.jit
def load_pair(pair, ids):
    """The stored logits of tokens of the target's vocabulary, under the target and under the draft"""
    shared = tl.minimum(pair.vocab, pair.draft_vocab)
    return stored_logits(pair.row, ids, pair.vocab), stored_logits(pair.draft_row, ids, shared)


@triton.jit
def binned(pair, ids, z, y, bins):
    """(t, d float32, bin int32, not in the tail) of tokens with the logits z, y. Both the histogram and the look-up of a single token
    call this: they must agree on every token, bit for bit."""
    t = weights(finite(z), pair.target) * (1.0 / pair.target.mass).to(tl.float32)
    d = weights(finite(y), pair.draft) * (1.0 / pair.draft.mass).to(tl.float32)
    d = tl.where(pair.draft.only >= 0, ((ids == pair.draft.only) & (ids < pair.vocab)).to(tl.float32), d)
    heavy = (t >= bins.tail) | (d >= bins.tail)
    last = (bins.count - 1).to(tl.float32)
    position = tl.where(d > 0, tl.minimum(t / tl.where(d > 0, d, 1.0) * bins.per_unit.to(tl.float32) + 0.5, last), last)
    return t, d, tl.where(heavy, position, 0.0).to(tl.int32), heavy


@triton.jit
def ratio_in(bins, bin, heavy, inside):
    """ρ of tokens binned by `binned`, float64; 1 if there are no bins"""
    segment = bins.count - 1 - tl.where(heavy, bin, bins.tail_bin)
    return tl.load(bins.tables + segment, mask=inside & (bins.k > 1), other=1.0)


@triton.jit
def ratios_of(pair, ids, bins):
    """ρ of each token, float64"""
    z, y = load_pair(pair, ids)
    _t, _d, bin, heavy = binned(pair, ids, z, y, bins)
    return ratio_in(bins, bin, heavy, ids < pair.vocab)


@triton.jit
def least_ratio(bins):
    """(ρ, δ) such that for any token, at least ρ·d is subtracted from t, or at most δ·t of t remains. A bin's ρ is its T/D, within one
    bin of the token's t/d, clipped from above to the last bin's and from below to the first's, where t is below ρ·d. The tail has its own."""
    several = bins.k > 1
    first = tl.load(bins.tables + bins.count - 1, mask=several, other=1.0)
    last = tl.load(bins.tables, mask=several, other=1.0)
    tail = tl.load(bins.tables + bins.count - 1 - bins.tail_bin, mask=several, other=1.0)
    width = tl.where(several, 1.0 / bins.per_unit + 1e-5, 0.0)
    return tl.minimum(last, tail), tl.where(first > width, width / tl.where(first > width, first, 1.0), 1.0)


@triton.jit
def fixed(x):
    return (x.to(tl.float64) * _UNIT).to(tl.int64)


@triton.jit
def histogram(pair, bins, BLOCK: tl.constexpr):
    """Sum t and d by bin in bins.sums. -> Bins with the tail's bin, that of its joint ratio"""
    tl.debug_barrier()  # the previous contents have been read
    for first in range(0, 2 * bins.width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(bins.sums + at, tl.zeros((BLOCK,), tl.int64), mask=at < 2 * bins.width)
    tl.debug_barrier()
    tail_t, tail_d = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    lanes = tl.arange(0, 2 * BLOCK)
    z, y = load_pair(pair, lanes)
    for first in range(0, pair.vocab, 2 * BLOCK):
        next_z, next_y = load_pair(pair, first + 2 * BLOCK + lanes)  # on their way while this tile is summed
        t, d, bin, heavy = binned(pair, first + lanes, z, y, bins)
        tail_t += tl.sum(tl.reshape(tl.where(heavy, 0.0, t), (BLOCK, 2)), 1).to(tl.float64)
        tail_d += tl.sum(tl.reshape(tl.where(heavy, 0.0, d), (BLOCK, 2)), 1).to(tl.float64)
        if tl.max(heavy.to(tl.int32), 0) > 0:
            tl.atomic_add(bins.sums + bin, fixed(t), mask=heavy, sem="relaxed")
            tl.atomic_add(bins.sums + bins.width + bin, fixed(d), mask=heavy, sem="relaxed")
        z, y = next_z, next_y
    beyond = tl.zeros((BLOCK,), tl.float64)  # draft ids beyond the target's vocabulary have ratio 0
    for first in range(pair.vocab, pair.draft_vocab, 4 * BLOCK):
        z = stored_logits(pair.draft_row, first + lanes, pair.draft_vocab)
        y = stored_logits(pair.draft_row, first + 2 * BLOCK + lanes, pair.draft_vocab)
        part = weights(finite(z), pair.draft) + weights(finite(y), pair.draft)
        beyond += tl.sum(tl.reshape(part, (BLOCK, 2)), 1).to(tl.float64)
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
    """The sums of bins i in fixed point: (T, D), 0 beyond the bins"""
    inside = (i >= 0) & (i < bins.count)
    t = tl.load(bins.sums + i, mask=inside, other=0, cache_modifier=".cg")  # from L2, where atomics are performed
    return t, tl.load(bins.sums + bins.width + i, mask=inside, other=0, cache_modifier=".cg")


@triton.jit
def totals(bins):
    """(Σ T, Σ D), which are 1 up to rounding, as float64 in fixed point"""
    t, d = tl.zeros((LANES,), tl.int64), tl.zeros((LANES,), tl.int64)
    for first in range(0, bins.count, LANES):
        one, two = raw_sums(bins, first + tl.arange(0, LANES))
        t, d = t + one, d + two
    return tl.sum(t, 0).to(tl.float64), tl.sum(d, 0).to(tl.float64)


@triton.jit
def sums_of(bins, i, total_t, total_d):
    t, d = raw_sums(bins, i)
    return t.to(tl.float64) / total_t, d.to(tl.float64) / total_d
