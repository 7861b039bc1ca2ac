"""Acceptance of `importance`, from the scheme's own letters and stages (specsample/schemes/importance.py)."""

import torch

from ..errors import expect
from ..schemes.importance import CARD, letters_of
from .laws import count, pair, rowwise


def importance_acceptance(target, draft, k, s=None, alphabet=None, bins=None):
    """Σ min(t, P), P the law of the draw selected from k in k − 1 stages; nothing is sampled.

    s, alphabet, bins: the scheme's options (default 5, 0, 1024). alphabet 0 is the order by t/d over the whole vocabulary, in bins;
    40 with s = 5 is the paper's form, which lies between `token` and `optimal`; for k = 2, s = alphabet = V is within 1e-6 of the
    optimum. Khisti et al. 2024 ("Multi-draft speculative sampling: canonical decomposition and theoretical limits"), section 4.
    target, draft: [..., V] -> float64 [...]; ValueError for settings that the scheme does not accept
    """
    target, draft = pair(target, draft)
    k, settings = count(k, "k"), {"bins": bins, "s": s, "alphabet": alphabet}
    for name, value in settings.items():
        default, (least, most), _ = CARD.options[name]
        settings[name] = default if value is None else count(value, name, least)
        expect(settings[name] <= most, name, f"at most {most}", value)
    return rowwise(lambda t, d: _accepted(torch.tensor(t), torch.tensor(d), k, settings), target, draft)


def _accepted(t, d, k, settings):
    if k == 1:  # then the scheme equals `token`
        return torch.minimum(t, d).sum().item()
    letters = letters_of(t[None], d[None], torch.tensor([k]), **settings)[0]
    for _ in range(k - 1):
        if not letters.stage():
            break
    return torch.minimum(t, letters.winner(d)).sum().item()
