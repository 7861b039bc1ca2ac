"""`importance`: its weights against a linear program, its laws against enumeration, and wrong laws that must be detected.

test_multi_draft.py tests what holds for every multi-draft scheme, with the default settings, the order by t/d in bins; here the
same holds for the paper's own form, with a letter for "all other tokens", and both forms have their own tests.
"""

import itertools

import numpy as np
import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, identical, numbers, p_value, require
from enumeration import pair
from law_pairs import PAIRS
from tree_enumeration import BINS, by_reference, by_templates, gap
from trees import STAR, drafted_tree

import specsample as ss
from specsample import theory
from specsample.reference import rng as streams
from specsample.schemes.importance import Letters, balance, letters_of, pair_mass
from specsample.theory.optimal import binned_acceptance
from specsample.theory.table import zipf_pair

SETTINGS = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (5, 3)]  # s, alphabet
ORDER = (5, 0)  # all tokens by t/d, in bins
GAPS = (1, 10, 60, 90, 150, 745, 1500)  # between logits, in temperatures


def random_pairs(count, vocab, seed, spread=0.7):
    rng = np.random.default_rng(seed)
    return list(zip(rng.dirichlet(np.full(vocab, spread), count), rng.dirichlet(np.full(vocab, spread), count)))


def by_token(target, draft, s, alphabet):
    return Letters(torch.tensor(target), torch.tensor(draft), s, alphabet)


def by_ratio(target, draft, k, bins=BINS):
    """draft: as long as the target, or longer"""
    return letters_of(torch.tensor(target)[None], torch.tensor(draft)[None], torch.tensor([k]), bins, *ORDER)[0]


def tempered(style, gap):
    """Laws of three tokens with a gap of this many temperatures. -> (target, draft)"""

    def softmax(*logits):  # fmt: skip
        weights = np.exp(gap * (np.array(logits) - max(logits)))
        return weights / weights.sum()

    plain = np.array([0.2, 0.5, 0.3])
    cold, turned = softmax(0.0, -1.0, -2.0), softmax(-1.0, -1.5, 0.0)
    return {"draft": (plain, cold), "target": (cold, plain), "both": (turned, cold), "same": (cold, cold)}[style]


# -- weights -----------------------------------------------------------------------------------------------------------


def program(letters):
    """The largest Σ min(t_a, P'_a) over the weights of pairs within the first s letters, by HiGHS; the other weights are fixed."""
    from scipy.optimize import linprog

    t, d, law = (np.array(x) for x in (letters.target, letters.draft, letters.law))
    n = len(t)
    key = t - law * d
    key[-1] = key[-1] if letters.more else -2
    order = np.argsort(-key, kind="stable")
    free = order[: min(letters.s, n if letters.more else n - 1)]
    pairs = list(itertools.combinations(free, 2))
    fixed = law * d
    for i, j in itertools.combinations(range(n), 2):  # the i-th letter in the order comes before the j-th
        if j >= len(free):
            fixed[order[i]] += law[order[i]] * d[order[j]] + law[order[j]] * d[order[i]]
    # Variables: the part of each free pair given to its first letter, then the accepted part of each letter.
    matrix, bound = np.zeros((n, len(pairs) + n)), fixed.copy()
    for x, (a, b) in enumerate(pairs):
        mass = law[a] * d[b] + law[b] * d[a]
        matrix[a, x], matrix[b, x] = -mass, mass
        bound[b] += mass
    matrix[np.arange(n), len(pairs) + np.arange(n)] = 1
    cost = np.concatenate([np.zeros(len(pairs)), -np.ones(n)])
    limits = [(0, 1)] * len(pairs) + [(0, x) for x in t]
    done = linprog(cost, A_ub=matrix, b_ub=bound, bounds=limits, method="highs")
    assert done.status == 0
    return -done.fun


@pytest.mark.parametrize("s, alphabet", [(1, 3), (2, 3), (3, 3), (5, 40), (5, 6), (64, 40), (64, 3)])
def test_weights_are_the_linear_programs(s, alphabet):
    """In the first stage and, with different laws of winner and newcomer, in later ones."""
    wrong = later = 0
    for target, draft in [*PAIRS.values(), *random_pairs(15, 8, seed=s), *random_pairs(10, 12, seed=s + 1, spread=0.3)]:
        letters = by_token(target, draft, s, alphabet)
        for stage in range(3):
            _, held, law = letters.weights()
            value = np.minimum(letters.target, law).sum()
            assert abs(value - program(letters)) < 1e-7
            assert abs(sum(law) - 1) < 1e-12 and min(law) > -1e-15 and min(itertools.chain([0.0], *held)) >= 0
            everything_first = by_token(target, draft, 1, alphabet).weights()[2] if stage == 0 else None
            wrong += stage == 0 and value > np.minimum(letters.target, everything_first).sum() + 1e-3
            if not letters.stage():
                break
            later += stage > 0
    assert wrong or s == 1  # the flow differs from the fixed assignment
    assert later


@pytest.mark.parametrize("k", [2, 3])
def test_all_letters_free_is_the_optimum_of_two_draws(k):
    """K = 2: the transport optimum, computed differently. K = 3: selection in stages is below it."""
    x = np.linspace(0, 2 / 3, 21)
    figure_2 = [(np.array([1 / 3, a, 2 / 3 - a]), np.full(3, 1 / 3)) for a in x]
    most = 0.0
    for target, draft in [*PAIRS.values(), *figure_2, *random_pairs(60, 6, seed=1), *random_pairs(20, 20, seed=2)]:
        found = theory.acceptance(target, draft, k, "importance", s=64, alphabet=64)
        short = theory.optimal_acceptance(target, draft, k) - found
        assert short > -1e-9 and (k > 2 or short < 1e-9)
        most = max(most, short)
    assert k == 2 or most > 1e-4


def test_flow_is_continuous():
    """Amounts that vanish or tie, exactly or nearly: the flow differs equally little, so backends that round differently agree."""
    rng = np.random.default_rng(3)
    moved = 0
    for _ in range(200):
        n = int(rng.integers(2, 7))
        held = np.triu(rng.integers(0, 3, (n, n)) / 8, 1)
        excess = rng.integers(-3, 4, n) / 8
        results = []
        for size in (0, 1e-9):
            near = [(held + size * np.triu(rng.random((n, n)), 1)).tolist(), (excess + size * rng.normal(size=n)).tolist()]
            balance(*near)
            results.append(np.array(near[0]))
        moved += np.abs(results[0] - held).max() > 0.1
        assert np.abs(results[0] - results[1]).max() < 1e-6
    assert moved > 50


def test_order_and_alphabet_on_ties():
    """Equal tokens are ordered by index: in the alphabet, and in the order of the weights."""
    letters = by_token(np.full(6, 1 / 6), np.full(6, 1 / 6), 2, 3)
    assert letters.token == [0, 1, 2] and letters.weights()[0] == [3, 0, 1, 2]  # all others have t − d² = 1/4
    letters = by_token([0.2, 0.3, 0.2, 0.3], [0.3, 0.2, 0.3, 0.2], 2, 4)
    assert not letters.more and letters.weights()[0] == [1, 3, 0, 2, 4]


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s, alphabet", SETTINGS + [(64, 40)])
def test_law_of_the_winner(s, alphabet):
    """P in closed form against all pairs of tokens, stage by stage, with the deciding shares."""
    stages = 0
    for target, draft in [*PAIRS.values(), *random_pairs(8, 7, seed=s)]:
        letters, law = by_token(target, draft, s, alphabet), draft.copy()
        for _ in range(4):
            if not letters.stage():
                break
            stages, winner = stages + 1, np.zeros(len(law))
            for x, y in itertools.product(range(len(law)), repeat=2):
                part, mass = letters.shares(x, y)
                chance = part / mass if mass > 0 else 0.0
                assert -1e-12 <= chance <= 1 + 1e-12
                winner[x] += law[x] * draft[y] * chance
                winner[y] += law[x] * draft[y] * (1 - chance)
                other, same = letters.shares(y, x)  # w_ab + w_ba = 1
                assert same == mass
                assert letters.letter_of.get(x) == letters.letter_of.get(y) or abs(part + other - mass) < 1e-12
            law = winner
            closed = letters.scale * draft
            closed[letters.token] = letters.law[:-1]
            np.testing.assert_allclose(closed, law, atol=1e-13)
            assert letters.accepted == pytest.approx(np.minimum(target, law).sum(), abs=1e-12)
    assert stages > 8


@pytest.mark.parametrize("bins", [64, 1024])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_law_of_the_winner_in_the_order(k, bins):
    """P in closed form against all pairs of tokens, stage by stage, also if the draft has more ids than the target."""
    between = 0
    for seed, (target, draft) in enumerate([*PAIRS.values(), *random_pairs(20, 9, seed=k), *random_pairs(4, 60, seed=k, spread=5)]):
        draft, missing = np.array(draft, dtype=float), seed % 3 if len(target) > 4 else 0
        target = target[: len(target) - missing] / target[: len(target) - missing].sum()
        letters, law = by_ratio(target, draft, k, bins), draft.copy()
        short = draft[: len(target)]
        accepted = np.minimum(letters.goal, 1.0) @ letters.draft
        for _ in range(k - 1):
            assert letters.stage()
            winner = np.zeros(len(law))
            for x, y in itertools.product(range(len(law)), repeat=2):
                part, mass = letters.shares(x, y)
                other, _ = letters.shares(y, x)
                assert mass == 1 and 0 <= part <= 1 and (part == 1 or other == 1)  # a later one never displaces an earlier one
                between += 0 < part < 1
                winner[x] += law[x] * draft[y] * part
                winner[y] += law[x] * draft[y] * (1 - part)
            law = winner
            assert abs(law.sum() - 1) < 1e-13
            np.testing.assert_allclose(letters.winner(torch.tensor(short)), law[: len(target)], atol=1e-14, rtol=1e-11)
            for x in range(len(law)):
                assert letters.winner_of(x, draft[x]) == pytest.approx(law[x], rel=1e-11, abs=1e-14)
            gained = np.minimum(letters.goal, letters.ratio) @ letters.draft
            assert gained > accepted - 1e-12  # no stage accepts less
            accepted = gained
    assert between > 50


@pytest.mark.parametrize("s, alphabet", [ORDER, (2, 2)])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("style", ["draft", "target", "both", "same"])
def test_law_at_any_temperature(style, k, s, alphabet):
    """Probabilities that are zero or nearly zero, in the draft, the target or both, in Python and C++."""
    for distance in GAPS:
        t, d = tempered(style, distance)
        target, draft = {(): t} | {(x,): t for x in range(3)}, {(): d}
        outcomes, accepted = by_templates("importance", target, draft, 3, 1, STAR(k), s=s, alphabet=alphabet)
        assert gap(outcomes, target, 3, 1) < 1e-11
        expected = theory.importance_acceptance(t, d, k, s, alphabet, BINS)
        assert accepted == pytest.approx(expected, abs=1e-11)
        if k == 2 and distance in (10, 90, 1500):
            outcomes, again = by_reference("importance", target, draft, 3, k, s=s, alphabet=alphabet, bins=64)
            assert gap(outcomes, target, 3, 1) < 1e-11
            assert again == pytest.approx(theory.importance_acceptance(t, d, k, s, alphabet, 64), abs=1e-11)


@pytest.mark.parametrize("s, alphabet", [ORDER, *SETTINGS])
@pytest.mark.parametrize(
    "vocab, k, styles", [(4, 2, "dense dense"), (4, 3, "dense zeros"), (3, 4, "zeros dense"), (3, 3, "same same")]
)
def test_both_texts_have_the_target_law_and_the_acceptance_of_the_theory(vocab, k, styles, s, alphabet):
    target, draft = pair(vocab, 1, *styles.split(), seed=alphabet)
    outcomes, accepted = by_templates("importance", target, draft, vocab, 1, STAR(k), s=s, alphabet=alphabet)
    assert gap(outcomes, target, vocab, 1) < 1e-11
    assert accepted == pytest.approx(theory.importance_acceptance(target[()], draft[()], k, s, alphabet, BINS), abs=1e-11)
    if vocab**k < 50:
        outcomes, again = by_reference("importance", target, draft, vocab, k, s=s, alphabet=alphabet, bins=64)
        assert gap(outcomes, target, vocab, 1) < 1e-11
        expected = theory.importance_acceptance(target[()], draft[()], k, s, alphabet, 64)
        assert again == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("outside", [1e-3, 1e-6, 3e-8, 1e-12, 1e-300])
def test_next_to_nothing_outside_the_alphabet(outside):
    """The last letter's d is 1 − the others, so below 1e-7 it is rounding error: the law does not depend on it."""
    d = np.array([0.6, 0.4 - outside, 0.7 * outside, 0.3 * outside])
    t = np.array([0.2, 0.3, 0.4, 0.1])
    target, draft = {(): t} | {(x,): t for x in range(4)}, {(): d}
    for k in (2, 3):
        outcomes, _ = by_templates("importance", target, draft, 4, 1, STAR(k), s=2, alphabet=2)
        assert gap(outcomes, target, 4, 1) < 1e-11


def output(target, law, claimed):
    """Law of the emitted token if the selected draw has law `law` and is verified as if it had law `claimed`."""
    accepted = law * np.minimum(1, np.divide(target, claimed, out=np.ones(len(law)), where=claimed > 0))
    rest = np.maximum(target - claimed, 0)
    return accepted + (1 - accepted.sum()) * rest / rest.sum()


def test_control_wrong_laws_of_the_winner_in_the_order():
    """P of the previous stage, of the next one, without what letters lose, with every place taken, or d: each is biased."""
    target, draft = random_pairs(1, 7, seed=0)[0]
    letters, laws = by_ratio(target, draft, 4), [draft]
    for _ in range(3):
        letters.stage()
        laws.append(letters.winner(torch.tensor(draft)).numpy())
    law, order = laws[2], np.argsort(target / draft)
    taken = np.empty(7)
    taken[order] = np.diff(np.cumsum(draft[order]) ** 3, prepend=0)  # "the earlier wins" throughout
    unlost = np.maximum(law, laws[1])
    assert np.abs(output(target, law, law) - target).max() < 1e-12
    for wrong in (draft, laws[1], laws[3], taken, unlost / unlost.sum()):
        assert np.abs(output(target, law, wrong) - target).max() > 1e-3


def test_control_wrong_laws_of_the_winner():
    """P without d_i², with weights that sum to more than one, of the previous stage, or d outside the alphabet: each is biased."""
    target, draft = random_pairs(1, 7, seed=0)[0]
    letters = by_token(target, draft, 3, 4)
    assert letters.stage()
    first = letters.scale * draft
    first[letters.token] = letters.law[:-1]
    assert letters.stage()
    law = letters.scale * draft
    law[letters.token] = letters.law[:-1]
    own = first * draft  # both draws are this token
    heavy = law.copy()  # 1.1 of each pair within the alphabet
    for a, b in itertools.permutations(range(len(letters.token)), 2):
        part, whole = letters.shares(letters.token[a], letters.token[b])
        heavy[letters.token[a]] += 0.1 * part / whole * pair_mass(letters.before, letters.draft, a, b)
    plain = draft.copy()
    plain[letters.token] = law[letters.token]
    assert np.abs(output(target, law, law) - target).max() < 1e-12
    for wrong in (law - own, heavy, first, plain):
        assert np.abs(output(target, law, wrong) - target).max() > 1e-3


# -- acceptance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab, exponent, noise, seed", [(1000, 1.1, n, s) for n in (0.5, 1, 2) for s in (0, 1)] + [
    (32_000, 1.1, 0.5, 0), (32_000, 1.1, 1, 0), (32_000, 1.1, 2, 0), (128_256, 1.2, 1, 0),
])  # fmt: skip
def test_nine_tenths_of_the_way_from_kseq_to_the_optimum(vocab, exponent, noise, seed):
    """The paper's order (its Table 3), on Zipf-like laws."""
    target, draft = zipf_pair(vocab, noise, np.random.default_rng(seed), exponent)
    for k in (2, 4, 8):
        found = {name: theory.acceptance(target, draft, k, name) for name in ("recursive", "kseq", "importance", "optimal")}
        assert found["recursive"] < found["kseq"] < found["importance"] <= found["optimal"]
        share = (found["importance"] - found["kseq"]) / (found["optimal"] - found["kseq"])
        assert share > 0.9
        own_form = theory.acceptance(target, draft, k, "importance", s=5, alphabet=40)
        assert own_form < found["importance"] - 1e-3


def test_nearly_equal_laws():
    """Where all draws together overshoot most: still from `token`, minus the loss by bins, to the optimum; equal laws are accepted."""
    for noise in (0.0, 1e-6, 0.01, 0.1, 0.3):
        target, draft = zipf_pair(1000, noise, np.random.default_rng(2))
        for k in (2, 4, 8, 33, 64):
            found = theory.acceptance(target, draft, k, "importance")
            assert 1 - found < 2e-12 + (1 - theory.acceptance(target, draft, 1, "token"))
            assert found < theory.optimal_acceptance(target, draft, k) + 1e-12
            assert abs(found - binned_acceptance(target, draft, k)) < 1e-5  # `token`: .9 at a noise of .3


def test_order_dominates():
    """optimal >= importance >= token, and more draws never accept less, up to differences of bins; far above the fixed order."""
    rng, wide = np.random.default_rng(6), 0
    for vocab in (2, 5, 9, 60):
        target, far = (rng.dirichlet(np.full(vocab, 0.6), 25) for _ in range(2))
        draft = np.where(rng.random((25, 1)) < 0.5, 0.3 * far + 0.7 * target, far)
        before = theory.acceptance(target, draft, 1, "token")
        for k in (2, 4, 8):
            now, best = theory.acceptance(target, draft, k, "importance"), theory.optimal_acceptance(target, draft, k)
            assert (now >= before - 5e-4).all() and (now <= best + 1e-12).all()
            assert (best - now).mean() < 5e-3 and (best - now).max() < 0.04
            wide = max(wide, (now - before).max())
            before = now
    assert wide > 0.2


def test_dominance():
    """optimal >= importance >= token, for any settings; more draws never accept less."""
    rng = np.random.default_rng(5)
    for vocab in (2, 5, 9, 60):
        target, far = (rng.dirichlet(np.full(vocab, 0.6), 25) for _ in range(2))
        draft = np.where(rng.random((25, 1)) < 0.5, 0.3 * far + 0.7 * target, far)
        token = theory.acceptance(target, draft, 1, "token")
        for s, alphabet in ((1, 1), (5, 40), (3, 4), (64, 256)):
            before = theory.acceptance(target, draft, 1, "importance", s=s, alphabet=alphabet)
            assert np.abs(before - token).max() < 1e-12
            for k in (2, 4):
                now = theory.acceptance(target, draft, k, "importance", s=s, alphabet=alphabet)
                assert (now >= before - 1e-12).all() and (now <= theory.optimal_acceptance(target, draft, k) + 1e-12).all()
                before = now
            assert (s, vocab) == (1, 2) or (before > token + 1e-3).any()


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [ORDER, (5, 40)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_newcomers_first_selection_word_decides(backend, settings):
    """With P = t the selected draw is always accepted, so the emitted token shows which draw was selected."""
    require(backend)
    target, draft, trials = np.array([0.55, 0.3, 0.15]), np.array([0.4, 0.35, 0.25]), 400
    letters = by_token(target, draft, *settings) if settings[1] else by_ratio(target, draft, 2, 1024)
    assert letters.stage() and np.abs(letters.winner(torch.tensor(draft)).numpy() - target).max() < 1e-12
    rows = [torch.from_numpy(x).log().float().expand(trials, 1, -1) for x in (target, draft)]
    seeds = torch.arange(trials)
    tokens = torch.cat([ss.draft(rows[1][:, 0], seed=seeds, position=7, node=j, backend="cpu") for j in range(2)], 1)
    got = ss.verify(
        rows[0].expand(-1, 3, -1), tokens, rows[1], parents=STAR(2), draft_rows=[0, 0], scheme="importance", seed=seeds, position=7,
        options=dict(zip(("s", "alphabet"), settings)), backend=backend,
    )  # fmt: skip
    u = streams.uniforms(seeds, seeds * 0 + 7, streams.SELECT, seeds * 0 + 1)[:, 0]
    shares = [letters.shares(*pair) for pair in tokens.tolist()]
    expected = [x if u[i] * mass < part else y for i, ((x, y), (part, mass)) in enumerate(zip(tokens.tolist(), shares))]
    agree = (got.tokens[:, 0] == torch.tensor(expected)).sum()
    assert agree >= trials - 1  # t and P are equal up to rounding: once in 1e7 the draw is rejected
    assert (torch.tensor(expected) != tokens[:, 0]).sum() > 20


@pytest.mark.parametrize("k, vocab, settings", [(2, 9, (5, 40)), (4, 16, (3, 6)), (3, 16, (64, 7)), (2, 9, ORDER), (4, 16, ORDER)])
def test_chi_square(k, vocab, settings):
    """200 000 trials of one node; the same draws verified under another law of the drafts must be detected."""
    require("cpu")
    options = dict(zip(("s", "alphabet"), settings)) | {"bins": 64}
    args = drafted_tree(1, k, 1, vocab, "importance", trials=200_000) | {"options": options}
    law = ss.log_probs(args["target_logits"][0, :1], backend="reference")[0].exp()
    assert p_value(ss.verify(**args, backend="cpu").tokens[:, 0], law) > FAILURE_RATE
    wrong = args | {"draft_logits": 0.8 * args["draft_logits"]}
    assert p_value(ss.verify(**wrong, backend="cpu").tokens[:, 0], law) < CAUGHT


@pytest.mark.parametrize("settings", [ORDER, (1, 1), (2, 4), (64, 256), (33, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_integers_at_any_setting(settings, dtype):
    require("cpu")
    options = dict(zip(("s", "alphabet"), settings))
    for (k, vocab), noise in itertools.product(((2, 40), (6, 20), (3, 300)), (0.0, 0.5, 2.0)):
        args = drafted_tree(6, k, 2, vocab, "importance", noise=noise, dtype=dtype) | {"options": options}
        identical(ss.verify(**args, backend="cpu"), ss.verify(**args, backend="reference"))


@pytest.mark.parametrize("draft_vocab", [None, 700, 1300])
@pytest.mark.parametrize("bins", [64, 1024])
def test_same_integers_in_the_order(bins, draft_vocab):
    """Few and many bins, and draws; drafts with fewer and more ids than the target."""
    require("cpu")
    for k, noise in ((2, 2.0), (5, 0.3), (13, 0.5)):
        args = drafted_tree(6, k, 1, 1000, "importance", noise=noise, draft_vocab=draft_vocab, seed=bins) | {
            "options": {"bins": bins}
        }
        identical(ss.verify(**args, backend="cpu"), ss.verify(**args, backend="reference"))


@pytest.mark.parametrize("of_draft", [0.01, 1, 60, 1500])
@pytest.mark.parametrize("of_target", [0.01, 1, 60, 1500])
def test_same_integers_at_any_temperature(of_target, of_draft):
    """Hot and cold targets and drafts, with gaps of up to thousands of temperatures."""
    require("cpu")
    batch, k = 30, 4
    base = numbers(batch, 1, 50, seed=5)
    target = of_target * (base + 0.3 * numbers(batch, 1, 50, seed=6)).expand(-1, k + 1, -1)
    draft, seeds = of_draft * base, torch.arange(batch)
    tokens = torch.cat([ss.draft(draft[:, 0], seed=seeds, position=9, node=j, backend="reference") for j in range(k)], 1)
    for alphabet in (0, 10):
        args = {"target_logits": target, "draft_tokens": tokens, "draft_logits": draft, "parents": STAR(k), "draft_rows": [0] * k}
        args |= {"scheme": "importance", "seed": seeds, "position": 9, "options": {"alphabet": alphabet}}
        identical(ss.verify(**args, backend="cpu"), ss.verify(**args, backend="reference"))
