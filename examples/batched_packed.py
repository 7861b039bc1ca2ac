"""Batched serving with packed rows: requests come and go, and each has as many drafts as it can use.

    python examples/batched_packed.py

torch alone. The rows of all requests are stored one after another, without padding, as in engines with continuous batching.
"""

from collections import deque

import torch

import specsample as ss

VOCAB, MOST = 300, 6  # tokens; most drafts per request and round
TABLE = torch.randn(2, VOCAB, VOCAB, generator=torch.Generator().manual_seed(0)) * 3


class Request:
    def __init__(self, prompt, new_tokens, seed):
        self.text, self.goal, self.seed = list(prompt), len(prompt) + new_tokens, seed

    def drafts(self):
        """Prompt look-up: what followed the last token at its previous occurrence in the text. Often nothing."""
        last, before = self.text[-1], self.text[:-1]
        if last not in before:
            return []
        start = len(before) - before[::-1].index(last)
        return self.text[start : start + min(MOST, self.goal - len(self.text) - 1)]


def target(texts):
    """Stand-in for a model: logits [len(texts), V] that depend on the last two tokens. An engine would read its cache instead."""
    last, before = torch.tensor([text[-2:] for text in texts]).unbind(1)[::-1]
    return TABLE[0, last] + 0.3 * TABLE[1, before]


def step(requests, sampling):
    """One call of the target and one of verify for all requests. Request b owns its drafts and one more row."""
    drafts = [request.drafts() for request in requests]
    prefixes = [r.text + own[:i] for r, own in zip(requests, drafts) for i in range(len(own) + 1)]
    starts = torch.tensor([0] + [len(own) + 1 for own in drafts]).cumsum(0).to(torch.int32)
    verdict = ss.verify(
        target(prefixes),                                      # [total rows, V]
        torch.tensor(sum(drafts, []), dtype=torch.int64),      # [total rows - B]
        cu_rows=starts,                                        # int32 [B + 1]
        max_depth=MOST,                                        # width of the result, the same each round
        scheme="race",                                         # deterministic drafts have no law
        sampling=sampling,
        seed=torch.tensor([r.seed for r in requests]),
        position=torch.tensor([len(r.text) for r in requests]),
    )  # fmt: skip
    for request, tokens, count in zip(requests, verdict.tokens.tolist(), verdict.num_accepted.tolist()):
        request.text += tokens[: count + 1]


def serve(requests, slots, sampling):
    """Run all requests, at most `slots` at a time. -> number of target calls"""
    waiting, running, calls = deque(requests), [], 0
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(waiting.popleft())
        step(running, sampling)
        calls += 1
        running = [request for request in running if len(request.text) < request.goal]
    return calls


def some_requests():
    prompts = torch.randint(VOCAB, (10, 4), generator=torch.Generator().manual_seed(1)).tolist()
    return [Request(prompt, 30 + 5 * i, seed=i) for i, prompt in enumerate(prompts)]


if __name__ == "__main__":
    sampling = ss.Sampling(temperature=0.6)
    together, alone = some_requests(), some_requests()
    calls = serve(together, 4, sampling)
    tokens = sum(len(request.text) - 4 for request in together)
    print(f"{tokens} tokens of {len(together)} requests, four at a time, in {calls} calls")
    print(f"one at a time: {serve(alone, 1, sampling)} calls")
    same = all(one.text == other.text for one, other in zip(together, alone))
    print("each text is the one that the request gets alone:", same)
