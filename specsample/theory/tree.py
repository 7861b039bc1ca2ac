"""The drafting tree with the largest expected number of accepted tokens under `race`."""

import heapq
from typing import NamedTuple

import numpy as np

from .laws import count, law


class DraftingTree(NamedTuple):
    """Nodes in the order they were added, heaviest first; parents before children."""

    parents: list  # int, −1 = child of the root
    tokens: list  # int
    weights: list  # float: product of probabilities along the path from the root


def drafting_tree(probabilities, nodes):
    """The tree of `nodes` nodes whose paths carry the most probability, grown greedily, heaviest first.

    A node's weight is the probability of its path and never exceeds its parent's, so the greedy tree is the heaviest of
    its size, and the sum of its weights is the expected number of accepted tokens if target and draft agree. For each
    node, the heap holds only its next child: O(nodes·log nodes) heap operations, besides sorting the expanded laws.
    Kobus and Gündüz 2025 ("Speculative sampling via exponential races"); Tunstall codes are built the same way.

    probabilities: the law of the token after a prefix, as one of
        a callable: prefix (tuple of token ids below the root) -> [V], or None where the tree must end;
        an array [V], the same law everywhere; an array [L, V], one law per depth, which ends the tree at depth L
    nodes: int >= 0
    -> DraftingTree(parents, tokens, weights), lists; fewer than `nodes` entries if no path of positive weight is
    left. Among equal weights, the node that entered the heap first precedes, then the lower token id.
    """
    nodes = count(nodes, "nodes", 0)
    after = probabilities if callable(probabilities) else _table(law(probabilities, "probabilities"))
    tree, prefixes, heap = DraftingTree([], [], []), [], []
    entered = 0

    def push(parent, weight, ranked, rank):
        nonlocal entered
        order, values = ranked
        if rank < len(order) and values[rank] * weight > 0:
            heapq.heappush(heap, (-weight * values[rank], entered, parent, weight, ranked, rank))
            entered += 1

    def expand(parent, weight, prefix):
        row = after(prefix)
        if row is not None:
            row = law(row, "probabilities")
            order = np.argsort(-row, kind="stable")[:nodes]
            push(parent, weight, (order, row[order].tolist()), 0)

    if nodes:
        expand(-1, 1.0, ())
    while heap and len(tree.parents) < nodes:
        negative, _, parent, weight, ranked, rank = heapq.heappop(heap)
        node, token = len(tree.parents), int(ranked[0][rank])
        tree.parents.append(parent)
        tree.tokens.append(token)
        tree.weights.append(-negative)
        prefixes.append((prefixes[parent] if parent >= 0 else ()) + (token,))
        push(parent, weight, ranked, rank + 1)
        if len(tree.parents) < nodes:
            expand(node, -negative, prefixes[node])
    return tree


def _table(rows):
    if rows.ndim == 1:
        return lambda prefix: rows
    if rows.ndim != 2:
        raise ValueError(f"probabilities: expected [V], [L, V] or a callable, got shape {rows.shape}")
    return lambda prefix: rows[len(prefix)] if len(prefix) < len(rows) else None
