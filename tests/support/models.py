"""Small models for the decoding tests: one with known laws, and a real transformers model."""

from types import SimpleNamespace

import torch
from torch import nn


class TokenCache:
    """Keys are the ids that were fed, [B, 1, slots, 1]: the minimum that decoding requires of a cache."""

    def __init__(self):
        self.layers = []

    def append(self, ids):
        ids = ids[:, None, :, None]
        if not self.layers:
            self.layers = [SimpleNamespace(keys=ids[:, :, :0], values=ids[:, :, :0])]
        layer = self.layers[0]
        layer.keys = torch.cat([layer.keys, ids], 2)
        layer.values = torch.cat([layer.values, ids], 2)

    def crop(self, tokens_to_remove):
        assert tokens_to_remove < 0
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[:, :, :tokens_to_remove], layer.values[:, :, :tokens_to_remove]


class Streamer:
    """Records what it receives."""

    def __init__(self):
        self.got, self.ended = [], 0

    def put(self, tokens):
        self.got.append(tokens)

    def end(self):
        self.ended += 1


class TableModel(nn.Module):
    """A Markov chain: the law after a token is its row of `table` [V, V'] (probabilities), whatever came before.

    In float64 the reference verifies; in float32 the compiled kernels do, hundreds of times faster.
    It counts its calls, and checks that the cache and the mask together contain what they should: each request's tokens
    in order, with positions counting up from 0.
    """

    def __init__(self, table, strict=True, dtype=torch.float64):
        super().__init__()
        self.register_buffer("logits", torch.as_tensor(table, dtype=torch.float64).log().to(dtype))
        self.strict, self.calls, self.widths = strict, 0, []

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=True):
        self.calls += 1
        self.widths.append(input_ids.shape[1])
        cache = past_key_values or TokenCache()
        cache.append(input_ids)
        if self.strict:
            slots = cache.layers[0].keys.shape[2]
            mask = torch.ones(len(input_ids), slots) if attention_mask is None else attention_mask
            assert mask.shape == (len(input_ids), slots)
            expected = mask.cumsum(1)[:, -input_ids.shape[1] :] - 1
            real = mask[:, -input_ids.shape[1] :] > 0
            assert (position_ids.expand_as(expected)[real] == expected[real]).all()
        return SimpleNamespace(logits=self.logits[input_ids], past_key_values=cache)


def tiny_llama(seed, vocab=60, dtype=torch.float64, sharpness=8.0, inner=48):
    """A random two-layer Llama whose laws are neither flat nor deterministic."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.lm_head.weight.data *= sharpness / model.lm_head.weight.std() / 32**0.5 / 4
    return model


class Tokenizer:
    """Of a model with 60 tokens: a character is a token"""

    def __call__(self, text, return_tensors):
        from transformers import BatchEncoding

        ids = torch.tensor([[ord(character) % 60 for character in text]])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def decode(self, ids):
        return " ".join(map(str, ids.tolist()))


def nearby(model, noise, seed):
    """A copy of `model` with noise on its head: a draft model that often, but not always, agrees."""
    import copy

    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    weight = other.lm_head.weight.data
    weight += noise * weight.std() * torch.randn_like(weight)
    return other


def prompts(lengths, vocab=60, seed=0, left=True):
    """Random prompts of the given lengths, padded to one width: (input_ids, attention_mask)"""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.int64), torch.zeros(len(lengths), width, dtype=torch.int64)
    for b, n in enumerate(lengths):
        at = slice(width - n, width) if left else slice(0, n)
        ids[b, at] = torch.randint(vocab, (n,), generator=generator)
        mask[b, at] = 1
    return ids, mask
