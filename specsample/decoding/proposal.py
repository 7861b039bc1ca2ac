"""The protocol between the loop and a drafter.

A drafter is any object with

    propose(prefixes, shape, info) -> Proposal
    commit(tokens)

prefixes  `Prefixes`: a sequence of B int64 tensors, the tokens of each request so far (prompt and output, no padding)
shape     int: how many tokens to draft for each request, or how many levels of a tree, at least 1. Fewer are fine, as long as
          their number does not depend on their values; the loop drops those beyond a request's limit.
info      `RoundInfo`: the streams to draw from, and the tree that was requested
tokens    int64 [B, D + 1], the tokens the round emitted for each request, padded with −1. A finished request stays in the
          batch with a prefix that no longer grows; its rows are −1 throughout.

A drafter may propose any tree (Proposal.parents), requested or not, to a scheme that takes trees. Under every scheme but
`race` the number of a node's children must not depend on what is drawn below it, and siblings come from `ss.draft` with the
`kind` that the scheme requires: K of them in one call, or independent ones one by one, each with its own node number.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..sampling import Sampling
from .trees import Tree


class Prefixes(Sequence):
    """The tokens of each request so far. prefixes[b]: int64 [length of request b], a view.

    tokens   int64 [B, W], each request starting at column 0; arbitrary beyond its length
    lengths  int64 [B], on the CPU
    """

    def __init__(self, tokens, lengths):
        self.tokens, self.lengths = tokens, lengths

    def __len__(self):
        return self.tokens.shape[0]

    def __getitem__(self, b):
        return self.tokens[b, : self.lengths[b]]


class RoundInfo(NamedTuple):
    """What a drafter needs to draw from the right streams. Pass the fields on to `ss.draft(...)`:

        ss.draft(logits, kind=info.kind, sampling=info.sampling, seed=info.seed, position=info.position,
                 depth=i, node=i, backend=info.backend)          for the i-th token of the round, logits [B, V]

    seed      int64 [B]
    position  int64 [B]: the position of the round, i.e. the index of the first token it emits; equals the prefix's length
    samplings  tuple: the sampling of the drafts (generate's draft_sampling, or the target's), or one per path if several were given;
              `sampling` is the first of them
    scheme    the verification scheme
    kind      the `kind=` of `ss.draft` that the scheme requires
    active    bool [B], on the CPU: requests that are not finished
    backend   as given to generate
    process   None, or a function that applies generate's logits_processor to rows of logits, so that drafts can be accepted under
              it: process(logits [B, R, V], prefixes, texts) -> logits; texts[b][r]: the tuple of tokens between the prefix and
              row r, or None to leave the row unprocessed
    tree      what generate's `paths` or `tree` requests: None = a chain, a `Tree`, or an int, the nodes of a dynamic tree
    longest   the most tokens a request may reach, None = any number
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
    draft_logits  [B, R, V'], the rows the tokens were drawn from; None = the tokens are a function of the prefix (under `race`,
                  any tokens)
    draft_rows    int64 [N] or [B, N]: the row that each token was drawn from. None = row i for token i
    lists         int64 [N] or [B, N]: clock list of each token (scheme `lists`). None = as `verify` numbers them
    """

    tokens: torch.Tensor
    parents: object = None
    draft_logits: torch.Tensor | None = None
    draft_rows: torch.Tensor | None = None
    lists: torch.Tensor | None = None
