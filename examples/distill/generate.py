"""Texts of the target: many replies sampled at once, with the target's law at every reply token."""

import os
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import specsample as ss

from .prompts import make_prompt


class BatchTarget:
    """The target's forward pass on a preallocated KV cache, for sampling many texts at once.

    transformers' own cache is copied for every token; at a batch of 128 that costs more than the arithmetic.
    """

    def __init__(self, target, rows, slots):
        config, model = target.config, target.model
        self.kv_heads, self.head_dim = config.num_key_value_heads, config.head_dim
        self.groups = config.num_attention_heads // self.kv_heads
        self.eps = config.rms_norm_eps
        self.embedding, self.norm = model.embed_tokens.weight, model.norm.weight
        self.layers = [
            (
                layer.input_layernorm.weight,
                torch.cat([part.weight for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)]),
                layer.self_attn.o_proj.weight,
                layer.post_attention_layernorm.weight,
                torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]),
                layer.mlp.down_proj.weight,
            )
            for layer in model.layers
        ]
        self.keys, self.values = ([torch.zeros(rows, self.kv_heads, slots, self.head_dim) for _ in self.layers] for _ in range(2))
        angles = torch.outer(torch.arange(slots).float(), model.rotary_emb.inv_freq.float())
        self.cos, self.sin = (f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))

    def keep(self, rows):
        """Drop all rows but these from the cache."""
        for caches in (self.keys, self.values):
            for n, cache in enumerate(caches):
                caches[n] = cache[rows]

    def hidden(self, ids, slot, positions, mask):
        """The last token's final hidden state [rows, hidden]; ids [rows, S] go to the cache's slots slot..slot+S."""
        rows, size = ids.shape
        heads, dim = self.kv_heads * self.groups, self.head_dim
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]

        def rotate(x):
            return x * cos + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * sin

        mask = mask.repeat(1, self.groups, 1)[:, None]  # [rows, 1, groups * S, T]
        x = F.embedding(ids, self.embedding)
        for n, (norm_in, w_qkv, w_out, norm_mlp, w_gate_up, w_down) in enumerate(self.layers):
            qkv = F.linear(F.rms_norm(x, x.shape[-1:], norm_in, self.eps), w_qkv)
            qkv = qkv.view(rows, size, heads + 2 * self.kv_heads, dim).transpose(1, 2)
            queries, keys, values = qkv.split([heads, self.kv_heads, self.kv_heads], 1)
            self.keys[n][:, :, slot : slot + size] = rotate(keys)
            self.values[n][:, :, slot : slot + size] = values
            # The query heads that share a KV head become additional queries of that head, so the cache is not repeated.
            queries = rotate(queries).reshape(rows, self.kv_heads, self.groups * size, dim)
            mixed = F.scaled_dot_product_attention(
                queries, self.keys[n][:, :, : slot + size], self.values[n][:, :, : slot + size], attn_mask=mask
            )
            mixed = mixed.view(rows, heads, size, dim).transpose(1, 2).reshape(rows, size, heads * dim)
            x = x + F.linear(mixed, w_out)
            gate, up = F.linear(F.rms_norm(x, x.shape[-1:], norm_mlp, self.eps), w_gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w_down)
        return F.rms_norm(x[:, -1], x.shape[-1:], self.norm, self.eps)


def generate_shard(target, tokenizer, rng, rows, new_tokens, held_out, temperatures):
    """Sample one reply to each of `rows` prompts; a dict of flat tensors.

    For every new token the target's final hidden state is kept (fp16): the target's head recovers the whole law from it, so
    nothing is cut off, and at full precision it takes less room than a list of the likeliest tokens.
    """
    prompts = [tokenizer(make_prompt(rng, held_out), add_special_tokens=False)["input_ids"] for _ in range(rows)]
    temperature = torch.tensor([rng.choice(temperatures) for _ in prompts])
    longest = max(map(len, prompts))
    ids = torch.full((rows, longest), tokenizer.eos_token_id)
    pads = torch.tensor([longest - len(prompt) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
    slots = longest + new_tokens
    real = torch.arange(slots) >= pads[:, None]
    engine = BatchTarget(target, rows, slots)
    positions = (torch.arange(longest) - pads[:, None]).clamp(min=0)
    # Padding attends to itself; otherwise its softmax would have nothing to sum over.
    mask = (real[:, None, :longest] & torch.ones(longest, longest).tril().bool()) | torch.eye(longest).bool()

    tokens = torch.zeros(rows, new_tokens, dtype=torch.int32)
    hiddens = torch.zeros(rows, new_tokens, engine.embedding.shape[1], dtype=torch.float16)
    totals = torch.zeros(rows, new_tokens)
    lengths = torch.full((rows,), new_tokens)
    alive = torch.arange(rows)  # the row of each text that is still in the engine's batch
    seeds = rng.randrange(2**31) + torch.arange(rows)
    hidden = engine.hidden(ids, 0, positions, mask)
    for step in range(new_tokens):
        logits = F.linear(hidden, engine.embedding)
        chosen = ss.sample(logits, sampling=ss.Sampling(temperature[alive]), seed=seeds[alive], position=step)
        hiddens[alive, step], totals[alive, step] = hidden.half(), ss.row_stats(logits).logsumexp
        tokens[alive, step] = chosen.int()
        ended = (chosen == tokenizer.eos_token_id) & (lengths[alive] == new_tokens)
        lengths[alive[ended]] = step + 1
        going = lengths[alive] == new_tokens
        # Finished rows are removed in batches: a few idle rows cost less than copying the cache at every step.
        if going.sum() < 0.85 * len(alive):
            engine.keep(going)
            alive, chosen = alive[going], chosen[going]
        if len(alive) < rows // 8 or step == new_tokens - 1:
            lengths[alive] = lengths[alive].clamp(max=step + 1)
            break
        slot = longest + step
        hidden = engine.hidden(chosen[:, None], slot, (slot - pads[alive])[:, None], real[alive, None, : slot + 1])

    kept = torch.arange(new_tokens) < lengths[:, None]
    return {
        "prompts": torch.cat([torch.tensor(prompt, dtype=torch.int32) for prompt in prompts]),
        "prompt_lengths": torch.tensor([len(prompt) for prompt in prompts]),
        "tokens": tokens[kept],
        "lengths": lengths,
        "hiddens": hiddens[kept],
        "totals": totals[kept],
        "temperatures": temperature,
    }


def generate(args, target, tokenizer):
    """Write shards of target text to the work folder, the held-out one first, until there are enough tokens."""
    args.work.mkdir(parents=True, exist_ok=True)
    made, start, shard = 0, time.time(), 0
    while made < args.tokens:
        held_out = shard == 0
        path = args.work / ("held_out.safetensors" if held_out else f"train_{shard:04d}.safetensors")
        if path.exists():
            count = len(load_file(path)["tokens"])
        else:
            rng = random.Random(f"{args.seed} {shard}")
            # The held-out text is all at T = 1: acceptance at T = 1 is measured on text at T = 1.
            temperatures = [1.0] if held_out else [1.0] * 6 + [0.7] * 3 + [0.0]
            rows = min(96, args.rows) if held_out else args.rows
            data = generate_shard(target, tokenizer, rng, rows, args.new_tokens, held_out, temperatures)
            save_file(data, str(path) + ".part")
            os.replace(str(path) + ".part", path)  # a shard exists completely or not at all
            count = len(data["tokens"])
        made += 0 if held_out else count
        shard += 1
        print(f"generate: {made} of {args.tokens} tokens, {made / (time.time() - start):.0f} tokens/s", flush=True)
