"""A model of the search that clocks in groups allow: bounds of groups, which groups are opened, and what is found there.

A group with largest weight w and least clock M has no score above w/M, so groups below the best score (or the k-th best) stay closed.
Kernels follow this model, each in its own order; test_group_bounds.py checks how much is opened, and that nothing is missed.
Everything is in logarithms, float64: score = log w − log E.
"""

import functools
import math

import torch

from specsample.reference import rng

VOCAB, ROWS = 128_256, 16
GROUPS = (VOCAB + 1023) // 1024 * rng.GROUP
FIRST = 32  # groups opened before there is a goal, and in each later step


class Streams:
    """Clocks E [ROWS, VOCAB] and least clocks M [ROWS, GROUPS], one stream per row."""

    def __init__(self, slot=0):
        stream = torch.arange(ROWS), torch.full((ROWS,), 5), rng.CLOCK, torch.full((ROWS,), slot)
        self.log_clock = rng.clocks(*stream, VOCAB).log()
        self.log_least = rng.least_clocks(*stream, GROUPS)[0].log()


streams = functools.cache(Streams)


@functools.cache
def tokens_of():
    """Token ids of each group by place, int64 [GROUPS, 32]; VOCAB if there is none"""
    token = torch.arange(VOCAB)
    return torch.full((GROUPS, rng.GROUP), VOCAB).index_put((rng.group_of(token), rng.place_of(token)), token)


def over_groups(x):
    """The largest value of each group, [..., VOCAB] -> [..., GROUPS]"""
    padded = torch.nn.functional.pad(x, (0, 1), value=-math.inf)
    return padded[..., tokens_of()].amax(-1)


def over_chunks(x, offset):
    """Bounds from aligned chunks of eight: the row begins `offset` elements after an aligned address, so a group's run of eight
    straddles two chunks. The largest over all chunks that cover a group, [VOCAB] -> [GROUPS]"""
    chunks = torch.nn.functional.pad(x, (offset, -(VOCAB + offset) % 8), value=-math.inf).view(-1, 8).amax(-1)
    chunks = torch.nn.functional.pad(chunks, (0, 1), value=-math.inf)  # the last one stands for places beyond the row
    first = tokens_of()[:, ::8]
    nothing = first == VOCAB
    covering = [torch.where(nothing, len(chunks) - 1, ((first + offset + j) // 8).clamp(max=len(chunks) - 1)) for j in (0, 7)]
    return torch.maximum(*(chunks[c].amax(-1) for c in covering))


class Found:
    """The k best of the scored tokens, best first, lowest id first on ties; number of groups opened, rounds, words drawn."""

    def __init__(self, k=1):
        self.k, self.ids, self.score = k, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        self.opened = self.rounds = self.words = 0

    @property
    def goal(self):
        return self.score[self.k - 1].item() if len(self.ids) >= self.k else -math.inf

    def open(self, groups, score, bound_of_tokens):
        """score: of all tokens [VOCAB]; bound_of_tokens: log w − log M of each; tokens below the goal draw no word."""
        ids = tokens_of()[groups].flatten()
        ids = ids[ids < VOCAB]
        ids = ids[(bound_of_tokens[ids] >= self.goal) & (bound_of_tokens[ids] > -math.inf)]
        self.opened, self.rounds, self.words = self.opened + len(groups), self.rounds + 1, self.words + len(ids)
        ids = torch.cat([self.ids, ids]).sort().values
        score, order = score[ids].sort(descending=True, stable=True)
        self.ids, self.score = ids[order][: self.k], score[: self.k]


def highest_first(log_weight, bound, row, k=1, slot=0, first=None):
    """Open the 32 (8 k) highest bounds, then 32 at a time those that reach the k-th best so far, until none does. -> Found"""
    at, found = streams(slot), Found(k)
    score = log_weight - at.log_clock[row]
    of_tokens = log_weight - at.log_least[row][rng.group_of(torch.arange(VOCAB))]
    bound, order = (bound - at.log_least[row]).sort(descending=True, stable=True)
    most = first or max(FIRST, 8 * k)
    while found.opened < GROUPS:
        chosen = slice(found.opened, found.opened + most)
        groups = order[chosen][(bound[chosen] >= found.goal) & (bound[chosen] > -math.inf)]
        if not len(groups):
            break
        found.open(groups, score, of_tokens)
        most = FIRST
    return found


def one_worker(log_weight, bound, row):
    """Open the highest bound, then in group order those that reach the best so far. -> (winner, groups opened)"""
    at = streams()
    best_of_group = over_groups(log_weight - at.log_clock[row]).tolist()
    bound = (bound - at.log_least[row]).tolist()
    top = max(range(GROUPS), key=bound.__getitem__)
    winner, opened = top, 1
    for group in range(GROUPS):
        if group != top and bound[group] >= best_of_group[winner] and bound[group] > -math.inf:
            opened += 1
            winner = max(winner, group, key=best_of_group.__getitem__)
    ids = tokens_of()[winner]
    ids = ids[ids < VOCAB]
    return int(ids[(log_weight[ids] - at.log_clock[row, ids]).argmax()]), opened


def reach(log_weight, bound, k=1, slot=0):
    """Number of groups in each row whose bound reaches the final (k-th) best: the minimum for any search, int64 [ROWS]"""
    at = streams(slot)
    best = (log_weight - at.log_clock).topk(k).values[:, -1:]
    return (bound - at.log_least >= best).sum(-1)


def laws():
    """{name: log weights [VOCAB]}: flat ones, sharp ones, and the worst case for the bound, one heavy token in every group."""
    generator, token = torch.Generator().manual_seed(1), torch.arange(VOCAB)
    normal = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    uniform = torch.rand(VOCAB, generator=generator, dtype=torch.float64)
    zipf = -1.1 * torch.log(token.double() + 1)
    flat = torch.zeros(VOCAB, dtype=torch.float64)
    return {
        "flat": flat,
        "N(0, 1)": normal,
        "N(0, 2)": 2 * normal,
        "N(0, 4)": 4 * normal,
        "Zipf, sorted": zipf,
        "Zipf, shuffled": zipf[torch.randperm(VOCAB, generator=generator)],
        "uniform logits": 16 * uniform,
        "a token of .9": torch.where(token == 77_777, math.log(9 * (VOCAB - 1)), flat),
        "a heavy token in every group": torch.where(rng.place_of(token) == 3, 12.0, flat),
    }


@functools.cache
def pair(acceptance):
    """(log target, log draft) of Zipf-like laws: the draft's logits are the target's plus normal noise, scaled for this acceptance
    rate under `token`."""
    generator = torch.Generator().manual_seed(2)
    base, noise = torch.randn(2, VOCAB, generator=generator, dtype=torch.float64)
    base += laws()["Zipf, shuffled"]
    low, high = 0.0, 20.0
    for _ in range(40):
        size = (low + high) / 2
        draft = (base + size * noise).log_softmax(-1)
        overlap = torch.minimum(base.log_softmax(-1).exp(), draft.exp()).sum()
        low, high = (size, high) if overlap > acceptance else (low, size)
    return base.log_softmax(-1), draft
