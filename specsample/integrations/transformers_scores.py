"""The rows that decided each token, as transformers returns them."""

import torch


class Scores:
    """The `record` argument of the loop for `batch` requests. filters: processors that the loop has applied as its `sampling`"""

    def __init__(self, batch, filters):
        self.filters, self.raw, self.processed = filters, [[] for _ in range(batch)], [[] for _ in range(batch)]

    def __call__(self, raw, logits, rows):
        for b, own in enumerate(rows):
            if own:
                index = torch.tensor(own, device=raw.device)
                self.raw[b].append(raw[b, index].float())
                self.processed[b].append(logits[b, index].float())

    def logits(self, pad):
        """-> tuple of float32 [B, V], one per new token: the model's rows. Once a request has ended, `pad` has probability 1."""
        return self._tuple(self.raw, pad)

    def scores(self, pad):
        """The same rows, processed and filtered."""
        scores = self._tuple(self.processed, pad)
        for one in self.filters:
            scores = tuple(one(None, row) for row in scores)
        return scores

    def _tuple(self, kept, pad):
        each = [torch.cat(rows) if rows else None for rows in kept]
        longest = max((len(rows) for rows in each if rows is not None), default=0)
        if not longest:
            return ()
        ended = torch.full_like(next(rows for rows in each if rows is not None)[:1], -torch.inf)
        ended[:, pad] = 0.0
        texts = [ended[:0] if rows is None else rows for rows in each]
        texts = [torch.cat([rows, ended.expand(longest - len(rows), -1)]) for rows in texts]
        return torch.stack(texts, 1).unbind()
