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
    """A transformers-like model and its cache.

    model(input_ids=, attention_mask=, position_ids=, past_key_values=, use_cache=True) returns `.logits` and
    `.past_key_values`; or both are called `cache`, as in transformers 5.24. The cache needs `crop(-n)` (forget the last
    n slots) and, for several requests, `layers` with tensors `keys` and `values` [B, heads, slots, width], as
    transformers' DynamicCache has.

    cached  int64 [B] on the CPU: how many tokens of each request the cache holds
    """

    def __init__(self, model, batch, device):
        self.model, self.device = model, device
        accepted = inspect.signature(getattr(model, "forward", model)).parameters
        self.keep_argument = next((n for n in ("logits_to_keep", "num_logits_to_keep") if n in accepted), None)
        self.cache_name = "cache" if "cache" in accepted else "past_key_values"
        self.embedded = embedded_ids(model)
        self.cache = _new_cache(model)
        self.cached = torch.zeros(batch, dtype=torch.int64)
        self._place(self.cached, torch.zeros_like(self.cached))

    def __call__(self, prefixes, more):
        """Feed what the cache lacks of the prefixes, then `more` int64 [B, N]; ids that the model does not know
        (−1 included) are fed as 0: they are never accepted, so nothing that is kept attends to them.

        -> logits [B, N + 1, V]: after each prefix, and after each of `more`
        """
        lengths = prefixes.lengths
        # The logits after the last token are wanted, so that token is always fed.
        self._rewind(torch.minimum(self.cached, lengths - 1))
        missing = lengths - self.cached
        columns = int(missing.max())
        self._place(self.cached, columns - missing)
        index = lengths[:, None] + torch.arange(-columns, 0)
        ids = prefixes.tokens.gather(1, index.clamp(min=0).to(self.device))
        self.cached = lengths
        index = torch.cat([index, lengths[:, None] + torch.arange(more.shape[1])], 1)
        logits = self._forward(torch.cat([ids, more], 1), index.clamp(min=0), more.shape[1] + 1)
        self.cached = lengths + more.shape[1]
        return logits

    def step(self, tokens):
        """Feed one more token of each request, int64 [B]. -> logits [B, V]"""
        logits = self._forward(tokens[:, None], self.cached[:, None], 1)
        self.cached = self.cached + 1
        return logits[:, 0]

    def _place(self, cached, gap):
        """Note the layout: left-padded `cached` tokens in `width` slots, then `gap` [B] unused slots, then tokens."""
        self.width, self.before, self.gap = int(cached.max()), cached, gap
        self.slots = self.width

    def _forward(self, ids, positions, keep):
        self.slots += ids.shape[1]
        slot = torch.arange(self.slots)
        used = slot >= (self.width - self.before)[:, None]
        used &= (slot < self.width) | (slot >= (self.width + self.gap)[:, None])
        if self.embedded is not None:
            ids = torch.where(ids < self.embedded, ids, 0)
        out = self.model(
            input_ids=ids.clamp(min=0),
            attention_mask=None if used.all() else used.to(self.device, torch.int64),
            position_ids=positions.to(self.device),
            use_cache=True,
            **{self.cache_name: self.cache},
            **({self.keep_argument: keep} if self.keep_argument else {}),
        )
        self.cache = getattr(out, self.cache_name)
        return out.logits[:, -keep:]

    def _rewind(self, keep):
        """Forget all but the first keep[b] tokens of each request, and restore the left-padded layout."""
        lost = self.cached - keep
        contiguous = (self.gap == 0) | (self.before == 0)
        if contiguous.all() and (lost == lost[0]).all():
            if lost[0]:
                self.cache.crop(-int(lost[0]))
        else:
            width = int(keep.max())
            token = torch.arange(width) - (width - keep)[:, None]  # < 0: padding, whatever it holds
            slot = (self.width - self.before)[:, None] + token
            slot = torch.where(token >= self.before[:, None], slot + self.gap[:, None], slot)
            slot = slot.clamp(min=0).to(self.device)[:, None, :, None]
            for layer in self.cache.layers:
                layer.keys = layer.keys.gather(2, slot.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3]))
                layer.values = layer.values.gather(2, slot.expand(-1, layer.values.shape[1], -1, layer.values.shape[3]))
        self.cached = keep


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
