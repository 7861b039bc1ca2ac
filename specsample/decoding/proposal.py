"""What the loop and a drafter tell each other.

A drafter is any object with

    propose(prefixes, shape, info) -> Proposal
    commit(tokens)

prefixes  `Prefixes`: a sequence of B int64 tensors, the tokens of each request so far (prompt and output, no padding)
shape     int: how many tokens to draft for each request, or how many levels of a tree, at least 1. Fewer are fine, as long as
          their number does not depend on their values; the loop drops those beyond a request's own limit.
info      `RoundInfo`: the streams to draw from, and the tree that was asked for
tokens    int64 [B, D + 1], what the round emitted for each request, padded with −1. A finished request stays in the
          batch with a prefix that does not grow any more; its rows are −1 throughout.

A drafter may propose any tree (Proposal.parents), asked for one or not, to a scheme that takes trees. Under every scheme but
`race` the number of a node's children must not depend on what is drawn below it, and siblings come from `ss.draft` as the
scheme's `kind` says: K of them in one call, or independent ones from the streams of their own node numbers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..sampling import Sampling
from .trees import Tree


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

        ss.draft(logits, kind=info.kind, sampling=info.sampling, seed=info.seed, position=info.position,
                 depth=i, node=i, backend=info.backend)          for the i-th token of the round, logits [B, V]

    seed      int64 [B]
    position  int64 [B]: the round's, i.e. the index of the first token it emits; equals the prefix's length
    samplings tuple: the law of the drafts (generate's draft_sampling, or the target's), or one a path where that was given;
              `sampling` is the first of them
    scheme    the verification scheme
    kind      the `kind=` of `ss.draft` that the scheme asks for
    active    bool [B], on the CPU: requests that are not finished
    backend   as given to generate
    process   None, or what generate's logits_processor does to rows of logits, for drafts that are to be accepted under it:
              process(logits [B, R, V], prefixes, texts) -> logits; texts[b][r]: the tokens after the prefix that row r follows,
              a tuple, or None to leave the row as it is
    tree      what generate's `paths` or `tree` asks for: None = a chain, a `Tree`, or an int, the nodes of a dynamic tree
    longest   how many tokens a request may come to have at most, None = any number
    """

    seed: torch.Tensor
    position: torch.Tensor
    samplings: tuple[Sampling, ...]
    scheme: str
    kind: str
    active: torch.Tensor
    backend: str | None
    tree: Tree | int | None = None
    process: Callable | None = None
    longest: int | None = None

    @property
    def sampling(self) -> Sampling:
        return self.samplings[0]


class Proposal(NamedTuple):
    """The drafts of a round.

    tokens        int64 [B, N]; −1 = no such node. None, [] or a tensor of shape [0] or [B, 0], of any dtype: nothing to
                  propose, as when `propose` returns None
    parents       [N] or [B, N], list or tensor: tree parents, −1 = child of the root; None = a chain
    draft_logits  [B, R, V'], the rows the tokens were drawn from; None = tokens that are a function of the prefix (or any tokens
                  under `race`)
    draft_rows    int64 [N] or [B, N]: the row that each token was drawn from. None = row i for token i
    lists         int64 [N] or [B, N]: clock list of each token (scheme `lists`). None = as `verify` numbers them
    """

    tokens: torch.Tensor
    parents: object = None
    draft_logits: torch.Tensor | None = None
    draft_rows: torch.Tensor | None = None
    lists: torch.Tensor | None = None
