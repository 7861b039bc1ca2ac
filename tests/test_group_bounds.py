"""The search over groups (group_bounds.py): it finds the winner of the race over every token, and how many groups it opens.

Ceilings are on means over the model's 16 rows of V = 128 256, 4 032 groups; with the fixed seeds they hold always or never.
"""

import math

import group_bounds as model
import pytest
import torch
from group_bounds import GROUPS, ROWS, VOCAB

from specsample.reference import rng
from specsample.reference.rows import arrivals

# Groups that reach the final best; opened by taking the 32 highest first; by one worker with a running best; by a search that has
# opened only the highest bound.
CEILINGS = {
    "flat": (1.1, 32, 1.1, 1.1),
    "N(0, 1)": (7, 32, 13, 50),
    "N(0, 2)": (14, 34, 50, 500),
    "N(0, 4)": (26, 42, 70, 400),
    "Zipf, sorted": (3, 32, 4, 5),
    "Zipf, shuffled": (19, 36, 45, 300),
    "uniform logits": (8, 33, 35, 900),
    "a token of .9": (1.5, 32, 1.5, 1.5),
    "a heavy token in every group": (30, 46, 170, 3900),
}
LAWS = model.laws()


def mean(numbers):
    return sum(numbers) / len(numbers)


def winners(law):
    return (law - model.streams().log_clock).argmax(-1).tolist()


def test_no_clock_is_below_its_groups_least():
    """… and in a full group one equals it."""
    at, group = model.streams(), rng.group_of(torch.arange(VOCAB))
    assert (at.log_clock >= at.log_least[:, group]).all()
    whole = 125 * rng.GROUP  # of full tiles
    equal = (at.log_clock == at.log_least[:, group])[:, group < whole].sum(1)
    assert equal.tolist() == [whole] * ROWS


@pytest.mark.parametrize("name", LAWS)
def test_search(name):
    law, want = LAWS[name], winners(LAWS[name])
    bound = model.over_groups(law)
    highest = [model.highest_first(law, bound, row) for row in range(ROWS)]
    single = [model.one_worker(law, bound, row) for row in range(ROWS)]
    assert [found.ids[0].item() for found in highest] == want == [winner for winner, _ in single]
    reach, opened, running, after_one = CEILINGS[name]
    reaching = model.reach(law, bound)
    assert all(found.opened >= n for found, n in zip(highest, reaching)) and all(n >= m for (_, n), m in zip(single, reaching))
    assert reaching.double().mean() <= reach and mean([found.opened for found in highest]) <= opened
    assert mean([n for _, n in single]) <= running
    assert mean([found.rounds for found in highest]) <= 1.5
    # Given the overall best, b = min E/w, a group is reached with probability at most 1 − exp(−32 w b); in total at most 32 b.
    best = (law.logsumexp(-1) - (law - model.streams().log_clock).amax(-1)).exp()
    expected = -torch.expm1(-32 * (bound - law.logsumexp(-1)).exp() * best[:, None]).sum(-1)
    assert (expected <= 32 * best).all() and reaching.sum() <= 1.1 * expected.sum() + ROWS
    # Only the highest bound: its heavy token has the least clock one time in 32, and otherwise many groups remain to be opened.
    bounds = bound - model.streams().log_least
    top, of_group = bounds.argmax(-1, keepdim=True), model.over_groups(law - model.streams().log_clock)
    assert (bounds >= of_group.gather(-1, top)).sum(-1).double().mean() <= after_one
    # Words: one per group, another per opened group, and those of the tokens that may win there.
    assert GROUPS + mean([found.opened + found.words for found in highest]) <= 5150


@pytest.mark.parametrize("name", ["N(0, 2)", "N(0, 4)", "uniform logits", "a heavy token in every group"])
def test_control_one_group_is_not_enough_to_begin_with(name):
    """Opening the one with the highest bound leaves ten times as many groups as the final best does."""
    law, at = LAWS[name], model.streams()
    bounds, of_group = model.over_groups(law) - at.log_least, model.over_groups(law - at.log_clock)
    left = (bounds >= of_group.gather(-1, bounds.argmax(-1, keepdim=True))).sum(-1)
    assert left.double().mean() > 10 * model.reach(law, model.over_groups(law)).double().mean()


@pytest.mark.parametrize("wrong", ["mean weight", "greater least clock"])
def test_control_a_bound_that_is_none_misses_winners(wrong):
    law = LAWS["N(0, 2)"]
    bound = model.over_groups(law) - 1.5
    if wrong == "mean weight":
        bound = torch.nn.functional.pad(law, (0, 1), value=-math.inf).exp()[model.tokens_of()].mean(-1).log()
    found = [model.highest_first(law, bound, row, first=1).ids[0].item() for row in range(ROWS)]
    assert found != winners(law)


@pytest.mark.parametrize("k, name, most", [(8, "N(0, 2)", 130), (8, "Zipf, shuffled", 150), (8, "flat", 64), (64, "N(0, 4)", 680),
                                           (64, "a heavy token in every group", 1700), (64, "a token of .9", 512)])  # fmt: skip
def test_first_arrivals(k, name, most):
    """The 8 k highest first, then those that reach the k-th best."""
    law, rows = LAWS[name], range(4)
    found = [model.highest_first(law, model.over_groups(law), row, k) for row in rows]
    want = arrivals(law.expand(4, -1), model.streams().log_clock[:4].exp(), k)
    assert torch.equal(torch.stack([f.ids for f in found]), want)
    assert all(f.opened >= 8 * k for f in found) and mean([f.opened for f in found]) <= most


def test_fewer_than_k():
    """The goal stays −∞, and a group without weight is not opened for that; nor is any if there is no weight at all."""
    law = torch.full((VOCAB,), -math.inf)
    law[[5, 13, 4000, 128_255]] = torch.tensor([0.0, -1.0, -30.0, -1.0])
    found = model.highest_first(law, model.over_groups(law), 0, 8)
    assert sorted(found.ids.tolist()) == [5, 13, 4000, 128_255] and found.opened == 4 == found.words
    law[:] = -math.inf
    assert model.highest_first(law, model.over_groups(law), 0).opened == 0


def test_lists():
    """Each list has separate least clocks over the same maxima; the best of all lists is the goal of each."""
    law = LAWS["N(0, 2)"]
    bound, lists = model.over_groups(law), (0, 1, 2)
    clock = torch.stack([model.streams(j).log_clock for j in lists]).amin(0)
    for row in range(4):
        each = [model.highest_first(law, bound, row, slot=j) for j in lists]
        best = max(each, key=lambda found: found.score[0])
        assert best.ids[0] == (law - clock[row]).argmax()
    best = (law - clock).amax(-1, keepdim=True)
    together = sum((bound - model.streams(j).log_least >= best).sum(-1) for j in lists).double().mean()
    assert together <= 22  # 13 for one race; at most 32 b as above, since the best of three lists is three times as good


# groups that reach the final best, by bound: t; t_max·(1 − min d/t), two maxima; the group's largest w
RESIDUALS = {
    0.5: (36, 36, 20),
    0.8: (95, 75, 28),
    0.9: (155, 90, 28),
    0.95: (250, 95, 27),
    0.99: (720, 102, 27),
    0.999: (2200, 105, 27),
}


@pytest.mark.parametrize("acceptance", RESIDUALS)
def test_residuals(acceptance):
    """Bounds on (t − d)⁺: by the target alone, by two maxima, by the residual itself."""
    target, draft = model.pair(acceptance)
    weight = (target.exp() - draft.exp()).clamp(min=0).log()
    largest, least_ratio = model.over_groups(target), -model.over_groups(-(draft - target).exp())
    bounds = largest, largest + (1 - least_ratio).clamp(min=0).log(), model.over_groups(weight)
    assert all((bound + 1e-9 >= bounds[2]).all() for bound in bounds)
    for bound, ceiling in zip(bounds, RESIDUALS[acceptance]):
        assert model.reach(weight, bound).double().mean() <= ceiling
    for bound in bounds[1:]:
        for row in range(3):
            assert model.highest_first(weight, bound, row).ids[0] == (weight - model.streams().log_clock[row]).argmax()
    if acceptance == 0.999:  # control: the target alone is hardly a bound
        assert model.reach(weight, bounds[0]).double().mean() > 1000


@pytest.mark.parametrize("offset", [1, 4, 7])
def test_chunks_that_cover_a_group(offset):
    """Supersets give bounds too, for rows that are not aligned: with at most about twice as many groups."""
    for name in ("N(0, 2)", "N(0, 4)", "Zipf, shuffled", "a token of .9"):
        law = LAWS[name]
        exact, bound = model.over_groups(law), model.over_chunks(law, offset)
        assert (bound >= exact).all()
        assert model.reach(law, bound).sum() <= 2.2 * model.reach(law, exact).sum()
        assert model.highest_first(law, bound, 0).ids[0] == winners(law)[0]


@pytest.mark.parametrize("cut", [8, 1000, 50_001])
def test_shards_that_cut_groups(cut):
    """Two ranks, each with its own tokens and the words of whole groups: the better of their winners is the row's."""
    law, token = LAWS["N(0, 2)"], torch.arange(VOCAB)
    for row in range(3):
        parts = [torch.where(here, law, -math.inf) for here in (token < cut, token >= cut)]
        found = [model.highest_first(part, model.over_groups(part), row) for part in parts]
        assert max(found, key=lambda f: f.score[0]).ids[0] == winners(law)[row]


def test_groups_with_excluded_tokens():
    """The maximum is recomputed without them; otherwise a token that may not win opens its group, the very first, for nothing."""
    law = LAWS["a token of .9"].clone()
    bound = model.over_groups(law)
    law[77_777] = -math.inf
    again = bound.clone()
    again[rng.group_of(torch.tensor(77_777))] = 0.0
    assert torch.equal(again, model.over_groups(law))
    for row in range(4):
        kept, taken_again = (model.highest_first(law, x, row, first=1) for x in (bound, again))
        assert kept.ids[0] == taken_again.ids[0] == winners(law)[row] and kept.opened > taken_again.opened


def test_infinite_weights():
    """+∞: the same race with weight 1 on those tokens, so the bound is 1/M."""
    infinite = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(3))[:3000]
    law = torch.full((VOCAB,), -math.inf).double()
    law[infinite] = 0.0
    bound = model.over_groups(law)
    assert set(bound.tolist()) == {0.0, -math.inf}
    for row in range(4):
        assert model.highest_first(law, bound, row).ids[0] == winners(law)[row]


def test_equal_scores_go_to_the_lowest_id():
    """In whatever order groups are opened; group order is not id order."""
    score = torch.zeros(VOCAB, dtype=torch.float64)
    for order in ([0, 1, 40], [40, 1, 0], [1, 40, 0]):
        for k in (1, 3, 50):
            found = model.Found(k)
            for group in order:
                found.open(torch.tensor([group]), score, score)
            ids = model.tokens_of()[[0, 1, 40]].flatten().sort().values
            assert found.ids.tolist() == ids[:k].tolist()
