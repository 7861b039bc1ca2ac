"""`weighted`: independent children of one node from *different* draft distributions (several draft models, temperatures, prompts).

Select one child Y: each gets a random level that depends on its token's weight, and the lowest wins. For any weights, the law P of Y is
a finite sum; verify Y as a single draft: accept if u·P(Y) < t(Y), else one token of (t − P)⁺. So it is lossless for any weights, and
a few rounds of adapting them come close to the highest acceptance of any rule. The weights, the levels and the cells of tokens that
share a weight are described in specsample/reference/mixture.py. `draft_rows` of `verify` gives the row each child was drawn from.

At most 8 distinct draft rows among a node's children are considered, in index order: children of further rows are not tested (but are
followed if a sibling with the same token is accepted). With one child per node it is `token`.
"""

import torch

from ..reference.mixture import MixedSiblings, Mixture, select
from ..reference.walk import at, log_weights, prob, walk
from .card import Scheme

OPTIONS = {
    "levels": (16, (2, 32), "number of levels"),
    "rounds": (8, (0, 1000), "rounds of adapting the weights; with cells, too many overfit"),
    "cells": (1024, (64, 4096), "approximate number of cells of tokens that share a weight"),
}


def reference(round):
    return walk(round, _step)


def _step(round, node, children, target, depth):
    live = MixedSiblings(round, children)
    child, single = live.nodes[0], (live.count <= 1) | live.greedy  # draws that are all the same token: P = d
    law = live.drafts[0].exp() if live.drafts else torch.zeros_like(target)
    if not single.all():
        mixture = Mixture(target.exp(), live, *(int(x) for x in round.options))
        child = torch.where(single, child, select(round, live, mixture))
        law = torch.where(single[:, None], law, mixture.law)
    token = round.token(child)
    accepted = (child >= 0) & round.draws.accept(child.clamp(min=0), prob(target, token), at(law, token))
    residual = round.draws.residual_race(log_weights((target.exp() - law).clamp(min=0.0), target))
    emitted = torch.where(live.count > 0, residual, round.draws.clock_race(target, depth))
    return torch.where(accepted, child, -1), emitted


CARD = Scheme(
    name="weighted",
    family="multi-draft",
    draft_kind="iid",
    trees=True,
    uses_draft_logits=True,
    one_hot=False,
    options=OPTIONS,
    paper="this package; Khisti et al. 2024 (arXiv 2410.18234) for the decomposition",
    reference=reference,
    several_laws=True,
)
