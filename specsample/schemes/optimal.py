"""`optimal`: the highest acceptance rate that any rule reaches with K i.i.d. children, at the cost of one histogram.

Select one child Y with law b, then verify it as a single draft: accept if u·b(Y) < t(Y), else one token of (t − b)⁺. The best
reachable b, the selection and the bins are described in specsample/reference/coupling.py. Acceptance: 1 − max over S of
d(S)^K − t(S), minus at most 1e-3 due to binning (K <= 8, 1024 bins, language-model-like laws). Lossless for any bins; K = 1 is `token`.
Khisti et al., "Multi-draft speculative sampling: canonical decomposition and theoretical limits" (arXiv 2410.18234).
"""

import torch

from ..reference.coupling import Coupling, select
from ..reference.walk import Siblings, log_weights, prob, walk
from .card import Scheme

BINS = (1024, (64, 4096), "linear bins of the ratio target/draft over [0, K]")


def reference(round):
    return walk(round, _step)


def _step(round, node, children, target, depth):
    live = Siblings(round, children)
    t, d = target.exp(), live.draft.exp()
    child, ratio, ratios = live.nodes[0], torch.ones_like(t[:, 0]), torch.ones_like(t)
    single = (live.count <= 1) | live.greedy  # draws that are all the same token: b = d
    if not single.all():
        coupling = Coupling(t, live.whole.exp(), live.count.clamp(min=2), int(round.options[0])).solve()
        selected, of_selected = select(round, live, coupling)
        child, ratio = torch.where(single, child, selected), torch.where(single, 1.0, of_selected)
        ratios = torch.where(single[:, None], 1.0, coupling.ratio_of_token)
    token = round.token(child)
    accepted = round.draws.accept(child.clamp(min=0), prob(target, token), ratio * prob(live.draft, token))
    residual = round.draws.residual_race(log_weights((t - ratios * d).clamp(min=0.0), target))
    emitted = torch.where(live.count > 0, residual, round.draws.clock_race(target, depth))
    return torch.where(accepted, child, -1), emitted


CARD = Scheme(
    name="optimal",
    family="multi-draft",
    draft_kind="iid",
    trees=True,
    uses_draft_logits=True,
    one_hot=False,
    options={"bins": BINS},
    paper="Khisti et al. 2024 (arXiv 2410.18234)",
    reference=reference,
)
