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

    cached  list of B ints: how many tokens of each request the cache holds
    """

    def __init__(self, model, batch, device):
        self.model, self.device = model, device
        accepted = inspect.signature(getattr(model, "forward", model)).parameters
        self.keep_argument = next((n for n in ("logits_to_keep", "num_logits_to_keep") if n in accepted), None)
        self.cache_name = "cache" if "cache" in accepted else "past_key_values"
        embedded = embedded_ids(model)
        self.highest = None if embedded is None else embedded - 1
        self.cache = _new_cache(model)
        self.cached = [0] * batch
        self.path = None  # of each request, places of the kept drafts among those read; None = in order
        self._place(self.cached, self.cached, 0)

    def __call__(self, prefixes, more):
        """Feed what the cache lacks of the prefixes, then `more` int64 [B, N]; ids that the model does not know
        (−1 included) are fed as others: they are never accepted, so nothing that is kept attends to them.

        -> logits [B, N + 1, V]: after each prefix, and after each of `more`
        """
        count = more.shape[1]
        ids, positions = self._catch_up(prefixes, count)
        logits = self._forward(torch.cat([ids, more], 1) if count else ids, positions, count + 1)
        self.cached = [length + count for length in self.cached]
        return logits

    def step(self, tokens):
        """Feed one more token of each request, int64 [B]. -> logits [B, V]"""
        logits = self._forward(tokens[:, None], torch.tensor(self.cached)[:, None], 1)
        self.cached = [length + 1 for length in self.cached]
        return logits[:, 0]

    def _catch_up(self, prefixes, more=0):
        """Forget what is not in the prefixes, and make room for what is missing.
        -> ids of the missing tokens, int64 [B, columns], at the right, and on the CPU their positions and those of `more`
        tokens after them"""
        lengths = prefixes.lengths.tolist()
        # The logits after the last token are wanted, so that token is always fed.
        self._rewind([min(cached, length - 1) for cached, length in zip(self.cached, lengths)])
        missing = [length - cached for cached, length in zip(self.cached, lengths)]
        columns = max(missing)
        self._place(self.cached, [columns - count for count in missing], columns)
        positions = prefixes.lengths[:, None] + torch.arange(-columns, more)
        if columns > min(lengths):
            positions = positions.clamp(min=0)
        self.cached = lengths
        index = positions[:, :columns] if more else positions
        return prefixes.tokens.gather(1, index.to(self.device)), positions

    def _place(self, cached, gap, columns):
        """Note the layout: left-padded `cached` tokens in `width` slots, then `columns` slots of prefixes, of which the first
        gap[b] are unused, then drafts. cached, gap: lists of B ints"""
        self.width, self.before, self.gap, self.columns = max(cached), cached, gap, columns
        self.slots, self.path = self.width, None
        # Which slots before the drafts hold tokens: bool [B, width + columns] on the CPU; None = all
        self.used = None
        if min(cached) < self.width or any(gap):
            slot, cached, gap = torch.arange(self.width + columns), torch.tensor(cached)[:, None], torch.tensor(gap)[:, None]
            self.used = (slot >= self.width - cached) & ((slot < self.width) | (slot >= self.width + gap))

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
        """Forget all but the first keep[b] tokens of each request, and restore the left-padded layout. keep: list of B ints"""
        held = [before + self.columns - gap for before, gap in zip(self.before, self.gap)]  # tokens that lie before the drafts
        kept = [tokens - lie for tokens, lie in zip(keep, held)]
        base, count = self.width + self.columns, kept[0]
        contiguous = not any(before and gap for before, gap in zip(self.before, self.gap))
        if contiguous and all(other == count for other in kept):
            if self.path is not None and count > 0:
                self._move([path[:count] for path in self.path], base)
            if self.slots > base + count:
                self.cache.crop(base + count - self.slots)
        else:
            width = max(keep)
            before, gap, held, unused = (
                torch.tensor(x)[:, None] for x in (self.before, self.gap, held, [width - count for count in keep])
            )
            token = torch.arange(width) - unused  # < 0: padding, whatever it holds
            slot = self.width - before + token
            slot = torch.where(token >= before, slot + gap, slot)
            if self.path is not None and any(self.path):
                longest = max(map(len, self.path))
                path = torch.tensor([places + (0,) * (longest - len(places)) for places in self.path])
                at = token - held
                slot = torch.where(at >= 0, base + path.gather(1, at.clamp(0, longest - 1)), slot)
            self._gather(slot.clamp(min=0), lambda layer, name, kept: setattr(layer, name, kept))
        self.cached = keep

    def _move(self, path, base):
        """Bring the drafts at places path[b] to the front of the drafts, in place. path: B tuples of equal lengths"""
        count = len(path[0])
        if all(places == tuple(range(count)) for places in path):
            return
        slots = torch.tensor(path) + base
        self._gather(slots, lambda layer, name, kept: getattr(layer, name).narrow(2, base, count).copy_(kept))

    def _gather(self, slots, put):
        """put(layer, "keys" or "values", what the layer has there at slots int64 [B, n]) for all layers"""
        slots = slots.to(self.device)[:, None, :, None]
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                x = getattr(layer, name)
                put(layer, name, x.gather(2, slots.expand(-1, x.shape[1], -1, x.shape[3])))


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
