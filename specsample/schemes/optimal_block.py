"""`optimal_block`: multi-path block verification; the recommended scheme at temperature > 0 with several i.i.d. paths.

Walk the tree without testing: at each node select one of the live draws with the optimal coupling (law b of that node, which depends
on how many draws are live) and move to it, until a leaf. The path y_1..y_L is then an ordinary draft with the known laws b_1, b_2, …:
given the tokens, the counts of live draws have the same law under draft and target, so they are side information. Verify it as a block:
P_i = min(1, P_{i−1}·t_i(y_i)/b_i(y_i)), M_i = Σ (P_i·t_{i+1} − b_{i+1})⁺, h_i = M_i/(M_i + 1 − P_i), P_i at the leaf; accept the longest
prefix i with u_i < h_i, then a token of (P_i·t_{i+1} − b_{i+1})⁺ or the bonus. One draw a node is `block`, depth one is `optimal`.
Khisti et al. (arXiv 2410.18234) for the selection, Sun et al. (arXiv 2403.10444) for block verification; the combination is this package's.
"""

import math

import torch

from ..reference.coupling import Coupling, select
from ..reference.walk import Siblings, at, first, log_weights, prob
from .card import Scheme
from .optimal import BINS


def reference(round):
    node, live, active = round.start()
    started = active
    path, targets, laws, leaves = [], [], [], []
    weight = torch.ones(round.batch, dtype=torch.float64, device=round.device)  # P_i
    length, kept_weight = torch.zeros_like(node), weight
    chosen = node  # the selected draw that the acceptance uniform belongs to
    for depth in range(round.max_depth + 1):
        target = round.target(node)
        usable = active & (target > -math.inf).any(-1)
        children = round.children(live) & usable[:, None]
        if depth == round.max_depth:
            children = children & False
        siblings = Siblings(round, children)
        draw, law = _select(round, siblings, target)
        leaf = siblings.count == 0
        if depth > 0:
            mass = (weight[:, None] * target.exp() - law).clamp(min=0.0).sum(-1)
            certain = (mass == 0) & (weight == 1)
            numerator = torch.where(leaf, weight, torch.where(certain, 1.0, mass))
            denominator = torch.where(leaf | certain, 1.0, mass + 1 - weight)
            accepted = active & round.draws.accept(chosen.clamp(min=0), numerator, denominator)
            length = torch.where(accepted, depth, length)
            kept_weight = torch.where(accepted, weight, kept_weight)
        targets.append(target), laws.append(law), leaves.append(leaf)

        token = round.token(draw)
        t, b = prob(target, token), at(law, token)
        ratio = torch.where(b > 0, t / b, torch.where(t > 0, math.inf, 0.0))
        weight = torch.where(t > 0, weight * ratio, 0.0).nan_to_num(nan=0.0).clamp(max=1.0)
        active = usable & ~leaf
        moved = children & (round.tokens == token[:, None]) & active[:, None]
        chosen = torch.where(active, draw, -1)
        path.append(first(moved))
        node = torch.where(active, path[-1], node)
        live = torch.nn.functional.pad(moved, (1, 0))

    target, law = (torch.stack(x)[length, round.index] for x in (targets, laws))
    rest = log_weights((kept_weight[:, None] * target.exp() - law).clamp(min=0.0), target)
    bonus = round.draws.clock_race(target, length)
    emitted = torch.where(torch.stack(leaves)[length, round.index], bonus, round.draws.residual_race(rest))
    emitted = torch.where(round.greedy(), target.argmax(-1), emitted)
    emitted = torch.where(started & (target > -math.inf).any(-1), emitted, -1)

    depth = torch.arange(round.max_depth + 1, device=round.device)
    nodes = torch.where(depth < length[:, None], torch.stack(path, -1), -1)[:, : round.max_depth]
    tokens = torch.stack([round.token(n) for n in path], -1)
    tokens = torch.where(depth < length[:, None], tokens, -1).scatter(1, length[:, None], emitted[:, None])
    return tokens, length.to(torch.int32), nodes.to(torch.int32)


def _select(round, live, target):
    """The selected draw int64 [B] (−1: no children) and its law b float64 [B, V]."""
    t, d = target.exp(), live.draft.exp()
    draw, ratios = live.nodes[0], torch.ones_like(t)
    greedy = round.greedy()
    single = (live.count <= 1) | live.greedy | greedy
    if not single.all():
        coupling = Coupling(t, live.whole.exp(), live.count.clamp(min=2), int(round.options[0])).solve()
        draw = torch.where(single, draw, select(round, live, coupling)[0])
        ratios = torch.where(single[:, None], 1.0, coupling.ratio_of_token)
    law = ratios * d
    # A greedy target: its only token is selected if it was drawn, b = 1 − (1 − d)^k.
    many = greedy & (live.count > 1)
    only = target.argmax(-1)
    hit = first(live.children & (round.tokens == only[:, None]))
    draw = torch.where(many & (hit >= 0), hit, draw)
    d_only = prob(live.draft, only)
    b_only = torch.where(live.greedy, d_only, 1 - (1 - d_only) ** live.count)
    at = torch.arange(t.shape[1], device=round.device) == only[:, None]
    return draw, torch.where(many[:, None], torch.where(at, b_only[:, None], 0.0), law)


CARD = Scheme(
    name="optimal_block",
    family="multi-draft",
    draft_kind="iid",
    trees=True,
    uses_draft_logits=True,
    one_hot=False,
    options={"bins": BINS},
    paper="Khisti et al. 2024 (arXiv 2410.18234), Sun et al. 2024 (arXiv 2403.10444)",
    reference=reference,
    on_chains="block",
)
