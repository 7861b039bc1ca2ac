"""`recursive_distinct`: children drawn without replacement, tested one after the other.

A child drawn after R was rejected has the law d/(1 − d(R)) off R. So with c_0 = 0 it is accepted when
u·Z(c)·d(x)/(1 − d(R)) < (t(x) − c·d(x))⁺, and a rejection adds Z(c)/(1 − d(R)) to c. The residual stays (t − c·d)⁺, which is 0 on
rejected tokens. 1 − d(R) is summed over the other tokens: as a difference it would lose its digits where R holds nearly all.
Jeon et al., "Recursive speculative decoding" (arXiv 2402.14160); Chen et al., "Sequoia" (arXiv 2402.12374).
"""

import torch

from ..reference.walk import Siblings, prob, walk
from .card import Scheme


def reference(round):
    return walk(round, _step)


def _step(round, node, children, target, depth):
    live = Siblings(round, children)
    t, d = target.exp(), live.draft.exp()
    others = live.whole.exp()  # the draft off the rejected tokens
    c, mass = torch.zeros_like(t[:, 0]), torch.ones_like(t[:, 0])
    moved, possible = torch.full_like(node, -1), torch.ones_like(node, dtype=torch.bool)
    for j, child in enumerate(live.nodes):
        rest = others.sum(-1) if j > 0 else torch.ones_like(c)
        possible = possible & (rest > 0)  # otherwise nothing was left to draw this child from
        pending = (child >= 0) & (moved < 0) & possible
        if j > 0:
            mass = torch.where(pending, (t - c[:, None] * d).clamp(min=0.0).sum(-1), mass)
        token = round.token(child)
        t_x, d_x = prob(target, token), prob(live.draft, token)
        accepted = round.draws.accept(child.clamp(min=0), (t_x - c * d_x).clamp(min=0.0) * rest, mass * d_x)
        moved = torch.where(pending & accepted, child, moved)
        c = torch.where(pending & ~accepted, c + mass / torch.where(rest > 0, rest, 1.0), c)
        inside = (pending & (token < others.shape[1]))[:, None]
        at = token.clamp(max=others.shape[1] - 1)[:, None]
        others.scatter_(1, at, torch.where(inside, 0.0, others.gather(1, at)))
    residual = round.draws.residual_race(round.residual(target, live.draft, 1 / c.clamp(min=1.0)[:, None]))
    bonus = round.draws.clock_race(target, depth)
    return moved, torch.where(live.count > 0, residual, bonus)


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
