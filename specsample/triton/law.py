"""The law of a row as five numbers, and the kernel that computes them: one program per row, over tiles of it.

Four tiles are read at a time. They are summed lane by lane in float32, accumulated in float64, and the lanes are added once at
the end: a fixed order, so a row's numbers depend only on the row and its settings. A filter's cut-off is found by bisection over the
order-preserving bits of the logits; each step moves to a logit that occurs, so it ends early and at the exact value.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl

from .. import limits
from .kernel import Kernel

LARGEST = tl.constexpr(3.4028234663852886e38)  # +inf logits are read as the largest float
LOG2E = tl.constexpr(math.log2(math.e))
BROKEN = tl.constexpr(-2)  # value of `only` for a row without a finite logit
FIELDS = tl.constexpr(5)  # number of float64 fields of a law in memory
_SLACK, _MAX_LOGSUMEXP = tl.constexpr(limits.SLACK), tl.constexpr(limits.MAX_LOGSUMEXP)


class Law(NamedTuple):
    max: object  # float32: largest logit
    cutoff: object  # float32: tokens with logit >= cutoff are kept; −LARGEST keeps all but −inf and NaN
    scale: object  # float64: 1 / temperature; 0 if +inf logits share all mass
    mass: object  # float64: Σ over the kept tokens of exp((logit − max)·scale)
    only: object  # int64: >= 0: all mass on this token (greedy rows); −1: none such; BROKEN


@triton.jit
def load_law(at):
    max, cutoff = tl.load(at).to(tl.float32), tl.load(at + 1).to(tl.float32)
    return Law(max, cutoff, tl.load(at + 2), tl.load(at + 3), tl.load(at + 4).to(tl.int64))


@triton.jit
def store_law(at, law):
    tl.store(at, law.max.to(tl.float64))
    tl.store(at + 1, law.cutoff.to(tl.float64))
    tl.store(at + 2, law.scale)
    tl.store(at + 3, law.mass)
    tl.store(at + 4, law.only.to(tl.float64))


@triton.jit
def stored_logits(row, ids, vocab):
    """Logits in their own dtype; ids beyond the vocabulary read as −inf."""
    return tl.load(row + ids, mask=(ids >= 0) & (ids < vocab), other=float("-inf"))


@triton.jit
def raw_logits(row, ids, vocab):
    """The same in float32"""
    return stored_logits(row, ids, vocab).to(tl.float32)


@triton.jit
def finite(z):
    """Logits in float32 with −inf for NaN and the largest float for +inf"""
    z = z.to(tl.float32)
    return tl.minimum(tl.where(z == z, z, float("-inf")), LARGEST)


@triton.jit
def load_logits(row, ids, vocab):
    return finite(stored_logits(row, ids, vocab))


@triton.jit
def four_tiles(row, first, vocab, BLOCK: tl.constexpr):
    """The stored logits of four tiles starting at `first`"""
    ids = first + tl.arange(0, BLOCK)
    a, b = stored_logits(row, ids, vocab), stored_logits(row, ids + BLOCK, vocab)
    return a, b, stored_logits(row, ids + 2 * BLOCK, vocab), stored_logits(row, ids + 3 * BLOCK, vocab)


@triton.jit
def power(gap, scale):
    """exp(gap·scale), and 0 if that is tiny or NaN: float32. The scale is split into two floats, else the tail would be off by 1e-6."""
    scale = scale * LOG2E
    high = scale.to(tl.float32)
    low = (scale - high.to(tl.float64)).to(tl.float32)
    x = gap * high
    return tl.where(x >= -126.0, tl.exp2(x + gap * low), 0.0)


@triton.jit
def weights(z, law):
    """exp((z − max)·scale) of the kept tokens, else 0: float32"""
    return tl.where(z >= law.cutoff, power(z - law.max, law.scale), 0.0)


@triton.jit
def weight(z, law):
    """The same for one token in float64."""
    return tl.where(z >= law.cutoff, tl.exp((z.to(tl.float64) - law.max) * law.scale), 0.0)


@triton.jit
def prob(row, vocab, law, token):
    """Probability of `token` (int64), float64; 0 beyond the vocabulary."""
    p = weight(load_logits(row, token, vocab), law) / law.mass
    return tl.where(law.only >= 0, (token == law.only).to(tl.float64), p)


@triton.jit
def key(z):
    """An int64 that orders like the float; −0 and 0 are equal."""
    bits = (z + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.int64)


@triton.jit
def logit(k):
    bits = k.to(tl.int32)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def held_above(z, law, cut, COUNT: tl.constexpr):
    """For each kept token at or above `cut` 1 (COUNT) or its weight, else 0: float32"""
    if COUNT:
        share = ((z >= law.cutoff) & (z >= cut)).to(tl.float32)
    else:
        share = tl.where(z >= cut, weights(z, law), 0.0)
    return share


@triton.jit
def least_above(z, bar):
    return tl.where(z >= bar, z, float("inf"))


@triton.jit
def most_below(z, law, cut):
    return tl.where((z >= law.cutoff) & (z < cut), z, float("-inf"))


@triton.jit
def measure(row, vocab, law, cut, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Among the kept tokens: the number (COUNT) or weight of those at or above `cut`; the smallest of them; the largest below."""
    total = tl.zeros((BLOCK,), tl.float64)
    least = tl.full((BLOCK,), float("inf"), tl.float32)
    below = tl.full((BLOCK,), float("-inf"), tl.float32)
    bar = tl.maximum(law.cutoff, cut)
    ids = tl.arange(0, BLOCK)
    next = stored_logits(row, ids, vocab)
    for first in range(0, vocab, 4 * BLOCK):
        b, c = stored_logits(row, first + BLOCK + ids, vocab), stored_logits(row, first + 2 * BLOCK + ids, vocab)
        d = stored_logits(row, first + 3 * BLOCK + ids, vocab)
        a, b, c, d = finite(next), finite(b), finite(c), finite(d)
        next = stored_logits(row, first + 4 * BLOCK + ids, vocab)  # on its way while these are measured
        part = held_above(a, law, cut, COUNT) + held_above(b, law, cut, COUNT)
        total += (part + (held_above(c, law, cut, COUNT) + held_above(d, law, cut, COUNT))).to(tl.float64)
        least = tl.minimum(tl.minimum(least_above(a, bar), least_above(b, bar)), least)
        least = tl.minimum(tl.minimum(least_above(c, bar), least_above(d, bar)), least)
        below = tl.maximum(tl.maximum(most_below(a, law, cut), most_below(b, law, cut)), below)
        below = tl.maximum(tl.maximum(most_below(c, law, cut), most_below(d, law, cut)), below)
    return tl.sum(total, 0), tl.min(least, 0), tl.max(below, 0)


@triton.jit
def cut_at(row, vocab, law, least, goal, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit z for which the kept tokens >= z reach `goal` (in number or weight). All kept tokens together must reach it."""
    low, high = key(least), key(law.max)
    while low < high:
        middle = (low + high + 1) >> 1
        held, above, below = measure(row, vocab, law, logit(middle), COUNT, BLOCK)
        enough = held >= goal
        low = tl.where(enough, key(above), low)
        high = tl.where(enough, high, key(below))
    return logit(low)


@triton.jit
def larger(z, peak):
    """The larger of the two; `peak` if z is NaN"""
    return tl.where(z > peak, z, peak)


@triton.jit
def max_and_mass(row, vocab, scale, BLOCK: tl.constexpr):
    """In one pass: the largest logit (−inf: none) and the weight of all tokens relative to it (meaningless if it is infinite).
    Each lane's sum is relative to the largest logit the lane has seen, and is rescaled once every four tiles."""
    peak = tl.full((BLOCK,), -LARGEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, vocab, 4 * BLOCK):
        a, b, c, d = four_tiles(row, first, vocab, BLOCK)
        a, b, c, d = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)
        top = tl.minimum(larger(d, larger(c, larger(b, larger(a, peak)))), LARGEST)
        part = (power(a - top, scale) + power(b - top, scale)) + (power(c - top, scale) + power(d - top, scale))
        total = total * power(peak - top, scale).to(tl.float64) + part.to(tl.float64)
        peak = top
    top = tl.max(peak, 0)
    mass = tl.sum(total * tl.exp((peak.to(tl.float64) - top) * scale), 0)
    return tl.where((mass > 0) | (top >= LARGEST), top, float("-inf")), mass


@triton.jit
def row_law(row, vocab, temperature, top_k, top_p, min_p, NORMALISED: tl.constexpr, BLOCK: tl.constexpr):
    """The law of a row; its mass is computed only if NORMALISED."""
    greedy = (temperature > 0) == 0  # includes NaN
    scale = (1.0 / tl.maximum(tl.where(greedy, 1.0, temperature), 1e-30)).to(tl.float64)
    mass = tl.full((), 1.0, tl.float64)
    if NORMALISED:
        top, mass = max_and_mass(row, vocab, scale, BLOCK)
    else:
        peak = tl.full((BLOCK,), float("-inf"), tl.float32)
        for first in range(0, vocab, 4 * BLOCK):
            a, b, c, d = four_tiles(row, first, vocab, BLOCK)
            a, b, c, d = finite(a), finite(b), finite(c), finite(d)
            peak = tl.maximum(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), peak)
        top = tl.max(peak, 0)
    infinite = top >= LARGEST
    scale = tl.where(infinite, 0.0, scale)
    cutoff = tl.where(infinite, LARGEST, -LARGEST).to(tl.float32)
    only = tl.full((), -1, tl.int64)
    if (top > float("-inf")) == 0:
        only = tl.full((), BROKEN, tl.int64)
    elif greedy:
        best = tl.full((BLOCK,), 2147483647, tl.int32)
        for first in range(0, vocab, 4 * BLOCK):
            ids = first + tl.arange(0, 4 * BLOCK)
            z = raw_logits(row, ids, vocab)
            tl.debug_barrier()  # otherwise the assembler waits for each quarter of the tile before it loads the next
            found = tl.where(z >= top, ids, 2147483647)
            best = tl.minimum(best, tl.min(tl.reshape(found, (BLOCK, 4)), 1))
        only = tl.min(best, 0).to(tl.int64)
    else:
        if (infinite == 0) & (top_k >= 1) & (top_k < vocab):
            law = Law(top, cutoff, scale, mass, only)
            count, least, _below = measure(row, vocab, law, cutoff, True, BLOCK)
            if count >= top_k:
                cutoff = cut_at(row, vocab, law, least, tl.floor(top_k), True, BLOCK)
        if (infinite == 0) & (top_p < 1):
            law = Law(top, cutoff, scale, mass, only)
            total, least, _below = measure(row, vocab, law, cutoff, False, BLOCK)
            goal = tl.maximum(top_p, 0.0) * (1.0 - _SLACK) * total
            if goal > 0:
                cutoff = cut_at(row, vocab, law, least, goal, False, BLOCK)
            else:
                cutoff = top
        if (infinite == 0) & (min_p > 0):
            bound = top.to(tl.float64) + (tl.log(tl.minimum(tl.where(min_p > 0, min_p, 1.0), 1.0)) - _SLACK) / scale
            rounded = tl.maximum(bound, -LARGEST).to(tl.float32)
            rounded = tl.where(rounded.to(tl.float64) < bound, logit(key(rounded) + 1), rounded)
            cutoff = tl.maximum(cutoff, rounded)
        if NORMALISED & (infinite | (cutoff > -LARGEST)):  # a filter or +inf logits changed the sum: one more pass
            law = Law(top, cutoff, scale, mass, only)
            mass, _least, _below = measure(row, vocab, law, cutoff, False, BLOCK)
    return Law(top, cutoff, scale, mass, only)


@triton.jit
def number(bits):
    """A float64 that was passed as its bits (a kernel's float arguments are float32)."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def setting(sampling, count, i, column, bits):
    """Setting i from a column of `sampling`; if there are no columns, the number passed as `bits`."""
    return tl.where(count > 0, tl.load(sampling + i * count + column, mask=count > 0, other=0.0), number(bits))


@Kernel
def laws_kernel(
    logits, laws, stats, owner, sampling, kept_max, kept_logsumexp, kept_cutoff,
    vocab, rows, stride_b, stride_r, temperature, top_k, top_p, min_p, count, by_row, batch,
    NORMALISED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the laws [n, FIELDS] of the rows of logits [n / rows, rows, V], and stats float32 [3, n] as `RowStats`, if not None.

    sampling: float64 [4, count], per row (by_row 1) or per request; count 0: the four numbers. owner [n]: the request of each row
    in the packed layout, None: row // rows. kept_*: RowStats of the rows; where they determine the law, no pass is made.
    """
    at = tl.program_id(0).to(tl.int64)
    row = logits + (at // rows) * stride_b + (at % rows) * stride_r
    request = at // rows
    if owner is not None:
        request = tl.load(owner + at)
    if (request >= 0) & (request < batch):
        column = tl.where(by_row == 1, at, request)
        heat, k = setting(sampling, count, 0, column, temperature), setting(sampling, count, 1, column, top_k)
        p, m = setting(sampling, count, 2, column, top_p), setting(sampling, count, 3, column, min_p)
        kept = tl.full((), 0, tl.int1)
        if kept_max is not None:
            absolute = tl.load(kept_logsumexp + at).to(tl.float64)
            kept = (heat > 0) & (tl.abs(absolute) <= _MAX_LOGSUMEXP)
            if kept:
                scale = 1.0 / tl.maximum(heat, 1e-30)
                top = tl.load(kept_max + at)
                cutoff = tl.maximum(tl.load(kept_cutoff + at), -LARGEST)
                mass = tl.exp(absolute - top.to(tl.float64) * scale)
                store_law(laws + at * FIELDS, Law(top, cutoff, scale, mass, tl.full((), -1, tl.int64)))
        if kept == 0:
            law = row_law(row, vocab, heat, k, p, m, NORMALISED, BLOCK)
            store_law(laws + at * FIELDS, law)
            if stats is not None:
                n = tl.num_programs(0)
                broken, point, infinite = law.only == BROKEN, law.only >= 0, law.max >= LARGEST
                total = (law.max.to(tl.float64) * law.scale + tl.log(law.mass)).to(tl.float32)
                total = tl.where(point, 0.0, tl.where(infinite, float("inf"), total))
                bound = tl.where(point, law.max, tl.where(law.cutoff <= -LARGEST, float("-inf"), law.cutoff))
                peak = tl.where(infinite, float("inf"), law.max)
                tl.store(stats + at, tl.where(broken, float("-inf"), peak))
                tl.store(stats + n + at, tl.where(broken, float("-inf"), total))
                tl.store(stats + 2 * n + at, tl.where(broken, float("-inf"), tl.where(infinite, float("inf"), bound)))
