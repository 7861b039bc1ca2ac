"""Acceptance of the races in closed form: against simulated races, sums over subsets, and the paper's bounds."""

import itertools
import math

import numpy as np
import pytest
from law_pairs import PAIRS, SIGMAS, random_law

from specsample import theory
from specsample.theory import arrivals
from specsample.theory.table import zipf_pair

RACE_PAIRS = [pair for name, pair in PAIRS.items() if name not in ("both one-hot", "one token")]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_race_formulas_against_simulated_races(k):
    rng = np.random.default_rng(20 + k)
    n = 60_000
    for target, draft in [*RACE_PAIRS, *zip(random_law(rng, 3, 6), random_law(rng, 3, 6)), zipf_pair(30, 1.0, rng)]:
        with np.errstate(divide="ignore"):
            clocks = rng.exponential(size=(k, n, len(target)))
            winners = (clocks / target).min(0).argmin(-1)
            listed = ((clocks / draft).argmin(-1) == winners).any(0).mean()
            score = clocks[0] / draft
            single = (clocks[0] / target).argmin(-1)
            own = score[np.arange(n), single][:, None]
            among = (((score < own).sum(-1) < k) & np.isfinite(own[:, 0])).mean()
        for scheme, seen in (("lists", listed), ("race", among)):
            expected = theory.acceptance(target, draft, k, scheme)
            assert -1e-12 <= expected <= 1 + 1e-12
            error = SIGMAS * math.sqrt(max(expected * (1 - expected), 1e-12) / n) + SIGMAS**2 / n
            assert abs(seen - expected) < error, (scheme, seen, expected)
        if k == 4 and len(target) == 30:  # negative control: the other scheme's formula
            assert abs(among - theory.acceptance(target, draft, k, "lists")) > error


def arrivals_by_orders(target, draft, k):
    """P(target's winner among the first k arrivals), from subsets of excess clocks by inclusion and exclusion"""
    total = 0.0
    for j in np.flatnonzero((target > 0) & (draft > 0)):
        excess = np.maximum(target[j] / draft[j] * draft - target, 0)
        others = np.flatnonzero(excess > 0)
        for early in itertools.chain.from_iterable(itertools.combinations(others, m) for m in range(k)):
            late = excess.sum() - excess[list(early)].sum()
            for n in range(len(early) + 1):
                for some in itertools.combinations(early, n):
                    total += target[j] * (-1) ** n / (1 + late + excess[list(some)].sum())
    return total


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_arrivals_equal_the_sum_over_subsets(k):
    rng = np.random.default_rng(k)
    for target, draft in [*PAIRS.values(), *zip(random_law(rng, 5, 7), random_law(rng, 5, 7))]:
        assert abs(theory.acceptance(target, draft, k, "race") - arrivals_by_orders(target, draft, k)) < 1e-9


def test_single_race_is_its_double_sum_and_keeps_its_bound():
    rng = np.random.default_rng(8)
    target, draft = random_law(rng, 500, 6), random_law(rng, 500, 6)
    largest = np.maximum(target[:, :, None] / target[:, None, :], draft[:, :, None] / draft[:, None, :])
    formula = (1 / largest.sum(1)).sum(-1)
    assert np.abs(theory.race_acceptance(target, draft) - formula).max() < 1e-10
    assert np.abs(theory.acceptance(target, draft, 1, "lists") - formula).max() < 1e-10
    tv = theory.clipped_mass(target, draft, 1.0)
    assert (formula >= (1 - tv) / (1 + tv) - 1e-12).all() and (formula <= 1 - tv + 1e-12).all()


def test_arrivals_interpolated_stay_within_their_error():
    target, draft = zipf_pair(300, 1.0, np.random.default_rng(9))
    for k in (2, 4):
        exact, none = theory.arrivals_acceptance(target, draft, k, knots=300)
        rough, error = theory.arrivals_acceptance(target, draft, k, knots=24)
        assert none == 0 and 0 < abs(rough - exact) <= error < 0.1
        finer, less = theory.arrivals_acceptance(target, draft, k, knots=96)
        assert abs(finer - exact) <= less < error and abs(finer - exact) < 1e-4


def test_arrivals_by_power_sums_equal_the_recursion(monkeypatch):
    """Tokens of small draft probability in aggregate, against every token separately; without the third and higher powers the
    difference must show."""
    rng = np.random.default_rng(19)
    pairs = [zipf_pair(3000, 1.0, rng), zipf_pair(3000, 3.0, rng)]
    pairs.append((pairs[0][1], np.full(3000, 1 / 3000)))
    for target, draft in pairs:
        found = arrivals.up_to(target, draft, 8, knots=16).value
        with monkeypatch.context() as patch:
            patch.setattr(arrivals, "ORDER", 1)
            rough = arrivals.up_to(target, draft, 8, knots=16).value
            patch.setattr(arrivals, "LARGE", 3000)
            exact = arrivals.up_to(target, draft, 8, knots=16).value
        assert np.abs(found - exact).max() < 1e-8 < np.abs(rough - exact).max()


def index_entropy(target, draft):
    """H[R], step by step"""
    c, mass, total = 0.0, 1.0, 0.0
    while mass > 1e-12:
        c += mass
        after = float(np.maximum(target - c * draft, 0).sum())
        chance, mass = mass - after, after
        total -= chance * np.log(chance) if chance > 0 else 0
    return total


def test_index_entropy():
    rng = np.random.default_rng(11)
    pairs = list(zip(random_law(rng, 40, 6, 2.0), random_law(rng, 40, 6, 2.0)))
    for target, draft in [*pairs, (np.array([0, 1.0]), np.array([0.75, 0.25]))]:
        entropy = theory.rejection_index_entropy(target, draft)
        assert abs(entropy - index_entropy(target, draft)) < 1e-9
        positive = target > 0
        assert entropy >= (target[positive] * np.log(target[positive] / draft[positive])).sum() - 1e-12
    # The geometric law of a one-hot target in closed form: p = 1/4.
    assert entropy == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / 0.25)
    assert theory.rejection_index_entropy([0.5, 0.5], [0.5, 0.5]) == 0
    with pytest.raises(ValueError, match="draft: "):
        theory.rejection_index_entropy([0.5, 0.5], [1.0, 0.0])


def test_race_bound_holds_for_ranks_and_not_for_iid_indices():
    """Against the exact tokens per call of chains and K-ary trees of first arrivals, with the same laws everywhere."""
    rng = np.random.default_rng(14)
    pairs = list(zip(random_law(rng, 30, 5, 2.0), random_law(rng, 30, 5, 2.0)))
    pairs.insert(0, (np.array([0, 1.0]), np.array([0.75, 0.25])))
    broken = 0
    for target, draft in pairs:
        ranks = [theory.acceptance(target, draft, n, "race") for n in range(1, len(target) + 1)]
        chances = np.diff([0, *ranks])
        entropy = -(chances[chances > 1e-15] @ np.log(chances[chances > 1e-15]))
        assert theory.rank_entropy(target, draft) == pytest.approx(entropy, abs=1e-9)
        for width, depth in ((1, 1), (1, 3), (2, 2), (4, 3)):
            nodes = sum(width**i for i in range(1, depth + 1))
            accepted = ranks[min(width, len(ranks)) - 1]
            tokens = theory.block_efficiency([accepted] * depth)
            assert tokens <= theory.race_bound(entropy, len(target), nodes) + 1e-9
            broken += tokens > theory.race_bound(theory.rejection_index_entropy(target, draft), len(target), nodes)
    assert theory.rank_entropy(*pairs[0]) == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
    assert broken > 0
    assert theory.rank_entropy(*PAIRS["equal"]) < 1e-9 and theory.rank_entropy(*PAIRS["disjoint"]) == 0
