"""Passes over one row by one program: races and residual sums, over tiles in order.

A race visits a tile's scores in float64 only when float32 says that the tile may hold a new best one (about ln(tiles)
times a row): since E >= u, a token's log2 score is at most (z − level)·scale·log2(e) + offset − log2 u.
"""

import triton
import triton.language as tl

from .law import LARGEST, LOG2E, Law, load_logits, prob, weights
from .streams import log2_below, log_clocks, words

_FAR = tl.constexpr(1e6)  # scores beyond it, not relative to the row's maximum, would cost the clocks digits
_NO_ID = tl.constexpr(2147483647)


@triton.jit
def best_of(score, ids):
    """(largest score, its lowest id) of a tile"""
    best = tl.max(score, 0)
    return best, tl.min(tl.where(score == best, ids, _NO_ID), 0)


@triton.jit
def race_pass(
    row, vocab, law, exclude, s, after, after_id,
    draft_row, draft_vocab, draft, norm, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Winner of the scores log w − log E over the row: (score float64, id int64, largest logit); id −1 where none.

    Plain: log w = (z − law.max)·scale of the kept tokens. RESIDUAL: w = norm·exp((z − law.max)·scale) − d.
    exclude: a token that takes no part, or −1. Only scores below `after`, or equal with an id above after_id, take part.
    """
    best = tl.full((), float("-inf"), tl.float64)
    best_id = tl.full((), -1, tl.int32)
    top = tl.full((), float("-inf"), tl.float32)
    offset = tl.full((), 0.0, tl.float64)
    if RESIDUAL:
        offset = tl.log(norm) * LOG2E
    high = (law.scale * LOG2E).to(tl.float32)
    for first in range(0, vocab, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        z = load_logits(row, ids, vocab)
        top = tl.maximum(top, tl.max(z, 0))
        goal = best * LOG2E - offset
        slack = 2e-3 + 5e-7 * tl.abs(goal)  # the float32 rounding of the bound grows with the scores
        bias = tl.minimum(tl.maximum(slack - goal, -3e38), 3e38).to(tl.float32)
        bound = tl.where(z >= law.cutoff, (z - law.max) * high + bias, float("-inf"))
        if tl.max(bound, 0) >= -67.0:  # below log2 of the smallest uniform
            r = words(s, first, False, BLOCK)
            if tl.max((bound >= log2_below(r)).to(tl.int32), 0) > 0:
                takes_part = (z >= law.cutoff) & (ids != exclude)
                relative = (z.to(tl.float64) - law.max) * law.scale
                if RESIDUAL:
                    zd = load_logits(draft_row, ids, draft_vocab)
                    d = tl.where(zd >= draft.cutoff, tl.exp((zd.to(tl.float64) - draft.max) * draft.scale), 0.0)
                    w = norm * tl.exp(relative) - d / draft.mass
                    takes_part = takes_part & (w > 0)
                    relative = tl.log(tl.where(takes_part, w, 1.0))
                score = relative - log_clocks(s, first, r, BLOCK)
                takes_part = takes_part & ((score < after) | ((score == after) & (ids > after_id)))
                score = tl.where(takes_part, score, float("-inf"))
                tile, tile_id = best_of(score, ids)
                better = tile > best
                best_id = tl.where(better, tile_id, best_id)
                best = tl.where(better, tile, best)
    return best, best_id.to(tl.int64), top


@triton.jit
def race_after(row, vocab, law, exclude, s, after, after_id, known, BLOCK: tl.constexpr):
    """Winner of the plain race among what comes after (after, after_id): (score, id).

    known: law.max is the row's maximum. Otherwise scores are relative to law.max = 0, and the race is run again, relative
    to the maximum it has seen, when +inf logits or too large scores turn up.
    """
    best, best_id = tl.full((), float("-inf"), tl.float64), tl.full((), -1, tl.int64)
    tries = tl.where(known, 1, 2)
    while tries > 0:
        best, best_id, top = race_pass(row, vocab, law, exclude, s, after, after_id, row, vocab, law, 1.0, False, BLOCK)
        infinite = top >= LARGEST
        again = (top > float("-inf")) & (infinite | (best_id < 0) | (tl.abs(best) > _FAR))
        cutoff, scale = tl.where(infinite, LARGEST, law.cutoff), tl.where(infinite, 0.0, law.scale)
        law = Law(top, cutoff, scale, law.mass, law.only)
        tries = tl.where(again, tries - 1, 0)
    return best, best_id


@triton.jit
def race(row, vocab, law, exclude, s, known, BLOCK: tl.constexpr):
    """Winner of the law's race on the stream s: int64, −1 where none."""
    winner = law.only
    if law.only == -1:
        _score, winner = race_after(row, vocab, law, exclude, s, float("inf"), 0, known, BLOCK)
    return tl.maximum(winner, -1)


@triton.jit
def residual_mass(row, vocab, law, draft_row, draft_vocab, draft, scale, BLOCK: tl.constexpr):
    """Σ (scale·t − d)⁺ over the target's vocabulary, float64. Both laws normalised; a one-hot draft has only >= 0."""
    mass = tl.full((), 0.0, tl.float64)
    if draft.only >= 0:
        mass = scale * (1.0 - prob(row, vocab, law, draft.only))
    elif law.only >= 0:
        mass = tl.maximum(scale - prob(draft_row, draft_vocab, draft, law.only), 0.0)
    else:
        norm, draft_norm = (scale / law.mass).to(tl.float32), (1.0 / draft.mass).to(tl.float32)
        total = tl.zeros((BLOCK,), tl.float64)
        for first in range(0, vocab, BLOCK):
            ids = first + tl.arange(0, BLOCK)
            t = weights(load_logits(row, ids, vocab), law) * norm
            d = weights(load_logits(draft_row, ids, draft_vocab), draft) * draft_norm
            total += tl.maximum(t - d, 0.0).to(tl.float64)
        mass = tl.sum(total, 0)
    return mass
