"""Residual weights of a target and a draft row, and their sums, computed by one program per row."""

from typing import NamedTuple

import triton
import triton.language as tl

from .histogram import Pair, binned, load_pair, ratio_in, ratios_of
from .law import load_logits, prob, weights


class Tokens(NamedTuple):
    """A list of tokens in memory."""

    first: object  # pointer to int64
    count: object


class Residual(NamedTuple):
    """The residual of the target: weights max(scale·t − ρ·d, floor·t, 0), scale >= floor."""

    row: object  # draft row
    vocab: object
    law: object
    scale: object  # float64
    floor: object  # float64
    bins: object  # histogram.Bins whose table holds ρ; (): ρ = 1
    without: object  # Tokens whose d is set to 0; (): none
    gone: object  # Tokens whose weight is set to 0; (): none


@triton.jit
def draft_left(row, vocab, law, scale):
    """The residual (scale·t − d)⁺ for a draft row and its law"""
    return Residual(row, vocab, law, scale, tl.full((), 0.0, tl.float64), (), (), ())


@triton.jit
def is_in(ids, tokens):
    """Whether each id is one of `tokens`"""
    found = ids < 0
    for j in range(0, tokens.count):
        found = found | (ids == tl.load(tokens.first + j))
    return found


@triton.jit
def residual_weights(row, vocab, law, relative, ids, rest):
    """The weights of a tile in float64; relative = (z − law.max)·scale of its tokens"""
    z = load_logits(rest.row, ids, rest.vocab)
    d = tl.where(z >= rest.law.cutoff, tl.exp((z.to(tl.float64) - rest.law.max) * rest.law.scale), 0.0) / rest.law.mass
    d = tl.where(rest.law.only >= 0, (ids == rest.law.only).to(tl.float64), d)
    if len(rest.without) > 0:
        d = tl.where(is_in(ids, rest.without), 0.0, d)
    if len(rest.bins) > 0:
        d *= ratios_of(Pair(row, vocab, law, rest.row, rest.vocab, rest.law), ids, rest.bins)
    t = tl.exp(relative) / law.mass
    w = tl.maximum(rest.scale * t - d, rest.floor * t)
    if len(rest.gone) > 0:
        w = tl.where(is_in(ids, rest.gone), 0.0, w)
    return w


@triton.jit
def residual_tile(row, vocab, law, rest, first, BLOCK: tl.constexpr):
    """(scale·t − ρ·d)⁺ of a tile, float32: exactly 0 if t and d are equal, the scale is 1 and there are no bins"""
    ids, scale = first + tl.arange(0, BLOCK), rest.scale.to(tl.float32)
    if len(rest.bins) > 0:
        pair = Pair(row, vocab, law, rest.row, rest.vocab, rest.law)
        z, y = load_pair(pair, ids)
        t, d, bin, heavy = binned(pair, ids, z, y, rest.bins)
        d *= ratio_in(rest.bins, bin, heavy, ids < vocab).to(tl.float32)
    else:
        z, y = load_logits(row, ids, vocab), load_logits(rest.row, ids, rest.vocab)  # both loads are issued before either is used
        t, d = weights(z, law) * (1.0 / law.mass).to(tl.float32), weights(y, rest.law) * (1.0 / rest.law.mass).to(tl.float32)
    w = tl.maximum(scale * t - d, 0.0)
    if len(rest.gone) > 0:
        w = tl.where(is_in(ids, rest.gone), 0.0, w)
    return w


@triton.jit
def residual_mass(row, vocab, law, rest, BLOCK: tl.constexpr):
    """Σ (scale·t − ρ·d)⁺ over the target's vocabulary, scale <= 1: float64"""
    mass = tl.full((), 0.0, tl.float64)
    if rest.law.only >= 0:
        mass = rest.scale * (1.0 - prob(row, vocab, law, rest.law.only))
    elif law.only >= 0:
        mass = tl.maximum(rest.scale - prob(rest.row, rest.vocab, rest.law, law.only), 0.0)
    else:
        total = tl.zeros((BLOCK,), tl.float64)
        for first in range(0, vocab, 4 * BLOCK):
            left = residual_tile(row, vocab, law, rest, first, 4 * BLOCK)
            total += tl.sum(tl.reshape(left, (BLOCK, 4)), 1).to(tl.float64)
        mass = tl.sum(total, 0)
    return mass
