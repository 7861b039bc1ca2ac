"""Passes over one row by one program: races and residual sums, over tiles in order.

A race reads the row once without a word between its threads. Since E >= u, log2 of a token's score is at most
(z − max)·scale·log2(e) + offset − log2 u, and that of four tokens at most their ceiling: the same of the largest of their logits and
the least of their uniforms, which float32 can tell but for its rounding. Of the fours at one place of all tiles the one with the
highest ceiling is held, and how high the next is; at the end, tokens of those that may hold the winner are scored in float64. Only
where another four may hold it still, the row is read again, with all of them in view.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .histogram import Pair, binned, ratio_in, ratios_of
from .law import LARGEST, LOG2E, Law, load_logits, prob, raw_logits, weights
from .streams import least_words, log2_below, log_clocks, words_of

FAR = tl.constexpr(1e6)  # scores beyond it, not relative to the row's maximum, would cost the clocks digits
_NO_ID = tl.constexpr(2147483647)
_LANES = tl.constexpr(64)  # fours that are scored at a time


class Tokens(NamedTuple):
    """A list of tokens in memory."""

    first: object  # pointer to int64
    count: object


class Residual(NamedTuple):
    """What the draft leaves of the target: weights max(scale·t − ρ·d, floor·t, 0), scale >= floor."""

    row: object  # the draft's
    vocab: object
    law: object
    scale: object  # float64
    floor: object  # float64
    bins: object  # histogram.Bins whose table has ρ; (): ρ = 1
    without: object  # Tokens where d is 0 whatever the row says; (): nowhere
    gone: object  # Tokens where nothing is left, whatever the rows say; (): nowhere


@triton.jit
def draft_left(row, vocab, law, scale):
    """(scale·t − d)⁺ of a draft's row and law"""
    return Residual(row, vocab, law, scale, tl.full((), 0.0, tl.float64), (), (), ())


@triton.jit
def is_in(ids, tokens):
    """Whether each id is one of `tokens`"""
    found = ids < 0
    for j in range(0, tokens.count):
        found = found | (ids == tl.load(tokens.first + j))
    return found


@triton.jit
def best_of(score, ids):
    """(largest score, its lowest id) of a tile"""
    best = tl.max(score, 0)
    return best, tl.min(tl.where(score == best, ids, _NO_ID), 0)


@triton.jit
def residual_weights(row, vocab, law, relative, ids, rest):
    """Weights of a tile in float64; relative = (z − law.max)·scale of its tokens"""
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
def tops_of(row, vocab, first, BLOCK: tl.constexpr):
    """The largest logit of every four from `first` on: float32 [BLOCK], as `load_logits` reads them"""
    z = raw_logits(row, first + tl.arange(0, 4 * BLOCK), vocab)
    top = tl.max(tl.reshape(z, (BLOCK, 4)), 1)  # of those that are no NaN
    return tl.minimum(tl.where(top == top, top, float("-inf")), LARGEST)


@triton.jit
def ceilings(top, law, s, first, BLOCK: tl.constexpr):
    """The ceilings of fours, float32; −inf: they take no part"""
    ceiling = (top - law.max) * (law.scale * LOG2E).to(tl.float32) - log2_below(least_words(s, first, BLOCK))
    return tl.where(top >= law.cutoff, ceiling, float("-inf"))


@triton.jit
def may_win(ceiling, best, offset):
    """Whether a score below this ceiling can be `best` or more; the slack is float32's rounding."""
    return (ceiling > float("-inf")) & (ceiling.to(tl.float64) + 2e-3 + 5e-7 * tl.abs(ceiling) >= best * LOG2E - offset)


@triton.jit
def score_of(row, vocab, law, exclude, s, after, after_id, rest, weighted, ids):
    """log w − log E of tokens in float64, −inf where they take no part; see `race_pass`."""
    z = load_logits(row, ids, vocab)
    takes_part = z >= law.cutoff
    if exclude is not None:
        takes_part = takes_part & (is_in(ids, exclude) == 0)
    log_weight = (z.to(tl.float64) - law.max) * law.scale
    if rest is not None:
        if weighted:
            w = residual_weights(row, vocab, law, log_weight, ids, rest)
            takes_part = takes_part & (w > 0)
            log_weight = tl.log(tl.where(takes_part, w, 1.0))
    score = log_weight - log_clocks(s, ids, words_of(s, ids, False))
    takes_part = takes_part & ((score < after) | ((score == after) & (ids > after_id)))
    return tl.where(takes_part, score, float("-inf"))


@triton.jit
def settle(
    row, vocab, law, exclude, s, after, after_id, rest, weighted, offset, ceiling, four, best, best_id, BLOCK: tl.constexpr
):  # fmt: skip
    """(best, best_id) or a better token: the scores of the fours that may hold one, the highest of each lane first."""
    ceiling, four = tl.reshape(ceiling, (_LANES, BLOCK // _LANES)), tl.reshape(four, (_LANES, BLOCK // _LANES))
    highest = tl.max(ceiling, 1)
    while may_win(tl.max(highest, 0), best, offset):
        chosen = tl.min(tl.where(ceiling == highest[:, None], four, _NO_ID), 1)
        ids = tl.reshape(4 * chosen[:, None] + tl.arange(0, 4)[None, :], (4 * _LANES,))
        score, id = best_of(score_of(row, vocab, law, exclude, s, after, after_id, rest, weighted, ids), ids)
        better = (score > best) | ((score == best) & (id < best_id))
        best, best_id = tl.where(better, score, best), tl.where(better, id, best_id)
        ceiling = tl.where(four == chosen[:, None], float("-inf"), ceiling)
        highest = tl.max(ceiling, 1)
    return best, best_id


@triton.jit
def race_pass(row, vocab, law, exclude, s, after, after_id, rest, weighted, BLOCK: tl.constexpr):
    """Winner of the scores log w − log E over the row: (score float64, id int64, largest logit); id −1 where none.

    log w = (z − law.max)·scale of the kept tokens, or where `weighted` that of the weights of `rest`, a Residual (None: never).
    exclude: Tokens that take no part, or None. Only scores below `after`, or equal with an id above after_id, take part.
    """
    place = tl.arange(0, BLOCK)
    offset = tl.full((), 0.0, tl.float64)
    if rest is not None:
        offset = tl.where(weighted, tl.log(rest.scale / law.mass) * LOG2E, 0.0)
    held = tl.full((BLOCK,), float("-inf"), tl.float32)
    next, peak = held, held
    tile = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, vocab, 4 * BLOCK):
        top = tops_of(row, vocab, first, BLOCK)
        peak = tl.maximum(peak, top)
        some = law.cutoff <= -LARGEST
        if some == 0:
            some = tl.max(top, 0) >= law.cutoff
        if some:
            ceiling = ceilings(top, law, s, first, BLOCK)
            next = tl.maximum(next, tl.minimum(held, ceiling))
            tile = tl.where(ceiling > held, first, tile)
            held = tl.maximum(held, ceiling)
    best, best_id = tl.full((), float("-inf"), tl.float64), tl.full((), -1, tl.int32)
    best, best_id = settle(
        row, vocab, law, exclude, s, after, after_id, rest, weighted, offset, held, tile // 4 + place, best, best_id, BLOCK
    )
    if may_win(tl.max(next, 0), best, offset):
        for first in range(0, vocab, 4 * BLOCK):
            ceiling = ceilings(tops_of(row, vocab, first, BLOCK), law, s, first, BLOCK)
            best, best_id = settle(
                row, vocab, law, exclude, s, after, after_id, rest, weighted, offset, ceiling, first // 4 + place, best,
                best_id, BLOCK,
            )  # fmt: skip
    return best, best_id.to(tl.int64), tl.max(peak, 0)


@triton.jit
def race_after(row, vocab, law, exclude, s, after, after_id, known, BLOCK: tl.constexpr):
    """Winner of the plain race among what comes after (after, after_id): (score, id).

    known: law.max is the row's maximum. Otherwise scores are relative to law.max = 0, and the race is run again, relative
    to the maximum it has seen, when +inf logits or too large scores turn up.
    """
    best, best_id = tl.full((), float("-inf"), tl.float64), tl.full((), -1, tl.int64)
    tries = tl.where(known, 1, 2)
    while tries > 0:
        best, best_id, top = race_pass(row, vocab, law, exclude, s, after, after_id, None, False, BLOCK)
        infinite = top >= LARGEST
        again = (top > float("-inf")) & (infinite | (best_id < 0) | (tl.abs(best) > FAR))
        cutoff, scale = tl.where(infinite, LARGEST, law.cutoff), tl.where(infinite, 0.0, law.scale)
        law = Law(top, cutoff, scale, law.mass, law.only)
        tries = tl.where(again, tries - 1, 0)
    return best, best_id


@triton.jit
def race(row, vocab, law, s, known, BLOCK: tl.constexpr):
    """Winner of the law's race on the stream s: int64, −1 where none."""
    winner = law.only
    if law.only == -1:
        _score, winner = race_after(row, vocab, law, None, s, float("inf"), 0, known, BLOCK)
    return tl.maximum(winner, -1)


@triton.jit
def last_race(row, vocab, law, s, rest, use_rest, BLOCK: tl.constexpr):
    """The token that a round ends with, of a law with its mass: the residual's winner where `use_rest`, of the target's law
    where that is not asked for or nothing is left (the draft covers the target up to rounding)."""
    winner, tries = law.only, tl.where(use_rest, 2, 1)
    while (winner < 0) & (tries > 0):
        _score, winner, _top = race_pass(row, vocab, law, None, s, float("inf"), 0, rest, use_rest, BLOCK)
        use_rest = use_rest & (winner >= 0)
        tries -= 1
    return winner


@triton.jit
def residual_tile(row, vocab, law, rest, first, BLOCK: tl.constexpr):
    """(scale·t − ρ·d)⁺ of a tile, float32: 0 where t and d are the same, the scale is 1 and there are no bins"""
    ids, scale = first + tl.arange(0, BLOCK), rest.scale.to(tl.float32)
    if len(rest.bins) > 0:
        t, d, bin, heavy = binned(Pair(row, vocab, law, rest.row, rest.vocab, rest.law), ids, rest.bins)
        d *= ratio_in(rest.bins, bin, heavy, ids < vocab).to(tl.float32)
    else:
        z, y = load_logits(row, ids, vocab), load_logits(rest.row, ids, rest.vocab)  # both on their way before one is used
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
