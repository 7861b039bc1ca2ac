"""Acceptance of `weighted`: independent children from different draft laws, one selected by levels, then a single-draft test."""

import numpy as np

from ..errors import expect
from .laws import count, law

LIMIT, START, STEP, TINY = 15.0, 6.0, 1.5, 1e-300


def weighted_acceptance(target, drafts, *, levels=16, rounds=8):
    """Probability that a node accepts one of its K children, child k drawn from drafts[k], under `weighted` with one weight per token.

    Σ min(t, P) with P(i) = Σ_k d^k_i Σ_n Pr(level = n | i) Π_{l<k} G_l(n) Π_{l>k} G_l(n − 1), G_l(n) = Σ_j d^l_j Pr(level > n | j),
    Pr(level <= n | i) = 1 − exp(−e^α_i·2^(n − ⌊levels/2⌋)) below the last level, and α ← clip(α + 1.5·log(t/P)), `rounds` times from
    log(t/mean of the drafts). With many rounds it converges to the optimum (`mixed_lp_acceptance`). The scheme's cells cost a little.
    Source: this package; Khisti et al. 2024, Theorem 1, for the decomposition into a selection and a single-draft test.
    target: [..., V]; drafts: [..., K, V] -> float64 [...]; ValueError naming the argument
    """
    target, drafts = laws_of(target, drafts)
    levels, rounds = count(levels, "levels", least=2), count(rounds, "rounds", least=0)
    tau = 2.0 ** (np.arange(1, levels) - levels // 2)
    log = lambda x: np.log(np.maximum(x, TINY))
    alpha = np.clip(log(target) - log(drafts.mean(-2)), -START, START)
    won = _winner(drafts, alpha, tau)
    for _ in range(rounds):
        alpha = np.clip(alpha + STEP * (log(target) - log(won)), -LIMIT, LIMIT)
        won = _winner(drafts, alpha, tau)
    return np.minimum(target, won).sum(-1)[()]


def laws_of(target, drafts):
    """Checked laws: target [..., V] and drafts [..., K, V], leading dimensions broadcast."""
    target, drafts = law(target, "target"), law(drafts, "drafts")
    good = drafts.ndim >= 2 and drafts.shape[-1] == target.shape[-1] and drafts.shape[-2] >= 1
    expect(good, "drafts", f"shape [..., K, V = {target.shape[-1]}]", drafts.shape)
    try:
        lead = np.broadcast_shapes(target.shape[:-1], drafts.shape[:-2])
    except ValueError as error:
        raise ValueError(f"drafts: expected a shape that broadcasts with {target.shape}, got {drafts.shape}") from error
    return np.broadcast_to(target, (*lead, target.shape[-1])), np.broadcast_to(drafts, (*lead, *drafts.shape[-2:]))


def _winner(drafts, alpha, tau):
    """P for weights α: drafts [..., K, V], alpha [..., V] -> [..., V]"""
    within = -np.expm1(-np.exp(alpha)[..., None] * tau)
    edge = np.zeros_like(alpha)[..., None]
    above = np.concatenate([edge + 1, 1 - within, edge], -1)  # Pr(level > n), n = 0 .. levels
    later = drafts @ above  # G [..., K, levels + 1]
    won = np.zeros_like(alpha)
    for k in range(drafts.shape[-2]):
        others = later[..., :k, 1:].prod(-2) * later[..., k + 1 :, :-1].prod(-2)
        won += drafts[..., k, :] * ((above[..., :-1] - above[..., 1:]) @ others[..., None])[..., 0]
    return won
