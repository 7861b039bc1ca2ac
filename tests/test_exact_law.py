"""Exact output laws by enumeration: every draft, every acceptance or rejection, every emitted token, with its probability. Nothing
is sampled, and the tolerance is float64 rounding (1e-12).

The schemes' code runs unchanged, with scripted random decisions: for C++ the templates of csrc/schemes over
csrc/testing/enumerate.h, for the reference its rounds with `Scripted` in place of `Draws`. Laws depend on the prefix.
"""

import itertools
from collections import defaultdict

import native
import numpy as np
import pytest
import torch
from conftest import CHAIN_SCHEMES
from enumeration import Scripted, completed, pair, target_law

from specsample.reference.walk import Round
from specsample.schemes import SCHEMES as CARDS

IID = ("token", "block")


CASES = [
    # vocabulary, depth, target style, draft style
    (2, 1, "dense", "dense"),
    (2, 3, "dense", "dense"),
    (3, 2, "dense", "dense"),
    (3, 2, "zeros", "dense"),
    (3, 2, "dense", "zeros"),
    (3, 2, "zeros", "zeros"),
    (3, 2, "one-hot", "dense"),
    (3, 2, "dense", "one-hot"),
    (2, 3, "one-hot", "one-hot"),
    (4, 2, "dense", "dense"),
    (3, 2, "same", "same"),
    (6, 1, "dense", "zeros"),
    (3, 0, "dense", "dense"),
]


def by_templates(scheme, target, draft, vocab, depth, one_hot=False):
    """{emitted tokens: probability} by the C++ template, drafts drawn from the draft's law (or fixed, if one-hot)."""
    module, outcomes, accepted = native.load(), defaultdict(float), 0.0
    for path in itertools.product(range(vocab), repeat=depth):
        prefixes = [path[:i] for i in range(depth + 1)]
        weight = float(path == tuple(range(depth))) if one_hot else np.prod([draft[p][x] for p, x in zip(prefixes, path)])
        if weight == 0:
            continue
        rows = [] if one_hot else [list(draft[p]) for p in prefixes]
        result = module.enumerate(scheme, path, [], [list(target[p]) for p in prefixes], rows, depth, [])
        assert abs(sum(result.values()) - 1) < 1e-12
        for (count, *emitted), probability in result.items():
            outcomes[tuple(emitted)] += weight * probability
            accepted += weight * probability * count
    return outcomes, accepted


def by_reference(scheme, target, draft, vocab, depth):
    """The same as `by_templates` for the reference's rounds: every combination is a row of one batch."""
    card, ids = CARDS[scheme], range(vocab)
    races = depth + 1 if scheme == "race" else 1
    combos = list(
        itertools.product(
            itertools.product(ids, repeat=depth), itertools.product((False, True), repeat=0 if scheme == "race" else depth),
            itertools.product(ids, repeat=races),
        )
    )  # fmt: skip
    paths = [c[0] for c in combos]
    weight = torch.tensor([np.prod([draft[p[:i]][p[i]] for i in range(depth)]) for p in paths], dtype=torch.float64)
    log = lambda law: torch.from_numpy(np.stack(law)).log()
    target_logits = log([[target[p[:i]] for i in range(depth + 1)] for p in paths])
    draft_logits = log([[draft[p[:i]] for i in range(depth + 1)] for p in paths])
    emitted = torch.tensor([c[2] for c in combos])
    draws = Scripted(torch.tensor([c[1] for c in combos]).reshape(len(combos), -1), emitted.expand(-1, depth + 1), emitted[:, 0])
    off = [1.0, 0.0, 1.0, 0.0]
    round = Round(
        target_logits, torch.tensor(paths).reshape(len(paths), depth), draft_logits if card.uses_draft_logits else None,
        None, None, None, None, depth, [], off, None, off, None, None, 0, None, 0, None, None, draws,
    )  # fmt: skip
    tokens, count, _ = card.reference(round)
    outcomes, accepted = defaultdict(float), 0.0
    for row in range(len(combos)):
        n = int(count[row])
        if scheme == "race":
            chance = np.prod([draws.clock_laws[i][row].item() for i in range(depth + 1)])
        elif n == depth:
            chance = draws.clock_laws[depth][row].item()
        else:
            chance = draws.residual_laws[n if len(draws.residual_laws) > 1 else 0][row].item()
        probability = (weight[row] * draws.probability[row]).item() * chance
        outcomes[tuple(tokens[row, : n + 1].tolist())] += probability
        accepted += probability * n
    return outcomes, accepted


RUNNERS = {"cpu": by_templates, "reference": by_reference}


@pytest.mark.parametrize("backend", RUNNERS)
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
@pytest.mark.parametrize("vocab, depth, target_style, draft_style", CASES)
def test_completed_sequences_have_the_target_law(backend, scheme, vocab, depth, target_style, draft_style):
    if backend == "reference" and scheme == "race" and vocab**depth * vocab ** (depth + 1) > 10_000:
        pytest.skip("too many combinations; the smaller cases cover it")
    target, draft = pair(vocab, depth, target_style, draft_style)
    outcomes, _ = RUNNERS[backend](scheme, target, draft, vocab, depth)
    np.testing.assert_allclose(completed(outcomes, target, vocab, depth), target_law(target, vocab, depth), atol=1e-12)


@pytest.mark.parametrize("scheme", IID)
@pytest.mark.parametrize("vocab, depth", [(2, 2), (3, 2), (4, 1), (3, 3)])
def test_one_hot_drafts(scheme, vocab, depth):
    """Deterministic drafts (n-gram look-up) without a draft law: accepted with the target's probability."""
    target, draft = pair(vocab, depth, "dense", "dense")
    outcomes, accepted = by_templates(scheme, target, draft, vocab, depth, one_hot=True)
    np.testing.assert_allclose(completed(outcomes, target, vocab, depth), target_law(target, vocab, depth), atol=1e-12)
    path = tuple(range(depth))
    reached = np.cumprod([target[path[:i]][x] for i, x in enumerate(path) if x < vocab])
    assert accepted == pytest.approx(reached.sum(), abs=1e-12)


@pytest.mark.parametrize("backend", RUNNERS)
def test_token_acceptance_is_the_overlap_and_block_accepts_at_least_as_much(backend):
    for seed in range(3):
        target, draft = pair(3, 2, "dense", "dense", seed)
        run = RUNNERS[backend]
        token, block = (run(scheme, target, draft, 3, 2)[1] for scheme in IID)
        expected = 0.0
        for x in range(3):
            first = min(target[()][x], draft[()][x])
            expected += first * (1 + np.minimum(target[(x,)], draft[(x,)]).sum())
        assert token == pytest.approx(expected, abs=1e-12)
        assert block >= token - 1e-12


def test_depth_one_block_is_token():
    target, draft = pair(5, 1, "dense", "zeros")
    token, block = (by_templates(scheme, target, draft, 5, 1)[0] for scheme in IID)
    assert token.keys() == block.keys()
    for key in token:
        assert token[key] == pytest.approx(block[key], abs=1e-12)


# Negative controls: plausible mistakes, built from the same parts, that the test above must catch.


def wrong_token(target, draft, vocab, residual):
    """Token verification of depth 1 with a given residual rule. -> {emitted: probability}"""
    t, d = target[()], draft[()]
    outcomes, rejected = defaultdict(float), 0.0
    for x in range(vocab):
        a = min(1.0, t[x] / d[x])
        rejected += d[x] * (1 - a)
        for y in range(vocab):
            outcomes[(x, y)] += d[x] * a * target[(x,)][y]
    rest = residual(t, d)
    for x in range(vocab):
        outcomes[(x,)] += rejected * rest[x] / rest.sum()
    return outcomes


@pytest.mark.parametrize(
    "residual, biased",
    [
        (lambda t, d: np.maximum(t - d, 0), False),  # the right one, which shows that the control itself is sound
        (lambda t, d: np.abs(t - d), True),  # not clipped
        (lambda t, d: t, True),  # not subtracted
        (lambda t, d: np.maximum(t - 0.99 * d, 0), True),  # slightly off
    ],
)
def test_control_residual(residual, biased):
    target, draft = pair(4, 1, "dense", "dense")
    got = completed(wrong_token(target, draft, 4, residual), target, 4, 1)
    gap = np.abs(got - target_law(target, 4, 1)).max()
    assert gap > 1e-4 if biased else gap < 1e-12


def test_control_block_with_the_token_test_inside():
    """Accept prefix by prefix with min(1, t/d), then take block's residual: biased, and caught."""
    vocab = 5  # below four tokens a residual often has one token only, whatever its scale
    target, draft = pair(vocab, 2, "dense", "dense")
    outcomes = defaultdict(float)
    for path in itertools.product(range(vocab), repeat=2):
        weight = np.prod([draft[path[:i]][path[i]] for i in range(2)])
        scale, reach = 1.0, weight
        for i in range(3):
            here = path[:i]
            if i == 2:
                for y in range(vocab):
                    outcomes[path + (y,)] += reach * target[path][y]
                break
            a = min(1.0, target[here][path[i]] / draft[here][path[i]])
            rest = np.maximum(scale * target[here] - draft[here], 0)
            rest = target[here] if rest.sum() == 0 else rest / rest.sum()
            for y in range(vocab):
                outcomes[here + (y,)] += reach * (1 - a) * rest[y]
            reach *= a
            scale = min(1.0, scale * target[here][path[i]] / draft[here][path[i]])
    gap = np.abs(completed(outcomes, target, vocab, 2) - target_law(target, vocab, 2)).max()
    assert gap > 1e-3
