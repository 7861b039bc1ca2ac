"""`acceptance`: the probability that one of k children of a node is accepted, by scheme."""

import numpy as np

from ..errors import expect
from .arrivals import arrivals_acceptance
from .distinct import distinct_acceptance
from .importance import importance_acceptance
from .laws import count, pair
from .optimal import optimal_acceptance
from .race import lists_acceptance
from .thresholds import clipped_mass, kseq_threshold, recursive_thresholds


def acceptance(target, draft, k=1, scheme="token", *, samples=None, seed=0, s=None, alphabet=None):
    """Probability that a node accepts one of its k children.

    | scheme | formula | source |
    |---|---|---|
    | token, block | Σ min(t, d); k = 1 (block: a chain of depth 1) | Leviathan et al. 2022; Sun et al. 2024 |
    | race | first k arrivals: `arrivals_acceptance(...).value` | Kobus and Gündüz 2025 |
    | lists | k clock lists: `lists_acceptance` | Rowan et al. 2025 |
    | recursive | 1 − Z(c_k), c_{j+1} = c_j + Z(c_j) | SpecInfer, Miao et al. 2023 |
    | recursive_distinct | `distinct_acceptance` (`samples`, `seed`: its estimate) | Jeon et al. 2024 |
    | kseq | 1 − Z(c), c = `kseq_threshold` | SpecTr, Sun et al. 2023 |
    | importance | `importance_acceptance` (`s`, `alphabet`: its options) | Khisti et al. 2024, section 4 |
    | optimal, optimal_block | 1 − max_S { d(S)^k − t(S) }, without binning (block: depth 1) | Khisti et al. 2024 |
    | top | Σ_{x∉T} min(t, d') + t(T), T the k − 1 likeliest drafts, d' = d off T | Hu et al. 2025 |

    target, draft: probabilities [..., V], arrays or tensors -> float64 [...]. ValueError for `weighted`, whose acceptance depends
    on several draft distributions; for k > 1 under token and block; for settings of another scheme; and for rows that are not
    probability distributions.
    """
    expect(scheme in FORMULAS, "scheme", f"one of {', '.join(FORMULAS)}",
           f"{scheme!r}{_WITHOUT.get(scheme, '')}")  # fmt: skip
    target, draft = pair(target, draft)
    k = count(k, "k")
    for name, value in (("s", s), ("alphabet", alphabet)):
        expect(value is None or scheme == "importance", name, "None (a setting of scheme importance)", value)
    if scheme == "recursive_distinct":
        return distinct_acceptance(target, draft, k, samples=samples, seed=seed)
    if scheme == "importance":
        return importance_acceptance(target, draft, k, s, alphabet)
    return FORMULAS[scheme](target, draft, k)


def _token(target, draft, k):
    expect(k == 1, "k", "1 (schemes token and block have one child a node)", k)
    return np.minimum(target, draft).sum(-1)


def _top(target, draft, k):
    order = np.argsort(-draft, -1, kind="stable")
    t, d = (np.take_along_axis(x, order, -1) for x in (target, draft))
    rest = d[..., k - 1 :]
    left = rest.sum(-1, keepdims=True)
    drawn = np.divide(rest, left, out=np.zeros_like(rest), where=left > 0)
    listed = np.where(d[..., : k - 1] > 0, t[..., : k - 1], 0.0)  # a token that is never drafted cannot be a child
    return listed.sum(-1) + np.minimum(t[..., k - 1 :], drawn).sum(-1)


FORMULAS = {
    "token": _token,
    "block": _token,
    "race": lambda target, draft, k: arrivals_acceptance(target, draft, k).value,
    "lists": lists_acceptance,
    "recursive": lambda t, d, k: 1 - clipped_mass(t, d, recursive_thresholds(t, d, k)[..., -1]),
    "recursive_distinct": distinct_acceptance,
    "kseq": lambda t, d, k: 1 - clipped_mass(t, d, kseq_threshold(t, d, k)),
    "importance": importance_acceptance,
    "top": _top,
    "optimal": optimal_acceptance,
    "optimal_block": optimal_acceptance,
}

_WITHOUT = {
    "weighted": " (its children come from several draft laws: weighted_acceptance)",
}
