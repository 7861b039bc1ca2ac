"""Models that attend to the last few *slots* of their cache: anything that breaks the cache's layout changes their output."""

from types import SimpleNamespace

import torch
from models import TokenCache
from torch import nn


class SlotCache(TokenCache):
    """Keys are the ids that were fed, values their positions."""

    def append(self, ids, positions):
        super().append(ids)
        layer = self.layers[0]
        layer.values[:, :, -ids.shape[1] :] = positions[:, None, :, None]


class WindowModel(nn.Module):
    """The law after a token depends on it and the width − 1 slots before it: a table [V, V] of logits for each distance.

    In every call it asserts the invariant of decoding/cache.py, for each row of the cache: the unmasked slots are contiguous
    and hold the tokens at positions 0, 1, 2, … in this order. `seen`: how many calls had padding at the left,
    masked slots at the right, and several new columns after cached tokens of unequal lengths.
    """

    def __init__(self, seed, vocab=24, width=3, noise=0.0, scale=2.0):
        super().__init__()
        normal = torch.Generator().manual_seed(seed)
        self.table = scale * torch.randn(width, vocab, vocab, generator=normal, dtype=torch.float64)
        other = torch.Generator().manual_seed(seed + 1000)
        self.table += noise * torch.randn(width, vocab, vocab, generator=other, dtype=torch.float64)
        self.calls, self.seen = 0, {"left": 0, "right": 0, "several": 0}

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=True):
        cache = past_key_values or SlotCache()
        cache.append(input_ids, position_ids.expand_as(input_ids))
        ids, positions = cache.layers[0].keys[:, 0, :, 0], cache.layers[0].values[:, 0, :, 0]
        rows, slots = ids.shape
        mask = torch.ones(rows, slots) if attention_mask is None else attention_mask
        assert mask.shape == (rows, slots)
        self.check(mask > 0, positions, input_ids.shape[1])
        logits = torch.zeros(*input_ids.shape, self.table.shape[-1], dtype=torch.float64)
        slot = torch.arange(slots - input_ids.shape[1], slots)
        for distance, table in enumerate(self.table):
            at = slot - distance
            visible = (at >= 0) & (mask[:, at.clamp(min=0)] > 0)
            logits += torch.where(visible[..., None], table[ids[:, at.clamp(min=0)]], 0.0)
        return SimpleNamespace(logits=logits, past_key_values=cache)

    def check(self, used, positions, new):
        self.calls += 1
        first = used.int().argmax(1, keepdim=True)
        count = used.sum(1, keepdim=True)
        slot = torch.arange(used.shape[1])
        assert (count > 0).all()
        assert torch.equal(used, (slot >= first) & (slot < first + count)), "the slots in use are not one run"
        assert (positions == slot - first)[used].all(), "the distance of two slots is not that of their tokens"
        self.seen["left"] += bool((first > 0).any())
        self.seen["right"] += bool((first + count < used.shape[1]).any())
        self.seen["several"] += new > 1 and self.calls > 1 and len(first.unique()) > 1
