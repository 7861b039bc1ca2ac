"""A causal language model together with its KV cache, for requests that advance at different speeds.

One invariant holds for every cache here, target and draft, chain and tree, whenever the model is called: *the distance
between two slots is the distance between their tokens*. Sliding windows, and models that bias attention by slot, need it. So
the layout of a request is one number, pad[b]: the token of index i lies in slot pad[b] + i, for the whole prefix and then for
the drafts, along each path that is read in order. Slots before pad[b], and those of drafts that a request does not have,
are masked; the latter come last. The layout cannot express gaps, and none arise:

- Between calls the cache is left-padded, pad[b] = max(cached) − cached[b]; it takes as much memory as if all requests had the
  length of the longest.
- A call feeds the same number of tokens of each prefix, or all of a shorter prefix. A request that lacks fewer tokens than another
  re-reads its last ones, so that what is fed follows what is cached. These columns would be computed in any case.
- After a round, requests have lost different numbers of rejected tokens. A single request, or a batch whose requests all lost the
  same number, is cropped: a view. Otherwise each layer is gathered into place, one copy of the cache per round, which is what
  appending to a DynamicCache costs anyway. Leaving rejected slots in place and masking them would save that copy but break the
  invariant. (In a `MaskedTree`, whose models do not see slots, places are numbered differently while the tree is read.)
"""

import torch

from ..errors import expect
from .calling import call_of, embedded_ids, new_cache


class CachedModel:
    """A transformers-like model and its cache, for chains of drafts. (Trees: tree_cache.py.)

    model(input_ids=, attention_mask=, position_ids=, past_key_values=, use_cache=True) returns `.logits` and
    `.past_key_values`; in transformers 5.24 the argument and the attribute are called `cache`. The cache needs `crop(-n)`
    (forget the last n slots) and, for several requests or trees, `layers` with tensors `keys` and `values`
    [B, heads, slots, width], like transformers' DynamicCache.

    cached  list of B ints: how many tokens of each request the cache holds
    rows    cache rows per request
    """

    rows = 1

    def __init__(self, model, batch, device):
        self.model, self.device = model, device
        self.call = call_of(model)
        embedded = embedded_ids(model)
        self.highest = None if embedded is None else embedded - 1
        # None, or the length beyond which texts use other rotary frequencies; and whether the cache holds such a text.
        self.switch, self.long = None, False
        self.cache = new_cache(model)
        self.cached = [0] * batch
        self._place(self.cached, 0, self.cached)

    def __call__(self, prefixes, more, real=None):
        """Feed the part of each prefix that the cache lacks, then `more` int64 [B, N]. Ids outside the model's vocabulary are
        clamped into it: they are never accepted, so nothing that is kept attends to them.

        real: list of B ints, how many of `more` each request has, None = all. The rest are fed at its last position, masked.
        -> logits [B, N + 1, V]: after each prefix and after each token of `more`
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
        """Feed one more token per request, int64 [B]; going: list of B bools, which requests have one, None = all. -> logits [B, V]"""
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
        """Drop cached tokens that are not in the prefixes, and make room for the missing ones.
        -> ids of the missing tokens, int64 [B, columns], right-aligned, and (on the CPU) their positions and those of `more`
        tokens after them"""
        lengths = prefixes.lengths.tolist()
        if self.switch is not None:
            self._start_over_at_switch(max(lengths) > self.switch)
        # The logits after the last token are needed, so that token is always fed.
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
        """Clear the cache if it was computed with other rotary frequencies than the prefixes now need: every key changes then.
        A batch of several requests that decodes past the switch is read one by one (one_by_one.py)."""
        if self.long is not long and self.slots:
            self.cache, self.cached = new_cache(self.model), [0] * len(self.cached)
            self._place(self.cached, 0, self.cached)
        self.long = long

    def room(self, length):
        """How many drafts may follow a prefix so that prefix and drafts use the same rotary frequencies."""
        return torch.iinfo(torch.int64).max if self.switch is None or length > self.switch else self.switch - length

    def _place(self, keep, columns, lengths):
        """Record the layout: keep[b] cached tokens, left-padded; then `columns` slots that complete prefixes of the given lengths;
        then drafts"""
        self.width, self.before, self.columns = max(keep), keep, columns
        base = self.width + columns
        self.slots, self.pad = self.width, [base - length for length in lengths]
        self.path = None  # for each request, places of the kept drafts among those read; None = in order
        # Which slots before the drafts hold tokens, bool [B, base], and which draft slots do; on the CPU, None = all
        self.used = torch.arange(base) >= torch.tensor(self.pad)[:, None] if any(self.pad) else None
        self.real = None

    def _mask(self):
        """The attention mask for tokens in order, int64 [B, slots], or None if all slots are used."""
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
        """Feed ids [B, n] with positions [B, n] (CPU). mask: 4-D; None = each token attends to all before it.
        -> logits after the last `keep` tokens"""
        self.slots += ids.shape[1]
        if self.switch is not None and (int(positions.max()) >= self.switch) is not self.long:
            self.long = None  # a draft model's drafts crossed the switch: the cache fits neither side
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
        if self.cache is None:  # the model created its own
            forgets = any(getattr(layer, "is_sliding", False) for layer in getattr(returned, "layers", ()))
            told = "a cache that keeps every token (transformers.DynamicCache(), without a config)"
            expect(not forgets, self.call.cache, told, f"layers with a window from {type(self.model).__name__}")
        self.cache = returned
        return out.logits[:, -keep:]

    def _rewind(self, keep):
        """Drop all but the first keep[b] tokens of each request and restore the left-padded layout. keep: list of B ints"""
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
            token = torch.arange(width) - (width - torch.tensor(keep)[:, None])  # < 0: padding, whose content is irrelevant
            slot = pad + token
            if self.path is not None and any(self.path):
                longest = max(map(len, self.path))
                path = torch.tensor([places + (0,) * (longest - len(places)) for places in self.path])
                at = slot - base
                slot = torch.where(at >= 0, base + path.gather(1, at.clamp(0, longest - 1)), slot)
            self._gather(slot.clamp(min=0), lambda layer, name, kept: setattr(layer, name, kept))
        self.cached = keep

    def _move(self, path, base):
        """Move the drafts at places path[b] to the front of the drafts, in place. path: B tuples of equal length"""
        count = len(path[0])
        if all(places == tuple(range(count)) for places in path):
            return
        slots = torch.tensor(path) + base
        self._gather(slots, lambda layer, name, kept: getattr(layer, name).narrow(2, base, count).copy_(kept))

    def _gather(self, slots, put):
        """Call put(layer, "keys" or "values", that tensor gathered at slots int64 [B, n]) for every layer"""
        slots = slots.to(self.device)[:, None, :, None]
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                x = getattr(layer, name)
                put(layer, name, x.gather(2, slots.expand(-1, x.shape[1], -1, x.shape[3])))
