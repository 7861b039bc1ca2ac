"""How a model drafts a tree, level by level: one forward call over the nodes of a level that are expanded, then one `draft`."""

from heapq import merge
from itertools import count, islice

import torch

from ..api import draft, row_stats
from ..schemes import SCHEMES
from .proposal import Proposal
from .trees import for_rows


def draft_static(cached, prefixes, room, info, mine=None, laws=None):
    """Draft info.tree, or its nodes `mine` (a frozenset), down to room[b] levels. cached: a model with a cache that reads trees

    Nodes with equal prefixes share a row of logits. Tokens of nodes that are not drawn are −1.
    laws: tuple [N], which of info.samplings each node is drawn with. The proposal has one draft row per distinct prefix;
    draft_rows maps nodes to them.
    """
    tree, batch, device = info.tree, len(prefixes), prefixes.tokens.device
    samplings = info.samplings
    depth = min(max(room), tree.depth)
    tokens = [[-1] * len(tree.parents) for _ in range(batch)]
    places = [[-1] * (len(tree.parents) + 1) for _ in range(batch)]  # of each node; the last entry is the root's
    streams = {}
    cached.start(prefixes)
    rows = [_read(cached, prefixes, room, info, first=True)]
    for level in range(depth):
        base = cached.size - rows[-1].shape[1] if level else -1
        for call in tree.draws(level, info.kind, laws, mine):
            drawn = _draw(call, rows[-1], places, base, samplings, level, info, streams)
            for row, own, into, levels in zip(drawn, places, tokens, room):
                for node, column in zip(call.nodes, call.columns):
                    # Below a node that was not read, nothing is drawn.
                    if level < levels and (not level or own[tree.parents[node]] >= 0):
                        into[node] = row[column]
        inner = [node for node in tree.levels[level] if node in tree.inner and (mine is None or node in mine)]
        if not inner or level + 1 == depth:
            break
        for b in range(batch):
            if level + 1 < room[b]:
                cached.insert(b, inner, tree.parents, tokens[b], places[b])
        if not any(cached.fresh):
            break
        rows.append(_read(cached, prefixes, room, info))
    card, tokens = SCHEMES[info.scheme], torch.tensor(tokens, device=device)
    lists = torch.tensor(tree.lists, device=device) if card.reads_lists else None
    if not card.uses_draft_logits:
        return Proposal(tokens, tree.parents, None, None, lists)
    draft_rows = torch.tensor([[row[parent] + 1 for parent in tree.parents] for row in places], device=device)
    return Proposal(tokens, tree.parents, torch.cat(rows, 1), draft_rows, lists)


def _read(cached, prefixes, room, info, first=False):
    """The rows of the inserted places, at the first read preceded by the prefix's row; processed as the target's will be."""
    if info.process is None:
        return cached.read()
    more, texts = max(map(len, cached.fresh)), []
    for known, fresh, levels in zip(cached.known, cached.fresh, room):
        said = {-1: ()}  # place -> the tokens from the root to it
        for (above, token), place in known.items():
            said[place] = (*said[above], token)
        rows = [()] * first + [said[place] for place, _ in fresh] + [None] * (more - len(fresh))
        texts.append(rows if levels else [None] * len(rows))
    return info.process(cached.read(), prefixes, texts)


def _draw(call, rows, places, base, samplings, level, info, streams):
    """The tokens that call.columns selects from: for each request a list with k tokens per parent, drawn from rows [B, M, V] of
    the places base, base + 1, …
    streams: cache of the rows' sampling, seed and position, keyed by the laws of a request's rows"""
    batch, count = rows.shape[:2]
    source = [b * count + max(0, place[parent] - base) for b, place in enumerate(places) for parent in call.parents]
    logits = rows.flatten(0, 1)
    if source != list(range(batch * count)):
        logits = logits.index_select(0, torch.tensor(source, device=logits.device))
    laws, several = tuple(call.laws), len(call.parents)
    if laws not in streams:
        sampling = for_rows(samplings, laws, batch, logits.device)
        streams[laws] = sampling, *(x if several == 1 else x.repeat_interleave(several) for x in (info.seed, info.position))
    sampling, seed, position = streams[laws]
    node = call.node[0] if several == 1 else torch.tensor(call.node * batch, device=logits.device)
    drawn = draft(
        logits, call.k, kind=info.kind, sampling=sampling, seed=seed, position=position, depth=level, node=node,
        backend=info.backend,
    )  # fmt: skip
    return drawn.view(batch, several * call.k).tolist()


def draft_heaviest(cached, prefixes, room, info):
    """Draft the info.tree (an int) heaviest nodes of at most room[b] levels: those with the likeliest paths.

    A node's weight is the draft's probability of its path. It never exceeds its parent's, so the heaviest nodes form a tree:
    the one with the most accepted tokens in expectation if target and draft agree and nothing is known about the clocks.
    A node of the final tree is among the heaviest of those known when its level is read, so only those need be expanded:
    per level, one forward call and one merge of the sorted children of the nodes read with the known nodes, O(k log k) for k
    nodes. The tree's shape depends on its tokens, which only `race` allows. Nothing is drawn at random: at temperature 1,
    paths (`arrivals`, on the clocks of the race itself) accept more; this is for low temperatures.
    Kobus and Gündüz 2025 (arXiv 2504.15475); `specsample.theory.drafting_tree` grows the same tree node by node.
    """
    batch, depth, budget, number = len(prefixes), max(room), info.tree, count()
    temperatures = torch.as_tensor(info.sampling.temperature).expand(batch).tolist()
    cached.start(prefixes)
    # For each request its nodes, heaviest first, as (−log weight, number, token, parent's number), where a child has a higher
    # number than its parent; and the places of the nodes read. front: the nodes to expand next.
    known, places = [[] for _ in range(batch)], [{-1: -1} for _ in range(batch)]
    front = [[(0.0, -1)] if levels else [] for levels in room]
    for level in range(depth):
        children = _likeliest(_read(cached, prefixes, room, info, first=level == 0), budget, info)
        for b, nodes in enumerate(front):
            below = [_below(*node, *row, temperatures[b], number) for node, row in zip(nodes, children[b])]
            known[b] = list(islice(merge(known[b], *below), budget))
        if level + 1 == depth:
            break
        for b, nodes in enumerate(known):
            fresh = [node for node in nodes if node[1] not in places[b]] if level + 1 < room[b] else []
            front[b] = [node[:2] for node in fresh]
            parents, tokens = {node[1]: node[3] for node in fresh}, {node[1]: node[2] for node in fresh}
            cached.insert(b, tokens, parents, tokens, places[b])
        if not any(cached.fresh):
            break
    longest = max(map(len, known))
    tokens, parents = [], []
    for nodes in known:
        index = {own: i for i, (_, own, _, _) in enumerate(nodes)}
        tokens.append([node[2] for node in nodes] + [-1] * (longest - len(nodes)))
        parents.append([index.get(node[3], -1) for node in nodes] + [-1] * (longest - len(nodes)))
    tokens = torch.tensor(tokens, dtype=torch.int64, device=prefixes.tokens.device)
    return Proposal(tokens, torch.tensor(parents, dtype=torch.int64), None)


def _below(weight, parent, tokens, logits, total, temperature, number):
    """The children of a node, generated lazily, heaviest first."""
    for token, logit in zip(tokens, logits):
        if token < 0:
            return
        # A greedy row has one token, of probability 1.
        gain = min(0.0, logit / temperature - total) if temperature > 0 else 0.0
        if gain > -torch.inf:
            yield weight - gain, next(number), token, parent


def _likeliest(logits, most, info):
    """For each row of logits [B, M, V]: (its likeliest tokens, their logits, its logsumexp); for each of B a list of M"""
    batch, rows, vocab = logits.shape
    flat = logits.flatten(0, 1)
    sampling = for_rows([info.sampling], [0] * rows, batch, flat.device)
    tokens = draft(flat, min(most, vocab), kind="topk", sampling=sampling, seed=0, position=0, backend=info.backend)
    total = row_stats(flat, sampling=sampling, backend=info.backend).logsumexp.tolist()
    each = list(zip(tokens.tolist(), flat.gather(1, tokens.clamp(min=0)).tolist(), total))
    return [each[b * rows : (b + 1) * rows] for b in range(batch)]
