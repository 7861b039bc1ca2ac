"""`lists`: the race with an independent vector of clocks per path.

Child k is the draft's winner on list k; the target's token is argmin_i min_k E_i^(k)/t_i over the lists of the live paths (at a
leaf: of those that end there), and a child is accepted if it is that token. The minimum of n independent exponential clocks is also
exponential, so the token follows the target's law; it is a function of (seed, prefix, target, live lists). With one list it is `race`.
GLS: "List-level distribution coupling with applications to speculative decoding" (arXiv 2506.05632).
"""

import torch

from ..limits import MAX_SIBLINGS
from ..reference.walk import first, walk
from .card import Scheme


def reference(round):
    # live: the nodes that carry the accepted prefix.
    def step(round, node, children, target, depth):
        nonlocal live
        paths = torch.where(children.any(-1, keepdim=True), children, live)  # at a leaf: those that end here
        lists = torch.where(paths & (paths.cumsum(-1) <= MAX_SIBLINGS), of_node, -1)
        root = torch.full_like(node, -1)[:, None]
        lists = torch.cat([lists, torch.where((lists >= 0).any(-1, keepdim=True), root, 0)], -1)
        winner = round.draws.clock_race(target, depth, lists)
        live = children & (round.tokens == winner[:, None])
        return first(live), winner

    live, of_node = torch.zeros_like(round.exists), round.clock_lists()
    return walk(round, step)


CARD = Scheme(
    name="lists",
    family="exponential race",
    draft_kind="lists",
    trees=True,
    uses_draft_logits=False,
    reads_lists=True,
    options={},
    paper="Rowan et al. 2025 (arXiv 2506.05632)",
    reference=reference,
    on_chains="race",
)
