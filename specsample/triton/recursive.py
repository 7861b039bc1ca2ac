"""`recursive` in Triton; the reference is specsample/schemes/recursive.py."""

import triton
import triton.language as tl

from .passes import residual_mass
from .tree import child, draft_prob, residual, target_prob, verify_tree
from .walk import accept


@triton.jit
def clipped_mass(at, c, BLOCK: tl.constexpr):
    """Z(c) = Σ (t − c·d)⁺, c >= 1"""
    return c * residual_mass(at.pair.row, at.pair.vocab, at.pair.target, residual(at, 1.0 / c, c * 0.0, ()), BLOCK)


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """Child by child, each tested against the residual of the target after the earlier rejections."""
    c, mass = tl.full((), 0.0, tl.float64), tl.full((), 1.0, tl.float64)
    token, j = tl.full((), -1, tl.int64), tl.full((), 0, tl.int32)
    while (token < 0) & (j < at.count):
        if j > 0:
            mass = clipped_mass(at, c, BLOCK)
        x, node = child(at, j)
        t, d = target_prob(at, x), draft_prob(at, x)
        accepted = accept(at.seed, at.position, node, tl.maximum(t - c * d, 0.0), mass * d)
        token = tl.where(accepted, x, -1)
        c += mass
        j += 1
    return token, residual(at, 1.0 / tl.maximum(c, 1.0), c * 0.0, ()), 0


def verify(call):
    verify_tree(call, step)
