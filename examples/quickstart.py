"""The smallest round: draft, verify, and check that the emitted token is distributed as if sampled from the target.

    python examples/quickstart.py

torch alone: made-up logits stand in for two models' outputs.
"""

import torch

import specsample as ss

# Two laws over five tokens. The draft is a poor guess of the target.
target_logits = torch.tensor([0.45, 0.30, 0.15, 0.09, 0.01]).log()
draft_logits = torch.tensor([0.10, 0.20, 0.30, 0.25, 0.15]).log()

# One round for each of 100 000 requests: a row after the prefix, and a row after the drafted token.
requests = 100_000
stream = {"seed": torch.arange(requests), "position": 17}  # position: index of the first token that this round emits
drafts = ss.draft(draft_logits.expand(requests, -1), **stream)  # int64 [B, 1]
verdict = ss.verify(target_logits.expand(requests, 2, -1), drafts, draft_logits.expand(requests, 1, -1), scheme="token", **stream)

print("request 0:", verdict.tokens[0].tolist(), "of which drafts:", int(verdict.num_accepted[0]))
expected = torch.minimum(target_logits, draft_logits).exp().sum()  # the mass that both laws share
print(f"accepted: {verdict.num_accepted.float().mean():.3f}, expected {expected:.3f}")
emitted = verdict.tokens[:, 0].bincount(minlength=5) / requests
for token, (law, drafted, came) in enumerate(zip(target_logits.exp(), draft_logits.exp(), emitted)):
    print(f"token {token}: draft {drafted:.3f}  target {law:.3f}  emitted {came:.3f}")
