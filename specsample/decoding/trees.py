"""The tree that a round drafts, fixed before anything is drawn: several paths, or a list of parents."""

from typing import NamedTuple

import torch

from ..sampling import Sampling


class Draw(NamedTuple):
    """One call of `ss.draft`, with one row for each expanded node (and each sampling it is expanded with)."""

    k: int  # children drawn per row
    parents: list  # the node of each row, −1 = the root
    laws: list  # which of the samplings each row is drawn with
    node: list  # the `node` argument of each row
    columns: list  # which of the drawn [rows·k] are used …
    nodes: list  # … and the node that each becomes


class Tree:
    """A static tree of N nodes in the given order, parents before children.

    parents  list [N], −1 = child of the root
    levels   list of lists: the nodes of each level
    lists    list [N], clock lists under the scheme `lists`: a node's first child inherits its list, the others get new ones
    depth_of list [N], 0 for the root's children
    inner    set of the nodes that have children
    paths    K if the tree is K chains numbered level by level, node i on chain i mod K; None otherwise
    """

    def __init__(self, parents, paths=None):
        self.parents, self.paths = list(parents), paths
        self.levels, self.lists, self.depth_of, heirs = [], [], depths(self.parents), set()
        own = sum(parent < 0 for parent in self.parents)  # the next unused list
        for node, parent in enumerate(self.parents):
            if self.depth_of[node] == len(self.levels):
                self.levels.append([])
            self.levels[self.depth_of[node]].append(node)
            if parent < 0:
                self.lists.append(len(self.levels[0]) - 1)
            elif parent not in heirs:
                heirs.add(parent)
                self.lists.append(self.lists[parent])
            else:
                self.lists.append(own)
                own += 1
        self.inner, self._draws = set(self.parents) - {-1}, {}

    @classmethod
    def of_paths(cls, paths, depth):
        """K chains of `depth` nodes, numbered level by level, so that a shorter round has the same numbering."""
        return cls([max(-1, node - paths) for node in range(paths * depth)], paths)

    @property
    def depth(self):
        return len(self.levels)

    @property
    def is_chain(self):
        return self.parents == list(range(-1, len(self.parents) - 1))

    def draws(self, level, kind, laws=None, mine=None):
        """The calls of `ss.draft` that draw a level: one, except for kind "top" with unequal numbers of children.

        laws: tuple [N], which of several samplings each node is drawn with; mine: frozenset of the nodes to draw, None = all
        """
        known = self._draws.get((level, kind, laws, mine))
        if known is not None:
            return known
        rows = {}  # (parent, law) -> children
        for node in self.levels[level]:
            if mine is None or node in mine:
                rows.setdefault((self.parents[node], laws[node] if laws else 0), []).append(node)
        widest = max(map(len, rows.values()), default=0)
        if kind == "lists":
            widest = 1 + max((self.lists[child] for children in rows.values() for child in children), default=0)
        calls = {}
        for (parent, law), children in rows.items():
            k = len(children) if kind == "top" else widest  # of other kinds, the first children do not depend on how many follow
            call = calls.setdefault(k, Draw(k, [], [], [], [], []))
            start = len(call.parents) * k
            call.columns.extend(start + (self.lists[child] if kind == "lists" else j) for j, child in enumerate(children))
            call.nodes.extend(children)
            call.parents.append(parent), call.laws.append(law)
            # `top` uses the stream of the last child, the only one that is drawn.
            call.node.append(children[-1] - (k - 1) if kind == "top" else children[0])
        self._draws[level, kind, laws, mine] = list(calls.values())
        return self._draws[level, kind, laws, mine]


def depths(parents):
    """The depth of each node, 0 for the root's children."""
    out = []
    for parent in parents:
        out.append(out[parent] + 1 if parent >= 0 else 0)
    return out


def for_rows(samplings, laws, batch, device):
    """The sampling of rows [B·P], P rows per request: row j follows samplings[laws[j]]."""
    used = sorted(set(laws))
    if len(used) == 1 and not any(isinstance(value, torch.Tensor) and value.dim() for value in samplings[used[0]]):
        return samplings[used[0]]
    fields = []
    for values in zip(*(samplings[law] for law in used)):
        each = [torch.as_tensor(v, dtype=torch.float64, device=device).expand(batch) for v in values]
        fields.append(torch.stack([each[used.index(law)] for law in laws], 1).flatten())
    return Sampling(*fields)
