"""Acceptance of every scheme at many nodes and for several numbers of children, as summarised by `python -m specsample acceptance`."""

from typing import NamedTuple

import numpy as np

from ..errors import expect
from ..schemes import SCHEMES as CARDS
from .acceptance import FORMULAS
from .arrivals import up_to
from .distinct import distinct_acceptance, distinct_estimate
from .laws import count, pair
from .optimal import binned_acceptance, optimal_acceptance
from .race import lists_of

ORDERS = 10_000  # orders of children up to which `recursive_distinct` is enumerated


class Curve(NamedTuple):
    """Acceptance of one scheme for each of the given numbers of children; NaN where the scheme does not support that number."""

    value: np.ndarray  # [..., len(ks)]
    error: np.ndarray  # [..., len(ks)]: standard error where the value is an estimate, else 0


def acceptance_curves(target, draft, ks=(1, 2, 4, 8), *, schemes=None, samples=64, seed=0):
    """`acceptance` of every scheme for each k of `ks`, sharing the work between them.

    The values are exact, or integrals to better than 1e-5, except for `recursive_distinct` with more than two children on larger
    vocabularies: an estimate from `samples` seeded draws per row. `optimal` and `optimal_block` (at its first node) are computed as they
    run, with their bins; `optimum` is the bound `optimal_acceptance`.
    target, draft: [..., V] probabilities; schemes: names, None = all -> {scheme or "optimum": Curve}
    """
    target, draft = pair(target, draft)
    names = [*FORMULAS, "optimum"] if schemes is None else list(schemes)
    for name in names:
        expect(name in FORMULAS or name == "optimum", "schemes", f"some of {', '.join(FORMULAS)}, optimum", repr(name))
    ks = [count(k, "ks") for k in ks]
    samples, rng = count(samples, "samples"), np.random.default_rng(seed)
    shape, width = target.shape[:-1], target.shape[-1]
    rows = [_row(t, d, ks, names, samples, rng) for t, d in zip(target.reshape(-1, width), draft.reshape(-1, width))]
    return {name: Curve(*(np.array([row[name][i] for row in rows]).reshape(*shape, len(ks)) for i in (0, 1))) for name in rows[0]}


def _row(t, d, ks, names, samples, rng):
    """{scheme: (values, standard errors)} for one pair of laws [V]"""
    out, exact = {}, np.zeros(len(ks))
    for name in names:
        if name == "recursive_distinct":
            out[name] = _distinct(t, d, ks, samples, rng)
        elif name == "optimal_block" and "optimal" in out:
            out[name] = out["optimal"]
        else:
            out[name] = ((_TOGETHER.get(name) or _one_by_one(name))(t, d, ks), exact)
    return out


def _distinct(t, d, ks, samples, rng):
    estimate = distinct_estimate(t, d, max(ks), samples, rng)
    closed = {k: distinct_acceptance(t, d, k) for k in ks if k <= 2 or len(t) ** (k - 1) <= ORDERS}
    values = np.array([closed.get(k, estimate.value[k - 1]) for k in ks])
    return values, np.array([0.0 if k in closed else estimate.error[k - 1] for k in ks])


def _one_by_one(name):
    formula = optimal_acceptance if name == "optimum" else FORMULAS[name]
    single = name in CARDS and not CARDS[name].trees
    return lambda t, d, ks: np.array([formula(t, d, k) if k == 1 or not single else np.nan for k in ks])


def _binned(t, d, ks):
    return np.array([binned_acceptance(t, d, k) for k in ks])


# Schemes whose acceptance is computed for all numbers of children at once, or not by the entry in FORMULAS.
_TOGETHER = {
    "race": lambda t, d, ks: up_to(t, d, max(ks)).value[np.array(ks) - 1],
    "lists": lists_of,
    "optimal": _binned,
    "optimal_block": _binned,
}
