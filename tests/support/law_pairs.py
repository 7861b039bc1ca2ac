"""Pairs of laws on small vocabularies, for tests of formulas."""

import numpy as np

SIGMAS = 5.0  # a simulation fails a correct formula once in 1.7 million seeds; seeds are fixed


def random_law(rng, shape, vocab, spread=0.6):
    return rng.dirichlet(np.full(vocab, spread), shape)


def hand_made():
    """Awkward pairs of laws: name -> (target, draft)"""
    x = 0.15
    laws = {
        "equal": ([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]),
        "disjoint": ([0.6, 0.4, 0, 0], [0, 0, 0.3, 0.7]),
        "one-hot target": ([0, 1, 0], [0.5, 0.2, 0.3]),
        "one-hot draft": ([0.5, 0.2, 0.3], [0, 1, 0]),
        "both one-hot": ([0, 1, 0], [0, 1, 0]),
        "ties": ([0.25, 0.25, 0.25, 0.25], [0.1, 0.1, 0.4, 0.4]),
        "zeros": ([0.5, 0, 0.5, 0, 0], [0.2, 0.5, 0, 0.3, 0]),
        "always accepted": ([0.4, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]),
        "three tokens": ([1 / 3, x, 2 / 3 - x], [1 / 3, 1 / 3, 1 / 3]),
        "nearly never": ([1e-9, 1 - 1e-9], [1 - 1e-9, 1e-9]),
        "one token": ([1.0], [1.0]),
    }
    return {name: (np.array(t), np.array(d)) for name, (t, d) in laws.items()}


PAIRS = hand_made()
