"""A round's drafts on their way from the drafter to the target and to `verify`."""

import torch

from ..errors import expect
from .trees import Tree, depths, for_rows


class Drafts:
    """A proposal, checked and cut to each request's own limit.

    tokens   int64 [B, N], −1 beyond the limit
    parents  lists of ints, one for all requests or one a request; None = a chain
    """

    def __init__(self, proposal, tree, batch, limit, device, card):
        """tree: the `Tree` that was asked for; limit: int64 [B] on the CPU, levels that each request may still use"""
        tokens = proposal.tokens
        good = isinstance(tokens, torch.Tensor) and tokens.dim() == 2 and tokens.shape[0] == batch
        shape = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        expect(good, "Proposal.tokens", f"an int64 tensor of shape [{batch}, N]", shape)
        expect(tokens.dtype in (torch.int64, torch.int32), "Proposal.tokens", "int64", tokens.dtype)
        expect(tokens.device == device, "Proposal.tokens", f"a tensor on {device}", tokens.device)
        self.proposal = proposal
        if isinstance(tree, Tree) and proposal.parents is tree.parents:
            self.parents, depth = [tree.parents], [tree.depth_of]
        else:
            self.parents = _parents(proposal.parents, batch, tokens.shape[1])
            chain = self.parents is None or card.trees
            expected = f"None or −1, 0, 1, … (scheme {card.name!r} takes one child a node)"
            expect(chain, "Proposal.parents", expected, proposal.parents)
            depth = [depths(row) for row in self.parents or [range(-1, tokens.shape[1] - 1)]]
        self.depth, self.tokens = 1 + max((d for row in depth for d in row), default=-1), tokens.long()
        if limit.min() < self.depth:
            self.tokens = torch.where((torch.tensor(depth) < limit[:, None]).to(device), self.tokens, -1)

    def read(self, target, prefixes):
        """-> the target's logits: after each prefix, then after each node, or in a tree after each distinct prefix"""
        if self.parents is None:
            return target(prefixes, self.tokens)
        target.start(prefixes)
        self.places = []  # of each node, −1 where there is none; the last is the root's
        for b, tokens in enumerate(self.tokens.tolist()):
            places = [-1] * (len(tokens) + 1)
            for node, (token, parent) in enumerate(zip(tokens, self.parents[b if len(self.parents) > 1 else 0])):
                if token >= 0 and (parent < 0 or places[parent] >= 0):
                    places[node] = target.insert(b, places[parent], token)
            self.places.append(places)
        self.forks = [{above for above, _ in known} for known in target.known]  # places with something below
        return target.read()

    def layout(self, logits, card, draft_sampling):
        """-> logits and the arguments of `verify` that say which row a node has. draft_sampling: a tuple is one a path"""
        device, rows, draft_logits = logits.device, self.proposal.draft_rows, self.proposal.draft_logits
        out = {"lists": self.proposal.lists if card.reads_lists else None}
        if self.parents is not None:
            out["parents"] = torch.tensor(self.parents if len(self.parents) > 1 else self.parents[0], device=device)
            out["rows"] = torch.tensor([[0] + [place + 1 for place in places[:-1]] for places in self.places], device=device)
            out["max_depth"] = self.depth
        if draft_logits is None or not card.uses_draft_logits:
            return logits, out
        if draft_logits.dtype != logits.dtype:
            # The wider dtype holds both exactly, so the laws stay those that were sampled from.
            wider = torch.promote_types(draft_logits.dtype, logits.dtype)
            draft_logits, logits = draft_logits.to(wider), logits.to(wider)
        if type(draft_sampling) is tuple:  # the law of a row is that of its path: a row a node
            index = torch.arange(len(logits), device=device)[:, None]
            draft_logits, rows = draft_logits[index, rows], None
            laws = [node % len(draft_sampling) for node in range(self.tokens.shape[1])]
            draft_sampling = for_rows(draft_sampling, laws, len(logits), device)
        if rows is None and self.parents is not None:
            rows = torch.arange(self.tokens.shape[1], device=device)
        return logits, out | {"draft_logits": draft_logits, "draft_rows": rows, "draft_sampling": draft_sampling}

    def end(self, verdict):
        """On the device, int64 [B]: of a chain how many tokens were drafted, of a tree the last accepted node (−1: none)"""
        if self.parents is None:
            return (self.tokens >= 0).long().cumprod(1).sum(1)
        return verdict.nodes.long().amax(1)  # a node comes after its parent

    def count(self, accepted, end):
        """How many drafts, one below the other, each request had up for a decision. All int64 [B] on the CPU."""
        if self.parents is None:
            return end
        more = [places[node] in forks for places, forks, node in zip(self.places, self.forks, end.tolist())]
        return accepted + torch.tensor(more).long()


def _parents(parents, batch, nodes):
    """A proposal's parents as lists of ints, one or one a request; None when they are a chain."""
    if parents is None:
        return None
    expected = f"None or ints of shape [{nodes}] or [{batch}, {nodes}], each from −1 to its own index − 1"
    try:
        given = torch.as_tensor(parents, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError):
        expect(False, "Proposal.parents", expected, parents)
    expect(tuple(given.shape) in ((nodes,), (batch, nodes)), "Proposal.parents", expected, tuple(given.shape))
    rows = given.reshape(-1, nodes).tolist()
    for row in rows:
        expect(all(-1 <= parent < node for node, parent in enumerate(row)), "Proposal.parents", expected, row)
    return None if all(row == list(range(-1, nodes - 1)) for row in rows) else rows
