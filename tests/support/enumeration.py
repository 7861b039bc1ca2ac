"""Enumerated laws: target and draft for every prefix, and a round of the reference under scripted decisions."""

import itertools

import numpy as np
import torch


def laws(vocab, length, rng, style):
    """{prefix: law} for every prefix up to `length`."""
    out = {}
    for n in range(length + 1):
        for prefix in itertools.product(range(vocab), repeat=n):
            law = rng.dirichlet(np.full(vocab, 0.7))
            if style == "zeros":
                law[rng.integers(vocab)] = 0.0
                law = law / law.sum() if law.sum() > 0 else np.eye(vocab)[0]
            if style == "one-hot":
                law = np.eye(vocab)[rng.integers(vocab)]
            out[prefix] = law
    return out


def pair(vocab, depth, target_style, draft_style, seed=0):
    rng = np.random.default_rng(seed)
    target = laws(vocab, depth, rng, target_style)
    draft = target if draft_style == "same" else laws(vocab, depth, rng, draft_style)
    return target, draft


def completed(outcomes, target, vocab, depth):
    """Law of the completed sequence of depth + 1 tokens: the emitted ones, then the target's. {emitted: probability} -> array"""
    law = np.zeros((vocab,) * (depth + 1))
    for emitted, probability in outcomes.items():
        rest = depth + 1 - len(emitted)
        for tail in itertools.product(range(vocab), repeat=rest):
            sequence, weight = emitted, probability
            for token in tail:
                weight *= target[sequence][token]
                sequence += (token,)
            law[sequence] += weight
    return law


def target_law(target, vocab, depth):
    return completed({(): 1.0}, target, vocab, depth)


class Scripted:
    """Scripted decisions for a batch, one combination per row, and the probability of taking them.

    Rounds are vectorised, so they also take decisions that do not matter. Only the first test of a node counts, and only the races
    whose token is emitted, which the caller selects from the recorded laws.
    bits [rows, N]: outcomes of the nodes' tests; for schemes that ask `stays`, followed by those of nodes 1, 2, …
    """

    def __init__(self, bits, clock, residual, nodes=None):
        self.bits, self.clock, self.residual = bits, clock, residual
        self.nodes = bits.shape[1] if nodes is None else nodes
        self.taken = torch.full(bits.shape, torch.nan, dtype=torch.float64)  # probability of each node's bit, once tested
        self.clock_laws, self.residual_laws = {}, []

    @property
    def probability(self):
        return self.taken.nan_to_num(nan=0.5).prod(-1)  # a node that was not tested: half for either bit

    def accept(self, node, numerator, denominator):
        if self.bits.shape[1] == 0:
            return torch.zeros(len(self.bits), dtype=torch.bool)
        a = torch.where(denominator > 0, numerator / denominator, (numerator > 0).double()).clamp(0, 1)
        bit = self.bits.gather(1, node[:, None])[:, 0]
        before = self.taken.gather(1, node[:, None])
        now = torch.where(before.isnan(), torch.where(bit, a, 1 - a)[:, None], before)
        self.taken.scatter_(1, node[:, None], now)
        return bit

    def stays(self, node, numerator, denominator):
        return self.accept(torch.where(node > 0, self.nodes - 1 + node, 0), numerator, denominator)

    def clock_race(self, log_weights, depth, lists=None):
        depth = torch.as_tensor(depth).expand(len(self.clock))
        token = self.clock.gather(1, depth[:, None])[:, 0]
        law = log_weights.softmax(-1).nan_to_num().gather(1, token[:, None])[:, 0]
        for i in range(self.clock.shape[1]):
            self.clock_laws[i] = torch.where(depth == i, law, self.clock_laws.get(i, torch.ones_like(law)))
        return token

    def residual_race(self, log_weights, slot=None):
        self.residual_laws.append(log_weights.softmax(-1).nan_to_num().gather(1, self.residual[:, None])[:, 0])
        return self.residual
