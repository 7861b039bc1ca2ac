"""How a model drafts a tree, level by level: one forward over the nodes of a level that are to be expanded, one `draft`."""

import torch

from ..api import draft, row_stats
from ..schemes import SCHEMES
from .proposal import Proposal
from .trees import for_rows


def draft_static(cached, prefixes, depth, round, mine=None, laws=None):
    """Draft round.tree, or its nodes `mine` (a frozenset), down to `depth` levels. cached: a model with a cache that reads trees

    Nodes of equal prefix have one row of logits. Tokens of nodes that are not drawn are −1.
    laws: tuple [N], which of round.sampling (then a sequence) each node is drawn from. The proposal has a draft row for each
    distinct prefix; draft_rows name them.
    """
    tree, batch, device = round.tree, len(prefixes), prefixes.tokens.device
    samplings = [round.sampling] if laws is None else round.sampling
    tokens = torch.full((batch, len(tree.parents)), -1, device=device)
    places = [[-1] * (len(tree.parents) + 1) for _ in range(batch)]  # of each node; the last is the root's
    streams, missing = {}, None  # missing: bool [B, N]: nodes that were not read, so that nothing can be drawn below them
    cached.start(prefixes)
    rows = [cached.read()]
    for level in range(min(depth, tree.depth)):
        base = cached.size - rows[-1].shape[1] if level else -1
        for call in tree.draws(level, round.kind, laws, mine):
            drawn = _draw(call, rows[-1], places, base, samplings, level, round, streams)
            if missing is not None:
                drawn = torch.where(missing[:, [tree.parents[node] for node in call.nodes]], -1, drawn)
            first, last = call.nodes[0], call.nodes[-1] + 1
            tokens[:, slice(first, last) if call.nodes == list(range(first, last)) else call.nodes] = drawn
        inner = [node for node in tree.levels[level] if node in tree.inner and (mine is None or node in mine)]
        if not inner or level + 1 >= min(depth, tree.depth):
            break
        read = tokens[:, inner[0] : inner[-1] + 1].tolist()
        missing = tokens < 0 if any(token < 0 for row in read for token in row) else None
        for b, (row, active) in enumerate(zip(read, round.active.tolist())):
            if active:
                row = [row[node - inner[0]] for node in inner]
                for node, token in zip(inner, row):
                    if token >= 0:
                        places[b][node] = cached.insert(b, places[b][tree.parents[node]], token)
        if not any(cached.fresh):
            break
        rows.append(cached.read())
    card = SCHEMES[round.scheme]
    lists = torch.tensor(tree.lists, device=device) if card.reads_lists else None
    if not card.uses_draft_logits:
        return Proposal(tokens, tree.parents, None, None, lists)
    draft_rows = torch.tensor([[row[parent] + 1 for parent in tree.parents] for row in places], device=device)
    return Proposal(tokens, tree.parents, torch.cat(rows, 1), draft_rows, lists)


def _draw(call, rows, places, base, samplings, level, round, streams):
    """Tokens of call.nodes, int64 [B, n], from rows [B, M, V] of the places base, base + 1, …
    streams: seeds and positions of n rows a request, by n"""
    batch, count = rows.shape[:2]
    source = [b * count + max(0, place[parent] - base) for b, place in enumerate(places) for parent in call.parents]
    logits = rows.flatten(0, 1)
    if source != list(range(batch * count)):
        logits = logits.index_select(0, torch.tensor(source, device=logits.device))
    several = len(call.parents)
    if several not in streams:
        streams[several] = [x if several == 1 else x.repeat_interleave(several) for x in (round.seed, round.position)]
    seed, position = streams[several]
    node = call.node[0] if several == 1 else torch.tensor(call.node * batch, device=logits.device)
    drawn = draft(
        logits, call.k, kind=round.kind, sampling=for_rows(samplings, call.laws, batch, logits.device),
        seed=seed, position=position, depth=level, node=node, backend=round.backend,
    ).view(batch, several * call.k)  # fmt: skip
    return drawn if call.columns == list(range(several * call.k)) else drawn[:, call.columns]


def draft_heaviest(cached, prefixes, depth, round):
    """Draft the round.tree (an int) heaviest nodes of at most `depth` levels: those whose paths are the likeliest.

    A node's weight is the draft's probability of its path; it never exceeds its parent's, so the heaviest nodes are a tree,
    the one with the most accepted tokens in expectation when target and draft agree and nothing is known of the clocks.
    A node of the final tree is among the heaviest of those known when its level is read, so it is enough to expand those:
    one forward a level. The tree's shape depends on its tokens, which only `race` allows. Nothing is drawn: at temperature 1
    paths (`arrivals`, on the clocks of the race itself) accept more; this is for low temperatures.
    Kobus and Gündüz 2025 (arXiv 2504.15475); `specsample.theory.drafting_tree` grows the same tree node by node.
    """
    batch, device, budget = len(prefixes), prefixes.tokens.device, round.tree
    cached.start(prefixes)
    logits = cached.read()
    # Of each node: log weight, token, parent, and its place once it was read.
    weight = torch.zeros(batch, 0, device=device)
    token, parent, place = (torch.zeros(batch, 0, dtype=torch.int64, device=device) for _ in range(3))
    # The nodes read last, and their weights.
    front, above = torch.full((batch, 1), -1, device=device), torch.zeros(batch, 1, device=device)
    for level in range(depth):
        children, gain = _likeliest(logits, budget, round)
        weight = torch.cat([weight, (above[..., None] + gain).flatten(1)], 1)
        token = torch.cat([token, children.flatten(1)], 1)
        parent = torch.cat([parent, front[..., None].expand_as(children).flatten(1)], 1)
        place = torch.cat([place, torch.full_like(children, -1).flatten(1)], 1)
        # Stable, and a child is not heavier than its parent and comes after it: parents stay before their children.
        order = weight.sort(stable=True, dim=1, descending=True).indices
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=device).expand_as(order))
        parent = torch.where(parent >= 0, rank.gather(1, parent.clamp(min=0)), -1)
        weight, token, parent, place = (x.gather(1, order[:, :budget]) for x in (weight, token, parent, place))
        if level + 1 == depth:
            break
        new = (place < 0) & (token >= 0) & round.active.to(device)[:, None]
        at_place = torch.where(parent >= 0, place.gather(1, parent.clamp(min=0)), -1)
        front = [[i for i, fresh in enumerate(row) if fresh] for row in new.tolist()]
        widest = max(map(len, front))
        if widest == 0:
            break
        for b, (nodes, tokens, places) in enumerate(zip(front, token.tolist(), at_place.tolist())):
            for node in nodes:
                cached.insert(b, places[node], tokens[node])
        # Where a request has fewer, a node past the end: nothing hangs below it, since its weight is 0.
        front = torch.tensor([nodes + [-1] * (widest - len(nodes)) for nodes in front], device=device)
        missing = front < 0
        above = torch.where(missing, -torch.inf, weight.gather(1, front.clamp(min=0)))
        places = cached.size + torch.arange(widest, device=device).expand(batch, -1)
        at = torch.where(missing, place.shape[1], front)
        place = torch.nn.functional.pad(place, (0, 1)).scatter(1, at, places)[:, :-1]
        logits = cached.read()
    return Proposal(torch.where(weight > -torch.inf, token, -1), parent, None)


def _likeliest(logits, most, round):
    """The likeliest tokens after each row [B, M, V] and their log-probabilities: int64 and float [B, M, k]"""
    batch, rows, vocab = logits.shape
    flat = logits.flatten(0, 1)
    sampling = for_rows([round.sampling], [0] * rows, batch, flat.device)
    k = min(most, vocab)
    children = draft(flat, k, kind="topk", sampling=sampling, seed=0, position=0, backend=round.backend)
    temperature = torch.as_tensor(sampling.temperature, dtype=torch.float32, device=flat.device).reshape(-1, 1)
    total = row_stats(flat, sampling=sampling, backend=round.backend).logsumexp[:, None]
    gain = (flat.gather(1, children.clamp(min=0)).float() / temperature - total).clamp(max=0)
    gain = torch.where(temperature > 0, gain, 0)  # the only token of a greedy row
    gain = torch.where(children >= 0, gain, -torch.inf)
    return children.view(batch, rows, k), gain.view(batch, rows, k)
