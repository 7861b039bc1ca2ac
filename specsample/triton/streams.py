"""Philox4x32-10 and the stream map in Triton: the words, uniforms and clocks of specsample/reference/rng.py, bit for bit.

`tl.philox` is the published generator (tests/test_triton.py holds it against the known answers). Logarithms are taken in
float64 and only where they decide something: `passes.py` screens with `log2_below` first.
"""

from typing import NamedTuple

import triton
import triton.language as tl

CLOCK, ACCEPT, RESIDUAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SELECT, DRAFT, DISTINCT = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
REFINE_BELOW = tl.constexpr(4096)
_TO_UNIT = tl.constexpr(2.0**-32)


class Stream(NamedTuple):
    seed: object  # int64
    position: object  # int64
    tag: object  # uint32: purpose << 24 | slot


@triton.jit
def stream(seed, position, purpose: tl.constexpr, slot):
    return Stream(seed, position, (slot & 0xFFFFFF).to(tl.uint32) + (purpose << 24))


@triton.jit
def philox_of(s, block):
    """The four words of each counter block (uint32, a scalar or a vector)."""
    zero = block * 0
    low = (s.position & 0xFFFFFFFF).to(tl.uint32)
    high = ((s.position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox(s.seed, block, zero + low, zero + high, zero + s.tag)


@triton.jit
def least_words(s, first, BLOCK: tl.constexpr):
    """The least word of every four of the tokens first .. first + 4·BLOCK − 1 (first a multiple of 4): uint32 [BLOCK]"""
    r0, r1, r2, r3 = philox_of(s, (first // 4 + tl.arange(0, BLOCK)).to(tl.uint32))
    return tl.minimum(tl.minimum(r0, r1), tl.minimum(r2, r3))


@triton.jit
def words_of(s, ids, refine: tl.constexpr):
    """The word of each token: uint32 like ids"""
    block = (ids >> 2).to(tl.uint32)
    if refine:
        block = block | 0x80000000
    r0, r1, r2, r3 = philox_of(s, block)
    return tl.where((ids & 2) == 0, tl.where((ids & 1) == 0, r0, r1), tl.where((ids & 1) == 0, r2, r3))


@triton.jit
def log_clocks(s, ids, r):
    """log E of the exponential clocks E = −log1p(−u) of tokens whose words are r: float64"""
    refined = r * 0
    if tl.max((r < REFINE_BELOW).to(tl.int32), 0) > 0:
        refined = words_of(s, ids, True)
    return log_exponential(unit(r, refined))


@triton.jit
def log_exponential(u):
    """log(−log1p(−u)), accurate in relative terms for small u: log1p(x) = log(w)·x/(w − 1) with w = 1 + x rounded."""
    w = 1.0 - u
    gap = 1.0 - w
    clock = tl.where(gap > 0.0, -tl.log(w) * (u / tl.where(gap > 0.0, gap, 1.0)), u)
    return tl.log(clock)


@triton.jit
def log2_below(r):
    """A lower bound of log2 u, at most .09 below it, but for float32 rounding: float32 like r. The bits of a float 2^e·(1 + m)
    are e + m in fixed point."""
    some = tl.maximum(r.to(tl.float32), 2.0**-35)  # a word of 0 stands for uniforms of 2^-65 or more
    return some.to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-23 - (127 + 32)


@triton.jit
def unit(r, refined):
    """Uniforms of words and of the words that refine them: float64"""
    fraction = tl.where(r < REFINE_BELOW, (refined.to(tl.float64) + 0.5) * _TO_UNIT, 0.5)
    return (r.to(tl.float64) + fraction) * _TO_UNIT


@triton.jit
def uniform_pair(s):
    """The uniforms of the words 0 and 1: float64"""
    zero = s.tag * 0
    r0, r1, _r2, _r3 = philox_of(s, zero)
    refined0, refined1, _s2, _s3 = philox_of(s, zero | 0x80000000)
    return unit(r0, refined0), unit(r1, refined1)


@triton.jit
def uniform(s):
    """The uniform of word 0: float64"""
    u, _v = uniform_pair(s)
    return u


@triton.jit
def spread(number, values, at, STEP: tl.constexpr):
    """Entry `at` of an int argument or of its tensor (None: the int), as int64."""
    if values is None:
        return number.to(tl.int64) + STEP * at
    else:
        return tl.load(values + at).to(tl.int64)
