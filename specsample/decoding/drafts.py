"""A round's drafts, from the drafter to the target and to `verify`."""

import torch

from ..arguments import in_wider_dtype
from ..errors import expect
from .trees import Tree, depths, for_rows


class Drafts:
    """A proposal, checked and truncated to each request's limit.

    tokens   int64 [B, N], −1 beyond the limit; N = 0: nothing was proposed
    parents  lists of ints, one for all requests or one per request; None = a chain
    """

    def __init__(self, proposal, tree, batch, limit, device, card):
        """tree: the `Tree` that was requested; limit: list of B ints, how many levels each request may still use"""
        self.proposal, self.parents, self.depth = proposal, None, 0
        self.tokens = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        tokens = None if proposal is None else proposal.tokens
        if _is_empty(tokens, batch):
            return
        good = isinstance(tokens, torch.Tensor) and tokens.dim() == 2 and tokens.shape[0] == batch
        shape = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        expect(good, "Proposal.tokens", f"an int64 tensor of shape [{batch}, N]", shape)
        expect(tokens.dtype in (torch.int64, torch.int32), "Proposal.tokens", "int64", tokens.dtype)
        expect(tokens.device == device, "Proposal.tokens", f"a tensor on {device}", tokens.device)
        if isinstance(tree, Tree) and proposal.parents is tree.parents:
            self.parents, depth = [tree.parents], [tree.depth_of]
        else:
            self.parents = _parents(proposal.parents, batch, tokens.shape[1])
            chain = self.parents is None or card.trees
            expected = f"None or −1, 0, 1, … (scheme {card.name!r} takes one child a node)"
            expect(chain, "Proposal.parents", expected, proposal.parents)
            depth = [list(range(tokens.shape[1]))] if self.parents is None else list(map(depths, self.parents))
        self.depth, self.tokens, self.limit = 1 + max(map(max, depth)), tokens.long(), limit
        if min(limit) < self.depth:
            self.tokens = torch.where((torch.tensor(depth) < torch.tensor(limit)[:, None]).to(device), self.tokens, -1)

    def read(self, target, prefixes):
        """-> the target's logits: after each prefix, then after each node (of a tree, after each distinct prefix)"""
        if self.parents is None:
            return target(prefixes, self.tokens, [min(most, self.tokens.shape[1]) for most in self.limit])
        target.start(prefixes)
        self.places = []  # the place of each node, −1 if it has none; the last entry is the root's
        for b, tokens in enumerate(self.tokens.tolist()):
            places = [-1] * (len(tokens) + 1)
            target.insert(b, range(len(tokens)), self.parents[b if len(self.parents) > 1 else 0], tokens, places)
            self.places.append(places)
        return target.read()

    def nodes(self, target):
        """For each request the nodes that were read, parents before children: (row, parent's row, token)."""
        if self.parents is not None:
            known = [places.items() for places in target.known]
            return [[(place + 1, above + 1, token) for (above, token), place in own] for own in known]
        return [[(i + 1, i, token) for i, token in enumerate(tokens)] for tokens in self.tokens.tolist()]

    def layout(self, logits, card, draft_samplings):
        """-> logits and the arguments of `verify` that map nodes to rows. draft_samplings: one for all, or one per path"""
        device, rows, draft_logits = logits.device, self.proposal.draft_rows, self.proposal.draft_logits
        out = {"lists": self.proposal.lists if card.reads_lists else None}
        if self.parents is not None:
            out["parents"] = torch.tensor(self.parents if len(self.parents) > 1 else self.parents[0], device=device)
            out["rows"] = torch.tensor([[0] + [place + 1 for place in places[:-1]] for places in self.places], device=device)
            out["max_depth"] = self.depth
        if draft_logits is None or not card.uses_draft_logits:
            return logits, out
        logits, draft_logits = in_wider_dtype(logits, draft_logits)
        draft_sampling = draft_samplings[0]
        if len(draft_samplings) > 1:  # a row is sampled by the settings of its path, so each node needs a row
            index = torch.arange(len(logits), device=device)[:, None]
            draft_logits, rows = draft_logits[index, rows], None
            laws = [node % len(draft_samplings) for node in range(self.tokens.shape[1])]
            draft_sampling = for_rows(draft_samplings, laws, len(logits), device)
        if rows is None and self.parents is not None:
            rows = torch.arange(self.tokens.shape[1], device=device)
        return logits, out | {"draft_logits": draft_logits, "draft_rows": rows, "draft_sampling": draft_sampling}

    def rows(self, verdict):
        """-> a list per request: the target row that decided each emitted token"""
        if self.parents is None:
            return [list(range(self.tokens.shape[1] + 1))] * len(self.tokens)
        paths = zip(self.places, verdict.nodes.tolist())
        return [[0] + [places[node] + 1 for node in nodes if node >= 0] for places, nodes in paths]

    def decided(self, verdict, target):
        """Read the verdict and have the target keep the accepted tokens.
        -> for each request: emitted tokens, padded with −1; how many of them are drafts; at how many successive depths drafts
        were tested"""
        more = self.tokens if self.parents is None else verdict.nodes
        facts = torch.cat([verdict.num_accepted[:, None], more, verdict.tokens], 1).tolist()
        width = 1 + more.shape[1]
        accepted, more, emitted = [row[0] for row in facts], [row[1:width] for row in facts], [row[width:] for row in facts]
        if self.parents is None:
            return emitted, accepted, [row.index(-1) if -1 in row else len(row) for row in more]
        target.follow(emitted)
        drafted = []
        for count, nodes, places, known in zip(accepted, more, self.places, target.known):
            last = places[nodes[count - 1]] if count else -1
            drafted.append(count + any(above == last for above, _ in known))  # one more if it has children
        return emitted, accepted, drafted


def _is_empty(tokens, batch):
    """Whether a proposal has no tokens: None, [], B empty lists, or a tensor of shape [0] or [B, 0] of any dtype, which
    is what torch.tensor makes of an empty list."""
    if isinstance(tokens, torch.Tensor):
        return tuple(tokens.shape) in ((0,), (batch, 0))
    return tokens is None or isinstance(tokens, (list, tuple)) and (not tokens or list(tokens) == [[]] * batch)


def _parents(parents, batch, nodes):
    """A proposal's parents as lists of ints, one for all or one per request; None if they form a chain."""
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
