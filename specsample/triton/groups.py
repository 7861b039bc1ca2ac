"""Races over one row by one program, with clocks in groups of 32 tokens.

The row is read once, for a bound on each group's weights: its *top*, which is the largest logit or, for a residual, log2 of the weight
that the largest t and the least d/t allow. Tops are kept in the program's scratch, an eighth of a byte per token; all races over the
row read them instead. No clock of a group is below its least clock M, so log2 of its scores is at most its *ceiling*, the top as log2
of a weight minus log2 M, and a group's first word bounds M well enough in float32. The tops are read piece by piece. For each place in
a piece, the pass keeps the group with the highest ceiling and the height of the next; groups that may contain the winner are opened,
a few at a time: their tokens are scored in float64. If a next group may still win (in at most a quarter of races), another pass follows.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from . import launch
from .histogram import least_ratio
from .law import LARGEST, LOG2E, Law, load_logits, raw_logits
from .passes import is_in, residual_weights
from .streams import GROUP, LANES, ROW, TILE, clocks, group_words, log2_above, log2_below, token_of

FAR = tl.constexpr(1e6)  # scores beyond this, unless relative to the row's maximum, would lose digits of the clocks
PIECE = tl.constexpr(launch.PIECE)
OPENED = tl.constexpr(8)  # groups opened at a time
SLACK, TINY = tl.constexpr(2.0**-15), tl.constexpr(2.0**-100)  # for shares of t: the rounding error of float32, and the least share
_NO_ID = tl.constexpr(2147483647)
_LANE_BITS = tl.constexpr(-1 ^ 0x307)  # masks a token's id to that of its group's first token


class Scale(NamedTuple):
    """How tops become log2 of weights: (top − base)·factor + offset, for tops of `least` or more"""

    base: object  # float32
    factor: object
    offset: object
    least: object


class Race(NamedTuple):
    """A race over a row's law, or over the weights of a residual, among the tokens that arrive after a given one."""

    row: object
    vocab: object
    law: object
    stream: object
    exclude: object  # excluded Tokens; (): none
    after: object  # float64: only scores below it take part,
    after_id: object  # or equal ones with a larger id
    rest: object  # passes.Residual; (): never
    weighted: object  # whether the weights are those of `rest`
    scale: object  # Scale


@triton.jit
def scale_of(law):
    """The Scale for tops that are logits"""
    return Scale(law.max, (law.scale * LOG2E).to(tl.float32), 0.0, law.cutoff)


@triton.jit
def race_of(row, vocab, law, s, exclude, after, after_id):
    """The race over a law"""
    return Race(row, vocab, law, s, exclude, after, after_id, (), False, scale_of(law))


@triton.jit
def room_of(vocab):
    """The number of entries in a row's tops"""
    return (vocab + PIECE * GROUP - 1) // (PIECE * GROUP) * PIECE


@triton.jit
def row_ids(first, TILES: tl.constexpr):
    """Ids in the first row of each tile: int32 [TILES, ROW]. A thread holds the same eight neighbours in all four rows: a group."""
    return first + TILE * tl.arange(0, TILES)[:, None] + tl.arange(0, ROW)[None, :]


@triton.jit
def of_eight(x, TILES: tl.constexpr):
    """The largest of eight neighbours, −inf if all are NaN: [TILES, LANES]"""
    top = tl.max(tl.reshape(x, (TILES, LANES, ROW // LANES)), 2)  # ignores NaN
    return tl.where(top == top, top, float("-inf"))


@triton.jit
def of_groups(a, b, c, d, TILES: tl.constexpr):
    """The largest value of each group, from the four rows of the tiles"""
    top = tl.maximum(of_eight(a, TILES), of_eight(b, TILES))
    return tl.maximum(top, tl.maximum(of_eight(c, TILES), of_eight(d, TILES)))


@triton.jit
def four_rows(row, ids, vocab):
    a, b = raw_logits(row, ids, vocab), raw_logits(row, ids + ROW, vocab)
    return a, b, raw_logits(row, ids + 2 * ROW, vocab), raw_logits(row, ids + 3 * ROW, vocab)


@triton.jit
def store_tops(tops, first, top, TILES: tl.constexpr):
    at = first // GROUP + LANES * tl.arange(0, TILES)[:, None] + tl.arange(0, LANES)[None, :]
    tl.store(tops + at, top)


@triton.jit
def read_tops(row, vocab, tops, TILES: tl.constexpr):
    """Write the largest logit of each group, as `load_logits` reads them. -> the row's largest"""
    tl.debug_barrier()  # the previous contents have been read
    peak = tl.full((TILES, LANES), float("-inf"), tl.float32)
    for first in range(0, vocab, TILE * TILES):
        a, b, c, d = four_rows(row, row_ids(first, TILES), vocab)
        top = tl.minimum(of_groups(a, b, c, d, TILES), LARGEST)
        store_tops(tops, first, top, TILES)
        peak = tl.maximum(peak, top)
    tl.debug_barrier()
    return tl.max(peak)


@triton.jit
def kept_rows(row, ids, vocab, cutoff):
    """The four rows' logits, −inf where filtered"""
    a, b, c, d = four_rows(row, ids, vocab)
    a, b = tl.where(a >= cutoff, a, float("-inf")), tl.where(b >= cutoff, b, float("-inf"))
    return a, b, tl.where(c >= cutoff, c, float("-inf")), tl.where(d >= cutoff, d, float("-inf"))


@triton.jit
def residual_tops(row, vocab, law, rest, tops, TILES: tl.constexpr):
    """Write a bound on log2 of the weights of each group, from the largest t and the share that the least d/t leaves of it."""
    tl.debug_barrier()
    share, floor, ratio = tl.maximum(rest.scale, TINY), rest.floor, rest.scale * 0.0 + 1.0
    if len(rest.bins) > 0:
        ratio, beyond = least_ratio(rest.bins)
        floor = tl.minimum(tl.maximum(rest.scale - 1.0 + beyond, 0.0), share)
    most, floor = (share * (1 + SLACK)).to(tl.float32), (floor * (1 + SLACK)).to(tl.float32)
    ratio = (ratio * (1 - SLACK)).to(tl.float32)
    shift = (tl.log(law.mass / rest.law.mass) * LOG2E).to(tl.float32)
    scale, mass = (law.scale * LOG2E).to(tl.float32), (tl.log(law.mass) * LOG2E).to(tl.float32)
    # Both terms are at most 0: with these scales, their difference is an upper bound on the ratio.
    t_scale, d_scale = scale * (1 - 2.0**-21), (rest.law.scale * LOG2E).to(tl.float32) * (1 + 2.0**-21)
    for first in range(0, vocab, TILE * TILES):
        ids = row_ids(first, TILES)
        a, b, c, d = kept_rows(row, ids, vocab, law.cutoff)
        e, f, g, h = kept_rows(rest.row, ids, rest.vocab, rest.law.cutoff)
        top = of_groups(a, b, c, d, TILES)
        # log2 (t/d), relative to the maxima of both: NaN if neither is kept, +inf if d is not.
        a, b = (a - law.max) * t_scale - (e - rest.law.max) * d_scale, (b - law.max) * t_scale - (f - rest.law.max) * d_scale
        c, d = (c - law.max) * t_scale - (g - rest.law.max) * d_scale, (d - law.max) * t_scale - (h - rest.law.max) * d_scale
        least = shift - of_groups(a, b, c, d, TILES)
        left = tl.maximum(most - ratio * tl.exp2(least), floor)
        if len(rest.without) > 0:
            lane = first + TILE * tl.arange(0, TILES)[:, None] + 8 * tl.arange(0, LANES)[None, :]
            for j in range(0, rest.without.count):
                left = tl.where((tl.load(rest.without.first + j) & _LANE_BITS) == lane, most, left)
        top = tl.where((top > float("-inf")) & (left > 0), (top - law.max) * scale - mass + log2_above(left), float("-inf"))
        store_tops(tops, first, top, TILES)
    tl.debug_barrier()


@triton.jit
def places_of_piece():
    return 4 * tl.arange(0, PIECE // 4)[:, None] + tl.arange(0, 4)[None, :]


@triton.jit
def ceilings(race, tops, first):
    """The ceilings of the groups first .. first + PIECE − 1, float32 [PIECE / 4, 4]; −inf: not in the race"""
    group = first + places_of_piece()
    lies = (group & -128) + (group & 3) * LANES + ((group >> 2) & 31)
    top = tl.load(tops + lies, mask=token_of(group, 0) < race.vocab, other=float("-inf"))
    weight = tl.where(top >= race.scale.least, (top - race.scale.base) * race.scale.factor + race.scale.offset, float("-inf"))
    return weight - (log2_below(group_words(race.stream, first, PIECE)) - 5)  # M >= u/32


@triton.jit
def may_win(ceiling, best):
    """Whether a score below this ceiling can reach `best`; the slack covers float32 rounding."""
    return (ceiling > float("-inf")) & (ceiling.to(tl.float64) + 2e-3 + 5e-7 * tl.abs(ceiling) >= best * LOG2E)


@triton.jit
def score_of(race, groups):
    """(log w − log E of the tokens of groups [n] in float64, −inf if not in the race; their ids), [n, 8, 4]"""
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
def score_at(row, vocab, law, token, clock):
    """The score of one kept token with a given clock, computed as in `score_of`: float64"""
    return (load_logits(row, token, vocab).to(tl.float64) - law.max) * law.scale - tl.log(clock)


@triton.jit
def open_held(race, ceiling, group, best, best_id):
    """Update (best, best_id) with the tokens of those groups [PIECE / 4, 4] that may be better, the highest of each lane first"""
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
    """(score float64, id int64) of the winner of a race whose tops are written; id −1 if no token is in the race."""
    best, best_id = tl.full((), float("-inf"), tl.float64), tl.full((), -1, tl.int32)
    last = tl.full((PIECE // 4, 4), float("inf"), tl.float32)  # held in the last pass, at each place
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
    """A plain law relative to the row's largest logit; if that is +inf, the +inf logits share all mass."""
    infinite = peak >= LARGEST
    return Law(peak, tl.where(infinite, LARGEST, law.cutoff), tl.where(infinite, 0.0, law.scale), law.mass, law.only)


@triton.jit
def winner_of_law(row, vocab, law, s, known, tops, TILES: tl.constexpr):
    """The winner of the law's race on the stream s: int64, −1 if none. known: law.max is the row's largest logit."""
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
    """The last token of a round, for a normalised law: the residual's winner if `use_rest`; otherwise, or if no residual is left
    (the draft covers the target up to rounding), the winner under the target's law."""
    winner, tries = law.only, tl.where(use_rest, 2, 1)
    finite = (law.max < LARGEST) & (rest.law.max < LARGEST)
    while (winner < 0) & (tries > 0):
        both = use_rest & (rest.law.only < 0) & finite  # else t alone bounds the weights: d is one-hot, or few have any
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
