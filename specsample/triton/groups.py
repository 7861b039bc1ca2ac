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
from .passes import is_in, residual_above, residual_weights
from .streams import GROUP, LANES, ROW, TILE, clocks, group_words, log2_below, token_of

FAR = tl.constexpr(1e6)  # scores beyond it, not relative to the row's maximum, would cost the clocks digits
PIECE = tl.constexpr(launch.PIECE)
OPENED = tl.constexpr(16)  # groups that are opened at a time
_NO_ID = tl.constexpr(2147483647)


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


@triton.jit
def race_of(row, vocab, law, s):
    """The whole race of a law"""
    return Race(row, vocab, law, s, (), float("inf"), 0, (), False)


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
def residual_tops(row, vocab, law, rest, tops, TILES: tl.constexpr):
    """Write a bound of log2 of the weights of each group."""
    tl.debug_barrier()
    for first in range(0, vocab, TILE * TILES):
        ids = row_ids(first, TILES)
        a, b = residual_above(row, vocab, law, rest, ids), residual_above(row, vocab, law, rest, ids + ROW)
        c, d = residual_above(row, vocab, law, rest, ids + 2 * ROW), residual_above(row, vocab, law, rest, ids + 3 * ROW)
        top = of_groups(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), TILES)
        store_tops(tops, first, tl.where(top > 0, tl.log2(tl.where(top > 0, top, 1.0)), float("-inf")), TILES)
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
    base, scale, least = race.law.max, (race.law.scale * LOG2E).to(tl.float32), race.law.cutoff
    if len(race.rest) > 0:
        base, scale = tl.where(race.weighted, 0.0, base), tl.where(race.weighted, 1.0, scale)
        least = tl.where(race.weighted, -LARGEST, least)
    log2_least = log2_below(group_words(race.stream, first, PIECE)) - 5  # M >= u/32
    return tl.where(top >= least, (top - base) * scale - log2_least, float("-inf"))


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
    ceiling = tl.reshape(ceiling, (OPENED, PIECE // OPENED))
    group = tl.reshape(group, (OPENED, PIECE // OPENED))
    highest = tl.max(ceiling, 1)
    while may_win(tl.max(highest, 0), best):
        chosen = tl.min(tl.where(ceiling == highest[:, None], group, _NO_ID), 1)
        score, ids = score_of(race, chosen)
        top = tl.max(score)
        id = tl.min(tl.where(score == top, ids, _NO_ID))
        better = (top > best) | ((top == best) & (id < best_id))
        best, best_id = tl.where(better, top, best), tl.where(better, id, best_id)
        ceiling = tl.where(group == chosen[:, None], float("-inf"), ceiling)
        highest = tl.max(ceiling, 1)
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
        best, best_id = open_held(race, held, at + places_of_piece(), best, best_id)
        more = may_win(tl.max(next), best)
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
        _score, winner = winner_of(race_of(row, vocab, here, s), tops)
    return tl.maximum(winner, -1)


@triton.jit
def last_race(row, vocab, law, s, rest, use_rest, tops, TILES: tl.constexpr):
    """The token that a round ends with, of a law with its mass: the residual's winner where `use_rest`, of the target's law
    where that is not asked for or nothing is left (the draft covers the target up to rounding)."""
    winner, tries = law.only, tl.where(use_rest, 2, 1)
    while (winner < 0) & (tries > 0):
        if use_rest:
            residual_tops(row, vocab, law, rest, tops, TILES)
        else:
            read_tops(row, vocab, tops, TILES)
        _score, winner = winner_of(Race(row, vocab, law, s, (), float("inf"), 0, rest, use_rest), tops)
        use_rest = use_rest & (winner >= 0)
        tries -= 1
    return winner
