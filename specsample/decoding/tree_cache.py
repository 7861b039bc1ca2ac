"""A causal language model with its KV cache, for trees of drafts: one forward call reads any number of nodes of a tree.

Equal prefixes are read once: a *place* is a distinct sequence of tokens after the prefix, however many nodes carry it.
`MaskedTree` specifies with a 4-D attention mask what each place attends to. `ExpandedTree` is for models that do not
honour such masks: each path from the root to a leaf is a row of a larger batch, with its own copy of the cache.
"""

import torch

from .cache import CachedModel
from .calling import weight_of
from .models import abilities, takes_masks
from .one_by_one import OneByOne


def cached_model(model, prefixes, longest, grows=False):
    """The model with a cache for a batch of requests, which may reach `longest` tokens (None: any number). grows: for trees,
    read through masks if the model honours them, else as an expanded batch. If other requests would change the model's output, each
    request is read separately."""
    able, batch, device = abilities(model), len(prefixes), prefixes.tokens.device
    kind = CachedModel if not grows else MaskedTree if takes_masks(model) else ExpandedTree
    switches = able.switch is not None and int(prefixes.lengths.min()) <= able.switch and (longest or torch.inf) > able.switch
    if not switches and (able.batched or batch == 1):
        return kind(model, batch, device)
    each = [kind(model, 1, device) for _ in range(batch)]
    for one in each:
        one.switch = able.switch if switches else None
    return OneByOne(each)


class _Tree(CachedModel):
    """A round: `start`, then `insert` nodes and `read` them, as often as needed (the target reads all at once, a drafter
    level by level), then `follow` the emitted tokens.

    Places are numbered per request in the order of insertion, with gaps where other requests inserted more; −1 is the root.
    """

    def start(self, prefixes):
        """Drop the last round's rejected nodes. The next `read` also reads the part of the prefixes that the cache lacks."""
        self.pending = self._catch_up(prefixes)
        self.known = [{} for _ in range(len(prefixes))]  # (parent's place, token) -> place
        self.routes = [{-1: ()} for _ in range(len(prefixes))]  # place -> places from the root to it, inclusive
        self.fresh = [[] for _ in range(len(prefixes))]  # (place, token) not yet read
        self.size = 0  # places read

    def insert(self, b, nodes, parents, tokens, places):
        """Assign places to nodes of request b: places[node] becomes that of tokens[node] below places[parents[node]], a new one
        unless known. The last entry of places is the root's; nodes without a token, or whose parent has no place, are skipped."""
        known, routes, fresh = self.known[b], self.routes[b], self.fresh[b]
        for node in nodes:
            token, parent = tokens[node], parents[node]
            above = places[parent]
            if token < 0 or above < 0 <= parent:
                continue
            place = known.get((above, token))
            if place is None:
                place = known[above, token] = self.size + len(fresh)
                routes[place] = routes[above] + (place,)
                fresh.append((place, token))
            places[node] = place

    def read(self):
        """Read the places inserted since the last `read`. -> logits [B, n, V], row j for the j-th of them. The first `read` of
        a round puts the row after the prefix in front, so that place p has row p + 1."""
        more = max(map(len, self.fresh))
        logits = self._read(more)
        self.pending, self.fresh = None, [[] for _ in self.fresh]
        self.size += more
        return logits

    def follow(self, tokens):
        """Keep the places along `tokens`: a list per request of its emitted tokens, padded with −1."""
        ends = []
        for known, row in zip(self.known, tokens):
            place = -1
            for token in row:
                below = known.get((place, token))
                if below is None:
                    break
                place = below
            ends.append(place)
        self._keep(ends)

    def _prefix(self):
        """(ids int64 [B, columns], positions [B, columns]) of the prefix tokens not yet cached; no columns once they are read"""
        if self.pending is not None:
            return self.pending
        none = torch.zeros(len(self.fresh), 0, dtype=torch.int64)
        return none.to(self.device), none


class MaskedTree(_Tree):
    """Uses a 4-D attention mask, added to the scores: 0 where a token attends, the dtype's lowest number elsewhere. Positions
    are those along the path, so siblings share one."""

    def __init__(self, model, batch, device):
        super().__init__(model, batch, device)
        self.dtype = weight_of(model).dtype
        self.least = max(torch.finfo(self.dtype).min, torch.finfo(torch.float32).min)  # eager softmax is in float32

    def _read(self, more):
        first = self.pending is not None
        if more == 0:
            return self._forward(*self._prefix(), first)
        batch, before = len(self.fresh), self.width + self.columns
        columns = self.columns if first else 0
        width = before + self.size + more
        ids, positions, seen = [], [], []  # of each fresh place; and flat indices of the places it attends to
        for b, (fresh, routes, start) in enumerate(zip(self.fresh, self.routes, self.cached)):
            unused = [0] * (more - len(fresh))
            paths = [routes[place] for place, _ in fresh]
            ids += [token for _, token in fresh] + unused
            positions += [start + len(path) - 1 for path in paths] + unused
            row = (b * (columns + more) + columns) * width + before
            seen += [row + j * width + place for j, path in enumerate(paths) for place in path]
        mask = torch.full((batch, columns + more, width), self.least, dtype=self.dtype)
        visible = mask.narrow(2, 0, before).zero_()
        if self.used is not None:
            visible.masked_fill_(~self.used[:, None], self.least)
        if columns > 1:
            later = torch.ones(columns, columns, dtype=torch.bool).triu(1)
            mask[:, :columns, before - columns : before].masked_fill_(later, self.least)
        mask.view(-1).index_fill_(0, torch.tensor(seen), 0)
        ids, positions = torch.tensor(ids).view(batch, more).to(self.device), torch.tensor(positions).view(batch, more)
        if first:
            ids, positions = (torch.cat(x, 1) for x in zip(self.pending, (ids, positions)))
        return self._forward(ids, positions, more + first, mask[:, None].to(self.device))

    def _keep(self, ends):
        self.path = [routes[end] for routes, end in zip(self.routes, ends)]
        self.cached = [length + len(path) for length, path in zip(self.cached, self.path)]


class ExpandedTree(_Tree):
    """Uses a batch of paths, one row per leaf. A `read` takes a whole tree, or one level below the last `read`."""

    def start(self, prefixes):
        super().start(prefixes)
        self.ends = [[-1] for _ in range(len(prefixes))]  # for each request: the place at which each of its rows ends

    def _read(self, more):
        batch = len(self.fresh)
        leaves = []
        for fresh, routes in zip(self.fresh, self.routes):
            inner = {routes[place][-2] for place, _ in fresh if len(routes[place]) > 1}
            leaves.append([place for place, _ in fresh if place not in inner])
        ids, positions = self._prefix()
        rows, had = max(1, *map(len, leaves)), len(self.ends[0])
        root = []
        if rows > 1 and ids.shape[1] > 1:  # a prompt: read it once, not once per path
            root = [self._forward(ids, positions, 1)]
            ids, positions = ids[:, :0], positions[:, :0]
        elif self.pending is not None and more == 0:
            return self._forward(ids, positions, 1)

        tails = [[tuple(p for p in routes[end] if p >= self.size) for end in row] for routes, row in zip(self.routes, leaves)]
        length = max(len(tail) for row in tails for tail in row)
        source, facts, where, lengths = [], [], [], []
        for b, row in enumerate(tails):
            tokens, routes, at = dict(self.fresh[b]), self.routes[b], {}
            for r, tail in enumerate(row):
                above = (-1, *routes[tail[0]])[-2]
                source.append(b * had + self.ends[b].index(above))
                depth = len(routes[tail[0]]) - 1
                facts.extend((tokens[place], depth + i) for i, place in enumerate(tail))
                # Missing entries of a row are fed at the position of the prefix's last token, masked.
                facts.extend([(0, -1)] * (length - len(tail)))
                lengths.append(len(tail))
                at.update({place: (b * rows + r, i) for i, place in enumerate(tail)})
            spare = [min(r, had - 1) for r in range(rows - len(row))]  # rows that read nothing keep what they hold
            source.extend(b * had + r for r in spare)
            leaves[b].extend(self.ends[b][r] for r in spare)
            facts.extend([(0, -1)] * (length * len(spare)))
            lengths.extend([0] * len(spare))
            where.extend(at[place] for place, _ in self.fresh[b])
            where.extend([(b * rows, 0)] * (more - len(self.fresh[b])))
        self._select(source)
        real = torch.arange(length) < torch.tensor(lengths)[:, None]
        if self.real is not None or not real.all():
            drafts = max(0, self.slots - self.width - self.columns)
            held = torch.ones(len(source), drafts, dtype=torch.bool) if self.real is None else self.real[source]
            self.real = torch.cat([held, real], 1)
        facts = torch.tensor(facts).view(batch, rows, length, 2)
        first = ids.shape[1] > 0
        ids = torch.cat([ids[:, None].expand(-1, rows, -1), facts[..., 0].to(self.device)], 2).flatten(0, 1)
        positions = positions[:, None].expand(-1, rows, -1)
        start = torch.tensor(self.cached)[:, None, None]
        positions = torch.cat([positions, start + facts[..., 1]], 2).flatten(0, 1)
        self.rows = rows
        logits = self._forward(ids, positions, length + first)
        self.ends = leaves
        row, column = torch.tensor(where).view(batch, more, 2).to(self.device).unbind(-1)
        read = logits[row, column + first]
        if first:
            root = [logits.view(batch, rows, *logits.shape[1:])[:, 0, :1]]
        return torch.cat([*root, read], 1) if root else read

    def _keep(self, ends):
        """Keep, for each request, the row that shares most of the path to its end."""
        source, counts = [], []
        for b, (routes, rows, end) in enumerate(zip(self.routes, self.ends, ends)):
            shared = [_shared(routes[place], routes[end]) for place in rows]
            counts.append(max(shared))
            source.append(b * len(rows) + shared.index(counts[-1]))
        self._select(source)
        self.rows = 1
        self.cached = [length + count for length, count in zip(self.cached, counts)]

    def _select(self, source):
        """Replace the cache's rows by those listed in `source`."""
        if self.slots and source != list(range(len(self.ends) * len(self.ends[0]))):
            index = torch.tensor(source, device=self.device)
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[index], layer.values[index]


def _shared(one, other):
    """How many places two routes have in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
