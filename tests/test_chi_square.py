"""Laws of emitted tokens with the real random numbers: 200 000 requests per test, chi-square with the failure rate of conftest.

The exact enumeration (test_exact_law.py) shows that the rules are right; these tests show that the streams supply independent
noise, on a narrow vocabulary (16), where shortcuts with the noise show, and on a wide one (4096, with rare cells pooled).
"""

import os

import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, numbers, p_value, probabilities

import specsample as ss

TRIALS = 200_000
ROUND = {"seed": 10**7, "position": 1000}


def chain(vocab, depth, noise, seed=1):
    """Logits of one chain: target [1, depth + 1, V], draft [1, depth, V], similar to each other."""
    target = numbers(1, depth + 1, vocab, seed=seed, scale=1.5)
    return target, target[:, :depth] + numbers(1, depth, vocab, seed=seed + 1, scale=noise)


def settings(sampling, backend, start):
    """Keywords for the requests from `start` on."""
    return {**ROUND, "seed": ROUND["seed"] + start, "sampling": sampling or ss.Sampling(), "backend": backend}


def drafts(draft, kind, backend, sampling=None, start=0, count=TRIALS):
    common = settings(sampling, backend, start)
    rows = [
        ss.draft(draft[:, i].expand(count, -1), kind=kind, depth=i, node=i, **common) for i in range(draft.shape[1])
    ]  # fmt: skip
    return torch.cat(rows, 1)


def verdict(scheme, backend, target, draft, tokens=None, sampling=None, start=0, count=TRIALS):
    if tokens is None:
        tokens = drafts(draft, ss.schemes()[scheme].draft_kind, backend, sampling, start, count)
    big = target.expand(count, -1, -1), tokens, draft.expand(count, -1, -1)
    return ss.verify(*big, scheme=scheme, **settings(sampling, backend, start))


def pooled(law, tokens, least=50):
    """Cells with at least `least` expected trials: likelier tokens alone, the rest in groups. -> (law, cells)"""
    order = law.argsort(descending=True)
    group = torch.zeros_like(order)
    mass, cell = 0.0, 0
    for token in order.tolist():
        group[token] = cell
        mass += law[token].item()
        if mass * TRIALS >= least:
            mass, cell = 0.0, cell + 1
    group = group.clamp(max=cell - 1)
    return torch.zeros(cell, dtype=torch.float64).index_add(0, group, law), group[tokens]


@pytest.mark.parametrize(
    "sampling", [ss.Sampling(), ss.Sampling(temperature=0.7, top_k=9, top_p=0.95, min_p=0.02)], ids=["plain", "filters"]
)
def test_narrow_vocabulary(backend, scheme, sampling):
    """The first token, and the second token given that the first was a draft: each has its row's law."""
    target, draft = chain(16, 2, noise=1.0)
    result = verdict(scheme, backend, target, draft, sampling=sampling)
    law = probabilities(target[0], sampling)
    assert p_value(result.tokens[:, 0], law[0]) > FAILURE_RATE
    # The rows here depend only on the depth, so the second emitted token has the second row's law whatever the first was, for
    # every rule that tests node by node; block decides jointly, and only completed sequences have the law.
    completed = torch.where(result.num_accepted > 0, result.tokens[:, 1], fresh(target[:, 1], sampling, backend))
    assert p_value(completed, law[1]) > FAILURE_RATE
    joint = law[0][:, None] * law[1][None, :]
    assert p_value(result.tokens[:, 0] * 16 + completed, joint) > FAILURE_RATE


def fresh(logits, sampling, backend):
    """The second token of requests that stopped at the first: from their next round, at its own position."""
    position = ROUND["position"] + 1
    return ss.sample(logits.expand(TRIALS, -1), sampling=sampling, seed=ROUND["seed"], position=position, backend=backend)


def test_wide_vocabulary(backend, scheme):
    """V = 4096 with pooled cells."""
    if backend == "reference" and "SPECSAMPLE_LONG" not in os.environ:
        pytest.skip("minutes; with SPECSAMPLE_LONG=1. (That it emits the same tokens as cpu is in test_same_integers.py.)")
    target, draft = chain(4096, 1, noise=0.7, seed=7)
    step = 500 if backend == "reference" else TRIALS  # requests at a time
    parts = [verdict(scheme, backend, target, draft, start=i, count=step) for i in range(0, TRIALS, step)]
    law, cells = pooled(probabilities(target[0])[0], torch.cat([part.tokens[:, 0] for part in parts]))
    assert len(cells) == TRIALS and len(law) > 500
    assert p_value(cells, law) > FAILURE_RATE


def test_control_unclipped_residual_is_caught():
    """|t − d| in place of (t − d)⁺ after a rejection, on the same drafts and decisions."""
    target, draft = chain(16, 1, noise=0.5)
    result = verdict("token", "reference", target, draft)
    law, wrong = probabilities(target[0])[0], (probabilities(target[0])[0] - probabilities(draft[0])[0]).abs()
    generator = torch.Generator().manual_seed(0)
    replaced = torch.multinomial(wrong, TRIALS, True, generator=generator)
    tokens = torch.where(result.num_accepted > 0, result.tokens[:, 0], replaced)
    assert p_value(result.tokens[:, 0], law) > FAILURE_RATE
    assert p_value(tokens, law) < CAUGHT


def race_acceptance(target, draft):
    """Σ_j 1 / Σ_i max(t_i/t_j, d_i/d_j) (Daliri et al. 2024; Kobus and Gündüz 2025)."""
    return sum(float(1 / torch.maximum(target / target[j], draft / draft[j]).sum()) for j in range(len(target)))


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
def test_race_accepts_as_its_formula_says(backend, noise):
    """… and drafts that do not share the clocks (`iid`), which pass any test of the output's law, do not."""
    target, draft = chain(16, 1, noise)
    t, d = probabilities(target[0])[0], probabilities(draft[0])[0]
    expected, sigma = race_acceptance(t, d), 0.5 / TRIALS**0.5
    result = verdict("race", backend, target, draft)
    assert abs(result.num_accepted.double().mean() - expected) < 5 * sigma

    unshared = verdict("race", backend, target, draft, drafts(draft, "iid", backend))
    assert torch.equal(unshared.tokens[:, 0], result.tokens[:, 0])  # the output does not show it
    assert p_value(unshared.tokens[:, 0], t) > FAILURE_RATE
    accepted = unshared.num_accepted.double().mean()
    assert accepted < expected - 50 * sigma  # ... but the acceptance can
    assert abs(accepted - (t * d).sum()) < 5 * sigma
