"""specsample.theory against enumeration, linear programs and simulation, with wrong variants that must be detected."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from law_pairs import PAIRS, SIGMAS, random_law

import specsample as ss
from specsample import theory
from specsample.theory.table import zipf_pair
from specsample.tools import cli


def subsets(vocab):
    return np.array(list(itertools.product([0.0, 1.0], repeat=vocab))).T  # [V, 2^V]


def by_subsets(target, draft, k):
    """1 − max over all subsets of d(S)^k − t(S)"""
    member = subsets(target.shape[-1])
    return 1 - np.maximum((draft @ member) ** k - target @ member, 0).max(-1)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8])
def test_optimum_is_the_maximum_over_all_subsets(k):
    rng = np.random.default_rng(k)
    for vocab in (1, 2, 5, 9):
        target, draft = random_law(rng, 300, vocab), random_law(rng, 300, vocab)
        assert np.abs(theory.optimal_acceptance(target, draft, k) - by_subsets(target, draft, k)).max() < 1e-9
    for target, draft in PAIRS.values():
        assert abs(theory.optimal_acceptance(target, draft, k) - by_subsets(target, draft, k)) < 1e-9


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_optimum_is_the_linear_programs(k):
    rng = np.random.default_rng(10 + k)
    cases = list(PAIRS.values()) + [(random_law(rng, (), 5), random_law(rng, (), 5)) for _ in range(8)]
    wrong = 0.0
    for target, draft in cases:
        best = theory.lp_acceptance(target, draft, k)
        assert abs(theory.optimal_acceptance(target, draft, k) - best) < 1e-7
        wrong = max(wrong, abs(upper_set_scan(target, draft, k) - best))
    assert k == 1 or wrong > 1e-2  # for k = 1 there is one D, scanned from either side


def upper_set_scan(target, draft, k):
    """A wrong closed form: the scan over tokens with the largest ratios instead of the smallest."""
    order = np.argsort(-target / np.maximum(draft, 1e-300))
    return 1 - max(0.0, np.max(np.cumsum(draft[order]) ** k - np.cumsum(target[order])))


def test_three_token_laws_of_khisti_figure_2():
    """t = (1/3, x, 2/3 − x) on a uniform draft: D = max(1/9 − min(x, 2/3 − x), 4/9 − 1/3 − min(x, 2/3 − x), 0)."""
    x = np.linspace(0, 2 / 3, 101)
    target = np.stack([np.full_like(x, 1 / 3), x, 2 / 3 - x], -1)
    draft = np.full(3, 1 / 3)
    small = np.minimum(x, 2 / 3 - x)
    expected = 1 - np.maximum(np.maximum(1 / 9 - small, 4 / 9 - 1 / 3 - small), 0)
    assert np.abs(theory.optimal_acceptance(target, draft, 2) - expected).max() < 1e-12
    assert (theory.two_draft_condition(target, draft) == (small >= 1 / 9 - 1e-12)).all()


def test_two_draft_condition_means_an_acceptance_of_one():
    rng = np.random.default_rng(3)
    target = random_law(rng, 2000, 4, spread=5.0)
    draft = random_law(rng, 2000, 4, spread=5.0)
    member = subsets(4)
    holds = ((target @ member) - (draft @ member) ** 2 >= -1e-12).all(-1)
    assert 200 < holds.sum() < 1800  # both answers occur
    assert (theory.two_draft_condition(target, draft) == holds).all()
    assert (holds == (theory.optimal_acceptance(target, draft, 2) >= 1 - 1e-12)).all()


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_optimal_law_solves_its_equations(k):
    rng = np.random.default_rng(k)
    cases = list(PAIRS.values())
    cases += list(zip(random_law(rng, 200, 7), random_law(rng, 200, 7))) + [zipf_pair(2000, 1.0, rng)]
    for target, draft in cases:
        D, c1, c2, b = theory.optimal_law(target, draft, k)
        assert abs(D - (1 - theory.optimal_acceptance(target, draft, k))) < 1e-12 and c2 <= 1 <= c1
        assert abs(theory.clipped_mass(target, draft, c1) - D) < 1e-9
        assert abs(np.maximum(c2 * draft - target, 0).sum() - D) < 1e-9
        assert abs(b.sum() - 1) < 1e-9 and b.min() >= 0 and abs(np.minimum(target, b).sum() - (1 - D)) < 1e-9
        if len(b) < 10:  # reachable: b(S) >= d(S)^k
            assert (b @ subsets(len(b)) - (draft @ subsets(len(b))) ** k).min() > -1e-9
        if k == 1:
            assert np.abs(b - draft).max() < 1e-12


def test_dominance():
    """optimal >= kseq >= recursive >= token, and their growth with k, on 10 000 pairs."""
    rng = np.random.default_rng(5)
    target = random_law(rng, 10_000, 8)
    near, far = 0.3 * random_law(rng, 10_000, 8) + 0.7 * target, random_law(rng, 10_000, 8)
    draft = np.where(rng.random((10_000, 1)) < 0.5, near, far)
    token = theory.acceptance(target, draft, 1, "token")
    for scheme in ("optimal", "kseq", "recursive"):
        assert np.abs(theory.acceptance(target, draft, 1, scheme) - token).max() < 1e-12
    before = {"optimal": token, "kseq": token, "recursive": token}
    for k in (2, 3, 4, 8):
        now = {scheme: theory.acceptance(target, draft, k, scheme) for scheme in before}
        assert (now["optimal"] >= now["kseq"] - 1e-12).all() and (now["kseq"] >= now["recursive"] - 1e-12).all()
        assert all((now[scheme] >= before[scheme] - 1e-12).all() for scheme in before)
        before = now
        binned = theory.binned_acceptance(target[:500], draft[:500], k)
        assert (binned <= now["optimal"][:500] + 1e-9).all() and (binned >= now["optimal"][:500] - 2e-2).all()


def test_recursive_and_kseq_thresholds():
    """recursive: enumerated round by round with explicit residuals. kseq: the root, inside [1, k]."""
    rng = np.random.default_rng(6)
    for target, draft in [*PAIRS.values(), *zip(random_law(rng, 20, 5), random_law(rng, 20, 5))]:
        residual, rejected, c = target, 1.0, theory.recursive_thresholds(target, draft, 4)
        for j in range(4):
            assert abs(theory.clipped_mass(target, draft, c[j]) - rejected) < 1e-10
            gap = np.maximum(residual - draft, 0)
            rejected *= gap.sum()
            residual = gap / gap.sum() if gap.sum() > 1e-13 else residual
            if rejected < 1e-12:
                break
        for k in (2, 3, 8):
            root = theory.kseq_threshold(target, draft, k)
            mass = theory.clipped_mass(target, draft, root)
            assert 1 <= root <= k
            assert abs((1 - (1 - mass) / root) ** k - mass) < 1e-9


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_is_the_linear_program_of_its_own_draws(k):
    from scipy.optimize import linprog

    rng = np.random.default_rng(k)
    for _ in range(10):
        target, draft = random_law(rng, (), 6), random_law(rng, (), 6)
        order = np.argsort(-draft)
        fixed, rest = list(order[: k - 1]), list(order[k - 1 :])
        arcs = [(i, y) for i, x in enumerate(rest) for y in [*fixed, x]]
        limits = np.concatenate([draft[rest] / draft[rest].sum(), target])
        matrix = np.zeros((len(limits), len(arcs)))
        for j, (i, y) in enumerate(arcs):
            matrix[i, j] = matrix[len(rest) + y, j] = 1
        best = -linprog(-np.ones(len(arcs)), A_ub=matrix, b_ub=limits, method="highs").fun
        assert abs(theory.acceptance(target, draft, k, "top") - best) < 1e-8


def without_replacement(target, draft, k):
    """recursive_distinct step by step with explicit residuals and renormalised drafts, over every ordered draw"""
    if k == 0 or draft.sum() < 1e-12:
        return 0.0
    d = draft / draft.sum()
    gap = np.maximum(target - d, 0)
    total = 0.0
    for x in np.flatnonzero(d):
        accept = min(1.0, target[x] / d[x])
        total += d[x] * accept
        if accept < 1:
            rest = d.copy()
            rest[x] = 0
            total += d[x] * (1 - accept) * without_replacement(gap / gap.sum(), rest, k - 1)
    return total


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_recursive_distinct(k):
    rng = np.random.default_rng(k)
    pairs = [p for name, p in PAIRS.items() if name not in ("equal", "both one-hot", "one token")]
    for target, draft in [*pairs, *zip(random_law(rng, 10, 5), random_law(rng, 10, 5))]:
        found = theory.acceptance(target, draft, k, "recursive_distinct")
        assert abs(found - without_replacement(target, draft, k)) < 1e-9
    target, draft = random_law(rng, (), 6), random_law(rng, (), 6)
    exact = theory.acceptance(target, draft, k, "recursive_distinct")
    estimate = theory.acceptance(target, draft, k, "recursive_distinct", samples=4000, seed=1)
    assert abs(estimate - exact) < SIGMAS * 0.5 / 4000**0.5
    for name in ("equal", "both one-hot", "one token"):
        assert theory.acceptance(*PAIRS[name], k, "recursive_distinct") == pytest.approx(1)


def test_estimated_recursive_distinct():
    """The estimate is within its error of the enumeration for every k at once, and exact for two children at any vocabulary."""
    rng = np.random.default_rng(16)
    for target, draft in [zipf_pair(25, 1.0, rng), zipf_pair(25, 0.3, rng), (random_law(rng, (), 25), random_law(rng, (), 25))]:
        exact = [theory.distinct_acceptance(target, draft, k) for k in (1, 2, 3, 4)]
        value, error = theory.distinct_estimate(target, draft, 4, 2000, rng)
        assert error[0] == 0 and 1e-6 < error.max() < 0.1 / 2000**0.5
        assert (np.abs(value - exact) <= SIGMAS * error + 1e-12).all()
        assert abs(value[2] - without_replacement(target, draft, 3)) <= SIGMAS * error[2]
        with_replacement = theory.acceptance(target, draft, 4, "recursive")  # negative control
        assert abs(value[3] - with_replacement) > SIGMAS * error[3]
    target, draft = zipf_pair(2000, 1.0, rng)
    value, error = theory.distinct_estimate(target, draft, 2, 4000, rng)
    assert abs(value[1] - theory.distinct_acceptance(target, draft, 2)) <= SIGMAS * error[1]


def test_top_has_no_child_without_draft_probability():
    assert theory.acceptance([0.5, 0.3, 0.2], [1.0, 0.0, 0.0], 3, "top") == pytest.approx(0.5)
    assert theory.acceptance([0.5, 0.3, 0.2], [0.6, 0.4, 0.0], 3, "top") == pytest.approx(0.8)


def test_curves_are_the_single_values():
    rng = np.random.default_rng(17)
    pairs = [zipf_pair(40, 1.0, rng), zipf_pair(40, 2.0, rng), (np.full(40, 0.025), zipf_pair(40, 1.0, rng)[0])]
    target, draft = (np.stack(laws) for laws in zip(*pairs))
    curves = theory.acceptance_curves(target, draft, (1, 2, 3, 8), samples=3000)
    assert set(curves) == set(theory.FORMULAS) | {"optimum"}
    for scheme, (value, error) in curves.items():
        assert value.shape == error.shape == (3, 4)
        for i, k in enumerate((1, 2, 3, 8)):
            if scheme in ("token", "block") and k > 1:
                assert np.isnan(value[:, i]).all()
                continue
            if (scheme, k) == ("recursive_distinct", 8):
                single = theory.distinct_acceptance(target, draft, k, samples=3000, seed=5)
                assert (error[:, i] > 0).all()
            elif scheme.startswith("optimal"):
                single = theory.binned_acceptance(target, draft, k)
            else:
                single = theory.acceptance(target, draft, k, "optimal" if scheme == "optimum" else scheme)
                assert (error[:, i] == 0).all()
            assert (np.abs(value[:, i] - single) <= 2 * SIGMAS * error[:, i] + 1e-9).all(), scheme


def heaviest_tree(probabilities, vocab, nodes, depth):
    """The largest total weight of a prefix-closed set of `nodes` prefixes, over all such sets"""
    prefixes = [p for n in range(1, depth + 1) for p in itertools.product(range(vocab), repeat=n)]
    weight = {p: math.prod(probabilities(p[:i])[p[i]] for i in range(len(p))) for p in prefixes}
    best = 0.0
    for chosen in itertools.combinations(prefixes, nodes):
        if all(len(p) == 1 or p[:-1] in chosen for p in chosen):
            best = max(best, sum(weight[p] for p in chosen))
    return best


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_drafting_tree_is_the_heaviest(nodes):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        laws = {p: random_law(rng, (), 2) for n in range(5) for p in itertools.product(range(2), repeat=n)}
        tree = theory.drafting_tree(laws.get, nodes)
        assert len(tree.parents) == nodes and tree.weights == sorted(tree.weights, reverse=True)
        prefixes = []
        for i, (parent, token, weight) in enumerate(zip(*tree)):
            assert -1 <= parent < i
            prefixes.append((prefixes[parent] if parent >= 0 else ()) + (token,))
            chances = [laws[prefixes[i][:j]][prefixes[i][j]] for j in range(len(prefixes[i]))]
            assert weight == pytest.approx(math.prod(chances))
        assert len(set(prefixes)) == nodes
        assert sum(tree.weights) == pytest.approx(heaviest_tree(laws.get, 2, nodes, min(nodes, 4)))


def test_drafting_tree_of_tables():
    tree = theory.drafting_tree([0.6, 0.3, 0.1], 4)
    assert tree == ([-1, 0, -1, 1], [0, 0, 1, 0], pytest.approx([0.6, 0.36, 0.3, 0.216]))
    assert theory.drafting_tree([[1.0, 0.0], [0.5, 0.5]], 9)[:2] == ([-1, 0, 0], [0, 0, 1])  # there are no more paths
    assert theory.drafting_tree(torch.tensor([0.5, 0.5]), 0) == ([], [], [])


def test_block_efficiency():
    assert theory.block_efficiency([0.5, 0.5, 0.0, 1.0]) == 1.75
    assert theory.block_efficiency(np.full((2, 3), 1.0)).tolist() == [4, 4]
    rng = np.random.default_rng(12)
    for _ in range(5):
        prefixes = [p for n in range(3) for p in itertools.product(range(3), repeat=n)]
        t, d = ({p: random_law(rng, (), 3) for p in prefixes} for _ in range(2))
        found = {
            scheme: theory.block_efficiency(target=t.get, draft=d.get, depth=3, scheme=scheme)
            for scheme in ("block", "token", "race")
        }
        expected = {"block": 1.0, "token": 1.0}
        for n in range(1, 4):  # given the text, depth n is reached with min_j Π d/t (block), Π min(1, d/t) (token)
            for x in itertools.product(range(3), repeat=n):
                own = [t[x[:i]][x[i]] for i in range(n)]
                ratio = np.array([d[x[:i]][x[i]] for i in range(n)]) / own
                expected["block"] += math.prod(own) * min(1.0, np.cumprod(ratio).min())
                expected["token"] += math.prod(own) * np.minimum(ratio, 1).prod()
        assert found["block"] == pytest.approx(expected["block"]) and found["token"] == pytest.approx(expected["token"])
        assert found["block"] > found["token"] + 1e-6 and found["token"] > found["race"]
    target, draft = random_law(rng, (), 4), random_law(rng, (), 4)
    for scheme in ("token", "race"):
        chance = theory.acceptance(target, draft, 1, scheme)
        direct = theory.block_efficiency(target=target, draft=draft, depth=4, scheme=scheme)
        assert direct == pytest.approx(theory.block_efficiency([chance] * 4))
    one = theory.block_efficiency(target=target, draft=draft, depth=1)
    assert one == pytest.approx(1 + theory.acceptance(target, draft, 1, "block"))


def test_laws_of_a_language_models_size():
    """Zipf-like pairs of 128 256 tokens: the gaps between rules, and the loss by 1024 bins."""
    for seed in range(3):
        target, draft = zipf_pair(128_256, 1.0, np.random.default_rng(seed))
        for k, loss in ((2, 2e-4), (4, 2e-4), (8, 6e-4)):
            best = theory.optimal_acceptance(target, draft, k)
            kseq, recursive = (theory.acceptance(target, draft, k, scheme) for scheme in ("kseq", "recursive"))
            assert 0.03 < best - kseq < 0.1 and 0.015 < kseq - recursive < 0.06
            assert 0 <= best - theory.binned_acceptance(target, draft, k) < loss
            assert best - theory.binned_acceptance(target, draft, k, bins=16) > 10 * loss  # few bins are costly


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: theory.acceptance([0.5, 0.6], [0.5, 0.5]), "target: expected rows that sum to one"),
        (lambda: theory.acceptance([0.5, 0.5], [1.5, -0.5]), "draft: expected finite numbers >= 0"),
        (lambda: theory.acceptance([0.5, 0.5], [float("nan"), 0.5]), "draft: "),
        (lambda: theory.acceptance([0.5, 0.5], [1.0]), "draft: expected V = 2"),
        (lambda: theory.acceptance(np.full((2, 2), 0.5), np.full((3, 2), 0.5)), "draft: expected a shape"),
        (lambda: theory.acceptance("abc", [1.0]), "target: "),
        (lambda: theory.acceptance(1.0, [1.0]), "target: "),
        (lambda: theory.acceptance([1.0], [1.0], 2, "token"), "k: expected 1"),
        (lambda: theory.acceptance([1.0], [1.0], 0, "kseq"), "k: expected an integer >= 1"),
        (lambda: theory.acceptance([1.0], [1.0], 2, "weighted"), "scheme: .*'weighted'.*several draft laws"),
        (lambda: theory.acceptance([1.0], [1.0], 2, "importance", s=65), "s: expected at most 64"),
        (lambda: theory.acceptance([1.0], [1.0], 2, "importance", alphabet=-1), "alphabet: expected an integer >= 0"),
        (lambda: theory.acceptance([1.0], [1.0], 2, "optimal", s=5), "s: expected None"),
        (lambda: theory.acceptance([1.0], [1.0], 2, "no"), "scheme: expected one of token, "),
        (lambda: theory.acceptance(np.full(500, 0.002), np.full(500, 0.002), 4, "recursive_distinct"), "k: .*samples="),
        (lambda: theory.lp_acceptance(np.full(500, 0.002), np.full(500, 0.002), 2), "target: .*500\\^2"),
        (lambda: theory.drafting_tree([0.5, 0.6], 3), "probabilities: "),
        (lambda: theory.drafting_tree([1.0], -1), "nodes: "),
        (lambda: theory.block_efficiency([1.5]), "acceptances: "),
        (lambda: theory.block_efficiency(), "acceptances: "),
        (lambda: theory.block_efficiency(target=np.full(50, 0.02), draft=np.full(50, 0.02), depth=9), "depth: "),
        (lambda: theory.race_bound(-1.0, 5, 2), "entropy: "),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("error")
def test_vanishing_probabilities():
    """A draft probability of 1e-17 or 1e-320 counts as none, without overflow on the way."""
    target = np.array([0.5, 0.3, 0.2])
    for tiny in (1e-17, 1e-320):
        for scheme in theory.FORMULAS:
            k = 1 if scheme in ("token", "block") else 2
            found, without = (theory.acceptance(target, [x, 0.4, 0.6], k, scheme) for x in (tiny, 0.0))
            assert found == pytest.approx(without, abs=1e-9)
        assert theory.optimal_law(target, [tiny, 0.4, 0.6], 2).b.sum() == pytest.approx(1)


def test_tensors_and_leading_dimensions():
    target = torch.tensor([[[0.5, 0.3, 0.2]], [[0.2, 0.2, 0.6]]])  # float32 [2, 1, 3]
    draft = torch.full((4, 3), 1 / 3, dtype=torch.float64)
    for scheme in theory.FORMULAS:
        k = 1 if scheme in ("token", "block") else 2
        found = theory.acceptance(target, draft, k, scheme)
        assert found.shape == (2, 4) and found.dtype == np.float64
        single = theory.acceptance(target[1, 0], draft[0], k, scheme)
        assert np.ndim(single) == 0 and found[1] == pytest.approx([single] * 4)
    assert theory.lp_acceptance(target, draft, 2).shape == theory.kseq_threshold(target, draft, 2).shape == (2, 4)
    assert theory.recursive_thresholds(target, draft, 2).shape == (2, 4, 3)
    assert theory.optimal_law(target, draft, 2).b.shape == (2, 4, 3)
    assert theory.two_draft_condition(target, draft).dtype == bool


def test_numpy_and_scipy_are_asked_for_only_when_used(monkeypatch):
    code = (
        "import sys; sys.modules['numpy'] = None; import specsample as ss\n"
        "try: ss.theory\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and 'pip install "specsample[theory]"' in done.stdout, done.stderr
    assert ss.theory is theory
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r'SciPy: pip install "specsample\[theory\]"'):
        theory.lp_acceptance([1.0], [1.0], 1)


def test_command(tmp_path, capsys):
    assert cli.main(["theory", "--vocab", "12", "--noise", "0.5", "--seed", "3", "-k", "1", "3"]) == 0
    rows = {line[2:22].strip(): line[22:].split() for line in capsys.readouterr().out.splitlines()[1:]}
    target, draft = zipf_pair(12, 0.5, np.random.default_rng(3))
    assert rows.pop("children") == ["1", "3"]
    each = [theory.weighted_acceptance(target, np.stack([draft] * k)) for k in (1, 3)]
    assert rows["weighted"] == [f"{value:.4f}" for value in each]
    for scheme in set(theory.FORMULAS) - {"optimal", "optimal_block", "token", "block"}:
        assert rows[scheme] == [f"{theory.acceptance(target, draft, k, scheme):.4f}" for k in (1, 3)]
    assert rows["token"] == [f"{np.minimum(target, draft).sum():.4f}", "-"]
    assert rows["the optimum (i.i.d.)"][1] == f"{by_subsets(target, draft, 3):.4f}"

    np.save(tmp_path / "t.npy", np.log(target))
    torch.save(torch.from_numpy(draft).log(), tmp_path / "d.pt")
    np.savetxt(tmp_path / "d.txt", draft)
    np.savetxt(tmp_path / "t.txt", target)
    for arguments in (["t.npy", "d.pt", "--logits"], ["t.txt", "d.txt"]):
        files = ["--target", str(tmp_path / arguments[0]), "--draft", str(tmp_path / arguments[1])]
        assert cli.main(["theory", *files, *arguments[2:], "-k", "1", "3"]) == 0
        again = {line[2:22].strip(): line[22:].split() for line in capsys.readouterr().out.splitlines()[2:]}
        assert again == rows
    for arguments, part in (
        (["--target", str(tmp_path / "t.npy")], "expected both or neither"),
        (["--target", str(tmp_path / "t.npy"), "--draft", str(tmp_path / "d.txt")], "target: expected finite numbers"),
        (["--target", str(tmp_path / "none.npy"), "--draft", str(tmp_path / "d.txt")], "target: cannot read"),
    ):
        assert cli.main(["theory", *arguments]) == 1
        assert part in capsys.readouterr().err


def test_command_of_several_draft_laws(tmp_path, capsys):
    """One child from each: the rows are the formulas' means, the optimum is the linear program's, and large ones have none."""
    rng = np.random.default_rng(4)
    target, first = zipf_pair(12, 1.0, rng)
    target = np.stack([target, zipf_pair(12, 1.0, rng)[0]])
    drafts = np.stack([np.stack([first, first]), zipf_pair(12, 2.0, rng)[1][None].repeat(2, 0)], 1)
    for name, law in (("t", target), ("a", first), ("b", drafts[:, 1])):
        np.save(tmp_path / f"{name}.npy", law)
    paths = {name: str(tmp_path / f"{name}.npy") for name in "tab"}
    command = ["theory", "--target", paths["t"], "--draft", paths["a"], paths["b"]]
    assert cli.main(command) == 0
    rows = {" ".join(line.split()[:-1]): line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]}
    best = theory.mixed_lp_acceptance(target, drafts).mean()
    assert rows == {
        f"token, {paths['a']}": f"{np.minimum(target, first).sum(-1).mean():.4f}",
        f"token, {paths['b']}": f"{np.minimum(target, drafts[:, 1]).sum(-1).mean():.4f}",
        "weighted": f"{theory.weighted_acceptance(target, drafts).mean():.4f}", "the optimum": f"{best:.4f}",
    }  # fmt: skip
    assert max(float(rows[name]) for name in rows if name.startswith("token")) < float(rows["weighted"]) <= best + 5e-5
    assert cli.main([*command, paths["b"], paths["a"], paths["b"]]) == 0
    assert capsys.readouterr().out.splitlines()[-2].split()[-1] == "-"
    np.save(tmp_path / "a.npy", first[:5] / first[:5].sum())
    assert cli.main(command) == 1
    assert "draft: expected V = 12 as in target, got V = 5" in capsys.readouterr().err
