"""`weighted`: independent children from *different* draft laws at one node (several draft models, temperatures, prompts).

Select one child Y: each gets a random level from a weight that its token has, the lowest wins. The law P of Y is a finite sum for any
weights; verify it like a single draft: accept when u·P(Y) < t(Y), else one token of (t − P)⁺. So it is lossless for any weights, and a few
rounds of adapting them come close to the most that any rule can accept. The weights, the levels and the cells of tokens that share
a weight are in specsample/reference/mixture.py. `draft_rows` of `verify` says which row each child was drawn from.

At most 8 distinct draft rows count among the children of a node, by index: children of further rows are not looked at (they are
followed when a sibling with their token is accepted). With one child a node it is `token`.
"""

import torch

from ..reference.mixture import MixedSiblings, Mixture, select
from ..reference.walk import at, log_weights, prob, walk
from .card import Scheme

OPTIONS = {
    "levels": (16, (2, 32), "levels that a draw may have"),
    "rounds": (8, (0, 1000), "rounds in which the weights adapt; with cells, too many overfit"),
    "cells": (1024, (64, 4096), "cells of tokens that share a weight, about"),
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
