"""Tests of a model on a few made-up tokens: whether its cache can be rewound and continued, whether left padding
changes anything, whether it honours a 4-D attention mask. Each is compared with the same texts read without a cache."""

import torch

from .calling import call_of, config_of, embedded_ids, new_cache

# A tree of three paths, each three deep, whose nodes lie many slots away from their parents.
_PARENTS = [-1, -1, 0, 1, 0, 3, 2, 4]
_PATHS = [(0, 2, 6), (0, 4, 7), (1, 3, 5)]
_PREFIX, _SHORTER = 7, 3  # prefix lengths of the two test requests, fewer if the model cannot read as many
LEAST = 2 + len(_PATHS[0])  # the fewest tokens a model must be able to read to be tested


class Trial:
    """Two made-up requests, the second shorter: prefixes of _PREFIX and _SHORTER tokens, each followed by the tree of _PARENTS.

    room: how many tokens the model can read, at least LEAST; if there are few, the prefixes are shorter."""

    def __init__(self, model, device, dtype, room=torch.inf):
        self.model, self.device, self.dtype = model, device, dtype
        self.call = call_of(model)
        ids = _made_up(model, _PREFIX + 2 * len(_PARENTS))
        longest = min(_PREFIX, room - len(_PATHS[0]))
        shorter = min(_SHORTER, longest - 1)
        self.prefixes = [ids[_PREFIX - longest : _PREFIX], ids[_PREFIX - shorter : _PREFIX]]
        self.nodes = ids[_PREFIX : _PREFIX + len(_PARENTS)]
        self.wrong = ids[_PREFIX + len(_PARENTS) :]
        # How far results may be off, relative to the change that different tokens make: rounding, including that of a float32
        # softmax in a float64 model. A model that behaves differently is off by about 1.
        self.tolerance = max(torch.finfo(self.dtype).eps ** 0.5, 1e-6)

    def read(self, ids, positions, cache=None, **given):
        if self.call.positions:
            given["position_ids"] = torch.tensor(positions, device=self.device).clamp(min=0)
        if cache is not None:
            given[self.call.cache] = cache
        return self.model(input_ids=torch.tensor(ids, device=self.device), use_cache=cache is not None, **given)

    def fresh(self):
        """Read each path of each request as a separate text, in one batch; the shorter ones are filled up with unused tokens."""
        texts = []
        for prefix in self.prefixes:
            for path in _PATHS:
                text = prefix + [self.nodes[node] for node in path]
                texts.append(text + self.wrong[: len(self.prefixes[0]) - len(prefix)])
        width = len(texts[0])
        logits = _exact(self.read(texts, [list(range(width))] * len(texts)).logits)
        self.rows, paths = [], len(_PATHS)  # for each request: the row after its prefix, then after each node
        for b, prefix in enumerate(self.prefixes):
            own, end = logits[b * paths : (b + 1) * paths], len(prefix)
            rows = {-1: own[0, end - 1]}
            for i, path in enumerate(_PATHS):
                rows |= {node: own[i, end + depth] for depth, node in enumerate(path)}
            self.rows.append(torch.stack([rows[node] for node in range(-1, len(_PARENTS))]))
        # The change that different tokens make: the distance between two siblings' rows.
        self.spread = float(_rms(self.rows[0][1] - self.rows[0][2]))

    def agrees(self, logits, b, nodes):
        """Whether logits [1 + n, V] equal, up to rounding, the rows after request b's prefix and after n of its nodes."""
        return self.off(logits, b, nodes) <= self.tolerance * self.spread

    def off(self, logits, b, nodes):
        """How far logits [1 + n, V] are from those rows."""
        expected = self.rows[b][[0, *(node + 1 for node in nodes)]]
        if logits.shape != expected.shape:
            return torch.inf
        return float(torch.stack([_rms(row) for row in _exact(logits) - expected]).max())

    def cached(self, batch):
        """Read the prefixes without their last token, then two wrong tokens; drop these; in a batch, shift what is kept one slot
        to the right, as decoding does when another request has become longer; continue along a path.
        -> None, or str: what is wrong"""
        longest, path = len(self.prefixes[0]), _PATHS[0]
        before, columns = longest - 1, 1 + len(path)
        ids, after, positions, mask = [], [], [], []
        for prefix in self.prefixes[:batch]:
            padding = longest - len(prefix)
            ids.append([prefix[0]] * padding + prefix[:-1] + self.wrong[:2])
            after.append(prefix[-1:] + [self.nodes[node] for node in path])
            positions.append(list(range(-padding, longest + len(path) - padding)))
            mask.append([0] * padding + [1] * (longest - padding + len(path)))
        mask = torch.tensor(mask, device=self.device)

        def seen(width):
            return mask[:, :width] if batch > 1 else None

        start = [row[: before + 2] for row in positions]
        try:
            out = self.read(ids, start, new_cache(self.model), attention_mask=seen(before + 2))
        except Exception as error:
            return f"whose forward over a cache of keys and values fails: {first_line(error)}"
        cache = getattr(out, self.call.cache, None)
        if cache is None or not hasattr(cache, "crop"):
            return "which returns no cache that can be rewound"
        layers = [layer for layer in getattr(cache, "layers", ()) if getattr(layer, "keys", None) is not None]
        if not layers:
            return "whose cache has no keys and values"
        for layer in layers:
            for x in (layer.keys, layer.values):
                if not isinstance(x, torch.Tensor) or x.dim() != 4 or (x.shape[0], x.shape[2]) != (batch, before + 2):
                    return "whose cache does not hold a key and a value for each token"
        try:
            cache.crop(-2)
            if batch > 1:
                for layer in layers:
                    layer.keys, layer.values = (torch.cat([x[:, :, :1], x], 2) for x in (layer.keys, layer.values))
                mask, before = torch.nn.functional.pad(mask, (1, 0)), before + 1
            rest = [row[-columns:] for row in positions]
            out = self.read(after, rest, cache, attention_mask=seen(before + columns))
        except Exception as error:
            return f"whose cache cannot be rewound and read on from: {first_line(error)}"
        self.cache, self.mask = cache, mask
        off = [self.off(row, b, path) for b, row in enumerate(out.logits)]
        limit = self.tolerance * self.spread
        if batch > 1 and not self.call.positions:  # it may count slots: tolerate nothing but rounding
            level = float(_rms(self.rows[0]))
            limit = min(limit, max(64 * torch.finfo(self.dtype).eps * level, 1e-6 * self.spread))
        if all(x <= limit for x in off):  # false for NaN
            return None
        return "whose logits after reading on from a rewound cache are not those of a fresh forward"

    def masked(self):
        """Whether the tree, read in one forward call after `cached`, gives the rows of its paths, for both requests."""
        before, nodes = len(self.prefixes[0]), len(_PARENTS)
        self.cache.crop(-(1 + len(_PATHS[0])))
        seen = torch.zeros(2, 1 + nodes, before + 1 + nodes, dtype=torch.bool)
        seen[:, :, : before + 1] = self.mask[:, None, : before + 1].bool().cpu()
        ids, positions = [], []
        routes = [next(path[: path.index(node) + 1] for path in _PATHS if node in path) for node in range(nodes)]
        for b, prefix in enumerate(self.prefixes):
            ids.append(prefix[-1:] + self.nodes)
            positions.append([len(prefix) - 1] + [len(prefix) - 1 + len(route) for route in routes])
            for node, route in enumerate(routes):
                seen[b, 1 + node, [before + 1 + place for place in route]] = True
        mask = torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, torch.finfo(self.dtype).min)
        try:
            out = self.read(ids, positions, self.cache, attention_mask=mask[:, None].to(self.device))
        except Exception:
            return False
        return all(self.agrees(row, b, range(nodes)) for b, row in enumerate(out.logits))


def _exact(x):
    return x if x.dtype == torch.float64 else x.float()


def _rms(x):
    """Root mean square of logits, ignoring the −inf of tokens that cannot occur."""
    x = x[x.isfinite()] if x.isinf().any() else x
    return x.square().mean().sqrt()


def _made_up(model, count):
    """`count` ids spread over the vocabulary, none of them a special token of the config."""
    named = [value for name, value in vars(config_of(model)).items() if name.endswith(("token_id", "token_index"))]
    meanings = {token for value in named for token in (value if isinstance(value, (list, tuple)) else [value])}
    vocab, ids = embedded_ids(model), []
    step = max(1, vocab // (count + 3))
    for i in range(vocab):
        token = (step * i + step // 2 + i // vocab) % vocab
        if token not in meanings and token not in ids:
            ids.append(token)
        if len(ids) == count:
            return ids
    return [ids[i % len(ids)] if ids else 0 for i in range(count)]


def first_line(error):
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 120 else text[:117] + "..."
