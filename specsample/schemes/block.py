"""`block`: verify a chain as a whole; optimal for a single path.

With P_0 = 1 and P_i = min(1, P_{i−1}·t_i(x_i)/d_i(x_i)), let M_i = Σ_x (P_i·t_{i+1}(x) − d_{i+1}(x))⁺ and
h_i = M_i/(M_i + 1 − P_i) for i < L (0/0 = 1), h_L = P_L. With independent u_1..u_L, accept the longest prefix i whose
u_i < h_i. For i < L the next token is drawn ∝ (P_i·t_{i+1} − d_{i+1})⁺; for i = L it is the bonus.
Do not combine it with the token-wise test u·d < t: that mixture is biased.
Sun et al., "Block verification accelerates speculative decoding" (arXiv 2403.10444), Algorithm 2.
"""

import math

import torch

from ..reference.walk import first, prob
from .card import Scheme


def reference(round):
    node, live, active = round.start()
    path, targets, child = [], [round.target(node)], None
    ids = torch.arange(round.exists.shape[1], device=round.device)
    for _ in range(round.max_depth):  # the chain: each node's first child, until one is missing or a row has no finite logit
        usable = active & (targets[-1] > -math.inf).any(-1)
        child = first(round.children(live) & usable[:, None])
        active = child >= 0
        path.append(child)
        targets.append(torch.where(active[:, None], round.target(child), targets[-1]))
        live = torch.nn.functional.pad(active[:, None] & (ids == child[:, None]), (1, 0))
    drafts = [round.draft(child.clamp(min=0)) if len(ids) else targets[0] for child in path]
    path.append(torch.full_like(node, -1))  # nothing below the deepest node
    drafts.append(targets[-1])

    weight = torch.ones(round.batch, dtype=torch.float64, device=round.device)  # P_i
    length, kept_weight = torch.zeros_like(node), weight
    for i, child in enumerate(path[:-1], start=1):
        token = round.token(child)
        t, d = prob(targets[i - 1], token), prob(drafts[i - 1], token)
        ratio = torch.where(d > 0, t / d, torch.where(t > 0, math.inf, 0.0))
        weight = torch.where(t > 0, weight * ratio, 0.0).nan_to_num(nan=0.0).clamp(max=1.0)
        mass = (weight[:, None] * targets[i].exp() - drafts[i].exp()).clamp(min=0.0).sum(-1)
        certain = (mass == 0) & (weight == 1)
        leaf = path[i] < 0
        numerator = torch.where(leaf, weight, torch.where(certain, 1.0, mass))
        denominator = torch.where(leaf | certain, 1.0, mass + 1 - weight)
        accepted = (child >= 0) & round.draws.accept(child.clamp(min=0), numerator, denominator)
        length = torch.where(accepted, i, length)
        kept_weight = torch.where(accepted, weight, kept_weight)

    target = torch.stack(targets)[length, round.index]
    draft = torch.stack(drafts)[length, round.index]
    leaf = torch.stack(path)[length, round.index] < 0
    bonus = round.draws.clock_race(target, length)
    residual = round.draws.residual_race(round.residual(target, draft, kept_weight[:, None]))
    emitted = torch.where(leaf, bonus, residual)
    root_exists = round.start()[2]
    emitted = torch.where(root_exists & (target > -math.inf).any(-1), emitted, -1)

    nodes = torch.stack(path[:-1], -1) if round.max_depth else node.new_zeros(round.batch, 0)
    depth = torch.arange(round.max_depth, device=round.device)
    nodes = torch.where(depth < length[:, None], nodes, -1)
    tokens = torch.stack([round.token(n) for n in path], -1)
    depth = torch.arange(round.max_depth + 1, device=round.device)
    tokens = torch.where(depth < length[:, None], tokens, -1).scatter(1, length[:, None], emitted[:, None])
    return tokens, length.to(torch.int32), nodes.to(torch.int32)


CARD = Scheme(
    name="block",
    family="single draft",
    draft_kind="iid",
    trees=False,
    uses_draft_logits=True,
    options={},
    paper="Sun et al. 2024 (arXiv 2403.10444)",
    reference=reference,
    on_chains="block",
)
