"""Who proposes the tokens of a round.

A drafter is any object with

    propose(prefixes, shape, round) -> Proposal
    commit(tokens)

prefixes  `Prefixes`: a sequence of B int64 tensors, the tokens of each request so far (prompt and output, no padding)
shape     int: how many tokens to draft for each request, at least 1. Fewer are fine, as long as their number does not
          depend on their values; the loop drops those beyond a request's own limit.
round     `RoundInfo`: the streams to draw from
tokens    int64 [B, D + 1], what the round emitted for each request, padded with −1. A finished request stays in the
          batch with a prefix that does not grow any more; its rows are −1 throughout.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..api import draft
from ..sampling import Sampling
from ..schemes import SCHEMES
from .cache import CachedModel


class Prefixes(Sequence):
    """The tokens of each request so far. prefixes[b]: int64 [length of request b], a view.

    tokens   int64 [B, W], each request from column 0 on; beyond its length anything
    lengths  int64 [B], on the CPU
    """

    def __init__(self, tokens, lengths):
        self.tokens, self.lengths = tokens, lengths

    def __len__(self):
        return self.tokens.shape[0]

    def __getitem__(self, b):
        return self.tokens[b, : self.lengths[b]]


class RoundInfo(NamedTuple):
    """What a drafter needs to draw from the right streams; pass it on to `ss.draft(...)`:

        ss.draft(logits, kind=round.kind, sampling=round.sampling, seed=round.seed, position=round.position,
                 depth=i, node=i, backend=round.backend)          for the i-th token of the round, logits [B, V]

    seed      int64 [B]
    position  int64 [B]: the round's, i.e. the index of the first token it emits; equals the prefix's length
    sampling  the law of the drafts (generate's draft_sampling, or the target's)
    scheme    the verification scheme
    kind      the `kind=` of `ss.draft` that the scheme asks for
    active    bool [B], on the CPU: requests that are not finished
    backend   as given to generate
    """

    seed: torch.Tensor
    position: torch.Tensor
    sampling: Sampling
    scheme: str
    kind: str
    active: torch.Tensor
    backend: str | None


class Proposal(NamedTuple):
    """The drafts of a round.

    tokens        int64 [B, N]; −1 = no such node (N = 0: nothing to propose)
    parents       tree parents; None = a chain
    draft_logits  [B, N, V'], the rows the tokens were drawn from, row i for token i; None = tokens that are a function of
                  the prefix (or any tokens under `race`)
    """

    tokens: torch.Tensor
    parents: object = None
    draft_logits: torch.Tensor | None = None


class ModelDrafter:
    """A causal language model that drafts chains, with its own KV cache. One object serves one call of `generate`."""

    def __init__(self, model):
        self.model, self.cached = model, None

    def propose(self, prefixes, shape, round):
        device = prefixes.tokens.device
        if self.cached is None:
            self.cached = CachedModel(self.model, len(prefixes), device)
        # The cache forgets what was rejected and, after full acceptance, catches up on the last draft, by itself:
        # it is told the prefixes, and feeds what it lacks.
        logits = self.cached(prefixes, prefixes.tokens[:, :0])[:, 0]
        tokens, rows = [], []
        for i in range(shape):
            if i > 0:
                logits = self.cached.step(tokens[-1])
            drawn = draft(
                logits, kind=round.kind, sampling=round.sampling, seed=round.seed, position=round.position,
                depth=i, node=i, backend=round.backend,
            )  # fmt: skip
            tokens.append(drawn[:, 0])
            rows.append(logits)
        needed = SCHEMES[round.scheme].uses_draft_logits
        return Proposal(torch.stack(tokens, 1), None, torch.stack(rows, 1) if needed else None)

    def commit(self, tokens):
        pass


class NgramDrafter:
    """Prompt look-up: find the last earlier occurrence of the longest suffix (n tokens, then n − 1, … 1) and propose what
    followed it; when that runs into the end of the text, on from the start of it again, as repetition would.

    No model, no randomness. Good where the output copies from the prompt or from itself.
    """

    def __init__(self, n=3):
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n: expected an int >= 1, got {n!r}")
        self.n = n

    def propose(self, prefixes, shape, round):
        tokens = torch.full((len(prefixes), shape), -1)
        for b, prefix in enumerate(prefixes):
            if round.active[b]:
                prefix = prefix.cpu()
                follows = _continuation(prefix, self.n)
                if follows is not None:
                    tokens[b] = prefix[follows + torch.arange(shape) % (len(prefix) - follows)]
        return Proposal(tokens.to(prefixes.tokens.device))

    def commit(self, tokens):
        pass


def _continuation(prefix, longest):
    """Index of the token after the last earlier occurrence of the longest suffix found; None where none is."""
    for n in range(min(longest, len(prefix) - 1), 0, -1):
        found = (prefix[:-1].unfold(0, n, 1) == prefix[-n:]).all(1).nonzero()
        if len(found):
            return int(found[-1]) + n
    return None


def as_drafter(draft):
    """The `draft` argument of generate as a drafter, or None."""
    if draft is None or (callable(getattr(draft, "propose", None)) and callable(getattr(draft, "commit", None))):
        return draft
    if isinstance(draft, (list, tuple)):
        raise ValueError("draft: expected one drafter, got a sequence; this version drafts chains only")
    if not callable(draft):
        raise ValueError(
            "draft: expected a causal language model, an object with propose and commit, or None, "
            f"got {type(draft).__name__}"
        )
    return ModelDrafter(draft)
