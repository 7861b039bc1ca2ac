"""What a call of the benchmarks does on a GPU, and its predicted cost: launches, teams, consecutive passes, the rest.

Teams, and whether rows are read ahead, follow the launch code (csrc/cuda/capacity.h, verify.cu). Everything but the passes is
counted in the kernels' source and priced by guesses, which are in ASSUMED: microseconds each, some of them a range.
"""

from typing import NamedTuple

from machine_code import constant

from benchmarks.gpu import passes as kinds
from benchmarks.gpu.passes import CLOSE_MASS, DIGIT, MASS, MAXIMUM, RACE, SMS, STATISTICS, rounds

MOST_TEAM, UNIT, CREW = constant(r"kMaxTeam = (\d+)", "shape.h"), constant(r"kUnit = (\d+)", "shape.h"), kinds.CREW

ASSUMED = {
    "launch": 3.0,  # the first of a call
    "launch that began early": 1.0,  # what is left of it once the previous one has ended
    "barrier of a team": (0.5, 1.0),
    "barrier of a block": kinds.MEETING * 1e6,
    "set-up of a request": 1.5,
    "latency of memory": kinds.LATENCY * 1e6,  # until the first loads of a row arrive, and when the walk reads a logit
    "exact scores of the tokens that may have won": 2.0,
    "step of a token's walk": 1.2,  # two laws, two logits, two exponentials and a random number, requested beforehand
    "step of a race's walk": 0.5,
    "sums and law of a selection": 8.0,  # O(bins) in double: the histogram's sums, two scalars, the coupling
}


class Launch(NamedTuple):
    teams: int
    passes: list  # of a team, one after another
    counts: dict  # of everything else in ASSUMED, per team
    vocab: int = kinds.VOCAB

    @property
    def team(self):
        return team(self.teams, self.vocab)


def team(count, vocab, processors=SMS):
    """Blocks per team, for this many teams: the most that fit, and for which a row gives every thread some work"""
    size = MOST_TEAM
    while size > 1 and (count > processors // size or vocab < size * CREW * UNIT):
        size //= 2
    return size


def law(filters, normalised):
    """The passes that compute a law; top-k and top-p find a cut-off in three digits."""
    if filters == "plain":
        return [STATISTICS] if normalised else []
    by_k = [MAXIMUM, *[DIGIT] * 3] if filters in ("top-k", "all") else []
    by_p = [CLOSE_MASS, *[DIGIT] * 3] if filters in ("top-p", "all") else []
    return [MAXIMUM, *by_k, *by_p, *([MASS] if normalised else [])]


def launches(case, histogram=None):
    """The launches of a call in which all drafts are accepted. histogram: the pass of a selection among several drafts"""
    B, L = case.B, case.L
    set_up = {"launch": 1, "set-up of a request": 1, "barrier of a team": 1}
    if case.scheme == "sample":
        return [Launch(B, [*law(case.filters, False), RACE], {"launch": 1, "barrier of a team": 1}, case.V)]
    paths = case.K if case.K > 1 else 1
    rows = B * (paths * L + 1 + (L if case.scheme != "race" else 0))  # one draft row per depth: several drafts share one law
    ahead = 2 * rows <= SMS
    early = {"launch that began early": 1, "latency of memory": 1}
    if case.scheme == "race":
        each = [*law(case.filters, False), RACE]
        walk = {"step of a race's walk": L + 1}
        if ahead:
            return [Launch(rows, each, set_up, case.V), Launch(B, [], early | walk, case.V)]
        return [Launch(B, each * (L + 1), set_up | walk, case.V)]
    walk = {"step of a token's walk": L}
    last = [] if ahead else law(case.filters, False)
    selection = []
    if histogram:
        selection, walk = [histogram], {"sums and law of a selection": 1, "step of a token's walk": 1}
    if ahead:
        return [Launch(rows, law(case.filters, True), set_up, case.V), Launch(B, [*selection, RACE], early | walk, case.V)]
    walk["latency of memory"] = L  # its logits were not requested beforehand
    return [Launch(B, law(case.filters, True) * 2 * L + selection * L + last + [RACE], set_up | walk, case.V)]


def price(plan, measured, opened):
    """-> a range of microseconds for each of launches, barriers, drains, passes, the rest, and all. measured: {name: Pass}"""
    prices = {**ASSUMED, "round of opened groups": opened * 1e6}
    parts = {"launches": [0, 0], "barriers": [0, 0], "drains": [0, 0], "passes": [0, 0], "rest": [0, 0]}

    def add(part, what, often=1):
        for i in range(2):
            parts[part][i] += _of_range(often, i) * _of_range(prices[what], i)

    for launch in plan:
        size, waves = launch.team, -(-launch.teams * launch.team // SMS)
        meets = "barrier of a team" if size > 1 else "barrier of a block"
        for what, often in launch.counts.items():
            part = "launches" if "launch" in what else "barriers" if "barrier" in what else "rest"
            add(part, meets if what == "barrier of a team" else what, often * (waves if part != "launches" else 1))
        for name in launch.passes:
            one = measured[name]
            at_once = min(launch.teams, SMS // size)
            for i in range(2):
                used = kinds.ISSUED[1 - i]
                parts["passes"][i] += waves * one.of_team(size, at_once, launch.vocab, used) * 1e6
                parts["drains"][i] += waves * (kinds.LATENCY + one.after * kinds.DEPENDENT / kinds.CLOCK) * 1e6
            add("barriers", meets, waves * one.kind.team)
            add("barriers", "barrier of a block", waves * (one.kind.crew + 2))
            if name == RACE:
                add("rest", "round of opened groups", tuple(waves * n for n in rounds(size * CREW // 32)))
                add("rest", "exact scores of the tokens that may have won", waves)
    low, high = (sum(part[i] for part in parts.values()) for i in range(2))
    return [*parts.values(), [low, high]]


def _of_range(x, i):
    return x[i] if isinstance(x, tuple) else x
