"""The best possible acceptance with k i.i.d. children, in closed form, and the acceptance of the binned scheme `optimal`.

D = max_S { d(S)^k − t(S) } is the least rejection probability: if all children lie in S, which has probability d(S)^k,
an emitted child lies in S too, and the target allows that with probability t(S) only. The maximiser is a
set of tokens with the smallest ratios t/d, so one scan over sorted ratios finds it. For k = 2: Khisti et al. 2024
("Multi-draft speculative sampling: canonical decomposition and theoretical limits"), Theorems 2 and 3.
"""

from typing import NamedTuple

import numpy as np
import torch

from ..reference.coupling import Coupling
from .laws import by_ratio, count, pair, rowwise


class OptimalLaw(NamedTuple):
    """D: least rejection probability; c1, c2: the clips; b: law of the selected child."""

    D: np.ndarray  # [...]
    c1: np.ndarray  # [...]
    c2: np.ndarray  # [...]
    b: np.ndarray  # [..., V]


def _rejection(rows, k):
    return np.maximum((rows.lower_draft**k - rows.lower_target).max(-1), 0.0)


def optimal_acceptance(target, draft, k):
    """1 − D, D = max_S { d(S)^k − t(S) }: the optimum of the transport LP, O(V log V).

    target, draft: [..., V]; k >= 1 -> float64 [...]
    """
    target, draft = pair(target, draft)
    return (1 - _rejection(by_ratio(target, draft), count(k, "k")))[()]


def optimal_law(target, draft, k):
    """The law b = min(max(t, c2·d), c1·d) of the child that an optimal scheme selects, and its constants.

    Σ (t − c1·d)⁺ = D = Σ (c2·d − t)⁺, so Σ min(t, b) = 1 − D and the residual is (t − c1·d)⁺ / D. k = 1 gives b = d.
    The canonical decomposition (Khisti et al. 2024, Theorem 1) for any k.
    target, draft: [..., V]; k >= 1 -> OptimalLaw(D, c1, c2 [...], b [..., V]), float64
    """
    target, draft = pair(target, draft)
    rows = by_ratio(target, draft)
    rejection = _rejection(rows, count(k, "k"))
    low, high = _clips(rows, rejection)
    b = np.minimum(np.maximum(target, low[..., None] * draft), high[..., None] * draft)
    return OptimalLaw(rejection[()], high[()], low[()], b)


def _clips(rows, rejection):
    """(c2, c1), from Σ (t − c·d)⁺ = max over upper sets of t(S) − c·d(S), and its mirror image for lower sets.

    Each equation has a root on its own side of 1, and 1 itself is a root if a whole interval solves it.
    """
    gap = rejection[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        high = np.where(rows.upper_draft > 0, (rows.upper_target - gap) / rows.upper_draft, 0.0).max(-1)
        low = np.where(rows.lower_draft > 0, (rows.lower_target + gap) / rows.lower_draft, np.inf).min(-1)
    # A draft probability of 1e-300 turns a rounding error above into a clip above every ratio.
    largest = np.where(np.isfinite(rows.ratio), rows.ratio, 0.0).max(-1)
    return np.minimum(low, 1.0), np.maximum(np.minimum(high, largest), 1.0)


def two_draft_condition(target, draft, tolerance=1e-12):
    """Whether two i.i.d. children can always be accepted: t(S) >= d(S)² for all S, checked by the sorted scan.

    Khisti et al. 2024, Theorem 2. A violation of at most `tolerance` is treated as rounding.
    target, draft: [..., V] -> bool [...]
    """
    target, draft = pair(target, draft)
    return _rejection(by_ratio(target, draft), 2) <= tolerance


def binned_acceptance(target, draft, k, bins=1024):
    """The acceptance of the scheme `optimal`, which uses ratios t/d rounded to about `bins` linear bins on [0, k].

    The selected child's law is ρ_bin·d (specsample/reference/coupling.py), so the acceptance is Σ min(t, ρ_bin·d),
    slightly below `optimal_acceptance`.
    target, draft: [..., V]; k, bins >= 1 -> float64 [...]
    """
    target, draft = pair(target, draft)
    k, bins = count(k, "k"), count(bins, "bins")
    return rowwise(lambda t, d: _binned(t, d, k, bins), target, draft)


def _binned(t, d, k, bins):
    if k == 1:  # then the scheme equals `token`
        return float(np.minimum(t, d).sum())
    t, d = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in (t, d))
    ratio = Coupling(t, d, torch.tensor([k]), bins).solve().ratio_of_token
    return float(torch.minimum(t, ratio * d).sum())
