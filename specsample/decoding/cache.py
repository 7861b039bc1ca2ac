"""A causal language model together with its KV cache, for requests that advance at different speeds.

Layout: between calls the cache is left-padded. With W = max(cached), slot s of request b holds the token of index
s − (W − cached[b]), so the distance of two slots is the distance of their tokens (sliding windows stay right), memory
is that of the longest request, and the attention mask follows from `cached` alone. After a round the requests have lost
different numbers of rejected tokens. One request, or a batch that lost equally many, is cropped: a view. Otherwise each
layer is gathered into place, one copy of the cache a round, which is what appending to a DynamicCache costs anyway.
The alternative, leaving rejected slots in place and masking them, saves that copy but lets memory and attention
grow with the rejections and breaks sliding windows.
"""

import inspect

import torch


class CachedModel:
    """A transformers-like model and its cache, for chains of drafts. (Trees: tree_cache.py.)

    model(input_ids=, attention_mask=, position_ids=, past_key_values=, use_cache=True) returns `.logits` and
    `.past_key_values`; or both are called `cache`, as in transformers 5.24. The cache needs `crop(-n)` (forget the last
    n slots) and, for several requests or trees, `layers` with tensors `keys` and `values` [B, heads, slots, width], as
    transformers' DynamicCache has.

    cached  int64 [B] on the CPU: how many tokens of each request the cache holds
    """

    def __init__(self, model, batch, device):
        self.model, self.device = model, device
        accepted = inspect.signature(getattr(model, "forward", model)).parameters
        self.keep_argument = next((n for n in ("logits_to_keep", "num_logits_to_keep") if n in accepted), None)
        self.cache_name = "cache" if "cache" in accepted else "past_key_values"
        embedded = embedded_ids(model)
        self.highest = None if embedded is None else embedded - 1
        self.cache = _new_cache(model)
        self.cached = torch.zeros(batch, dtype=torch.int64)
        self.path = None  # int64 [B, n] on the CPU: place of each kept draft among those read; None = in order
        self._place(self.cached, torch.zeros_like(self.cached), 0)

    def __call__(self, prefixes, more):
        """Feed what the cache lacks of the prefixes, then `more` int64 [B, N]; ids that the model does not know
        (−1 included) are fed as others: they are never accepted, so nothing that is kept attends to them.

        -> logits [B, N + 1, V]: after each prefix, and after each of `more`
        """
        ids, index = self._catch_up(prefixes)
        index = torch.cat([index, prefixes.lengths[:, None] + torch.arange(more.shape[1])], 1)
        logits = self._forward(torch.cat([ids, more], 1), index, more.shape[1] + 1)
        self.cached = prefixes.lengths + more.shape[1]
        return logits

    def step(self, tokens):
        """Feed one more token of each request, int64 [B]. -> logits [B, V]"""
        logits = self._forward(tokens[:, None], self.cached[:, None], 1)
        self.cached = self.cached + 1
        return logits[:, 0]

    def _catch_up(self, prefixes):
        """Forget what is not in the prefixes, and make room for what is missing.
        -> ids of the missing tokens, int64 [B, columns], at the right, and their positions on the CPU"""
        lengths = prefixes.lengths
        # The logits after the last token are wanted, so that token is always fed.
        self._rewind(torch.minimum(self.cached, lengths - 1))
        missing = lengths - self.cached
        columns = int(missing.max())
        self._place(self.cached, columns - missing, columns)
        index = (lengths[:, None] + torch.arange(-columns, 0)).clamp(min=0)
        self.cached = lengths
        return prefixes.tokens.gather(1, index.to(self.device)), index

    def _place(self, cached, gap, columns):
        """Note the layout: left-padded `cached` tokens in `width` slots, then `columns` slots of prefixes, of which the first
        gap[b] are unused, then drafts."""
        self.width, self.before, self.gap, self.columns = int(cached.max()), cached, gap, columns
        self.slots, self.path = self.width, None
        # Which slots before the drafts hold tokens: bool [B, width + columns] on the CPU; None = all
        self.used = None
        if (cached < self.width).any() or gap.any():
            slot = torch.arange(self.width + columns)
            used = slot >= (self.width - cached)[:, None]
            self.used = used & ((slot < self.width) | (slot >= (self.width + gap)[:, None]))

    def _mask(self):
        """The attention mask of tokens in order, int64 [B, slots], or None where all slots are used."""
        if self.used is None:
            return None
        more = self.slots - self.used.shape[1]
        return torch.nn.functional.pad(self.used, (0, more), value=True).to(self.device, torch.int64)

    def _forward(self, ids, positions, keep, mask=None):
        """Feed ids [B, n] with positions [B, n] (CPU). mask: 4-D; None = each attends to all before it.
        -> logits of the last `keep`"""
        self.slots += ids.shape[1]
        out = self.model(
            input_ids=ids.clamp(min=0, max=self.highest),
            attention_mask=self._mask() if mask is None else mask,
            position_ids=positions.to(self.device),
            use_cache=True,
            **{self.cache_name: self.cache},
            **({self.keep_argument: keep} if self.keep_argument else {}),
        )
        self.cache = getattr(out, self.cache_name)
        return out.logits[:, -keep:]

    def _rewind(self, keep):
        """Forget all but the first keep[b] tokens of each request, and restore the left-padded layout."""
        held = self.before + self.columns - self.gap  # tokens that lie before the drafts
        kept = keep - held
        base = self.width + self.columns
        contiguous = (self.gap == 0) | (self.before == 0)
        if contiguous.all() and (kept == kept[0]).all():
            count = int(kept[0])
            if self.path is not None and count > 0:
                self._move(self.path[:, :count], base)
            if self.slots > base + count:
                self.cache.crop(base + count - self.slots)
        else:
            width = int(keep.max())
            token = torch.arange(width) - (width - keep)[:, None]  # < 0: padding, whatever it holds
            slot = (self.width - self.before)[:, None] + token
            slot = torch.where(token >= self.before[:, None], slot + self.gap[:, None], slot)
            if self.path is not None and self.path.shape[1]:
                at = token - held[:, None]
                placed = base + self.path.gather(1, at.clamp(0, self.path.shape[1] - 1))
                slot = torch.where(at >= 0, placed, slot)
            slot = slot.clamp(min=0).to(self.device)[:, None, :, None]
            for layer in self.cache.layers:
                layer.keys = layer.keys.gather(2, slot.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3]))
                layer.values = layer.values.gather(2, slot.expand(-1, layer.values.shape[1], -1, layer.values.shape[3]))
        self.cached = keep

    def _move(self, path, base):
        """Bring the drafts at places `path` [B, n] to the front of the drafts, in place."""
        count = path.shape[1]
        if (path == torch.arange(count)).all():
            return
        slot = (base + path).to(self.device)[:, None, :, None]
        for layer in self.cache.layers:
            for x in (layer.keys, layer.values):
                x[:, :, base : base + count] = x.gather(2, slot.expand(-1, x.shape[1], -1, x.shape[3]))


def embedded_ids(model):
    """How many ids the model can read, None when it does not tell."""
    try:
        return model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return getattr(getattr(model, "config", None), "vocab_size", None)


def _new_cache(model):
    """An empty cache for a model of transformers: full attention layers, since windowed ones forget what a rejected
    draft pushed out. Other models bring their own."""
    if hasattr(getattr(model, "config", None), "get_text_config"):
        from transformers import DynamicCache

        return DynamicCache()
    return None
