"""The residual threshold c: schemes with i.i.d. children reject all of them with probability Z(c) = Σ (t − c·d)⁺."""

import numpy as np

from .laws import count, pair


def clipped_mass(target, draft, c):
    """Z(c) = Σ_i (t_i − c·d_i)⁺: decreasing and convex in c, Z(0) = 1, Z(1) the total variation distance.

    target, draft: [..., V]; c: a number or [...] -> float64 [...]
    """
    target, draft = pair(target, draft)
    return _mass(target, draft, np.asarray(c, dtype=np.float64))


def _mass(target, draft, c):
    return np.maximum(target - c[..., None] * draft, 0).sum(-1)


def recursive_thresholds(target, draft, k):
    """c_0 = 0, c_{j+1} = c_j + Z(c_j): `recursive` has rejected j i.i.d. children with probability Z(c_j).

    Recursive rejection sampling with replacement: SpecInfer (Miao et al. 2023), algorithm 2; c_1 = 1 is `token`.
    target, draft: [..., V]; k >= 1 -> float64 [..., k + 1]
    """
    target, draft = pair(target, draft)
    c = [np.zeros(target.shape[:-1])]
    for _ in range(count(k, "k")):
        c.append(c[-1] + _mass(target, draft, c[-1]))
    return np.stack(c, -1)


def kseq_threshold(target, draft, k):
    """The root c in [1, k] of Z(c) = (1 − β(c))^k, β(c) = Σ min(d, t/c) = (1 − Z(c))/c.

    K-SEQ of SpecTr (Sun et al. 2023, k-sequential selection) at its smallest division factor: each child is accepted with
    probability β in turn. 1 − (1 − β)^k decreases in c and c·β = 1 − Z(c) increases, so the root is unique and bisection
    finds it to the last bits. Laws with disjoint supports (β = 0 everywhere) give 1.
    target, draft: [..., V]; k >= 1 -> float64 [...]
    """
    target, draft = pair(target, draft)
    k = count(k, "k")
    low = np.ones(target.shape[:-1])
    high = np.full(target.shape[:-1], float(k))
    for _ in range(60):
        middle = (low + high) / 2
        beta = np.minimum(draft, target / middle[..., None]).sum(-1)
        right = -np.expm1(k * np.log1p(-np.minimum(beta, 1 - 1e-16))) > middle * beta
        low, high = np.where(right, middle, low), np.where(right, high, middle)
    return ((low + high) / 2)[()]
