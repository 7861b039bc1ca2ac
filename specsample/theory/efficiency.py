"""Block efficiency: expected tokens per target call."""

import numpy as np

from ..errors import expect
from .acceptance import acceptance
from .laws import count, pair

LIMIT = 1_000_000  # most prefixes to enumerate


def block_efficiency(acceptances=None, *, target=None, draft=None, depth=None, scheme="block"):
    """Expected tokens per target call for a chain: accepted drafts plus the one token that always follows.

    Either from acceptances [..., L], a_i = the probability of accepting at depth i given that depth i − 1 was accepted,

        1 + Σ_i Π_{j<=i} a_j -> float64 [...]

    (exact under token-level schemes if a_i does not depend on the prefix), or exactly, by enumerating all V^depth
    drafts, from the laws: target and draft are callables prefix (tuple) -> [V] (or arrays [V], the same law everywhere,
    or [depth, V], one per depth), depth the chain's length, scheme "block" (Sun et al. 2024, "Block verification
    accelerates speculative decoding", algorithm 2: P_i = min(1, P_{i−1}·t/d), M_i = Σ (P_i·t − d)⁺,
    h_i = M_i/(M_i + 1 − P_i), h_L = P_L, the longest i with u_i < h_i), "token" or "race" -> float.
    ValueError beyond 1 000 000 prefixes.
    """
    if acceptances is not None:
        expect(target is None and draft is None and depth is None, "acceptances", "either them or laws", "both")
        values = np.asarray(acceptances, dtype=np.float64)
        expect(values.ndim >= 1 and bool(((values >= 0) & (values <= 1)).all()), "acceptances",
               "chances [..., L] in [0, 1]", f"shape {values.shape}, or others among them")  # fmt: skip
        return (1 + np.cumprod(values, -1).sum(-1))[()]
    expect(target is not None and draft is not None and depth is not None, "acceptances",
           "them, or target, draft and depth", "neither")  # fmt: skip
    expect(scheme in ("block", "token", "race"), "scheme", "block, token or race", repr(scheme))
    after = _laws(target, draft, count(depth, "depth"))
    width = after(())[0].shape[-1]
    expect(width**depth <= LIMIT, "depth", f"at most {LIMIT} drafts V^depth", f"{width}^{depth}")
    if scheme == "block":
        return float(1 + _longest(after, (), 1.0, depth, 0)[1])
    return 1 + _node_by_node(after, (), depth, scheme)


def _laws(target, draft, depth):
    """prefix -> (t, d), checked"""

    def at(values, name):
        if callable(values):
            return values
        values = values.detach().cpu().double().numpy() if hasattr(values, "detach") else np.asarray(values)
        expect(values.ndim == 1 or values.ndim == 2 and len(values) == depth, name,
               f"[V], [depth = {depth}, V] or a callable", f"shape {values.shape}")  # fmt: skip
        return lambda prefix: values if values.ndim == 1 else values[len(prefix)]

    target, draft = at(target, "target"), at(draft, "draft")
    return lambda prefix: pair(target(prefix), draft(prefix))


def _longest(after, prefix, debt, depth, at):
    """(probability that some depth >= `at` passes its test, expectation of the largest such depth, 0 if none)

    The tests are independent given the drafts, so the deepest passing depth decides.
    """
    if at == depth:
        return debt, debt * at
    t, d = after(prefix)
    some, mean = 0.0, 0.0
    for x in np.flatnonzero(d > 0):
        below = _longest(after, prefix + (int(x),), min(1.0, debt * t[x] / d[x]), depth, at + 1)
        some, mean = some + d[x] * below[0], mean + d[x] * below[1]
    mass = np.maximum(debt * t - d, 0).sum()
    here = 1.0 if debt >= 1 else mass / (mass + 1 - debt)
    return some + (1 - some) * here, mean + (1 - some) * here * at


def _node_by_node(after, prefix, depth, scheme):
    """Σ over accepted tokens of their probability times (1 + what follows)."""
    t, d = after(prefix)
    if len(prefix) == depth - 1:
        return float(acceptance(t, d, 1, scheme))
    total = 0.0
    for x in np.flatnonzero((t > 0) & (d > 0)):
        chance = min(t[x], d[x]) if scheme == "token" else 1 / np.maximum(t / t[x], d / d[x]).sum()
        total += chance * (1 + _node_by_node(after, prefix + (int(x),), depth, scheme))
    return total
