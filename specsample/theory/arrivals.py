"""The race with several children: the probability that the target's token is among the first k arrivals of the draft's race.

Given that token j wins for the target at clock s·t_j (see race.py), every other token i arrives before j in the draft's race
with probability 1 − e^(−x_i), x_i = s (r·d_i − t_i)⁺, r = t_j/d_j, independently. So j has rank n + 1 with the probability
that exactly n of these events happen: a Poisson-binomial distribution, integrated over e^(−s) ds.
"""

from math import comb
from typing import NamedTuple

import numpy as np

from ..errors import expect
from .laws import count, pair, rowwise
from .race import by_finite_ratio, nodes, race_acceptance

LARGE = 192  # tokens of a law, plus 8 per child, that are treated individually; the others enter through power sums
ORDER = 6  # highest power of x_i in the power sums


class Bracketed(NamedTuple):
    """A value and a bound on its error."""

    value: np.ndarray
    error: np.ndarray


def arrivals_acceptance(target, draft, k, knots=128):
    """Probability that the target's token is among the first k arrivals of the draft's race (`race` with k children).

    Σ_j t_j F(r_j), F(r) = ∫ e^(−s) P(N ≤ k − 1) ds, N the number of tokens that arrive before j. There is no short closed
    form for k > 1; the integral is numerical, to about 1e-12. F decreases in r, so with more than `knots` distinct ratios F
    is computed at `knots` of them (including those of the target's likeliest tokens) and interpolated in log r, and
    `error` bounds the effect; otherwise error is 0. k = 1 is `race_acceptance`, exactly.
    Kobus and Gündüz 2025 ("Speculative sampling via exponential races"), its batch of drafts.
    target, draft: [..., V]; k >= 1, knots >= 2 -> Bracketed(value, error), float64 [...]
    """
    target, draft = pair(target, draft)
    k, knots = count(k, "k"), count(knots, "knots", 2)
    if k == 1:
        value = race_acceptance(target, draft)
        return Bracketed(value, np.zeros_like(value))
    shape, width = target.shape[:-1], target.shape[-1]
    rows = [up_to(t, d, k, knots) for t, d in zip(target.reshape(-1, width), draft.reshape(-1, width))]
    value, error = (np.array([row[i][-1] for row in rows]).reshape(shape)[()] for i in (0, 1))
    return Bracketed(value, error)


def up_to(t, d, k, knots=128):
    """The same for 1, 2, …, k children at once: t, d [V] -> Bracketed of [k]"""
    t, d, rows = by_finite_ratio(t, d)
    able = rows.ratio > 0
    if not able.any():
        return Bracketed(np.zeros(k), np.zeros(k))
    r, mass = rows.ratio[able], t[able]
    distinct = np.unique(r)
    interpolated = len(distinct) > knots
    if interpolated:  # half of the knots evenly spaced in log r, half at the likeliest tokens
        heavy = r[np.argsort(-mass, kind="stable")[: knots // 2]]
        even = np.exp(np.linspace(np.log(distinct[0]), np.log(distinct[-1]), knots - len(heavy)))
        even[[0, -1]] = distinct[[0, -1]]
        distinct = np.unique(np.concatenate([even, heavy]))
    F = np.minimum(np.cumsum(_ranks(t, d, distinct, k), 0), 1.0)  # the rule's error is about 1e-13
    right = np.minimum(np.searchsorted(distinct, r), len(distinct) - 1)
    left = np.where(distinct[right] == r, right, np.maximum(right - 1, 0))
    x, at = np.log(distinct), np.log(r)
    value = np.array([min(1.0, mass @ np.interp(at, x, f)) for f in F])
    if not interpolated:
        return Bracketed(value, np.zeros(k))
    return Bracketed(value, np.maximum(np.maximum(F[:, left] @ mass - value, value - F[:, right] @ mass), 0.0))


def _ranks(t, d, r, k):
    """Probability of exactly n other arrivals before a winner of ratio r: t, d [V] by ascending ratio, r [m] ascending -> [k, m].

    Tokens with a large draft probability are treated individually. The many others have small x_i wherever fewer than k arrivals
    are at all likely, and only their power sums matter: the generating function of one token is e^(−x) + (1 − e^(−x)) z,
    its logarithm Σ_j c_j(z) x^j/j! with c_1 = z − 1, c_2 = z − z², then c_{j+1} = (z − z²)·c_j'(z).
    """
    s, weight = nodes(1 + max(float(np.maximum(x * d - t, 0).sum()) for x in r))
    by_size = np.argsort(-d, kind="stable")
    large, small = by_size[: LARGE + 8 * k], np.sort(by_size[LARGE + 8 * k :])
    if len(small):
        chance = _by_power_sums(t[small], d[small], r, s, k)
    else:
        chance = np.zeros((k, len(r), len(s)))  # of exactly n earlier arrivals, n < k
        chance[0] = 1.0
    for t_i, d_i in zip(t[large], d[large]):
        active = np.flatnonzero(r * d_i > t_i)
        if len(active) == 0:
            continue
        first = active[0]  # r ascends
        stay = np.exp(-(r[first:, None] * d_i - t_i) * s)
        for n in range(k - 1, 0, -1):
            chance[n, first:] = chance[n, first:] * stay + chance[n - 1, first:] * (1 - stay)
        chance[0, first:] *= stay
    return (chance * (np.exp(-s) * weight)).sum(-1)


def _by_power_sums(t, d, r, s, k):
    """Probability of exactly n < k arrivals among small tokens [V], by ascending ratio -> [k, m, len(s)]"""
    end = np.searchsorted(t / d, r)  # number of tokens with a ratio below r
    logs = np.zeros((k, len(r), len(s)))  # coefficients of z^n in the logarithm of the generating function
    c = np.polynomial.Polynomial([-1.0, 1.0])
    factorial = 1.0
    for j in range(1, ORDER + 1):
        # Σ (r·d_i − t_i)^j over those tokens, by prefix sums of d^(j−i) t^i
        sums = 0.0
        for i in range(j + 1):
            prefix = np.concatenate([[0.0], np.cumsum(d ** (j - i) * t**i)])[end]
            sums = sums + comb(j, i) * (-1.0) ** i * r ** (j - i) * prefix
        factorial *= j
        powers = np.maximum(sums, 0.0)[:, None] * s**j / factorial
        for n, coefficient in enumerate(c.coef[:k]):
            logs[n] += coefficient * powers
        c = np.polynomial.Polynomial([0.0, 1.0, -1.0]) * (np.polynomial.Polynomial([0.0, 1.0]) if j == 1 else c).deriv()
    chance = np.zeros_like(logs)
    # Where a small token has x > 1, so do most large ones, and fewer than k arrivals have negligible probability.
    chance[0] = np.where(np.multiply.outer(r, s) * d.max() > 1, 0.0, np.exp(np.minimum(logs[0], 0.0)))
    for n in range(1, k):  # exp of a power series
        chance[n] = sum(m * logs[m] * chance[n - m] for m in range(1, n + 1)) / n
    return chance


def rank_entropy(target, draft):
    """H[R] in nats, where R is the rank of the target's winner among the distinct arrivals of the draft's race.

    P(R <= n) is `arrivals_acceptance` with n children; not arriving (d = 0) counts as one more value of R.
    target, draft: [..., V], V <= 128 (all V ranks are needed: V³ work; ValueError beyond) -> float64 [...]
    """
    target, draft = pair(target, draft)
    expect(target.shape[-1] <= 128, "target", "V <= 128", f"V = {target.shape[-1]}")
    return rowwise(_rank_entropy, target, draft)


def _rank_entropy(t, d):
    t, d, rows = by_finite_ratio(t, d)
    able = rows.ratio > 0
    chances = _ranks(t, d, rows.ratio[able], len(t)) @ t[able] if able.any() else np.zeros(1)
    chances = np.append(chances, max(1 - t.sum(), 0.0))
    chances = chances[chances > 1e-15]
    return float(max(-(chances @ np.log(chances)), 0.0))
