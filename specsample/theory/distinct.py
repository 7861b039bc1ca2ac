"""Acceptance of `recursive_distinct`: children drawn without replacement.

After the children R were rejected the residual is (t − c·d)⁺ / Z(c), and the next one is drawn from d off R, divided by
left = 1 − d(R). It is x and rejected with probability

    refused(x) = (d(x)/left − (t(x) − c·d(x))⁺/Z(c))⁺,   x not in R,

which is positive where t/d < c' = c + Z(c)/left, the next c; on R, where t/d < c, it would be d(x)/left. So the sum of
refused over a set of smallest ratios is a difference of prefix sums, whatever R. If R holds nearly all of d, these differences
suffer cancellation: such paths continue with laws off R, with the draft renormalised and c rescaled accordingly.
"""

import math
from typing import NamedTuple

import numpy as np

from ..errors import expect
from .laws import by_ratio, count, pair, rowwise

LIMIT = 200_000  # ordered draws of k − 1 children
NOTHING = 1e-14  # a mass that is only rounding error
LITTLE = 1e-3  # remaining draft mass below which a path gets its own prefix sums


class Estimate(NamedTuple):
    """A mean over draws and its standard error."""

    value: np.ndarray
    error: np.ndarray


def distinct_acceptance(target, draft, k, *, samples=None, seed=0):
    """Recursive rejection sampling without replacement (EAGLE; Jeon et al. 2024, "Recursive speculative decoding").

    The last child's acceptance is summed in closed form; the k − 1 before it are enumerated in every order, which is exact
    but limited to 200 000 orders (any V at k <= 2, V <= 59 at k = 4). Beyond that, pass `samples` to draw the first k − 1
    children that many times, seeded, and average the exact probability given them (`distinct_estimate`); the standard error
    is below 0.5/sqrt(samples).
    target, draft: [..., V] -> float64 [...]; ValueError beyond the limit without `samples`
    """
    target, draft = pair(target, draft)
    k = count(k, "k")
    if samples is None:
        orders = math.perm(target.shape[-1], k - 1)
        expect(0 < orders <= LIMIT or k > target.shape[-1] and math.factorial(target.shape[-1]) <= LIMIT, "k",
               f"at most {LIMIT} orders of k - 1 children under recursive_distinct (pass samples= for an estimate)",
               f"k = {k} of V = {target.shape[-1]}")  # fmt: skip
        return rowwise(lambda t, d: 1 - _rejected(_Row(t, d), _start(1), k), target, draft)
    rng = np.random.default_rng(seed)
    samples = count(samples, "samples")
    return rowwise(lambda t, d: distinct_estimate(t, d, k, samples, rng).value[-1], target, draft)


def distinct_estimate(t, d, k, samples, rng):
    """Estimates for 1, 2, …, k children from one set of draws; t, d: checked laws [V], rng: numpy Generator -> Estimate of [k]

    Each draw follows rejected children: the next one is drawn from refused/Σ refused, and the probability that all so far are
    rejected is the product of the sums. So the draws differ little. For one child the value is exact.
    """
    groups = [_Group(_Row(t, d), _start(samples), np.arange(samples))]
    value, error, chance = np.ones(k), np.zeros(k), np.ones(samples)
    for n in range(k):
        steps = [row.step(paths) for row, paths, _ in groups]
        for (_, _, at), step in zip(groups, steps):
            chance[at] *= step.total
        value[n], error[n] = 1 - chance.mean(), chance.std() / samples**0.5 if n else 0.0
        if n + 1 < k:
            u = (np.arange(samples) + rng.random(samples)) / samples if n == 0 else rng.random(samples)
            below = [row.reject(paths, step, row.draw(paths, step, u[at])) for (row, paths, at), step in zip(groups, steps)]
            groups = [new for (row, _, at), paths in zip(groups, below) for new in _regrouped(row, paths, at)]
    return Estimate(value, error)


class _Paths(NamedTuple):
    """The rejected children of n paths."""

    c: np.ndarray  # [n]
    left: np.ndarray  # [n]: draft mass of the tokens not rejected
    rejected: np.ndarray  # int [n, m]: their places in the order of ratios


class _Group(NamedTuple):
    """Paths that share prefix sums."""

    row: object
    paths: _Paths
    at: np.ndarray  # int [n]: which paths they are


class _Step(NamedTuple):
    """The test of the next child of n paths."""

    mass: np.ndarray  # [n]: Z(c)
    after: np.ndarray  # [n]: the next c
    low: np.ndarray  # int [n]: tokens with t/d < c
    high: np.ndarray  # int [n]: tokens with t/d < after; the others are never refused
    total: np.ndarray  # [n]: probability that the next child is refused


def _start(n):
    return _Paths(np.zeros(n), np.ones(n), np.zeros((n, 0), dtype=np.int64))


class _Row:
    """Prefix sums of one pair of laws."""

    def __init__(self, t, d):
        self.rows = by_ratio(t, d)
        self.t, self.d = t[self.rows.order], d[self.rows.order]

    def step(self, paths):
        c, rows = paths.c, self.rows
        low = np.searchsorted(rows.ratio, c)
        mass = np.maximum(rows.upper_target[low] - c * rows.upper_draft[low], 0.0)
        after = c + mass / np.where(paths.left > 0, paths.left, 1.0)
        high = np.maximum(np.searchsorted(rows.ratio, after), low)
        step = _Step(mass, after, low, high, None)
        total = np.clip(self.refused_before(paths, step, high), 0.0, 1.0)
        # No residual: every remaining child is accepted. No token left to draw: no further child.
        total = np.where(mass <= NOTHING, 0.0, np.where(paths.left <= 0, 1.0, total))
        return step._replace(total=total)

    def refused_before(self, paths, step, place):
        """Σ refused over the first `place` [n] tokens in the order of ratios"""
        rows, c = self.rows, paths.c
        tested = np.maximum(place, step.low)
        residual = rows.lower_target[tested] - rows.lower_target[step.low]
        residual = residual - c * (rows.lower_draft[tested] - rows.lower_draft[step.low])
        own = np.where(paths.rejected < place[:, None], self.d[paths.rejected], 0.0).sum(-1)
        return (rows.lower_draft[place] - own) / np.where(paths.left > 0, paths.left, 1.0) - residual / np.maximum(
            step.mass, NOTHING
        )

    def draw(self, paths, step, u):
        """Place of a refused child for each path, by inverting the sum above at u [n]"""
        goal, least, most = u * step.total, np.zeros_like(step.high), np.maximum(step.high - 1, 0)
        while (least < most).any():
            middle = (least + most) // 2
            beyond = self.refused_before(paths, step, middle + 1) > goal
            least, most = np.where(beyond, least, middle + 1), np.where(beyond, middle, most)
        return least

    def reject(self, paths, step, place):
        """paths with one more rejected child each"""
        left = np.maximum(paths.left - self.d[place], 0.0)
        return _Paths(step.after, left, np.concatenate([paths.rejected, place[:, None]], -1))


def _regrouped(row, paths, at):
    """Regroup the paths, giving those with little draft mass left their own prefix sums. -> [_Group]"""
    little = paths.left < LITTLE
    groups = [_Group(row, _Paths(*(x[~little] for x in paths)), at[~little])] if not little.all() else []
    if not little.any():
        return groups
    sets, which = np.unique(np.sort(paths.rejected[little], -1), axis=0, return_inverse=True)
    for i, rejected in enumerate(sets):
        members = np.flatnonzero(little)[which.reshape(-1) == i]
        t, d = np.delete(row.t, rejected), np.delete(row.d, rejected)
        left, start = d.sum(), _start(len(members))
        if left > 0:
            own = start._replace(c=paths.c[members] * left)
            groups.append(_Group(_Row(t, d / left), own, at[members]))
        else:
            groups.append(_Group(row, _Paths(*(x[members] for x in paths))._replace(left=start.c), at[members]))
    return groups


def _rejected(row, paths, k):
    """Probability that k more children of one path are all rejected."""
    step = row.step(paths)
    if k == 1 or step.total[0] in (0.0, 1.0):
        return float(step.total[0])
    high = int(step.high[0])
    every = _Paths(*(np.repeat(x, high + 1, 0) for x in paths))
    wide = _Step(*(np.repeat(x, high + 1, 0) for x in step))
    refused = np.diff(row.refused_before(every, wide, np.arange(high + 1)))
    places = np.setdiff1d(np.flatnonzero(refused > 0), paths.rejected[0])
    below = row.reject(_Paths(*(x[places] for x in every)), _Step(*(x[places] for x in wide)), places)
    groups = _regrouped(row, below, places)
    if k == 2:
        return float(sum(refused[at] @ row.step(paths).total for row, paths, at in groups))
    one = lambda paths, n: _Paths(*(x[[n]] for x in paths))
    return float(sum(refused[i] * _rejected(row, one(paths, n), k - 1) for row, paths, at in groups for n, i in enumerate(at)))
