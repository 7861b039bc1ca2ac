"""Acceptance of `recursive_distinct`: children drawn without replacement."""

import math

import numpy as np

from ..errors import expect
from .laws import count, pair, rowwise

LIMIT = 200_000  # ordered draws of k − 1 children


def distinct_acceptance(target, draft, k, *, samples=None, seed=0):
    """Recursive rejection sampling without replacement (EAGLE; Jeon et al. 2024, "Recursive speculative decoding").

    After the children R were rejected the residual is (t − c·d)⁺ / Z(c), with c ← c + Z(c) / (1 − d(R before)). The
    last child's acceptance is summed in closed form; the k − 1 before it are enumerated in every order, which is
    exact but limited to 200 000 orders (any V at k <= 2, V <= 59 at k = 4). Beyond that pass `samples`: the mean over
    that many seeded draws of the first k − 1 children of the exact probability given them; its standard error is below
    0.5/sqrt(samples).
    target, draft: [..., V] -> float64 [...]; ValueError beyond the limit without `samples`
    """
    target, draft = pair(target, draft)
    k = count(k, "k")
    if samples is None:
        orders = math.perm(target.shape[-1], k - 1)
        expect(0 < orders <= LIMIT or k > target.shape[-1] and math.factorial(target.shape[-1]) <= LIMIT, "k",
               f"at most {LIMIT} orders of k - 1 children under recursive_distinct (pass samples= for an estimate)",
               f"k = {k} of V = {target.shape[-1]}")  # fmt: skip
        return rowwise(lambda t, d: 1 - _rejected(t, d, np.ones(len(d), bool), 1.0, 0.0, k), target, draft)
    samples, generator = count(samples, "samples"), np.random.default_rng(seed)
    return rowwise(lambda t, d: 1 - np.mean([_one_path(t, d, k, generator) for _ in range(samples)]), target, draft)


def _step(t, d, alive, left, c):
    """(chance of each token to be drawn and rejected [V], the next c); None when no draw is left or none is rejected"""
    clipped = np.maximum(t - c * d, 0)
    mass = clipped.sum()
    if left <= 1e-15 or mass <= 1e-15:
        return None
    drawn = np.where(alive, d / left, 0.0)
    return np.maximum(drawn - clipped / mass, 0), c + mass / left


def _rejected(t, d, alive, left, c, k):
    """Chance that k more children are all rejected. alive: not rejected yet; left = d(alive)"""
    if np.maximum(t - c * d, 0).sum() <= 1e-15:
        return 0.0
    step = _step(t, d, alive, left, c)
    if step is None:  # no token is left to draw
        return 1.0
    refused, c = step
    if k == 1:
        return float(refused.sum())
    total = 0.0
    for x in np.flatnonzero(refused > 0):
        alive[x] = False
        total += refused[x] * _rejected(t, d, alive, d[alive].sum(), c, k - 1)
        alive[x] = True
    return total


def _one_path(t, d, k, generator):
    """The chance above along one draw of the first k − 1 children: an unbiased estimate."""
    alive, chance, c = np.ones(len(d), bool), 1.0, 0.0
    for k in range(k, 0, -1):
        left = d[alive].sum()
        if np.maximum(t - c * d, 0).sum() <= 1e-15:
            return 0.0
        step = _step(t, d, alive, left, c)
        if step is None:
            return chance
        refused, c = step
        if k == 1:
            return chance * float(refused.sum())
        drawn = np.where(alive, d, 0.0)
        x = generator.choice(len(d), p=drawn / drawn.sum())
        chance *= refused[x] * left / d[x]
        if chance == 0:
            return 0.0
        alive[x] = False
    return chance
