"""`recursive_distinct`: children drawn without replacement, tested one after another.

A child tested after the tokens R were rejected has law d_R: the draft off R, renormalised (a softmax over the other tokens).
Initially c = 0, Z = 1; it is accepted if u·Z·d_R(x) < (t(x) − c·d_R(x))⁺. After a rejection the residual is (t − (c + Z)·d_R)⁺ off R
and x; in units of the next child's law, c ← (c + Z)·(1 − d_R(x)), and Z is the residual's sum. Nothing is divided by the remaining
probability, which may be too small for any float; 1 − d_R(x) may underflow, and then c·d of the next child vanishes too.
Jeon et al., "Recursive speculative decoding" (arXiv 2402.14160); Chen et al., "Sequoia" (arXiv 2402.12374).
"""

import math

import torch

from ..reference.law import given
from ..reference.walk import Siblings, log_weights, prob, walk
from .card import Scheme


def reference(round):
    return walk(round, _step)


def _step(round, node, children, target, depth):
    live = Siblings(round, children)
    t, rest = target.exp(), live.whole  # rest: log d_R
    left = torch.ones_like(rest, dtype=torch.bool)  # off R
    c, mass = torch.zeros_like(t[:, 0]), torch.ones_like(t[:, 0])
    moved, ids = torch.full_like(node, -1), torch.arange(rest.shape[1], device=round.device)
    for j, child in enumerate(live.nodes):
        pending = (child >= 0) & (moved < 0) & (rest > -math.inf).any(-1)  # otherwise there was nothing left to draw from
        if j > 0:
            mass = torch.where(pending, _residual(t, c, rest, left).sum(-1), mass)
        token = round.token(child)
        t_x, d_x = prob(target, token), prob(rest, token)
        accepted = round.draws.accept(child.clamp(min=0), (t_x - c * d_x).clamp(min=0.0), mass * d_x)
        moved = torch.where(pending & accepted, child, moved)
        rejected = pending & ~accepted
        left = left & ~(rejected[:, None] & (ids == token[:, None]))
        rest, share = given(rest, left)
        c = torch.where(rejected, (c + mass) * share, c)
    residual = round.draws.residual_race(log_weights(_residual(t, c, rest, left), target))
    bonus = round.draws.clock_race(target, depth)
    return moved, torch.where(live.count > 0, residual, bonus)


def _residual(t, c, rest, left):
    """(t − c·d_R)⁺ off R, float64 [B, V]"""
    vocab = t.shape[1]
    return torch.where(left[:, :vocab], t - c[:, None] * rest[:, :vocab].exp(), 0.0).clamp(min=0.0)


CARD = Scheme(
    name="recursive_distinct",
    family="multi-draft",
    draft_kind="distinct",
    trees=True,
    uses_draft_logits=True,
    one_hot=False,
    options={},
    paper="Jeon et al. 2024 (arXiv 2402.14160)",
    reference=reference,
)
