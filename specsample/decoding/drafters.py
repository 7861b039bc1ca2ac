"""Drafters, which propose the tokens of a round: a model, several models, or look-up in the text so far. Protocol: proposal.py."""

import torch

from ..api import draft
from ..schemes import SCHEMES
from .limits import position_limit
from .proposal import Prefixes, Proposal
from .tree_cache import cached_model
from .tree_drafts import draft_heaviest, draft_static


class ModelDrafter:
    """A causal language model that drafts chains or trees, with its own KV cache. One object serves one call of `generate`.

    It does not read finished requests, nor draft beyond its last position (limits.py).

    paths  set of the paths that this model drafts, if each path has a model; None = all
    room   list of B ints: how many levels could be drafted for each request in the last round
    """

    def __init__(self, model, paths=None):
        self.model, self.paths, self.cached, self.grows, self.room, self.read = model, paths, None, False, None, None

    def propose(self, prefixes, shape, info):
        tree = info.tree
        prefixes = self._readable(prefixes, shape, info)
        if not any(self.room):
            return Proposal(None)
        if self.cached is None:
            self.cached = cached_model(self.model, prefixes, info.longest, tree is not None)
        if tree is None:
            return self._chain(prefixes, info)
        self.grows = True
        if isinstance(tree, int):
            return draft_heaviest(self.cached, prefixes, self.room, info)
        mine = laws = None
        if self.paths is not None:
            mine = frozenset(node for node in range(len(tree.parents)) if node % tree.paths in self.paths)
        if len(info.samplings) > 1:
            laws = tuple(node % tree.paths for node in range(len(tree.parents)))
        return draft_static(self.cached, prefixes, self.room, info, mine, laws)

    def _readable(self, prefixes, shape, info):
        """Set `room`. -> the prefixes; for a request without room, the prefix read before, since every call reads all requests"""
        lengths, limit = prefixes.lengths.tolist(), position_limit(self.model)
        most = [shape if limit is None else min(shape, max(0, limit + 1 - length)) for length in lengths]
        self.room = [levels if going else 0 for levels, going in zip(most, info.active.tolist())]
        before = self.read or [length if limit is None else min(length, limit) for length in lengths]
        self.read = [length if levels else old for length, levels, old in zip(lengths, self.room, before)]
        return Prefixes(prefixes.tokens, torch.tensor(self.read))

    def _chain(self, prefixes, info):
        # The cache itself drops rejected tokens and, after full acceptance, reads the last draft: it is given the prefixes and
        # feeds whatever it lacks.
        logits = self.cached(prefixes, prefixes.tokens[:, :0])[:, 0]
        texts = [() if levels else None for levels in self.room]
        tokens, rows, count = [], [], max(self.room)
        for i in range(count):
            if i > 0:
                logits = self.cached.step(tokens[-1], [i < levels for levels in self.room])
            if info.process is not None:
                logits = info.process(logits[:, None], prefixes, [[text] for text in texts])[:, 0]
            drawn = draft(
                logits, kind=info.kind, sampling=info.sampling, seed=info.seed, position=info.position,
                depth=i, node=i, backend=info.backend,
            )  # fmt: skip
            tokens.append(drawn[:, 0])
            rows.append(logits)
            if info.process is not None:
                below = zip(texts, tokens[-1].tolist(), self.room)
                texts = [(*text, t) if text is not None and t >= 0 and i + 1 < levels else None for text, t, levels in below]
        tokens = torch.stack(tokens, 1)
        if min(self.room) < count:
            there = torch.arange(count) < torch.tensor(self.room)[:, None]
            tokens = torch.where(there.to(tokens.device), tokens, -1)
        needed = SCHEMES[info.scheme].uses_draft_logits
        return Proposal(tokens, None, torch.stack(rows, 1) if needed else None)

    def commit(self, tokens):
        if self.grows:  # after a tree, the cache must be told what to keep
            self.cached.follow(tokens.tolist())
            self.grows = False


class PathsDrafter:
    """One model per path. A model with several paths reads their common prefixes once."""

    def __init__(self, models):
        paths = {}
        for path, model in enumerate(models):
            paths.setdefault(id(model), (model, set()))[1].add(path)
        self.drafters = [ModelDrafter(model, mine) for model, mine in paths.values()]

    def propose(self, prefixes, shape, info):
        proposals = [drafter.propose(prefixes, shape, info) for drafter in self.drafters]
        self.room = [min(levels) for levels in zip(*(drafter.room for drafter in self.drafters))]
        proposals = [proposal for proposal in proposals if proposal.tokens is not None]
        if not proposals:
            return Proposal(None)
        tokens = torch.stack([proposal.tokens for proposal in proposals]).amax(0)  # each node is −1 in all proposals but one
        if proposals[0].draft_logits is None:
            return proposals[0]._replace(tokens=tokens)
        logits = [proposal.draft_logits for proposal in proposals]
        width, dtype = max(x.shape[-1] for x in logits), logits[0].dtype
        for x in logits:
            dtype = torch.promote_types(dtype, x.dtype)
        rows, start = torch.zeros_like(tokens), 0
        for proposal, x in zip(proposals, logits):
            rows = torch.where(proposal.tokens >= 0, proposal.draft_rows + start, rows)
            start += x.shape[1]
        logits = [torch.nn.functional.pad(x.to(dtype), (0, width - x.shape[-1]), value=-torch.inf) for x in logits]
        return proposals[0]._replace(tokens=tokens, draft_logits=torch.cat(logits, 1), draft_rows=rows)

    def commit(self, tokens):
        for drafter in self.drafters:
            drafter.commit(tokens)


class NgramDrafter:
    """Prompt look-up: propose what followed the last earlier occurrence of the text's ending.

    The longest ending is tried first: n tokens, then n − 1, … 1. A continuation that reaches the end of the text wraps around,
    as a repetition would. With `paths=K` under `race` it proposes up to K different continuations; if `tree` is a number of
    nodes, as many as fit. No model, no randomness. Works well where the output copies from the prompt or from itself.

    n  int >= 1: the longest ending to look up, in tokens; ValueError otherwise
    """

    def __init__(self, n=3):
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n: expected an int >= 1, got {n!r}")
        self.n = n

    def propose(self, prefixes, shape, info):
        device = prefixes.tokens.device
        paths = 1 if info.tree is None else info.tree if isinstance(info.tree, int) else info.tree.paths
        nodes = info.tree if isinstance(info.tree, int) else paths * shape
        trees = []
        for prefix, active in zip(prefixes, info.active):
            trees.append(_trie(_continuations(prefix.cpu(), self.n, paths, shape) if active else [], nodes))
        width = shape if info.tree is None else max(len(tokens) for tokens, _ in trees)
        tokens = torch.tensor([row + [-1] * (width - len(row)) for row, _ in trees], dtype=torch.int64, device=device)
        return Proposal(tokens, None if info.tree is None else [row + [-1] * (width - len(row)) for _, row in trees])

    def commit(self, tokens):
        pass


def _continuations(prefix, longest, paths, count):
    """At most `paths` different lists of `count` tokens that followed earlier occurrences of the prefix's ending: those of the
    longest ending first and, among these, of the latest occurrence first. prefix: int64 [W] on the CPU"""
    found, seen, text = [], set(), prefix.tolist()
    for n in range(min(longest, len(text) - 1), 0, -1):
        occurrences = (prefix[:-1].unfold(0, n, 1) == prefix[-n:]).all(1).nonzero()[:, 0] + n
        for start in reversed(occurrences.tolist()):
            if start not in seen:
                seen.add(start)
                follows = [text[start + i % (len(text) - start)] for i in range(count)]
                if follows not in found:
                    found.append(follows)
                if len(found) == paths or len(seen) == 8 * paths:  # in a repetitive text most are equal
                    return found
    return found


def _trie(sequences, most):
    """Sequences as a trie of at most `most` nodes, in which common prefixes share a path: (tokens, parents)"""
    tokens, parents, known = [], [], {}
    for sequence in sequences:
        above = -1
        for token in sequence:
            node = known.get((above, token))
            if node is None:
                if len(tokens) == most:
                    break
                node = known[above, token] = len(tokens)
                tokens.append(token)
                parents.append(above)
            above = node
    return tokens, parents


def as_drafter(draft):
    """The `draft` argument of generate as a drafter, or None."""
    if draft is None or (callable(getattr(draft, "propose", None)) and callable(getattr(draft, "commit", None))):
        return draft
    if isinstance(draft, (list, tuple)):
        for model in draft:
            if not callable(model) or hasattr(model, "propose"):
                name = type(model).__name__
                raise ValueError(f"draft: expected a sequence of causal language models, one a path, got {name} in it")
        if not draft:
            raise ValueError("draft: expected a sequence of causal language models, one a path, got none")
        return PathsDrafter(draft) if any(model is not draft[0] for model in draft) else ModelDrafter(draft[0])
    if not callable(draft):
        raise ValueError(
            "draft: expected a causal language model, a sequence of them, an object with propose and commit, or None, "
            f"got {type(draft).__name__}"
        )
    return ModelDrafter(draft)


def draft_models(drafter):
    """The models that a drafter reads, if it is one of the classes above."""
    if isinstance(drafter, PathsDrafter):
        return [each.model for each in drafter.drafters]
    return [drafter.model] if isinstance(drafter, ModelDrafter) else []
