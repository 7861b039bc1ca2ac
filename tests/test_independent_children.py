"""Independent children of a row, all from one race (rng.py: *Renewals*): the definition spelled out, their joint law, their streams."""

import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, numbers, p_value, require

import specsample as ss
from specsample.reference import rng, rows

TRIALS = 300_000


def first_arrivals(law, k, seed, position, node):
    """The first k of all arrival times of one row's tokens, by sorting: int64 [k]"""
    one, token = (lambda x: torch.full((len(law),), x)), torch.arange(len(law))
    elapsed = [rng.clocks(one(seed)[:1], one(position)[:1], rng.DRAFT, one(node)[:1], len(law))[0]]
    for n in range(1, k):
        elapsed.append(elapsed[-1] + rng.renewals(one(seed), one(position), one(node), token, one(n)))
    times = torch.stack(elapsed, 1).log() - law[:, None]
    return token.repeat_interleave(k)[times.flatten().argsort(stable=True)[:k]]


@pytest.mark.parametrize("vocab, k", [(1, 3), (3, 9), (33, 6), (300, 5)])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_children_are_the_first_arrivals(backend, vocab, k, scale):
    logits = numbers(4, vocab, seed=vocab, scale=scale)
    nodes, positions = torch.tensor([0, 5, 1023, 7]), torch.tensor([0, 3, 2**40 + 1, 9])
    for sampling in (ss.Sampling(), ss.Sampling(0.7, top_k=4, min_p=0.05)):
        at = {"sampling": sampling, "seed": torch.tensor([1, -7, 2**60, 4]), "position": positions, "node": nodes}
        drawn = ss.draft(logits, k, kind="iid", backend=backend, **at)
        laws = ss.log_probs(logits, sampling=sampling, backend="reference")
        for law, row, seed, position, node in zip(laws, drawn, at["seed"].tolist(), positions.tolist(), nodes.tolist()):
            assert row.tolist() == first_arrivals(law, k, seed, position, node).tolist()


def test_the_first_children_do_not_depend_on_how_many_follow(backend):
    logits, at = numbers(50, 100, seed=3, scale=3), {"kind": "iid", "seed": 5, "position": 8, "node": 2, "backend": backend}
    drawn = ss.draft(logits, 9, **at)
    assert (drawn[:, 1:] == drawn[:, :-1]).any() and (drawn[:, 1:] != drawn[:, :-1]).any()
    for k in range(1, 9):
        assert torch.equal(ss.draft(logits, k, **at), drawn[:, :k])


def test_the_first_child_is_a_race_winner(backend):
    logits, slots = numbers(50, 100, seed=4), torch.full((50,), 6)
    drawn = ss.draft(logits, 2, kind="iid", seed=5, position=8, node=6, backend=backend)
    assert torch.equal(drawn[:, 0], rows.race(logits.double(), 5 + torch.arange(50), torch.full((50,), 8), rng.DRAFT, slots))


# -- the joint law -----------------------------------------------------------------------------------------------------

LAW = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def joint(k, backend="reference"):
    """p-value of k draws from LAW against the product of their laws"""
    logits = LAW.log().float().expand(TRIALS, -1)
    drawn = ss.draft(logits, k, kind="iid", seed=10**7, position=1000, node=3, backend=backend)
    cells, law = torch.zeros(TRIALS, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
    for j in range(k):
        cells, law = cells * len(LAW) + drawn[:, j], (law[:, None] * LAW).flatten()
    return p_value(cells, law)


@pytest.mark.parametrize("backend", ["cpu", "triton", "cuda"])
@pytest.mark.parametrize("k", [2, 4])
def test_children_are_independent(backend, k):
    require(backend)
    assert joint(k, backend) > FAILURE_RATE


@pytest.mark.parametrize(
    "name", ["without replacement", "the first clock once more", "every time the same", "not added", "half as long"]
)
def test_control_other_clocks_are_found(monkeypatch, name):
    monkeypatch.setattr(rng, "renewals", lambda *at, right=rng.renewals: wrong(name, right, *at))
    assert joint(2 if name == "not added" else 4) < CAUGHT


def wrong(name, right, seed, position, node, token, number):
    """`renewals` with a mistake"""
    first = rng.clocks(seed, position, rng.DRAFT, node, len(LAW)).gather(1, token[:, None])[:, 0]
    if name == "without replacement":
        return torch.full_like(first, 1e9)
    if name == "the first clock once more":
        return first
    if name == "every time the same":
        return right(seed, position, node, token, torch.ones_like(number))
    clock = right(seed, position, node, token, number)
    return clock / 2 if name == "half as long" else clock - first


# -- streams -----------------------------------------------------------------------------------------------------------


def test_streams_of_renewals_are_distinct(monkeypatch):
    """Each of 2¹⁴ nodes and 1023 renewals has its own slot of 24 bits."""
    node, seen, blocks = torch.arange(1 << rng.RENEWAL_BITS), [], rng._blocks
    monkeypatch.setattr(rng, "_blocks", lambda *stream: (seen.append(stream[2:4]), blocks(*stream))[1])
    for number in (1, 2, 3, 511, 512, 1023):
        rng.renewals(*torch.zeros(2, len(node), dtype=torch.int64), node, node * 0, torch.full_like(node, number))
    assert {purpose for purpose, _ in seen} == {rng.RENEWAL}
    slots = torch.cat([slot for _, slot in seen[::2]])  # of the words, without those that refine them
    assert slots.unique().numel() == len(slots) == 6 << rng.RENEWAL_BITS and slots.max() < 1 << 24


def test_renewals_are_independent_exponentials():
    n = 1 << 16
    whole = lambda x: torch.full((n,), x)
    base = {"seed": 0, "position": 7, "node": 2, "token": 5, "number": 1}

    def clock(**change):
        seed, *rest = (base | change).values()
        return rng.renewals(seed + torch.arange(n), *map(whole, rest))

    cell = lambda e: (-8 * torch.expm1(-e)).long().clamp(max=7)
    for change in ({"position": 8}, {"node": 3}, {"token": 4}, {"token": 9}, {"number": 2}, {"node": 2 + 2**13}, {"seed": n}):
        assert p_value(cell(clock()) * 8 + cell(clock(**change)), torch.full((64,), 1 / 64)) > FAILURE_RATE, change
    slots = torch.full((n,), 2)
    first = rng.clocks(torch.arange(n), whole(7), rng.DRAFT, slots, 6)[:, 5]
    assert p_value(cell(clock()) * 8 + cell(first), torch.full((64,), 1 / 64)) > FAILURE_RATE
