"""Philox4x32-10 and the stream map in Triton: the words, uniforms and clocks of specsample/reference/rng.py, bit for bit.

`tl.philox` is the published generator (tests/test_triton.py compares it with the known answers). Logarithms are computed in
float64 and only where they decide something: `groups.py` screens with `log2_below` first.

The 32 tokens of a group are eight neighbours in each of the four rows of 256 of a tile of 1024. Here a group is numbered by its
word, 4·block + which of the block's four, so that its words are located like a token's. Four tiles have 128 such numbers.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ..reference import rng

CLOCK, ACCEPT, RESIDUAL = tl.constexpr(rng.CLOCK), tl.constexpr(rng.ACCEPT), tl.constexpr(rng.RESIDUAL)
SELECT, DRAFT, DISTINCT = tl.constexpr(rng.SELECT), tl.constexpr(rng.DRAFT), tl.constexpr(rng.DISTINCT)
RENEWAL, _RENEWAL_NODES = tl.constexpr(rng.RENEWAL), tl.constexpr(1 << rng.RENEWAL_BITS)
REFINE_BELOW = tl.constexpr(rng.REFINE_BELOW)
REFINE_BLOCK, GROUP_BLOCK = tl.constexpr(rng.REFINE_BLOCK), tl.constexpr(rng.GROUP_BLOCK)
GROUP, LANES = tl.constexpr(rng.GROUP), tl.constexpr(32)  # tokens of a group; groups of a tile
ROW, TILE = tl.constexpr(256), tl.constexpr(1024)  # tokens
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
def words_of(s, numbers, SUB: tl.constexpr):
    """The words of `numbers` (tokens, or with GROUP_BLOCK in SUB groups) in a sub-stream: uint32 like numbers"""
    r0, r1, r2, r3 = philox_of(s, (numbers >> 2).to(tl.uint32) | SUB)
    return of_four(r0, r1, r2, r3, numbers)


@triton.jit
def of_four(r0, r1, r2, r3, at):
    return tl.where((at & 2) == 0, tl.where((at & 1) == 0, r0, r1), tl.where((at & 1) == 0, r2, r3))


@triton.jit
def group_words(s, first, COUNT: tl.constexpr):
    """A of the groups first .. first + COUNT − 1, first a multiple of 4: uint32 [COUNT / 4, 4]"""
    r0, r1, r2, r3 = philox_of(s, (first // 4 + tl.arange(0, COUNT // 4)).to(tl.uint32)[:, None] | GROUP_BLOCK)
    return of_four(r0, r1, r2, r3, tl.arange(0, 4)[None, :])


@triton.jit
def token_of(group, place):
    """The token at a place of a group"""
    return (group >> 7) * (4 * TILE) + (group & 3) * TILE + ((group >> 2) & 31) * 8 + (place >> 3) * ROW + (place & 7)


@triton.jit
def least_clocks(s, groups):
    """(the least clock M of each group, float64, and the place of its token)"""
    second = words_of(s, groups, GROUP_BLOCK | REFINE_BLOCK)
    u = unit(words_of(s, groups, GROUP_BLOCK), second & 0x7FFFFFF, 2.0**-27)
    return exponential(u) / GROUP, (second >> 27).to(tl.int32)


@triton.jit
def clocks(s, groups):
    """The clocks of the groups' tokens, float64, and the tokens: both [n, 8, 4] for groups [n, 1, 1]"""
    least, first = least_clocks(s, groups)
    four, at = tl.arange(0, 8)[None, :, None], tl.arange(0, 4)[None, None, :]  # of one block
    ids = token_of(groups, 4 * four)
    r0, r1, r2, r3 = philox_of(s, (ids >> 2).to(tl.uint32))
    r = of_four(r0, r1, r2, r3, at)
    refined = r * 0
    if tl.max((r < REFINE_BELOW).to(tl.int32)) > 0:
        r0, r1, r2, r3 = philox_of(s, (ids >> 2).to(tl.uint32) | REFINE_BLOCK)
        refined = of_four(r0, r1, r2, r3, at)
    own = tl.where(4 * four + at == first, 0.0, exponential(unit(r, refined, _TO_UNIT)))
    return least + own, ids + at


@triton.jit
def clock_of(s, token):
    """The clock of one token, with the arithmetic of `clocks`: float64"""
    group = (token >> 12 << 7) | ((token >> 3) & 31) << 2 | ((token >> 10) & 3)
    of_group, ids = clocks(s, tl.full((1, 1, 1), 0, tl.int32) + group.to(tl.int32))
    return tl.sum(tl.where(ids == token, of_group, 0.0))


@triton.jit
def renewal(s, node, token, number):
    """The clock that a token starts after its `number`-th arrival in the race on s. node: of the row's first child. float64"""
    again = stream(s.seed, s.position, RENEWAL, (node & (_RENEWAL_NODES - 1)) + number * _RENEWAL_NODES)
    return exponential(unit(words_of(again, token, 0), words_of(again, token, REFINE_BLOCK), _TO_UNIT))


@triton.jit
def exponential(u):
    """−log1p(−u), accurate in relative terms for small u: log1p(x) = log(w)·x/(w − 1) with w = 1 + x rounded."""
    w = 1.0 - u
    gap = 1.0 - w
    return tl.where(gap > 0.0, -tl.log(w) * (u / tl.where(gap > 0.0, gap, 1.0)), u)


@triton.jit
def log2_below(r):
    """A lower bound on log2 u, at most .09 below it up to float32 rounding: float32 like r. The bits of a float 2^e·(1 + m)
    are e + m in fixed point."""
    some = tl.maximum(r.to(tl.float32), 2.0**-35)  # a word of 0 stands for uniforms of 2^-65 or more
    return some.to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-23 - (127 + 32)


@triton.jit
def log2_above(x):
    """An upper bound on log2 x, at most .09 above it: float32 like x"""
    return x.to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-23 - (127 - 0.0862)


@triton.jit
def unit(r, second, SECOND: tl.constexpr):
    """The uniforms of words r, refined by the numbers `second` in units of SECOND: float64"""
    fraction = tl.where(r < REFINE_BELOW, (second.to(tl.float64) + 0.5) * SECOND, 0.5)
    return (r.to(tl.float64) + fraction) * _TO_UNIT


@triton.jit
def uniform_pair(s):
    """The uniforms of words 0 and 1: float64"""
    zero = s.tag * 0
    r0, r1, _r2, _r3 = philox_of(s, zero)
    refined0, refined1, _s2, _s3 = philox_of(s, zero | REFINE_BLOCK)
    return unit(r0, refined0, _TO_UNIT), unit(r1, refined1, _TO_UNIT)


@triton.jit
def uniform(s):
    """The uniform of word 0: float64"""
    u, _v = uniform_pair(s)
    return u


@triton.jit
def spread(number, values, at, STEP: tl.constexpr):
    """Entry `at` of an argument given as an int or (if not None) a tensor, as int64."""
    if values is None:
        return number.to(tl.int64) + STEP * at
    else:
        return tl.load(values + at).to(tl.int64)
