"""Acceptance of the exponential race on shared clocks, and the bound on tokens per target call.

With clocks E_i ~ Exp(1) the target's token is argmin E_i/t_i and drafts come from E_i/d_i on the same clocks. Given
that token j wins for the target at E_j = s·t_j, the other clocks are s·t_i plus fresh ones, so everything depends on
j through its ratio r_j = t_j/d_j and on the excess a_i = (r_j·d_i − t_i)⁺, A(r) = Σ_i (r·d_i − t_i)⁺.

Integrals over s run over log s by the trapezoidal rule. Integrands are sums of exponentials s·e^(−λs), whose strip of
analyticity in log s has half-width π/2 for every rate λ, so the step below leaves a relative error of about
exp(−π²/step), 1e-13, whatever the scale of the laws.
"""

import numpy as np

from ..errors import expect
from .laws import by_ratio, count, pair, rowwise

STEP = 0.33


def nodes(fastest):
    """Quadrature nodes and weights for ∫_0^∞ f(s) ds, with f bounded by e^(−s) and nearly constant below 1/fastest."""
    s = np.exp(np.arange(np.log(1e-14 / fastest), np.log(50.0), STEP))
    return s, STEP * s


def race_acceptance(target, draft):
    """Σ_j 1 / Σ_i max(t_i/t_j, d_i/d_j): one child, the first arrival; over j with t_j, d_j > 0. Exact, O(V log V).

    Poisson matching; Daliri et al. 2025 ("Coupling without communication and drafter-invariant speculative decoding"),
    Kobus and Gündüz 2025. At least (1 − TV)/(1 + TV).
    target, draft: [..., V] -> float64 [...]
    """
    target, draft = pair(target, draft)
    rows = by_ratio(target, draft)
    t, d = (np.take_along_axis(x, rows.order, -1) for x in (target, draft))
    both = (t > 0) & (d > 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        total = rows.upper_target[..., :-1] / t + rows.lower_draft[..., :-1] / d
        return np.where(both, 1 / total, 0.0).sum(-1)


def lists_acceptance(target, draft, k):
    """k clock lists: child l is the draft's winner on list l, the target's token argmin_i min_l E_i^(l)/t_i.

    The probability that some child is the target's token,

        Σ_j ∫ k t_j e^(−kx) [1 − (1 − e^(−x A(r_j))) (1 − φ_j(x))^(k−1)] dx,
        φ_j(x) = d_j ∫_{x r_j}^∞ exp(−Σ_i (d_i y − x t_i)⁺) dy,

    since on the list where j won it is also the child unless an excess clock arrives earlier, and on each other list, whose
    clocks are all above x·t_i, it is the child with probability φ_j(x), a sum of exponentials between sorted ratios.
    The remaining integral is numerical (error below 1e-11). k = 1 is `race_acceptance`.
    Gumbel list sampling (Rowan et al. 2025), which bounds this from below; the integral is exact.
    target, draft: [..., V]; k >= 1 -> float64 [...]
    """
    target, draft = pair(target, draft)
    k = count(k, "k")
    return rowwise(lambda t, d: lists_of(t, d, [k])[0], target, draft)


def _excess(rows):
    """A(r_j) at each sorted finite ratio: r·d(lower) − t(lower), increasing from 0"""
    return np.maximum(rows.ratio * rows.lower_draft[1:] - rows.lower_target[1:], 0)


def by_finite_ratio(t, d):
    """Laws without the tokens that are never drafted, sorted: (t, d, Sorted)"""
    t, d = t[d > 0], d[d > 0]
    rows = by_ratio(t, d)
    return t[rows.order], d[rows.order], rows


def lists_of(t, d, ks):
    """The same for each number of children in `ks`; the integrals share their decay. t, d: checked laws [V] -> float64 [len(ks)]"""
    t, d, rows = by_finite_ratio(t, d)
    A, slope = np.maximum.accumulate(_excess(rows)), rows.lower_draft[1:]
    total = np.zeros(len(ks))
    for x, weight in zip(*nodes(max(ks) + A[t > 0].max(initial=0.0))):
        decay = np.exp(-x * A)
        # ∫ of exp(−x A) over [r_a, r_{a+1}] is (e^(−x A_a) − e^(−x A_{a+1})) / (x·slope); the last goes to infinity
        piece = -decay * np.expm1(-x * np.diff(A, append=np.inf)) / slope
        phi = np.minimum(d * np.cumsum(piece[::-1])[::-1], 1.0)
        for i, k in enumerate(ks):
            accepted = 1 - (1 - decay) * (1 - phi) ** (k - 1)
            total[i] += weight * k * np.exp(-k * x) * (t @ accepted)
    return np.minimum(total, 1.0)  # the rule's error is about 1e-13


def rejection_index_entropy(target, draft):
    """H[R] in nats, where R = 1, 2, … is the index of the accepted proposal in greedy rejection sampling with i.i.d. proposals.

    P(R > j) = Z(c_j), c_{j+1} = c_j + Z(c_j) (the thresholds of `recursive`); between two ratios Z is linear, so Z(c_j)
    falls geometrically there and the sum has a closed form. H[R] >= KL(target ‖ draft) (Harsha et al. 2010).
    target, draft: [..., V] -> float64 [...]; ValueError if the target has mass where the draft has none (R may be infinite)
    """
    target, draft = pair(target, draft)
    outside = float(np.where(draft > 0, 0.0, target).sum(-1).max(initial=0.0))
    expect(outside == 0, "draft", "mass wherever target has some", f"target mass {outside:.3g} outside its support")
    return rowwise(_entropy, target, draft)


def _entropy(t, d):
    t, d, rows = by_finite_ratio(t, d)
    c, nats, last = 0.0, 0.0, rows.ratio[-1]

    def clipped(c):
        j = int(np.searchsorted(rows.ratio, c, side="right"))
        return j, max(rows.upper_target[j] - c * rows.upper_draft[j], 0.0)

    while True:
        j, mass = clipped(c)
        if j == len(rows.ratio) or mass < 1e-17:
            return nats
        q, end = rows.upper_draft[j], rows.ratio[j]  # while c <= end, a step multiplies Z by 1 - q
        if q >= 1 - 1e-15:
            inside = 0
        elif end == last:
            inside = np.inf
        else:
            inside = np.floor(np.log1p(-min(q * (end - c) / mass, 1.0 - 1e-16)) / np.log1p(-q))
        if inside < 1:  # the step passes `end`
            c = max(c + mass, end)
            chance = mass - clipped(c)[1]
            nats -= chance * np.log(chance) if chance > 0 else 0.0
            continue
        left = np.exp(inside * np.log1p(-q))
        # probabilities q·mass·(1 − q)^m, m < inside: their sum, and Σ m q (1 − q)^m
        total = mass * (1 - left)
        mean = (1 - q) / q * (1 - left) - (inside * left if left > 0 else 0.0)
        nats -= total * np.log(q * mass) + mass * mean * np.log1p(-q)
        if left == 0:
            return nats
        c = c + total / q if c + total / q > c else end  # a mass below the last bit of c must not stop the walk


def race_bound(entropy, vocab, k):
    """Bound on tokens per target call for any drafting tree of k nodes under `race`: (log V + log(k + 1)) / H[R].

    Kobus and Gündüz 2025. A round ends at one of k + 1 nodes with one of at most V ranks, and by Wald's identity the
    entropy of that exit is H[R] per token. So R must be the rank among distinct arrivals (`rank_entropy`), with the same
    law at every prefix. The index among i.i.d. proposals (`rejection_index_entropy`) has unbounded range and a larger
    entropy, which would give a "bound" that races exceed.
    entropy: nats, a number or [...]; vocab: V; k: number of tree nodes, >= 0 -> float64 [...]; inf where the entropy is 0
    """
    entropy = np.asarray(entropy, dtype=np.float64)
    expect(bool((entropy >= 0).all()), "entropy", "numbers >= 0", "others among them")
    with np.errstate(divide="ignore"):
        return ((np.log(count(vocab, "vocab")) + np.log(count(k, "k", 0) + 1)) / entropy)[()]
