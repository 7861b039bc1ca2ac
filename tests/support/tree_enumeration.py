"""Laws of the multi-draft schemes on trees, by enumeration: with their C++ templates for any tree, with the reference for one node.

The templates of csrc/schemes run on csrc/testing/enumerate.h for every assignment of tokens to the nodes, weighted by the
probability of these drafts. Only the selection of `optimal` and `optimal_block` is integrated numerically there (to about 1e-7).
"""

import itertools
from collections import defaultdict

import native
import numpy as np
import torch
from enumeration import Scripted, completed, target_law
from trees import STAR

import specsample as ss
from specsample.reference.walk import Round
from specsample.schemes import SCHEMES as CARDS

SELECTING = ("optimal", "optimal_block")


COMPARING = ("importance",)  # select by comparing two draws at a time


BINS = 256  # for the schemes with bins, unless a test says otherwise


SETTINGS = {"bins": BINS, "levels": 2, "rounds": 4, "cells": 64}  # so that there are few outcomes to enumerate


def options(scheme, **changes):
    """The scheme's settings in the order of its card."""
    changes = SETTINGS | changes
    return [float(changes.get(name, setting[0])) for name, setting in CARDS[scheme].options.items()]


def tolerance(scheme):
    return 2e-6 if scheme in SELECTING else 1e-11


def prefix_of(node, parents, tokens):
    return () if node < 0 else (*prefix_of(parents[node], parents, tokens), tokens[node])


def drafts(kind, parents, draft, vocab):
    """Every assignment of tokens to the nodes with its probability, the children drawn as `kind` says. -> [(tokens, weight)]"""
    groups = defaultdict(list)
    for node, parent in enumerate(parents):
        groups[parent].append(node)
    found = [({}, 1.0)]
    for parent, nodes in sorted(groups.items()):
        step = []
        for tokens, weight in found:
            if parent >= 0 and tokens[parent] < 0:  # below a node that does not exist
                step.append((tokens | dict.fromkeys(nodes, -1), weight))
                continue
            law = draft[prefix_of(parent, parents, tokens)]
            step += [(tokens | dict(zip(nodes, x)), weight * w) for x, w in children(kind, law, len(nodes)) if w > 0]
        found = step
    return [([tokens[i] for i in range(len(parents))], weight) for tokens, weight in found]


def children(kind, law, k):
    if kind == "iid":
        for x in itertools.product(range(len(law)), repeat=k):
            yield x, np.prod(law[list(x)])
    elif kind == "distinct":
        for x in itertools.product(range(-1, len(law)), repeat=k):
            weight, left = 1.0, law.copy()
            for token in x:
                total = left.sum()
                weight *= (left[token] / total if total > 0 else 0.0) if token >= 0 else float(total <= 0)
                if token >= 0:
                    left[token] = 0.0
            yield x, weight
    else:
        likeliest = [i for i in np.argsort(-law, kind="stable") if law[i] > 0][: k - 1]
        fixed = (*likeliest, *[-1] * (k - 1 - len(likeliest)))
        rest = law.copy()
        rest[likeliest] = 0.0
        if rest.sum() <= 0:
            yield (*fixed, -1), 1.0
        else:
            for token in range(len(law)):
                yield (*fixed, token), rest[token] / rest.sum()


def distinct_assignments(assignments):
    """Sum the weights of equal assignments."""
    total = defaultdict(float)
    for tokens, weight in assignments:
        total[tuple(tokens)] += weight
    return total.items()


def by_templates(scheme, target, draft, vocab, depth, parents, change=None, **settings):
    """{emitted tokens: probability}, expected accepted length; change(tokens): how a wrong drafter alters the drafts"""
    module, outcomes, accepted = native.load(), defaultdict(float), 0.0
    for tokens, weight in distinct_assignments(drafts(CARDS[scheme].draft_kind, parents, draft, vocab)):
        tokens = change(list(tokens)) if change else list(tokens)
        prefixes = [prefix_of(node, parents, tokens) if node < 0 or tokens[node] >= 0 else () for node in range(-1, len(parents))]
        prefixes = [p if -1 not in p else () for p in prefixes]
        rows = [[list(law[p]) if p in law else [0.0] * vocab for p in prefixes] for law in (target, draft)]
        result = module.enumerate(scheme, tokens, parents, *rows, depth, options(scheme, **settings))
        assert abs(sum(result.values()) - 1) < 1e-9
        for (count, *emitted), probability in result.items():
            outcomes[tuple(emitted)] += weight * probability
            accepted += weight * probability * count
    return outcomes, accepted


def gap(outcomes, target, vocab, depth):
    return np.abs(completed(outcomes, target, vocab, depth) - target_law(target, vocab, depth)).max()


def by_reference(scheme, target, draft, vocab, k, **settings):
    """One node with k children by the reference's rule: each combination of drafts, tests and races is one row of a batch."""
    card, ids = CARDS[scheme], range(vocab)
    assignments = list(distinct_assignments(drafts(card.draft_kind, STAR(k), draft, vocab)))
    decisions = 2 * k - 1 if scheme in COMPARING else k
    rows = list(itertools.product(assignments, itertools.product((False, True), repeat=decisions), ids, ids))
    tokens = torch.tensor([r[0][0] for r in rows])
    weight = np.array([r[0][1] for r in rows])
    log = lambda law: torch.from_numpy(np.stack(law)).log()
    below = [[target[(x,)] if x >= 0 else target[()] for x in r[0][0]] for r in rows]
    target_logits = torch.stack([log([target[()], *laws]) for laws in below])
    draft_logits = log([draft[()]])[None].expand(len(rows), 1, -1)
    bonus, residual = torch.tensor([r[3] for r in rows]), torch.tensor([r[2] for r in rows])
    draws = Scripted(torch.tensor([r[1] for r in rows]), bonus[:, None].expand(-1, 2), residual, nodes=k)
    off = [1.0, 0.0, 1.0, 0.0]
    zero = torch.zeros(k, dtype=torch.int64)
    round = Round(
        target_logits, tokens, draft_logits, torch.tensor(STAR(k)), None, zero, None, 1, options(scheme, **settings),
        off, None, off, None, None, 0, None, 0, None, None, draws,
    )  # fmt: skip
    emitted, count, nodes = card.reference(round)
    outcomes, accepted = defaultdict(float), 0.0
    for row in range(len(rows)):
        n = int(count[row])
        drawn = max((i for i, x in enumerate(tokens[row].tolist()) if x >= 0), default=-1)
        raced = n == 0 or scheme == "top" and nodes[row, 0] != drawn  # `top` accepts every child but the last by its race
        # A race that does not count is enumerated all the same: each of its tokens gets an equal share.
        chance = draws.clock_laws[1][row].item() if n else 1 / vocab
        chance *= draws.residual_laws[0][row].item() if raced else 1 / vocab
        probability = weight[row] * draws.probability[row].item() * chance
        outcomes[tuple(emitted[row, : n + 1].tolist())] += probability
        accepted += probability * n
    return outcomes, accepted


BINARY = [-1, -1, 0, 0, 1, 1]


def coarse(scheme):
    """The smallest value of every setting."""
    return {"options": {name: setting[1][0] for name, setting in CARDS[scheme].options.items()}}


def complete(args, depth=2):
    """Tokens [trials, depth + 1]: a round, then plain samples at the positions that it left empty."""
    verdict = ss.verify(**args, backend="cpu")
    tokens = verdict.tokens
    for i in range(1, depth + 1):
        rows = args["target_logits"][:, i]
        plain = ss.sample(rows, seed=args["seed"], position=args["position"] + 1000 + i, backend="cpu")
        tokens[:, i] = torch.where(tokens[:, i] >= 0, tokens[:, i], plain)
    return tokens


def code(tokens, vocab=4):
    out = torch.zeros_like(tokens[:, 0])
    for column in tokens.unbind(-1):
        out = out * vocab + column
    return out
