"""`recursive` in Triton; the reference is specsample/schemes/recursive.py."""

import triton
import triton.language as tl

from .passes import residual_mass
from .tree import draft_prob, next_child, residual, target_prob, token_of, verify_tree
from .walk import accept


@triton.jit
def clipped_mass(at, c, BLOCK: tl.constexpr):
    """Z(c) = Σ (t − c·d)⁺, c >= 1"""
    return c * residual_mass(at.pair.row, at.pair.vocab, at.pair.target, residual(at, 1.0 / c, c * 0.0, ()), BLOCK)


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """Child by child, each against what the rejections before it left of the target."""
    c, mass = tl.full((), 0.0, tl.float64), tl.full((), 1.0, tl.float64)
    moved, child = tl.full((), -1, tl.int32), next_child(at, -1)
    while child >= 0:
        if c > 0:
            mass = clipped_mass(at, c, BLOCK)
        t, d = target_prob(at, token_of(at, child)), draft_prob(at, token_of(at, child))
        accepted = accept(at.seed, at.position, child, tl.maximum(t - c * d, 0.0), mass * d)
        moved = tl.where(accepted, child, -1)
        c = tl.where(accepted, c, c + mass)
        child = tl.where(accepted, -1, next_child(at, child))
    return moved, residual(at, 1.0 / tl.maximum(c, 1.0), c * 0.0, ()), at.ids < 0


def verify(round):
    verify_tree(round, step)
