"""`recursive`: i.i.d. children tested one after another, each against the residual of the target after the earlier rejections.

With Z(c) = Σ (t − c·d)⁺, c_0 = 0 and c_{k+1} = c_k + Z(c_k), the residual after k rejections is (t − c_k·d)⁺/Z(c_k). Child
k + 1 is accepted if u·Z(c_k)·d(x) < (t(x) − c_k·d(x))⁺; after the last, one token of (t − c_K·d)⁺. Acceptance 1 − Z(c_K).
Not updating the residual between siblings is a bug that has shipped elsewhere: t = (.9, .1), d = (.5, .5) then gives (.86, .14).
Miao et al., "SpecInfer" (arXiv 2305.09781), Algorithm 2; Chen et al., "Sequoia" (arXiv 2402.12374).
"""

import torch

from ..reference.walk import Siblings, prob, walk
from .card import Scheme


def reference(round):
    return walk(round, _step)


def _step(round, node, children, target, depth):
    live = Siblings(round, children)
    t, d = target.exp(), live.draft.exp()
    c, mass = torch.zeros_like(t[:, 0]), torch.ones_like(t[:, 0])
    moved = torch.full_like(node, -1)
    for j, child in enumerate(live.nodes):
        pending = (child >= 0) & (moved < 0)
        if j > 0:
            mass = torch.where(pending, (t - c[:, None] * d).clamp(min=0.0).sum(-1), mass)
        token = round.token(child)
        t_x, d_x = prob(target, token), prob(live.draft, token)
        accepted = round.draws.accept(child.clamp(min=0), (t_x - c * d_x).clamp(min=0.0), mass * d_x)
        moved = torch.where(pending & accepted, child, moved)
        c = torch.where(pending & ~accepted, c + mass, c)
    residual = round.draws.residual_race(round.residual(target, live.draft, 1 / c.clamp(min=1.0)[:, None]))
    bonus = round.draws.clock_race(target, depth)
    return moved, torch.where(live.count > 0, residual, bonus)


CARD = Scheme(
    name="recursive",
    family="multi-draft",
    draft_kind="iid",
    trees=True,
    uses_draft_logits=True,
    one_hot=False,
    options={},
    paper="Miao et al. 2023 (arXiv 2305.09781)",
    reference=reference,
)
