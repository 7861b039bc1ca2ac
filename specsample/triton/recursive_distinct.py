"""`recursive_distinct` in Triton; the reference is specsample/schemes/recursive_distinct.py."""

import triton
import triton.language as tl

from .law import BROKEN, Law, prob
from .passes import Residual, Tokens, is_in, residual_mass
from .tree import child, law_without, share_of, target_prob, verify_tree
from .walk import accept


@triton.jit
def left_of(at, peak, total, only, c, rejected):
    """(t − c·d_R)⁺ off the rejected tokens"""
    pair, one = at.pair, tl.full((), 1.0, tl.float64)
    law = Law(peak, pair.draft.cutoff, pair.draft.scale, total / c, only)
    return Residual(pair.draft_row, pair.draft_vocab, law, one, one * 0.0, (), (), rejected)


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """Child by child; after R was rejected the next has law d_R, which is renormalised: it has its own peak, total and only."""
    pair = at.pair
    peak, total, only = pair.draft.max, pair.draft.mass, pair.draft.only
    c, mass = tl.full((), 0.0, tl.float64), tl.full((), 1.0, tl.float64)
    token, j = tl.full((), -1, tl.int64), tl.full((), 0, tl.int32)
    going = at.count > 0
    while going:
        law = Law(peak, pair.draft.cutoff, pair.draft.scale, total, only)
        x, node = child(at, j)
        t, d = target_prob(at, x), prob(pair.draft_row, pair.draft_vocab, law, x)
        again = is_in(x, Tokens(at.list, j))  # a repeated token has no weight left
        t, d = tl.where(again, 0.0, t), tl.where(again, 0.0, d)
        accepted = accept(at.seed, at.position, node, tl.maximum(t - c * d, 0.0), mass * d)
        token = tl.where(accepted, x, -1)
        c += mass
        j += 1
        going = (token < 0) & (j < at.count)
        if going:
            next = law_without(pair.draft_row, pair.draft_vocab, pair.draft, Tokens(at.list, j), BLOCK)
            going = next.only != BROKEN  # otherwise there was nothing left to draw from
            if going:
                c *= share_of(next, law)
                peak, total, only = next.max, next.mass, next.only
                rest = left_of(at, peak, total, only, c, Tokens(at.list, j))
                mass = residual_mass(pair.row, pair.vocab, pair.target, rest, BLOCK)
    return token, left_of(at, peak, total, only, c, Tokens(at.list, j)), 0


def verify(call):
    verify_tree(call, step)
