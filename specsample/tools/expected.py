"""The expected number of target calls for a text, computed from the laws of target and draft instead of by drawing drafts.

Given the emitted text x (distributed as the target's, whatever the draft), the probability that a round starting at s accepts
at least i drafts is

    token  Π_k min(1, d_k/t_k)              since a drafted token is accepted with min(t, d) out of t
    race   Π_k a_k/t_k, a_k = 1 / Σ_i max(t_i/t_x, d_i/d_x)
    block  min_{j <= i} Π_{k <= j} d_k/t_k  (1 for j = 0), from P_i of the scheme times Π d/t

with t_k, d_k the probabilities of the k-th token after s. Averaged over all texts these give Σ min(t, d) and the formulas of
the other schemes. They are exact, so the expected number of calls is the sum of the probabilities that a round starts at each token.
"""

import torch


def calls(survival):
    """Expected number of rounds that produce a text of n tokens.

    survival: float64 [n, L]; [s, i] = probability that a round starting at token s accepts at least i + 1 drafts
    """
    n, depth = survival.shape
    starts = [1.0] + [0.0] * n
    for s in range(n):
        limit = min(depth, n - s - 1)  # a round emits one token more than it accepts
        reach = [1.0] + survival[s, :limit].tolist() + [0.0]
        for i in range(limit + 1):
            starts[s + i + 1] += starts[s] * (reach[i] - reach[i + 1])
    return sum(starts[:n])


def survival(scheme, target, draft, tokens, depth):
    """The probabilities above for a draft with a law at every position.

    target [n, V], draft [n, V']: probabilities, float64; tokens int64 [n] -> float64 [n, depth]

    A token may have been emitted although the target now gives it probability 0 (a model's rounding depends on the shape of the
    forward call, and at temperature 0 a tie may go the other way): it is then treated as having probability 1.
    """
    draft = torch.nn.functional.pad(draft, (0, max(0, target.shape[1] - draft.shape[1])))[:, : target.shape[1]]
    t, d = (law.gather(1, tokens[:, None])[:, 0] for law in (target, draft))
    ratio = d / t
    if scheme == "race":
        ratio = torch.stack([_race(*row) for row in zip(target, draft, t, d)])
    ratio = torch.where(t > 0, ratio, d)
    return _running(scheme, ratio, depth)


def survival_of_guesses(guesses, tokens):
    """The same for deterministic drafts, under every scheme: a guess is accepted if it equals the next token.

    guesses int64 [n, L] for a round at each position, tokens int64 [n] -> float64 [n, L]
    """
    ahead = torch.nn.functional.pad(tokens, (0, guesses.shape[1]), value=-2).unfold(0, guesses.shape[1], 1)
    return (guesses == ahead[: len(tokens)]).double().cumprod(1)


def _race(target, draft, t, d):
    """Probability that the draft's winner is x too, given that the target's is: a/t for probabilities t and d of x."""
    return 1 / (t * torch.maximum(target / t, draft / d).sum()) if d > 0 else torch.zeros_like(t)


def _running(scheme, ratio, depth):
    """ratio [n] -> [n, depth]: products along the text, clipped to probabilities as the scheme does"""
    ratio = torch.nn.functional.pad(ratio, (0, depth - 1), value=0.0).unfold(0, depth, 1)
    if scheme == "block":
        return ratio.cumprod(1).cummin(1).values.clamp(max=1.0)
    return ratio.clamp(max=1.0).cumprod(1)
