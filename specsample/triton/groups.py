"""Races over one row by one program, over clocks in groups of 32 tokens.

The row is read once, for a bound of each group's weights: its *top*, the largest logit, or for a residual log2 of the largest weight.
Tops lie in the program's scratch, by the groups' numbers (streams.py), an eighth of a byte a token; whatever races follow read these.
No clock of a group is below its least clock M, so log2 of its scores is at most its ceiling: the top, as log2 of a weight, − log2 M, of
which float32 can tell a bound from the group's first word alone. Of the groups at one place of all pieces of the tops the one with the
highest ceiling is held, and how high the next is; those that may hold the winner are opened, some of them at a time: their tokens are
scored in float64. Where a next one may hold it still, the tops are read again for the next of each place.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from . import launch
from .law import LARGEST, LOG2E, Law, load_logits, raw_logits
from .passes import SLACK, TINY, is_in, residual_above, residual_weights
from .streams import GROUP, LANES, ROW, TILE, clocks, group_words, log2_above, log2_below, token_of

FAR = tl.constexpr(1e6)  # scores beyond it, not relative to the row's maximum, would cost the clocks digits
PIECE = tl.constexpr(launch.PIECE)
OPENED = tl.constexpr(8)  # groups that are opened at a time
_NO_ID = tl.constexpr(2147483647)
_LANE_BITS = tl.constexpr(-1 ^ 0x307)  # of a token: those of its group's first


class Scale(NamedTuple):
    """How tops become log2 of weights: (top − base)·factor + offset of those that are `least` or more"""

    base: object  # float32
    factor: object
    offset: object
    least: object


class Race(NamedTuple):
    """A race over a row's law, or over the weights of a residual, among what comes after a token."""

    row: object
    vocab: object
    law: object
    stream: object
    exclude: object  # Tokens that take no part; (): none
    after: object  # float64: only scores below it take part,
    after_id: object  # or equal with a larger id
    rest: object  # passes.Residual; (): never
    weighted: object  # whether the weights are those of `rest`
    scale: object  # Scale


@triton.jit
def scale_of(law):
    """Of tops that are logits"""
    return Scale(law.max, (law.scale * LOG2E).to(tl.float32), 0.0, law.cutoff)


@triton.jit
def race_of(row, vocab, law, s, exclude, after, after_id):
    """The race of a law"""
    return Race(row, vocab, law, s, exclude, after, after_id, (), False, scale_of(law))


@triton.jit
def room_of(vocab):
    """Entries of a row's tops"""
    return (vocab + PIECE * GROUP - 1) // (PIECE * GROUP) * PIECE


@triton.jit
def row_ids(first, TILES: tl.constexpr):
    """Ids of the first row of each tile: int32 [TILES, ROW]"""
    return first + TILE * tl.arange(0, TILES)[:, None] + tl.arange(0, ROW)[None, :]


@triton.jit
def of_groups(x, TILES: tl.constexpr):
    """The largest of eight neighbours: [TILES, LANES]"""
    return tl.max(tl.reshape(x, (TILES, LANES, ROW // LANES)), 2)


@triton.jit
def store_tops(tops, first, top, TILES: tl.constexpr):
    at = first // GROUP + LANES * tl.arange(0, TILES)[:, None] + tl.arange(0, LANES)[None, :]
    tl.store(tops + at, top)


@triton.jit
def read_tops(row, vocab, tops, TILES: tl.constexpr):
    """Write the largest logit of each group, as `load_logits` reads them. -> the row's"""
    tl.debug_barrier()  # what was there before has been read
    peak = tl.full((TILES, LANES), float("-inf"), tl.float32)
    for first in range(0, vocab, TILE * TILES):
        ids = row_ids(first, TILES)
        a, b = raw_logits(row, ids, vocab), raw_logits(row, ids + ROW, vocab)
        c, d = raw_logits(row, ids + 2 * ROW, vocab), raw_logits(row, ids + 3 * ROW, vocab)
        top = of_groups(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), TILES)  # of those that are no NaN
        top = tl.minimum(tl.where(top == top, top, float("-inf")), LARGEST)
        store_tops(tops, first, top, TILES)
        peak = tl.maximum(peak, top)
    tl.debug_barrier()
    return tl.max(peak)


@triton.jit
def log2_ratio(z, y, law, other):
    """An upper bound of log2 (t/d) + log2 (mass of t/mass of d), float32: −inf without t, +inf without d"""
    a, b = (law.scale * (LOG2E * (1 - 2.0**-21))).to(tl.float32), (other.scale * (LOG2E * (1 + 2.0**-21))).to(tl.float32)
    ratio = tl.where(y >= other.cutoff, (z - law.max) * a - (y - other.max) * b, float("inf"))
    return tl.where(z >= law.cutoff, ratio, float("-inf"))


@triton.jit
def residual_tops(row, vocab, law, rest, tops, TILES: tl.constexpr):
    """Write a bound of log2 of the weights of each group: of the largest t, and of what the least d/t leaves of it. With ratios ρ by
    bin it is that of the largest weight."""
    tl.debug_barrier()
    most, floor = tl.maximum(rest.scale.to(tl.float32), TINY) * (1 + SLACK), rest.floor.to(tl.float32) * (1 + SLACK)
    shift = (tl.log(law.mass / rest.law.mass) * LOG2E).to(tl.float32)
    scale, mass = (law.scale * LOG2E).to(tl.float32), (tl.log(law.mass) * LOG2E).to(tl.float32)
    for first in range(0, vocab, TILE * TILES):
        ids = row_ids(first, TILES)
        if len(rest.bins) > 0:
            a, b = residual_above(row, vocab, law, rest, ids), residual_above(row, vocab, law, rest, ids + ROW)
            c, d = residual_above(row, vocab, law, rest, ids + 2 * ROW), residual_above(row, vocab, law, rest, ids + 3 * ROW)
            left = of_groups(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), TILES)
            top = left * 0.0
        else:
            a, b = raw_logits(row, ids, vocab), raw_logits(row, ids + ROW, vocab)
            c, d = raw_logits(row, ids + 2 * ROW, vocab), raw_logits(row, ids + 3 * ROW, vocab)
            e, f = raw_logits(rest.row, ids, rest.vocab), raw_logits(rest.row, ids + ROW, rest.vocab)
            g, h = raw_logits(rest.row, ids + 2 * ROW, rest.vocab), raw_logits(rest.row, ids + 3 * ROW, rest.vocab)
            ratio = tl.maximum(log2_ratio(a, e, law, rest.law), log2_ratio(b, f, law, rest.law))
            ratio = tl.maximum(ratio, tl.maximum(log2_ratio(c, g, law, rest.law), log2_ratio(d, h, law, rest.law)))
            top = of_groups(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), TILES)
            top = tl.where(top >= law.cutoff, (top - law.max) * scale - mass, float("-inf"))
            left = tl.maximum(most - tl.exp2(shift - of_groups(ratio, TILES)) * (1 - SLACK), floor)
            if len(rest.without) > 0:
                lane = first + TILE * tl.arange(0, TILES)[:, None] + 8 * tl.arange(0, LANES)[None, :]
                for j in range(0, rest.without.count):
                    left = tl.where((tl.load(rest.without.first + j) & _LANE_BITS) == lane, most, left)
        store_tops(tops, first, tl.where(left > 0, top + log2_above(left), float("-inf")), TILES)
    tl.debug_barrier()


@triton.jit
def places_of_piece():
    return 4 * tl.arange(0, PIECE // 4)[:, None] + tl.arange(0, 4)[None, :]


@triton.jit
def ceilings(race, tops, first):
    """The ceilings of the groups first .. first + PIECE − 1, float32 [PIECE / 4, 4]; −inf: they take no part"""
    group = first + places_of_piece()
    lies = (group & -128) + (group & 3) * LANES + ((group >> 2) & 31)
    top = tl.load(tops + lies, mask=token_of(group, 0) < race.vocab, other=float("-inf"))
    weight = tl.where(top >= race.scale.least, (top - race.scale.base) * race.scale.factor + race.scale.offset, float("-inf"))
    return weight - (log2_below(group_words(race.stream, first, PIECE)) - 5)  # M >= u/32


@triton.jit
def may_win(ceiling, best):
    """Whether a score below this ceiling can be `best` or more; the slack is float32's rounding."""
    return (ceiling > float("-inf")) & (ceiling.to(tl.float64) + 2e-3 + 5e-7 * tl.abs(ceiling) >= best * LOG2E)


@triton.jit
def score_of(race, groups):
    """(log w − log E of the tokens of groups [n] in float64, −inf where they take no part; their ids), [n, 8, 4]"""
    clock, ids = clocks(race.stream, groups[:, None, None])
    z = load_logits(race.row, ids, race.vocab)
    takes_part = z >= race.law.cutoff
    if len(race.exclude) > 0:
        takes_part = takes_part & (is_in(ids, race.exclude) == 0)
    log_weight = (z.to(tl.float64) - race.law.max) * race.law.scale
    if len(race.rest) > 0:
        if race.weighted:
            w = residual_weights(race.row, race.vocab, race.law, log_weight, ids, race.rest)
            takes_part = takes_part & (w > 0)
            log_weight = tl.log(tl.where(takes_part, w, 1.0))
    score = log_weight - tl.log(clock)
    takes_part = takes_part & ((score < race.after) | ((score == race.after) & (ids > race.after_id)))
    return tl.where(takes_part, score, float("-inf")), ids


@triton.jit
def open_held(race, ceiling, group, best, best_id):
    """(best, best_id) or a better token of the groups [PIECE / 4, 4] that may hold one, the highest of each lane first"""
    ceiling = tl.reshape(ceiling, (PIECE // 4 // OPENED, OPENED, 4))
    group = tl.reshape(group, (PIECE // 4 // OPENED, OPENED, 4))
    highest = tl.max(tl.max(ceiling, 2), 0)
    while may_win(tl.max(highest, 0), best):
        chosen = tl.min(tl.min(tl.where(ceiling == highest[None, :, None], group, _NO_ID), 2), 0)
        score, ids = score_of(race, chosen)
        top = tl.max(score)
        id = tl.min(tl.where(score == top, ids, _NO_ID))
        better = (top > best) | ((top == best) & (id < best_id))
        best, best_id = tl.where(better, top, best), tl.where(better, id, best_id)
        ceiling = tl.where(group == chosen[None, :, None], float("-inf"), ceiling)
        highest = tl.max(tl.max(ceiling, 2), 0)
    return best, best_id


@triton.jit
def winner_of(race, tops):
    """(score float64, id int64) of a race whose tops are written; id −1 where nothing takes part."""
    best, best_id = tl.full((), float("-inf"), tl.float64), tl.full((), -1, tl.int32)
    last = tl.full((PIECE // 4, 4), float("inf"), tl.float32)  # held before, at each place
    last_at = tl.full((PIECE // 4, 4), -1, tl.int32)
    more = best_id < 0
    while more:
        held = tl.full((PIECE // 4, 4), float("-inf"), tl.float32)
        next, at = held, tl.zeros((PIECE // 4, 4), tl.int32)
        for first in range(0, (race.vocab + 4 * TILE - 1) // (4 * TILE) * 128, PIECE):
            ceiling = ceilings(race, tops, first)
            comes = (ceiling < last) | ((ceiling == last) & (first > last_at))
            ceiling = tl.where(comes, ceiling, float("-inf"))
            next = tl.maximum(next, tl.minimum(held, ceiling))
            at = tl.where(ceiling > held, first, at)
            held = tl.maximum(held, ceiling)
        beyond = tl.max(next)
        best, best_id = open_held(race, held, at + places_of_piece(), best, best_id)
        more = may_win(beyond, best)
        last, last_at = held, at
    return best, best_id.to(tl.int64)


@triton.jit
def relative_to(law, peak):
    """A plain law relative to the row's largest logit; where that is +inf, such logits share all the mass."""
    infinite = peak >= LARGEST
    return Law(peak, tl.where(infinite, LARGEST, law.cutoff), tl.where(infinite, 0.0, law.scale), law.mass, law.only)


@triton.jit
def winner_of_law(row, vocab, law, s, known, tops, TILES: tl.constexpr):
    """Winner of the law's race on the stream s: int64, −1 where none. known: law.max is the row's largest logit."""
    winner = law.only
    if law.only == -1:
        peak = read_tops(row, vocab, tops, TILES)
        here = law
        if not known:
            here = relative_to(law, peak)
        _score, winner = winner_of(race_of(row, vocab, here, s, (), float("inf"), 0), tops)
    return tl.maximum(winner, -1)


@triton.jit
def last_race(row, vocab, law, s, rest, use_rest, tops, TILES: tl.constexpr):
    """The token that a round ends with, of a law with its mass: the residual's winner where `use_rest`, of the target's law
    where that is not asked for or nothing is left (the draft covers the target up to rounding)."""
    winner, tries = law.only, tl.where(use_rest, 2, 1)
    finite = (law.max < LARGEST) & (rest.law.max < LARGEST)
    while (winner < 0) & (tries > 0):
        both = use_rest & (rest.law.only < 0) & finite  # otherwise t alone bounds the weights: d is one token's, or few have any
        scale = scale_of(law)
        if both:
            residual_tops(row, vocab, law, rest, tops, TILES)
            scale = Scale(scale.base * 0.0, scale.factor * 0.0 + 1.0, 0.0, -LARGEST)
        else:
            read_tops(row, vocab, tops, TILES)
        offset = tl.where(use_rest & (both == 0), tl.log(rest.scale / law.mass) * LOG2E, 0.0).to(tl.float32)
        scale = Scale(scale.base, scale.factor, offset, scale.least)
        race = Race(row, vocab, law, s, (), float("inf"), 0, rest, use_rest, scale)
        _score, winner = winner_of(race, tops)
        use_rest = use_rest & (winner >= 0)
        tries -= 1
    return winner
