"""The law of clocks in groups: 32 clocks made top-down are exactly 32 independent Exp(1) clocks; the words' lattice preserves this
for rare tokens; pairs of clocks, and races, through the real streams. Each has controls: mistakes that it must detect."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, numbers, p_value, probabilities

from specsample.reference import rng
from specsample.reference.rows import race

# -- the definition, in rational numbers -------------------------------------------------------------------------------
#
# The least clock M is exponential with some rate (for a group of G: G); the token at place j has E_j = M, every other one
# M + Exp(1); j has some law over the group (uniform). `None` as a place: no token has M itself.


def transform(s, rate=None, places=None, added=True):
    """E[exp(−Σ s_i E_i)], which determines the joint law of the clocks. added=False: the others do not have M added."""
    size = len(s)
    rate = Fraction(rate or size)
    result = Fraction(0)
    for j, chance in (places or {j: Fraction(1, size) for j in range(size)}).items():
        others = [x for k, x in enumerate(s) if k != j]
        on_m = sum(s) if added else s[j]
        result += chance * rate / (rate + on_m) * math.prod(1 / (1 + x) for x in others)
    return result


def winner(w, i, rate=None, places=None):
    """P(argmin E/w = i) by integration over M and the winner's time t. With x = M/t every exponent is linear in t, so the integral
    over t is 1/c(x)², and c is linear between the weights."""
    size = len(w)
    rate = Fraction(rate or size)
    result = Fraction(0)
    for j, chance in (places or {j: Fraction(1, size) for j in range(size)}).items():
        if i == j:
            result += chance * rate / (rate + sum(max(w[k] / w[j] - 1, 0) for k in range(size) if k != j))
        elif w[i] > w[j]:
            c = lambda x: rate * x + w[i] - x + sum(max(w[k] - x, 0) for k in range(size) if k not in (i, j))
            edges = sorted({x for x in w if w[j] <= x <= w[i]})
            result += chance * rate * w[i] * sum((b - a) / (c(a) * c(b)) for a, b in itertools.pairwise(edges))
    return result


def rationals(size, seed):
    generator = np.random.default_rng(seed)
    return [Fraction(int(a), int(b)) for a, b in zip(generator.integers(1, 50, size), generator.integers(1, 50, size))]


MISTAKES = {"M is Exp(1)": {"rate": 1}, "always place 0": {"places": {0: Fraction(1)}}}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 32])
def test_a_group_is_independent_exponential_clocks(size):
    for seed in range(3):
        s = rationals(size, seed)
        s[seed % size] = Fraction(0)  # the law of some of them
        assert transform(s) == math.prod(1 / (1 + x) for x in s)


@pytest.mark.parametrize("mistake", [*MISTAKES.values(), {"places": {None: Fraction(1)}}, {"added": False}], ids=str)
def test_control_another_definition_is_not(mistake):
    s = rationals(3, 1)
    assert transform(s, **mistake) != math.prod(1 / (1 + x) for x in s)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 32])
def test_the_winner_has_the_law_of_the_weights(size):
    for seed in range(2):
        w = [Fraction(int(x), 7) for x in np.random.default_rng(seed).integers(1, 9, size)]  # some are equal
        assert all(winner(w, i) == w[i] / sum(w) for i in range(size))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_control_the_winner_of_another_definition_has_not(mistake):
    w = rationals(3, 1)
    assert any(winner(w, i, **MISTAKES[mistake]) != w[i] / sum(w) for i in range(3))


def test_the_code_has_this_definition(monkeypatch):
    """Every combination of a few words: the transform of `rng.clocks` is that of a uniform place, M from A, and M + Exp(1)."""
    a, r, ids = [0, 4095, 1 << 30, 3 << 30], [7, 5000, 1 << 31, (1 << 32) - 9], (0, 256 + 3, 768 + 7)  # of group 0
    rows = torch.cartesian_prod(*map(torch.tensor, (a, range(32), r, r, r)))
    words = torch.full((len(rows), 1024), 1 << 29)
    words[:, list(ids)] = rows[:, 2:]
    second = 12345
    monkeypatch.setattr(rng, "words", lambda *_, refine=False: torch.full_like(words, second) if refine else words)
    group_words = {False: rows[:, :1], True: rows[:, 1:2] << 27 | second}
    monkeypatch.setattr(rng, "group_words", lambda *_, second=False: group_words[second].expand(-1, 32))
    stream = torch.zeros(len(rows), dtype=torch.int64)
    clock = rng.clocks(stream, stream, rng.CLOCK, stream, 1024)[:, list(ids)]

    def mean(s, words, bits, size):
        u = [(w + ((second + 0.5) / 2**bits if w < 4096 else 0.5)) / 2**32 for w in words]
        return math.fsum(math.exp(s * math.log1p(-x) / size) for x in u) / len(u)

    for s in ((0.3, 1.7, 0.9), (0.0, 2.0, 5.0)):
        got = float((-(clock @ torch.tensor(s, dtype=torch.float64))).exp().mean())
        each = [mean(x, r, 32, 1) for x in s]
        places = sum(math.prod(e for k, e in enumerate(each) if k != j) for j in range(3)) + 29 * math.prod(each)
        assert got == pytest.approx(mean(sum(s), a, 27, 32) * places / 32, rel=1e-13)


# -- the words' lattice ------------------------------------------------------------------------------------------------


def over_words(power, bits):
    """The mean of (1 − u)^power over every word r and, if r < 2¹², every second word of so many bits (0: there is none):
    E[exp(−s·E)] of E = −log1p(−u)/n for power = s/n; for ideal clocks it is 1/(1 + power).

    A sum over a lattice of midpoints equals its integral plus correction terms (Euler and Maclaurin). The first million single
    words are summed directly: for large powers their lattice is too coarse for that."""
    f = lambda u: np.exp(power * np.log1p(-u))

    def lattice(begin, end, step):
        first = [-power * np.exp((power - 1) * np.log1p(-u)) for u in (begin, end)]
        third = [-power * (power - 1) * (power - 2) * np.exp((power - 3) * np.log1p(-u)) for u in (begin, end)]
        integral = -f(begin) * np.expm1((power + 1) * (np.log1p(-end) - np.log1p(-begin))) / (power + 1) * (1 - begin)
        return integral - step**2 / 24 * (first[1] - first[0]) + 7 * step**4 / 5760 * (third[1] - third[0])

    r = np.arange(4096 if bits else 0, 1 << 20)
    refined = lattice(0.0, 2.0**-20, 2.0 ** -(32 + bits)) if bits else 0.0
    return refined + f((r + 0.5) * 2.0**-32).sum() * 2.0**-32 + lattice(2.0**-12, 1 - 2.0**-40, 2.0**-32)


def rare(weight, bits_of_a=27, bits_of_r=32, beside=False):
    """Exact probability, over the values of the words, that a token of probability `weight` wins; the rest of the law is in other
    groups, whose best E/w is exponential, or on one other token of its own group (`beside`).

    A clock E wins against a rest elsewhere with probability exp(−rate·E), and E is M one time in 32, otherwise M + Exp(1)."""
    rate = (1 - weight) / weight
    if not beside:
        return over_words(rate / 32, bits_of_a) * (1 + 31 * over_words(rate, bits_of_r)) / 32
    # Beside the heavy token, whose clock is M + X: X > M·(rate − 1), or neither has M itself. If the heavy token has it, never.
    return over_words((rate - 1) / 32, bits_of_a) * (1 + 30 * over_words(rate, bits_of_r)) / 32


def test_sums_over_words():
    """The correction terms against the sum itself, over the code's own uniforms."""
    r, s = torch.meshgrid(torch.arange(4096), torch.arange(256), indexing="ij")
    for power in (1e5, 1e8, 1e11):
        refined = torch.exp(power * torch.log1p(-rng._uniform(r, s, 8))).sum() / 2**40
        single = torch.exp(power * torch.log1p(-rng._uniform(torch.arange(4096, 1 << 22), torch.tensor(0), 8))).sum() / 2**32
        assert over_words(power, 8) == pytest.approx(float(refined + single), rel=1e-11, abs=1e-18)
    assert over_words(0.7, 32) == pytest.approx(1 / 1.7, rel=1e-11)


@pytest.mark.parametrize("beside", [False, True], ids=["rest elsewhere", "rest in its group"])
@pytest.mark.parametrize(
    "weight, error", [(1e-7, 1e-8), (1e-8, 1e-8), (1e-10, 1e-14), (1e-12, 1e-14), (1e-15, 1.3e-10), (1e-18, 1.3e-4)]
)
def test_rare_tokens_win_at_their_rate(weight, error, beside):
    assert rare(weight, beside=beside) == pytest.approx(weight, rel=error, abs=0)


@pytest.mark.parametrize("beside", [False, True], ids=["rest elsewhere", "rest in its group"])
@pytest.mark.parametrize("weight", [1e-11, 1e-12])
def test_control_without_the_27_bits_rare_tokens_lose_their_law(weight, beside):
    assert rare(weight, bits_of_a=0, beside=beside) != pytest.approx(weight, rel=1e-2, abs=0)


def two_rare(weight, bits_of_r=32):
    """Exact probability that two tokens of one group, each of probability `weight`, arrive before all others: 2 w²/(1 − w)."""
    rate = (1 - 2 * weight) / weight
    one_has_m = 2 * over_words(rate, bits_of_r)
    neither = 30 * 2 / ((1 + rate) * (2 + rate))  # for ideal clocks: it contributes 30 w in total
    return over_words(rate / 32, 27) * (one_has_m + neither) / 32


@pytest.mark.parametrize("weight", [1e-8, 1e-10, 1e-12, 1e-15])
def test_two_rare_tokens_of_a_group_arrive_at_their_rate(weight):
    assert two_rare(weight) == pytest.approx(2 * weight**2 / (1 - weight), rel=1e-7, abs=0)


@pytest.mark.parametrize("weight", [1e-10, 1e-12])
def test_control_without_a_tokens_second_word_they_do_not(weight):
    """It matters only for such pairs: a rare token that wins has its group's least clock, except with probability 31 w."""
    assert two_rare(weight, bits_of_r=0) != pytest.approx(2 * weight**2, rel=1e-2, abs=0)
    assert rare(weight, bits_of_r=0) == pytest.approx(weight, rel=1e-7, abs=0)


def below(x, refined=True):
    """P(u < x) over every word r and second word s, by the code's own uniforms, which increase with r·2³² + s."""
    low, high = 0, 1 << 64
    while low < high:
        middle = (low + high) // 2
        r, s = torch.tensor(middle >> 32), torch.tensor(middle & 0xFFFFFFFF)
        u = rng._uniform(r, s, 32) if refined else (r + 0.5).double() / 2**32
        low, high = (middle + 1, high) if u < x else (low, middle)
    return low / 2**64


@pytest.mark.parametrize("x", [0.3, 1e-6, 1e-8, 1e-10, 1e-12])
def test_uniforms_decide_at_their_rate(x):
    """A draft token is accepted if u < t/d: even if that is 1e-12."""
    assert below(x) == pytest.approx(x, rel=2e-3 if x == 1e-6 else 1e-7, abs=0)
    if x <= 1e-10:
        assert below(x, refined=False) == 0  # control


# -- pairs through the streams -----------------------------------------------------------------------------------------

SEEDS, COUNT = 128, 4096  # four tiles, whose words of groups come from one Philox call


def clocks(seed=1000, position=3, purpose=rng.CLOCK, slot=0):
    whole = lambda x: torch.full((SEEDS,), x)
    return rng.clocks(seed + torch.arange(SEEDS), whole(position), purpose, whole(slot), COUNT)


def by_group(clock):
    """[SEEDS, COUNT] -> [SEEDS, 4 tiles, 32 groups, 32 places]"""
    token = torch.arange(COUNT)
    order = (rng.group_of(token) * 32 + rng.place_of(token)).argsort()
    return clock[:, order].view(-1, 4, 32, 32)


def independent(x, y):
    """p-value for: x and y are independent Exp(1), by eight bins of equal probability each."""
    cell = lambda e: (-8 * torch.expm1(-e)).long().clamp(max=7)
    return p_value(cell(x) * 8 + cell(y), torch.full((64,), 1 / 64))


def inside(clock):
    return independent(*by_group(clock).unflatten(-1, (2, 16)).unbind(3))


def across_purposes():
    return independent(clocks(), clocks(purpose=rng.DRAFT))


def test_clocks_of_a_group_are_independent():
    clock = clocks()
    assert inside(clock) > FAILURE_RATE
    assert independent(clock[:, ::2], clock[:, 1::2]) > FAILURE_RATE  # neighbours, one word each, from one block
    assert independent(*clock.unflatten(1, (-1, 2, 256)).unbind(2)) > FAILURE_RATE  # the rows of a tile


def test_clocks_of_groups_are_independent():
    of = by_group(clocks())
    assert independent(of[:, ::2], of[:, 1::2]) > FAILURE_RATE  # tiles: words from one Philox call
    assert independent(of[:, :2], of[:, 2:]) > FAILURE_RATE
    assert independent(of[:, :, ::2], of[:, :, 1::2]) > FAILURE_RATE  # neighbours
    assert independent(of[..., :-1], of.roll(1, 2)[..., 1:]) > FAILURE_RATE  # another group, another place


@pytest.mark.parametrize(
    "other",
    [{"position": 4}, {"position": 3 + 2**32}, {"slot": 1}, {"purpose": rng.RESIDUAL}, {"purpose": rng.DRAFT},
     {"purpose": rng.DISTINCT}, {"seed": 1001}, {"seed": 1000 + 2**32}], ids=str,
)  # fmt: skip
def test_clocks_of_streams_are_independent(other):
    assert independent(clocks(), clocks(**other)) > FAILURE_RATE


def test_least_clocks():
    """M·32 is Exp(1) and the place uniform, both independent of each other and of the next purpose's."""
    whole = torch.zeros(3000, dtype=torch.int64)
    (m, place), (other, _) = (rng.least_clocks(torch.arange(3000), whole, purpose, whole, 128) for purpose in (0, 2))
    bins = lambda x: (-8 * torch.expm1(-32 * x)).long()
    assert p_value(bins(m) * 32 + place, torch.full((256,), 1 / 256)) > FAILURE_RATE
    assert independent(32 * m, 32 * other) > FAILURE_RATE


def test_uniforms():
    """For acceptance and for selection, independent of the neighbouring streams."""
    base = {"seed": 5, "position": 2, "purpose": rng.ACCEPT, "slot": 0}
    n = 1 << 18
    make = lambda **x: rng.uniforms(*(torch.tensor([x[k]]) if k != "purpose" else x[k] for k in base), n)[0]
    exponential = lambda u: -torch.log1p(-u)
    for other in ({"seed": 6}, {"position": 3}, {"purpose": rng.SELECT}, {"slot": 1}, {"seed": 5 + 2**32}):
        assert independent(exponential(make(**base)), exponential(make(**base | other))) > FAILURE_RATE


@pytest.fixture(params=["M is Exp(1)", "always place 0", "nobody has M", "M is not added"])
def mistake(request, monkeypatch):
    """The clocks with a mistake."""
    least_clocks, right = rng.least_clocks, rng.clocks
    wrong = {"always place 0": lambda m, place: (m, 0 * place), "nobody has M": lambda m, place: (m, 0 * place - 1)}
    if request.param in wrong:
        monkeypatch.setattr(rng, "least_clocks", lambda *stream: wrong[request.param](*least_clocks(*stream)))
    elif request.param == "M is Exp(1)":
        monkeypatch.setattr(rng, "GROUP", 1)
    else:

        def not_added(*stream):
            token = torch.arange(stream[-1])
            m, place = least_clocks(*stream[:-1], 32 * ((stream[-1] + 1023) // 1024))
            m, first = m[:, rng.group_of(token)], place[:, rng.group_of(token)] == rng.place_of(token)
            return torch.where(first, m, right(*stream) - m)

        monkeypatch.setattr(rng, "clocks", not_added)
    return request.param


def test_control_pairs_of_wrong_clocks(mistake):
    assert inside(clocks()) < CAUGHT


def test_control_groups_shared_between_purposes(monkeypatch):
    right = rng.group_words
    shared = lambda seed, position, purpose, *rest, **second: right(seed, position, 0, *rest, **second)
    assert across_purposes() > FAILURE_RATE
    monkeypatch.setattr(rng, "group_words", shared)
    assert across_purposes() < CAUGHT


# -- the race ----------------------------------------------------------------------------------------------------------

LAWS = {  # one group whole or in part; several groups, the last one partial
    "a part of a group": lambda: numbers(5, seed=1),
    "two parts": lambda: numbers(16, seed=2),
    "five parts": lambda: numbers(33, seed=3),
    "a whole group": lambda: torch.where(rng.group_of(torch.arange(1024)) == 3, numbers(1024, seed=4), -torch.inf),
    "beyond a tile": lambda: torch.where(torch.arange(1029) >= 1016, numbers(1029, seed=5), -torch.inf),
}


def race_p(name, trials):
    law = probabilities(LAWS[name]()[None])
    kept = (law[0] > 0).nonzero()[:, 0]
    found = []
    for begin in range(0, trials, 2000):
        seed = torch.arange(begin, begin + 2000)
        found.append(race(law.log().expand(2000, -1), seed, torch.full_like(seed, 9), rng.DRAFT, torch.zeros_like(seed)))
    return p_value(torch.searchsorted(kept, torch.cat(found)), law[0, kept])


@pytest.mark.parametrize("name", LAWS)
def test_the_race_has_its_law(name):
    assert race_p(name, 6_000 if len(LAWS[name]()) > 100 else 50_000) > FAILURE_RATE


def test_control_races_of_wrong_clocks(mistake):
    """Each shows in the law of a narrow race."""
    assert race_p("two parts", 20_000) < CAUGHT
