"""`recursive_distinct` in Triton; the reference is specsample/schemes/recursive_distinct.py."""

import triton
import triton.language as tl

from .passes import Tokens
from .recursive import clipped_mass
from .tree import draft_prob, law_without, list_tokens, next_child, residual, target_prob, token_of, verify_tree
from .walk import accept


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """Child by child; one drawn after R was rejected has the law d/(1 − d(R)) off R."""
    rejected = list_tokens(at, tl.full((), 0, tl.int32))
    c, mass, rest = tl.full((), 0.0, tl.float64), tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
    moved, child = tl.full((), -1, tl.int32), next_child(at, -1)
    n = tl.full((), 0, tl.int32)
    while child >= 0:
        if n > 0:
            before = Tokens(rejected.first, n)
            _law, rest = law_without(at.pair.draft_row, at.pair.draft_vocab, at.pair.draft, before, BLOCK)
            mass = clipped_mass(at, c, BLOCK)
        t, d = target_prob(at, token_of(at, child)), draft_prob(at, token_of(at, child))
        accepted = accept(at.seed, at.position, child, tl.maximum(t - c * d, 0.0) * rest, mass * d)
        accepted = accepted & (rest > 0)  # otherwise nothing was left to draw this child from
        moved = tl.where(accepted, child, -1)
        c = tl.where(accepted | (rest <= 0), c, c + mass / tl.where(rest > 0, rest, 1.0))
        child = tl.where(accepted | (rest <= 0), -1, next_child(at, child))
        n += 1
    return moved, residual(at, 1.0 / tl.maximum(c, 1.0), c * 0.0, ()), at.ids < 0


def verify(round):
    verify_tree(round, step)
