"""`recursive_distinct` in Triton; the reference is specsample/schemes/recursive_distinct.py."""

import triton
import triton.language as tl

from .passes import Tokens
from .recursive import clipped_mass
from .tree import child, draft_prob, law_without, residual, target_prob, verify_tree
from .walk import accept


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """Child by child; one drawn after R was rejected has the law d/(1 − d(R)) off R."""
    c, mass, rest = tl.full((), 0.0, tl.float64), tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
    token, j = tl.full((), -1, tl.int64), tl.full((), 0, tl.int32)
    while (token < 0) & (j < at.count) & (rest > 0):
        if j > 0:
            rejected, pair = Tokens(at.list, j), at.pair
            _law, rest = law_without(pair.draft_row, pair.draft_vocab, pair.draft, rejected, BLOCK)
            mass = clipped_mass(at, c, BLOCK)
        if rest > 0:  # otherwise nothing was left to draw this child from
            x, node = child(at, j)
            t, d = target_prob(at, x), draft_prob(at, x)
            accepted = accept(at.seed, at.position, node, tl.maximum(t - c * d, 0.0) * rest, mass * d)
            token = tl.where(accepted, x, -1)
            c += mass / rest
        j += 1
    return token, residual(at, 1.0 / tl.maximum(c, 1.0), c * 0.0, ()), 0


def verify(round):
    verify_tree(round, step)
