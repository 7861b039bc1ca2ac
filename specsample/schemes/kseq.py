"""`kseq`: i.i.d. children, all tested alike: each is accepted if u·c·d(x) < t(x).

A child is accepted with probability β = Σ min(d, t/c) = (1 − Z(c))/c. With γ = (1 − (1 − β)^K)/β, any c >= γ is lossless if a token
∝ t − γ·min(d, t/c) is emitted after K rejections; the smallest such c, c = γ, accepts the most: 1 − Z(c). The ratio
histogram chooses c (the edge of a bin); Z(c) is summed over the row, since a binned Z is off by 1e-4 when t is close to d.
Sun et al., "SpecTr" (arXiv 2310.15141), k-sequential selection.
"""

import torch

from ..reference.coupling import Coupling, kseq_gamma
from ..reference.walk import Siblings, log_weights, prob, walk
from .card import Scheme
from .optimal import BINS


def reference(round):
    return walk(round, _step)


def _step(round, node, children, target, depth):
    live = Siblings(round, children)
    t, d, k = target.exp(), live.draft.exp(), live.count
    single = k <= 1
    c = gamma = torch.ones_like(t[:, 0])
    if not single.all():
        c, gamma = _thresholds(t, d, live.whole.exp(), k.clamp(min=2), int(round.options[0]))
        c, gamma = torch.where(single, 1.0, c), torch.where(single, 1.0, gamma)
    moved = torch.full_like(node, -1)
    for child in live.nodes:
        token = round.token(child)
        pending = (child >= 0) & (moved < 0)
        accepted = round.draws.accept(child.clamp(min=0), prob(target, token), c * prob(live.draft, token))
        moved = torch.where(pending & accepted, child, moved)
    scale = (1 / gamma)[:, None]
    weight = torch.maximum(scale * t - d, (scale - 1 / c[:, None]) * t).clamp(min=0.0)
    residual = round.draws.residual_race(log_weights(weight, target))
    emitted = torch.where(k > 0, residual, round.draws.clock_race(target, depth))
    return moved, emitted


def _thresholds(t, d, whole, k, bins):
    """(c, γ) float64 [B]"""
    sums = Coupling(t, whole, k, bins)
    c = sums.kseq_threshold()
    while True:
        beta = (1 - (t - c[:, None] * d).clamp(min=0.0).sum(-1)) / c
        gamma = torch.minimum(kseq_gamma(beta[:, None], k[:, None])[:, 0], k)
        above = gamma > c  # the bin of the tail is approximate, so the root may lie just above c
        if not above.any():
            return c, gamma
        c = torch.where(above, torch.minimum(c + 1 / sums.per_unit[:, 0], k.double()), c)


CARD = Scheme(
    name="kseq",
    family="multi-draft",
    draft_kind="iid",
    trees=True,
    uses_draft_logits=True,
    one_hot=False,
    options={"bins": BINS},
    paper="Sun et al. 2023 (arXiv 2310.15141)",
    reference=reference,
)
