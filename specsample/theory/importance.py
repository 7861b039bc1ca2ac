"""Acceptance of `importance`, from the scheme's own letters and stages (specsample/schemes/importance.py)."""

import torch

from ..errors import expect
from ..schemes.importance import CARD, Letters
from .laws import count, pair, rowwise


def importance_acceptance(target, draft, k, s=None, alphabet=None):
    """Σ min(t, P), P the law of the draw selected from k in k − 1 stages; nothing is sampled.

    s: letters whose pairs are shared freely (default 5), alphabet: tokens that are a letter of their own (default 40), as the
    scheme's options. Between `token` and `optimal`; for k = 2 and s = alphabet = V the optimum, less at most 1e-6. Khisti et
    al. 2024 ("Multi-draft speculative sampling: canonical decomposition and theoretical limits"), section 4.
    target, draft: [..., V] -> float64 [...]; ValueError for settings that the scheme does not take
    """
    target, draft = pair(target, draft)
    k, settings = count(k, "k"), []
    for name, value in (("s", s), ("alphabet", alphabet)):
        default, (least, most), _ = CARD.options[name]
        settings.append(default if value is None else count(value, name, least))
        expect(settings[-1] <= most, name, f"at most {most}", value)
    return rowwise(lambda t, d: _accepted(t, d, k, *settings), target, draft)


def _accepted(t, d, k, s, alphabet):
    letters = Letters(torch.tensor(t), torch.tensor(d), s, alphabet)
    for _ in range(k - 1):
        if not letters.stage():
            break
    return letters.accepted
