"""The transport problem itself as a linear program, for small vocabularies: a check of the closed form."""

import itertools

import numpy as np

from ..errors import expect
from .laws import count, pair, rowwise
from .weighted import laws_of

LIMIT = 100_000  # tuples of children, V^k


def lp_acceptance(target, draft, k):
    """The largest probability that the emitted token is one of k i.i.d. children, by linear programming (HiGHS).

    Variables: the mass moved from each set of children to each of its members. Constraints: at most the probability of each
    set, at most t of each token (SpecTr, Sun et al. 2023, equation 2, with equal sets of children merged).
    target, draft: [..., V] -> float64 [...], to the solver's tolerance of about 1e-8. ValueError if V^k > 100 000,
    ImportError without SciPy.
    """
    target, draft = pair(target, draft)
    k, width = count(k, "k"), target.shape[-1]
    expect(width**k <= LIMIT, "target", f"V^k <= {LIMIT} (a linear program that large would take minutes; "
           "optimal_acceptance is its closed form)", f"{width}^{k}")  # fmt: skip
    return rowwise(lambda t, d: _solve(t, [d] * k), target, draft)


def mixed_lp_acceptance(target, drafts):
    """`lp_acceptance` for children from different laws: child k is drawn from drafts[k], independently.

    target: [..., V]; drafts: [..., K, V] -> float64 [...]; errors as in `lp_acceptance`
    """
    target, drafts = laws_of(target, drafts)
    k, width = drafts.shape[-2:]
    expect(width**k <= LIMIT, "drafts", f"V^K <= {LIMIT} (a linear program that large would take minutes)", f"{width}^{k}")
    rows = zip(target.reshape(-1, width), drafts.reshape(-1, k, width))
    return np.array([_solve(t, d) for t, d in rows]).reshape(target.shape[:-1])[()]


def program(t, drafts):
    """The linear program for one target law [V] and K draft laws [V], as arguments of scipy.optimize.linprog."""
    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise ImportError('lp_acceptance needs SciPy: pip install "specsample[theory]"') from error
    weight = {}
    for children in itertools.product(*(np.flatnonzero(d > 0).tolist() for d in drafts)):
        key = frozenset(children)
        weight[key] = weight.get(key, 0.0) + float(np.prod([d[x] for d, x in zip(drafts, children)]))
    arcs = [(row, token) for row, members in enumerate(weight) for token in members]
    rows = [row for row, _ in arcs] + [len(weight) + token for _, token in arcs]
    columns = list(range(len(arcs))) * 2
    matrix = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(weight) + len(t), len(arcs)))
    return {"c": -np.ones(len(arcs)), "A_ub": matrix, "b_ub": np.concatenate([list(weight.values()), t]), "method": "highs"}


def _solve(t, drafts):
    try:
        from scipy.optimize import linprog
    except ImportError as error:
        raise ImportError('lp_acceptance needs SciPy: pip install "specsample[theory]"') from error
    done = linprog(**program(t, drafts))
    if done.status != 0:
        raise RuntimeError(f"lp_acceptance: the solver stopped without a solution: {done.message}")
    return -done.fun
