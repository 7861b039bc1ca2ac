"""`top`: the K − 1 likeliest draft tokens T, chosen deterministically, and one child drawn from the rest, d' = d off T renormalised.

The drawn child is accepted if u·d'(x) < t(x). Otherwise run one race over the weights t on T and (t − d')⁺ off T: a winner in T is an
accepted child, any other is emitted. Acceptance t(T) + Σ off T of min(t, d'), the optimum for these children; for K = 2 the pair of
children has the same law as in SpecHub. If the race accepts a child, the round continues, so each race of a round has its own stream.
Hu et al., "Towards optimal multi-draft speculative decoding" (arXiv 2502.18779); Sun et al., "SpecHub" (arXiv 2411.05289).
"""

import torch

from ..reference.law import given
from ..reference.walk import Siblings, first, prob, walk
from .card import Scheme


def reference(round):
    races = torch.zeros(round.batch, dtype=torch.int64, device=round.device)

    def step(round, node, children, target, depth):
        nonlocal races
        live = Siblings(round, children)
        rank = live.children.cumsum(-1)
        listed = live.children & (rank < live.count[:, None])  # T: all but the last
        drawn = torch.stack(live.nodes)[(live.count - 1).clamp(min=0), round.index]
        token = round.token(drawn)
        vocab = live.whole.shape[1]
        inside = listed & (round.tokens < vocab)
        in_top = torch.zeros(live.whole.shape, dtype=torch.int64, device=round.device)
        in_top = in_top.scatter_add_(1, torch.where(inside, round.tokens, 0), inside.long()) > 0
        rest = torch.where(in_top.any(-1, keepdim=True), given(live.whole, ~in_top)[0], live.whole)
        d_rest = rest[:, : target.shape[1]]
        d_x = prob(d_rest, token)
        accepted = (drawn >= 0) & round.draws.accept(drawn.clamp(min=0), prob(target, token), d_x)
        winner = round.draws.residual_race(round.residual(target, d_rest), races)
        races = races + ((live.count > 0) & ~accepted)
        picked = first(listed & (round.tokens == winner[:, None]))
        return torch.where(accepted, drawn, picked), torch.where(live.count > 0, winner, round.draws.clock_race(target, depth))

    return walk(round, step)


CARD = Scheme(
    name="top",
    family="multi-draft",
    draft_kind="top",
    trees=True,
    uses_draft_logits=True,
    one_hot=False,
    options={},
    paper="Hu et al. 2025 (arXiv 2502.18779)",
    reference=reference,
)
