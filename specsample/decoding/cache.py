"""A causal language model together with its KV cache, for requests that advance at different speeds.

One invariant holds for every cache here, of target and draft, for chains and trees, whenever the model is called: *the
distance of two slots is the distance of their tokens*. Sliding windows, and models that bias attention by slot, need it. So
the layout of a request is one number, pad[b]: the token of index i lies in slot pad[b] + i, for all of its prefix and then for
its drafts, along each path that it reads in order. Slots before pad[b], and those of drafts that a request does not have,
are masked; the latter come last. No gap can be noted, and none arises:

- Between calls the cache is left-padded, pad[b] = max(cached) − cached[b]; memory is that of the longest request.
- A call feeds equally many tokens of each prefix, or the whole of a shorter one. A request that lacks less than another reads
  its last tokens again, so that what is fed follows what is cached. These columns would be computed in any case.
- After a round the requests have lost different numbers of rejected tokens. One request, or a batch that lost equally many, is
  cropped: a view. Otherwise each layer is gathered into place, one copy of the cache a round, which is what appending
  to a DynamicCache costs anyway. Leaving rejected slots in place and masking them would save that copy, and break the
  invariant. (Places of a `MaskedTree`, whose models see no slots, are numbered otherwise while the tree is read.)
"""

import torch

from ..errors import expect
from .calling import call_of, embedded_ids, new_cache


class CachedModel:
    """A transformers-like model and its cache, for chains of drafts. (Trees: tree_cache.py.)

    model(input_ids=, attention_mask=, position_ids=, past_key_values=, use_cache=True) returns `.logits` and
    `.past_key_values`; or both are called `cache`, as in transformers 5.24. The cache needs `crop(-n)` (forget the last
    n slots) and, for several requests or trees, `layers` with tensors `keys` and `values` [B, heads, slots, width], as
    transformers' DynamicCache has.

    cached  list of B ints: how many tokens of each request the cache holds
    rows    rows of the cache, a request
    """

    rows = 1

    def __init__(self, model, batch, device):
        self.model, self.device = model, device
        self.call = call_of(model)
        embedded = embedded_ids(model)
        self.highest = None if embedded is None else embedded - 1
        # None, or: texts longer than this are read by other frequencies. And whether the cache is of such a text.
        self.switch, self.long = None, False
        self.cache = new_cache(model)
        self.cached = [0] * batch
        self._place(self.cached, 0, self.cached)

    def __call__(self, prefixes, more, real=None):
        """Feed what the cache lacks of the prefixes, then `more` int64 [B, N]; ids that the model does not know are fed as
        others: they are never accepted, so nothing that is kept attends to them.

        real: list of B ints, how many of `more` a request has, None = all. The others are fed in its last position, masked.
        -> logits [B, N + 1, V]: after each prefix, and after each of `more`
        """
        count = more.shape[1]
        ids, positions = self._catch_up(prefixes, count)
        if real is not None and min(real) < count:
            known = torch.tensor(real)[:, None]
            self.real = torch.arange(count) < known
            positions = torch.minimum(positions, prefixes.lengths[:, None] - 1 + known)
        logits = self._forward(torch.cat([ids, more], 1) if count else ids, positions, count + 1)
        self.cached = [length + n for length, n in zip(self.cached, real or [count] * len(self.cached))]
        return logits

    def step(self, tokens, going=None):
        """Feed one more token of each request, int64 [B]; going: list of B bools, which have one, None = all. -> logits [B, V]"""
        going = going or [True] * len(self.cached)
        if self.real is not None or not all(going):
            drafts = self.slots - self.width - self.columns
            real = torch.ones(len(going), drafts, dtype=torch.bool) if self.real is None else self.real
            self.real = torch.cat([real, torch.tensor(going)[:, None]], 1)
        positions = torch.tensor([length - (not on) for length, on in zip(self.cached, going)])
        logits = self._forward(tokens[:, None], positions[:, None], 1)
        self.cached = [length + on for length, on in zip(self.cached, going)]
        return logits[:, 0]

    def _catch_up(self, prefixes, more=0):
        """Forget what is not in the prefixes, and make room for what is missing.
        -> ids of the missing tokens, int64 [B, columns], at the right, and on the CPU their positions and those of `more`
        tokens after them"""
        lengths = prefixes.lengths.tolist()
        if self.switch is not None:
            self._start_over_at_switch(max(lengths) > self.switch)
        # The logits after the last token are wanted, so that token is always fed.
        columns = max(length - min(cached, length - 1) for cached, length in zip(self.cached, lengths))
        keep = [max(0, length - columns) for length in lengths]
        self._rewind(keep)
        self._place(keep, columns, lengths)
        positions = prefixes.lengths[:, None] + torch.arange(-columns, more)
        if columns > min(lengths):
            positions = positions.clamp(min=0)
        self.cached = lengths
        index = positions[:, :columns] if more else positions
        return prefixes.tokens.gather(1, index.to(self.device)), positions

    def _start_over_at_switch(self, long):
        """Forget all if it was read by other rotary frequencies than the prefixes are to be: then every token's key changes.
        What decodes past the switch by several requests has them one by one (one_by_one.py)."""
        if self.long is not long and self.slots:
            self.cache, self.cached = new_cache(self.model), [0] * len(self.cached)
            self._place(self.cached, 0, self.cached)
        self.long = long

    def room(self, length):
        """How many drafts may follow a prefix so that the model reads prefix and drafts by the same rotary frequencies."""
        return torch.iinfo(torch.int64).max if self.switch is None or length > self.switch else self.switch - length

    def _place(self, keep, columns, lengths):
        """Note the layout: keep[b] cached tokens, left-padded, then `columns` slots that complete the prefixes of these lengths,
        then drafts"""
        self.width, self.before, self.columns = max(keep), keep, columns
        base = self.width + columns
        self.slots, self.pad = self.width, [base - length for length in lengths]
        self.path = None  # of each request, places of the kept drafts among those read; None = in order
        # Which slots before the drafts hold tokens, bool [B, base], and which slots of drafts; on the CPU, None = all
        self.used = torch.arange(base) >= torch.tensor(self.pad)[:, None] if any(self.pad) else None
        self.real = None

    def _mask(self):
        """The attention mask of tokens in order, int64 [B, slots], or None where all slots are used."""
        if self.used is None and self.real is None:
            return None
        base = self.width + self.columns
        if self.used is None:
            used = torch.ones(len(self.real), base, dtype=torch.bool)
        else:
            used = self.used.repeat_interleave(self.rows, 0)
        if self.real is None:
            used = torch.nn.functional.pad(used, (0, self.slots - base), value=True)
        else:
            used = torch.cat([used, self.real], 1)
        return used.to(self.device, torch.int64)

    def _forward(self, ids, positions, keep, mask=None):
        """Feed ids [B, n] with positions [B, n] (CPU). mask: 4-D; None = each attends to all before it.
        -> logits of the last `keep`"""
        self.slots += ids.shape[1]
        if self.switch is not None and (int(positions.max()) >= self.switch) is not self.long:
            self.long = None  # a draft model's own drafts across the switch: neither
        out = self.model(
            input_ids=ids.clamp(min=0, max=self.highest),
            attention_mask=self._mask() if mask is None else mask,
            use_cache=True,
            **{self.call.cache: self.cache},
            **({"position_ids": positions.to(self.device)} if self.call.positions else {}),
            **({self.call.keep: keep} if self.call.keep else {}),
        )
        returned = getattr(out, self.call.cache, None)
        expect(returned is not None, self.call.cache, f"a cache in what {type(self.model).__name__} returns", "None")
        if self.cache is None:  # the model has brought its own
            forgets = any(getattr(layer, "is_sliding", False) for layer in getattr(returned, "layers", ()))
            told = "a cache that keeps every token (transformers.DynamicCache(), without a config)"
            expect(not forgets, self.call.cache, told, f"layers with a window from {type(self.model).__name__}")
        self.cache = returned
        return out.logits[:, -keep:]

    def _rewind(self, keep):
        """Forget all but the first keep[b] tokens of each request, and restore the left-padded layout. keep: list of B ints"""
        base, width = self.width + self.columns, max(keep)
        ends = {pad + count for pad, count in zip(self.pad, keep)}
        if len(ends) == 1 and min(self.pad) == 0:  # the layout stays as it is
            (end,) = ends
            if self.path is not None and end > base:
                self._move([path[: end - base] for path in self.path], base)
            if self.slots > end:
                self.cache.crop(end - self.slots)
        else:
            pad = torch.tensor(self.pad)[:, None]
            token = torch.arange(width) - (width - torch.tensor(keep)[:, None])  # < 0: padding, whatever it holds
            slot = pad + token
            if self.path is not None and any(self.path):
                longest = max(map(len, self.path))
                path = torch.tensor([places + (0,) * (longest - len(places)) for places in self.path])
                at = slot - base
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
