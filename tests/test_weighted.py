"""`weighted`: children of one node from different draft laws. Exact laws by enumeration in Python and C++, equality of tokens,
acceptance against the linear program, and mistakes (negative controls). With one law it is also in test_multi_draft.py.
"""

import itertools
from collections import defaultdict

import native
import numpy as np
import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, identical, p_value, require
from enumeration import Scripted, laws
from tree_enumeration import BINARY, code, complete, gap, prefix_of
from trees import STAR, mixed_tree, paths

import specsample as ss
from specsample.reference.mixture import Mixture
from specsample.reference.walk import Round
from specsample.schemes import SCHEMES as CARDS

LEVELS = 3
OPTIONS = [float(LEVELS), 4.0, 64.0]  # rounds, cells

theory = pytest.importorskip("specsample.theory")


def sources(vocab, depth, styles, seed=0):
    """Target laws and a list of draft laws, by prefix; styles: the target's, then each draft's"""
    rng = np.random.default_rng(seed)
    return [laws(vocab, depth, rng, style) for style in styles.split()]


def by_templates(target, drafts, of, parents, vocab, depth):
    """{emitted tokens: probability}, expected accepted length by the C++ templates. of: the draft that each node comes from"""
    outcomes, accepted, nodes = defaultdict(float), 0.0, len(parents)
    for tokens in itertools.product(range(vocab), repeat=nodes):
        above = [prefix_of(parent, parents, tokens) for parent in parents]
        weight = np.prod([drafts[of[i]][above[i]][tokens[i]] for i in range(nodes)])
        if weight == 0:
            continue
        rows = {key: j for j, key in enumerate(dict.fromkeys(zip(of, above)))}
        result = native.load().enumerate(
            "weighted", tokens, parents, [list(target[prefix_of(i, parents, tokens)]) for i in range(-1, nodes)],
            [list(drafts[g][prefix]) for g, prefix in rows], depth, OPTIONS, [rows[key] for key in zip(of, above)],
        )  # fmt: skip
        assert abs(sum(result.values()) - 1) < 1e-12
        for (count, *emitted), probability in result.items():
            outcomes[tuple(emitted)] += weight * probability
            accepted += weight * probability * count
    return outcomes, accepted


TREES = [
    # vocabulary, depth, parents, each node's draft, styles of the target and the drafts
    (3, 1, STAR(2), [0, 1], "dense dense dense"),
    (5, 1, STAR(2), [0, 1], "zeros dense zeros"),
    (2, 1, STAR(2), [1, 0], "dense zeros dense"),
    (1, 1, STAR(2), [0, 1], "dense dense dense"),
    (4, 1, STAR(3), [0, 1, 0], "dense dense dense"),
    (3, 1, STAR(3), [0, 1, 2], "dense dense one-hot dense"),
    (3, 1, STAR(3), [0, 1, 2], "one-hot dense dense zeros"),
    (3, 1, STAR(2), [0, 1], "dense one-hot one-hot"),
    (3, 1, STAR(4), [0, 1, 2, 3], "dense dense zeros dense dense"),
    (2, 3, paths(2, 3), [0, 0, 0, 1, 1, 1], "dense dense dense"),
    (3, 2, paths(2, 2), [0, 0, 1, 1], "zeros dense dense"),
    (2, 2, BINARY, [0, 1, 1, 0, 0, 1], "dense dense dense"),
]


@pytest.mark.parametrize("vocab, depth, parents, of, styles", TREES)
def test_completed_sequences_have_the_target_law(vocab, depth, parents, of, styles):
    target, *drafts = sources(vocab, depth, styles)
    assert gap(by_templates(target, drafts, of, parents, vocab, depth)[0], target, vocab, depth) < 1e-11


class ScriptedLevels(Scripted):
    """Levels scripted too: levels int64 [B, K], by node."""

    def __init__(self, levels, *rest):
        super().__init__(*rest)
        self.levels, self.chance = levels, torch.full(levels.shape, torch.nan, dtype=torch.float64)

    def level(self, node, within):
        edges = torch.nn.functional.pad(torch.nn.functional.pad(within, (1, 0)), (0, 1), value=1.0)
        taken = self.levels.gather(1, node[:, None])
        self.chance.scatter_(1, node[:, None], edges.diff(dim=-1).gather(1, taken - 1))
        return taken[:, 0]

    @property
    def probability(self):
        return super().probability * self.chance.nan_to_num(nan=1 / LEVELS).prod(-1)


def by_reference(target, drafts, of, vocab):
    """One node with a child from each of drafts[of[i]], by the reference: every combination is a row of one batch."""
    k, ids = len(of), range(vocab)
    weight = lambda x: np.prod([drafts[g][()][i] for g, i in zip(of, x)])
    assignments = [x for x in itertools.product(ids, repeat=k) if weight(x) > 0]
    levels_of, bits = itertools.product(range(1, LEVELS + 1), repeat=k), itertools.product((False, True), repeat=k)
    rows = list(itertools.product(assignments, levels_of, bits, ids, ids))
    column = lambda j: torch.tensor([r[j] for r in rows])
    logits = lambda law: torch.from_numpy(np.stack(law)).log()
    target_logits = torch.stack([logits([target[()], *(target[(x,)] for x in a)]) for a in assignments])
    target_logits = target_logits.repeat_interleave(len(rows) // len(assignments), 0)
    draft_logits = logits([d[()] for d in drafts])[None].expand(len(rows), -1, -1)
    draws = ScriptedLevels(column(1), column(2), column(4)[:, None].expand(-1, 2), column(3))
    off = [1.0, 0.0, 1.0, 0.0]
    round = Round(
        target_logits, column(0), draft_logits, torch.tensor(STAR(k)), None, torch.tensor(of), None, 1, OPTIONS,
        off, None, off, None, None, 0, None, 0, None, None, draws,
    )  # fmt: skip
    emitted, count, _ = CARDS["weighted"].reference(round)
    outcomes, accepted = defaultdict(float), 0.0
    bonus, residual, probability = draws.clock_laws[1], draws.residual_laws[0], draws.probability
    for i, (x, *_) in enumerate(rows):
        n = int(count[i])
        # A race that does not count still enumerates its tokens: a share of each.
        chance = (bonus[i].item() if n else 1 / vocab) * (1 / vocab if n else residual[i].item())
        chance *= weight(x) * probability[i].item()
        outcomes[tuple(emitted[i, : n + 1].tolist())] += chance
        accepted += chance * n
    return outcomes, accepted


@pytest.mark.parametrize(
    "vocab, of, styles",
    [
        (3, [0, 0], "dense dense"),
        (3, [0, 1], "dense dense dense"),
        (2, [0, 1, 0], "dense dense zeros"),
        (3, [1, 0], "zeros dense one-hot"),
        (4, [0, 1], "dense zeros zeros"),
    ],
)
def test_reference_has_the_target_law(vocab, of, styles):
    target, *drafts = sources(vocab, 1, styles)
    outcomes, accepted = by_reference(target, drafts, of, vocab)
    assert gap(outcomes, target, vocab, 1) < 1e-11
    assert accepted == pytest.approx(by_templates(target, drafts, of, STAR(len(of)), vocab, 1)[1], abs=1e-11)


# -- equality of tokens, limits, bad data ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_same_integers(dtype):
    require("cpu")
    compared = accepted = 0
    settings = (ss.Sampling(), ss.Sampling(0.7, 20, 0.95, 0.01), ss.Sampling(torch.tensor([0.0, 0.6, 1.0, -1.0, 1.3] * 3)))
    for i, (k, depth, vocab) in enumerate(((2, 2, 7), (3, 2, 50), (4, 3, 300), (8, 1, 500), (5, 2, 1), (3, 2, 2))):
        for draft_vocab, noise in ((None, 0.0), (None, 1.0), (vocab + 3, 0.5), (max(1, vocab - 2), 0.5)):
            of = None if noise else [min(j, 1) for j in range(k)]  # or two laws for all
            args = mixed_tree(
                15, k, depth, vocab, draft_rows=of, noise=noise, dtype=dtype, sampling=settings[i % 3], draft_vocab=draft_vocab
            )  # fmt: skip
            expected = ss.verify(**args, backend="reference")
            identical(ss.verify(**args, backend="cpu"), expected)
            compared, accepted = compared + 15, accepted + int(expected.num_accepted.sum())
    assert compared == 360 and accepted > 200


def test_large_vocabulary_threads_and_draft_sampling():
    """Rows split over threads; a temperature and a filter for each draft row, one of them greedy; kept statistics."""
    require("cpu")
    args = mixed_tree(2, 4, 1, 17_000, dtype=torch.bfloat16, draft_vocab=17_500)
    temperature = torch.tensor([0.7, 0.0, 1.0, 1.5]).repeat(2)
    sampling = ss.Sampling(temperature, torch.tensor([50, 0, 0, 7]).repeat(2))
    rows = args["draft_logits"].flatten(0, 1)
    of_row = lambda i: ss.Sampling(*(torch.as_tensor(f).expand(8)[i::4] for f in sampling))
    at = {"seed": args["seed"], "position": 50}
    tokens = [ss.draft(rows[i::4], node=i, sampling=of_row(i), **at) for i in range(4)]
    args |= {"draft_tokens": torch.cat(tokens, 1), "draft_sampling": sampling}
    expected = ss.verify(**args, backend="reference")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            identical(ss.verify(**args, backend="cpu"), expected)
            kept = ss.row_stats(rows, sampling=sampling, backend="cpu")
            identical(ss.verify(**args, draft_stats=kept, backend="cpu"), expected)
    finally:
        torch.set_num_threads(before)


def test_children_of_a_row_without_a_law_do_not_exist():
    """The first two of four children carry token 2, one of them drawn from nothing: it is neither named nor followed."""
    require("cpu")
    target = torch.full((1, 9, 4), -8.0)
    target[:, :, 2] = 8.0
    draft = torch.zeros(1, 4, 4)
    draft[0, 0] = -torch.inf
    for sampling in (ss.Sampling(), ss.Sampling(0.0)):
        args = {"target_logits": target, "draft_logits": draft, "draft_tokens": torch.tensor([[2, 2, 2, 1, 2, 2, 3, 1]])}
        args |= {"parents": [-1, -1, -1, -1, 0, 1, 1, 2], "draft_rows": [0, 1, 2, 3, 1, 1, 2, 1], "scheme": "weighted"}
        expected = ss.verify(**args, sampling=sampling, seed=3, position=0, backend="reference")
        identical(ss.verify(**args, sampling=sampling, seed=3, position=0, backend="cpu"), expected)
        assert expected.tokens.tolist() == [[2, 2, 2]] and expected.nodes.tolist() == [[1, 5]]


def test_more_rows_than_it_looks_at():
    """Twelve children from twelve rows: those of the first eight count, and the law is unchanged."""
    require("cpu")
    args = mixed_tree(40, 12, 1, 30)
    whole = ss.verify(**args, backend="reference")
    identical(ss.verify(**args, backend="cpu"), whole)
    eight = args | {"draft_tokens": torch.nn.functional.pad(args["draft_tokens"][:, :8], (0, 4), value=-1)}
    shorter = ss.verify(**eight, backend="cpu")
    assert torch.equal(whole.tokens[:, 0], shorter.tokens[:, 0]) and torch.equal(whole.num_accepted, shorter.num_accepted)
    args = mixed_tree(1, 12, 1, 4, trials=50_000)
    law = ss.log_probs(args["target_logits"][0], backend="reference").exp()
    assert p_value(code(complete(args, depth=1)), torch.einsum("i,j->ij", *law)) > FAILURE_RATE


# -- laws with the real streams ----------------------------------------------------------------------------------------


def test_joint_law_over_two_rounds():
    """Three paths of depth two, each from a separate draft, over four tokens: 200 000 trials, cpu."""
    require("cpu")
    args = mixed_tree(1, 3, 2, 4, trials=200_000)
    law = ss.log_probs(args["target_logits"][0], backend="reference").exp()
    assert p_value(code(complete(args)), torch.einsum("i,j,k->ijk", *law)) > FAILURE_RATE
    one_row = mixed_tree(1, 3, 1, 4, trials=50_000) | {"draft_rows": [0] * 3}  # all claim to come from the first path's row
    assert p_value(code(complete(one_row, depth=1)), torch.einsum("i,j->ij", *law[:2])) < CAUGHT


# -- acceptance --------------------------------------------------------------------------------------------------------


def node(target, drafts, levels=16, rounds=8, cells=1024, kind=Mixture):
    """The reference's mixture for one node with a child from each of drafts."""

    class Live:
        laws, law_of = torch.tensor([len(drafts)]), [torch.tensor([g]) for g in range(len(drafts))]
        whole = [torch.from_numpy(d).log()[None] for d in drafts]
        count = torch.tensor([len(drafts)])

    return kind(torch.from_numpy(target)[None], Live, levels, rounds, cells)


def few(k, vocab, seed):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(vocab, 0.6)), rng.dirichlet(np.full(vocab, 0.6), k)


@pytest.mark.parametrize("k, vocab", [(2, 5), (3, 5), (4, 4)])
def test_acceptance_climbs_to_the_optimum(k, vocab):
    """Against the linear program over all tuples of children: equal with many rounds, a mean gap of 4e-3 with the defaults."""
    gaps = []
    for seed in range(6):
        target, drafts = few(k, vocab, seed)
        best = theory.mixed_lp_acceptance(target, drafts)
        assert theory.weighted_acceptance(target, drafts, levels=32, rounds=2000) == pytest.approx(best, abs=1e-6)
        default = theory.weighted_acceptance(target, drafts)
        gaps.append(best - default)
        # With so few tokens a cell holds one, and the scheme is the formula.
        scheme = torch.minimum(torch.from_numpy(target), node(target, drafts, cells=4096).law).sum().item()
        assert scheme == pytest.approx(default, abs=1e-9)
        assert default >= max(np.minimum(target, d).sum() for d in drafts) - 0.05
    assert min(gaps) > -1e-9 and np.mean(gaps) < 4e-3


def test_one_law_is_bounded_by_the_closed_form():
    for seed in range(6):
        target, (draft, _) = few(2, 6, seed)
        for k in (1, 2, 4):
            best = theory.optimal_acceptance(target, draft, k)
            many = theory.weighted_acceptance(target, np.stack([draft] * k), levels=32, rounds=2000)
            assert many == pytest.approx(best, abs=2e-6)


@pytest.mark.parametrize("noises, least", [((1.0, 1.5), 0.79), ((0.5, 1.0, 1.5, 2.0), 0.985)])
def test_cells_cost_little_acceptance(noises, least):
    """Zipf-like laws of 8000 tokens: the loss by cells relative to one weight per token, and the scheme's acceptance."""
    rng = np.random.default_rng(1)
    softmax = lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    logits = -1.1 * np.log(np.arange(1, 8001)) + rng.normal(0, 1, 8000)
    target, drafts = softmax(logits), np.stack([softmax(logits + rng.normal(0, n, 8000)) for n in noises])
    mixture = node(target, drafts)
    accepted = torch.minimum(torch.from_numpy(target), mixture.law).sum().item()
    assert mixture.law.sum().item() == pytest.approx(1, abs=1e-12)
    assert least < accepted and theory.weighted_acceptance(target, drafts) - accepted < 6e-3


# -- mistakes: each is biased, and caught ------------------------------------------------------------------------------


def winner_law(mixture, drafts):
    """The law of the actual winning draw, by enumeration of tokens and levels."""
    k, vocab = drafts.shape
    edges = torch.nn.functional.pad(torch.nn.functional.pad(mixture.within[0], (1, 0)), (0, 1), value=1.0)
    level = edges.diff(dim=-1)[mixture.cell[0]].numpy()  # [V, levels]
    won = np.zeros(vocab)
    for x in itertools.product(range(vocab), repeat=k):
        for n in itertools.product(range(level.shape[1]), repeat=k):
            chance = np.prod([drafts[j][x[j]] * level[x[j], n[j]] for j in range(k)])
            won[x[int(np.argmin(n))]] += chance  # the earlier on ties
    return won


def emitted(target, won, tested, left=None):
    """Output law if the winner has law `won` and is tested against `tested`, with the residual (t − left)⁺."""
    accepted = won * np.minimum(1, target / tested)
    rest = np.maximum(target - (tested if left is None else left), 0)
    return accepted + (1 - accepted.sum()) * rest / rest.sum()


class LaterOnTies(Mixture):
    """P for the rule that the later draw wins a tie."""

    def winning(self, above):
        self.live.law_of.reverse()
        wins = super().winning(above)
        self.live.law_of.reverse()
        return wins


@pytest.mark.parametrize("seed", range(3))
def test_controls(seed):
    """The right law, and: P as if the drafts were identical; ties to the later draw in P; another cell's weight in the residual."""
    target, drafts = few(2, 6, seed)
    settings = {"levels": 4, "rounds": 3}
    mixture = node(target, drafts, **settings)
    won, law = winner_law(mixture, drafts), mixture.law[0].numpy()
    np.testing.assert_allclose(won, law, atol=1e-14)
    np.testing.assert_allclose(emitted(target, won, law), target, atol=1e-14)

    mean = drafts.mean(0)
    identical_drafts = node(target, np.stack([mean, mean]), **settings).law[0].numpy()
    assert np.abs(emitted(target, won, identical_drafts) - target).max() > 1e-3
    later = node(target, drafts, kind=LaterOnTies, **settings).law[0].numpy()
    assert later.sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(emitted(target, won, later) - target).max() > 1e-3
    other = mixture.shares[0].gather(1, mixture.cell.roll(1, -1).expand(2, -1)).numpy()
    assert np.abs(emitted(target, won, law, (drafts * other).sum(0)) - target).max() > 1e-3
