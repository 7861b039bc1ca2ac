"""The generated texts in batches, and how well a student does on them."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


class Texts:
    """Generated texts with, for every reply token, the target's law as its final hidden state and logsumexp."""

    def __init__(self, paths):
        self.ids, self.starts, self.hiddens, self.totals = [], [], [], []
        for path in paths:
            data = load_file(path)
            lengths = data["lengths"].tolist()
            prompts = data["prompts"].long().split(data["prompt_lengths"].tolist())
            replies = data["tokens"].long().split(lengths)
            self.ids += [torch.cat([prompt, reply[:-1]]) for prompt, reply in zip(prompts, replies)]
            self.starts += [len(prompt) - 1 for prompt in prompts]
            self.hiddens += data["hiddens"].split(lengths)
            self.totals += data["totals"].split(lengths)

    def tokens(self):
        """The number of reply tokens."""
        return sum(map(len, self.totals))

    def batch(self, rows):
        """Padded ids, the mask of the positions that predict reply tokens, and the target's laws there."""
        longest = max(len(self.ids[row]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)  # padded on the right, where no real token attends
        predicts = torch.zeros(len(rows), longest, dtype=torch.bool)
        for n, row in enumerate(rows):
            size = len(self.ids[row])
            ids[n, :size] = self.ids[row]
            predicts[n, self.starts[row] : size] = True
        hiddens = torch.cat([self.hiddens[row] for row in rows]).float()
        return ids, predicts, hiddens, torch.cat([self.totals[row] for row in rows])

    def epoch(self, rng, rows):
        """All texts once, in random batches of texts of similar length."""
        order = list(range(len(self.ids)))
        rng.shuffle(order)
        chunk = 16 * rows
        batches = []
        for n in range(0, len(order), chunk):
            part = sorted(order[n : n + chunk], key=lambda row: len(self.ids[row]))
            batches += [part[m : m + rows] for m in range(0, len(part), rows)]
        rng.shuffle(batches)
        return batches


@torch.no_grad()
def measure(student, texts, limit=None):
    """Mean acceptance sum_i min(target_i, draft_i) at T = 1 and T = 0.7, and how often the likeliest tokens agree."""
    head, table = student.lm_head.weight, student.model.embed_tokens.weight
    width, sums, count = head.shape[0], torch.zeros(4), 0
    for n in range(0, len(texts.ids[:limit]), 8):
        ids, predicts, target_hidden, _ = texts.batch(range(n, min(n + 8, len(texts.ids[:limit]))))
        hidden = student.model(input_ids=ids, use_cache=False).last_hidden_state[predicts]
        for m in range(0, len(hidden), 256):
            target = F.linear(target_hidden[m : m + 256], table)
            draft = F.linear(hidden[m : m + 256], head)
            for k, heat in enumerate((1.0, 0.7)):
                law = (target / heat).softmax(-1)[:, :width]
                sums[k] += torch.minimum(law, (draft / heat).softmax(-1)).sum()
                sums[3] += law.sum() if k == 0 else 0
            sums[2] += (target.argmax(-1) == draft.argmax(-1)).sum()
        count += len(hidden)
    names = ("acceptance_t1", "acceptance_t07", "greedy_agreement", "mass_within_head")
    return dict(zip(names, (round(value, 4) for value in (sums / count).tolist())), held_out_tokens=count)
