"""A custom drafter: any object with `propose` and `commit`. This one learns from the texts it has seen.

    python examples/own_drafter.py

The target is a small random Llama of transformers; nothing is downloaded.
"""

from collections import Counter, defaultdict

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import specsample as ss


class Habits:
    """Proposes the token that most often followed the last two, in all texts seen, and so on down the chain."""

    def __init__(self):
        self.follows, self.texts = defaultdict(Counter), None

    def learn(self, text):
        for i in range(2, len(text)):
            self.follows[tuple(text[i - 2 : i])][text[i]] += 1

    def propose(self, prefixes, shape, round):
        """prefixes[b]: int64 [length of request b]; shape: the maximum number of drafts -> ss.Proposal"""
        self.texts = [prefix.tolist() for prefix in prefixes]
        rows = []
        for text, active in zip(self.texts, round.active.tolist()):
            chain = []
            while active and len(chain) < shape:
                seen = self.follows.get(tuple((text + chain)[-2:]))
                if not seen:
                    break
                chain.append(seen.most_common(1)[0][0])
            rows.append(chain + [-1] * (shape - len(chain)))  # -1: no such node
        # The tokens are a function of the prefix, so there is no law to report (draft_logits=None). A drafter that samples draws
        # them by ss.draft(..., seed=round.seed, position=round.position, depth=i, node=i) and returns its logits as well.
        return ss.Proposal(torch.tensor(rows))

    def commit(self, tokens):
        """tokens: int64 [B, n], emitted by the round, padded with -1"""
        for text, new in zip(self.texts or [], tokens.tolist()):
            new = [token for token in new if token >= 0]
            for i in range(len(new)):
                before = (text[-2:] + new[:i])[-2:]
                self.follows[tuple(before)][new[i]] += 1


def small_target():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=2, bos_token_id=None, eos_token_id=None, pad_token_id=None)  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    model.lm_head.weight.data *= 60  # confident, as trained models are
    return model


if __name__ == "__main__":
    target, drafter = small_target(), Habits()
    prompt = torch.tensor([[3, 14, 15, 92, 65]])
    for repetition in range(3):
        settings = {"max_new_tokens": 60, "sampling": ss.Sampling(temperature=0.5), "seed": 1, "return_stats": True}
        text, stats = ss.generate(target, drafter, prompt, scheme="race", depth=8, **settings)
        plain, _ = ss.generate(target, None, prompt, **settings)
        same = "the text of plain sampling" if text.equal(plain) else "another text"
        print(f"run {repetition + 1}: {stats.emitted} tokens in {stats.target_calls} target calls, {same}")
