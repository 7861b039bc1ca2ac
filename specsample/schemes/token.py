"""`token`: one child per node, accepted if u·d(x) < t(x); otherwise one token of the residual (t − d)⁺.

Lossless since min(t, d) + (1 − Σ min(t, d))·(t − d)⁺/Σ(t − d)⁺ = t. Acceptance Σ min(t, d).
Leviathan, Kalman, Matias, "Fast inference from transformers via speculative decoding" (2022), Algorithm 1;
Chen et al., "Accelerating large language model decoding with speculative sampling" (2023).
"""

import torch

from ..reference.walk import first, prob, walk
from .card import Scheme


def reference(round):
    return walk(round, _step, shares=False)


def _step(round, node, children, target, depth):
    child = first(children)
    token, draft = round.token(child), round.draft(child.clamp(min=0)) if children.shape[1] else target
    accepted = (child >= 0) & round.draws.accept(child.clamp(min=0), prob(target, token), prob(draft, token))
    bonus = round.draws.clock_race(target, depth)
    residual = round.draws.residual_race(round.residual(target, draft))
    return torch.where(accepted, child, -1), torch.where(child >= 0, residual, bonus)


CARD = Scheme(
    name="token",
    family="single draft",
    draft_kind="iid",
    trees=False,
    uses_draft_logits=True,
    options={},
    paper="Leviathan et al. 2022 (arXiv 2211.17192), Chen et al. 2023 (arXiv 2302.01318)",
    reference=reference,
)
