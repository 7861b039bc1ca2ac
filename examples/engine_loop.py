"""The loop of an inference engine around ss.draft and ss.verify: a KV cache, a batch, torch alone.

    python examples/engine_loop.py

Under `race` the text is that of plain decoding; the last lines show it.
"""

import torch

import specsample as ss

VOCAB, WIDTH, SLOTS = 500, 64, 256


class Model(torch.nn.Module):
    """One causal attention layer with random weights. Its cache has one slot for each position of each request."""

    def __init__(self, seed, batch):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.place = torch.nn.Embedding(VOCAB, WIDTH), torch.nn.Embedding(SLOTS, WIDTH)
        self.qkv, self.head = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, VOCAB)
        self.head.weight.data *= 12
        self.keys, self.values = torch.zeros(2, batch, SLOTS, WIDTH).unbind()

    def forward(self, tokens, positions):
        """tokens, positions: int64 [B, n] -> logits [B, n, V] after each of them"""
        q, k, v = self.qkv(self.embed(tokens) + 0.3 * self.place(positions)).chunk(3, -1)
        slot = positions[:, :, None].expand_as(k)
        self.keys.scatter_(1, slot, k)  # overwrites whatever a rejected draft left there
        self.values.scatter_(1, slot, v)
        seen = torch.arange(SLOTS) <= positions[:, :, None]  # slots after a token's own position are never read
        return self.head(torch.nn.functional.scaled_dot_product_attention(q, self.keys, self.values, seen))


@torch.no_grad()
def serve(target, draft, prompts, new_tokens, depth, scheme, sampling, seeds):
    """prompts: int64 [B, W], W >= 2 -> texts int64 [B, W + new_tokens], target calls. draft: a Model, or None for plain decoding"""
    batch, width = prompts.shape
    text = torch.nn.functional.pad(prompts, (0, new_tokens + depth + 1))
    length = torch.full((batch,), width)  # of each request; they diverge, since each accepts a different number of drafts
    for model in filter(None, (target, draft)):
        model(prompts[:, :-1], torch.arange(width - 1).expand(batch, -1))  # prefill: all but the last token
    calls, goal = 0, width + new_tokens
    while (length < goal).any():
        stream = {"seed": seeds, "position": length, "sampling": sampling}
        # Draft. The last token is not in the cache yet, nor is the one before it if all drafts were accepted.
        last, drafts, rows = length[:, None] - 1, [], []
        for i in range(depth if draft is not None else 0):
            at = last + i if i else torch.cat([last - 1, last], 1)
            rows.append(draft(text.gather(1, at), at)[:, -1])
            kind = ss.schemes()[scheme].draft_kind
            drafts.append(ss.draft(rows[i], kind=kind, depth=i, node=i, **stream)[:, 0])
            text.scatter_(1, last + i + 1, drafts[i][:, None])
        # One call of the target reads the last token and all drafts: one row after each of them.
        at = last + torch.arange(len(drafts) + 1)
        logits, calls = target(text.gather(1, at), at), calls + 1
        if drafts:
            verdict = ss.verify(logits, torch.stack(drafts, 1), torch.stack(rows, 1), scheme=scheme, **stream)
            tokens, count = verdict.tokens, verdict.num_accepted + 1  # emitted by the round: the accepted drafts and one more
        else:
            tokens, count = ss.sample(logits[:, 0], **stream)[:, None], 1
        # Padding (-1) lands beyond the new length, where the next round writes before anything reads.
        text.scatter_(1, at + 1, tokens.clamp(min=0))
        length = torch.where(length < goal, (length + count).clamp(max=goal), length)
    return text[:, :goal], calls


if __name__ == "__main__":
    prompts, seeds, sampling = torch.randint(VOCAB, (3, 8)), torch.tensor([5, 6, 7]), ss.Sampling(temperature=0.8, top_p=0.95)
    plain, calls = serve(Model(0, 3), None, prompts, 60, 0, "race", sampling, seeds)
    print(f"plain: {calls} target calls")
    for scheme in ("token", "block", "race"):
        draft = Model(0, 3)
        draft.head.weight.data += 0.3 * torch.randn_like(draft.head.weight)  # a draft that is often right
        text, calls = serve(Model(0, 3), draft, prompts, 60, 4, scheme, sampling, seeds)
        print(f"{scheme}: {calls} target calls", "- the plain text, token for token" if text.equal(plain) else "")
