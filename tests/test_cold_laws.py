"""Laws with gaps of up to 1500 temperatures between their tokens (cold_laws.py), under every scheme: the residual of a draft after
its likeliest tokens, the residual of a target, and their ratios, where float exponentials underflow.

Exact laws of the token that a node emits, by enumeration of the C++ templates and of the reference; then laws with the real
streams, and the same integers on all backends. Temperatures of draft and target range independently from 1e-3 to 1e3.
"""

import itertools

import cold_laws
import cuda_on_cpu
import native
import numpy as np
import on_gpu
import pytest
import torch
from cold_laws import GAPS, MOST, SHAPES
from conftest import FAILURE_RATE, identical, p_value, probabilities, require, require_scheme
from enumeration import Scripted
from tree_enumeration import SELECTING, options, tolerance
from trees import STAR, drawn_tree

import specsample as ss
from specsample.reference.walk import Round
from specsample.schemes import SCHEMES as CARDS

SCRIPTED = [s for s in CARDS if CARDS[s].uses_draft_logits and s not in (*SELECTING, "weighted", "importance")]


def most(scheme):
    return MOST if CARDS[scheme].trees else 1


def children(kind, logits, k):
    """Draws of k children of this `kind`, each law from a separate softmax. -> [(tokens, weight)]"""
    if kind == "top":
        fixed = tuple(np.argsort(-logits, kind="stable")[: k - 1].tolist())
        return [((*fixed, x), p) for x, p in enumerate(softmax(logits, fixed)) if p > 0]
    found = [((), 1.0)]
    for _ in range(k):
        gone = (lambda x: x) if kind == "distinct" else lambda x: ()
        found = [((*x, y), w * p) for x, w in found for y, p in enumerate(softmax(logits, gone(x))) if w * p > 0]
    return found


def softmax(logits, gone=()):
    logits = logits.copy()
    logits[list(gone)] = -np.inf
    weight = np.exp(logits - logits.max())
    return weight / weight.sum()


def by_templates(scheme, target, draft, k, assignments):
    """Law of the first emitted token, float64 [V], and the probability that it is a child: the C++ templates."""
    law, accepted, card = np.zeros(len(target)), 0.0, CARDS[scheme]
    for tokens, weight in assignments:
        parents = STAR(k) if card.trees else []
        rows = [[list(x)] * (k + 1) for x in (target, draft)]
        result = native.load().enumerate(scheme, tokens, parents, *rows, 1, options(scheme, bins=64), logs=True)
        for (count, first, *_rest), probability in result.items():
            law[first] += weight * probability
            accepted += weight * probability * count
    return law, accepted


class Recorded(Scripted):
    """Races are recorded as laws and have no winner."""

    def clock_race(self, log_weights, depth, lists=None):
        return torch.full((len(log_weights),), -1)

    def residual_race(self, log_weights, slot=None):
        self.residual_laws.append(log_weights.softmax(-1))
        return torch.full((len(log_weights),), -1)


def by_reference(scheme, target, draft, k, assignments):
    """The same law by the reference: every combination of drafts and test outcomes is a row of one batch."""
    card, bits = CARDS[scheme], list(itertools.product((False, True), repeat=k))
    tokens = torch.tensor([x for x, _ in assignments for _ in bits])
    weight = torch.tensor([w for _, w in assignments for _ in bits], dtype=torch.float64)
    taken = torch.tensor([b for _ in assignments for b in bits])
    draws = Recorded(taken, taken.new_zeros(len(taken), 2), None)
    off, many = [1.0, 0.0, 1.0, 0.0], lambda x, n: torch.from_numpy(x).expand(len(taken), n, -1)
    round = Round(
        many(target, k + 1), tokens, many(draft, 1), torch.tensor(STAR(k)), None, torch.zeros(k, dtype=torch.int64), None, 1,
        options(scheme, bins=64), off, None, off, None, None, 0, None, 0, None, None, draws,
    )  # fmt: skip
    emitted, count, _ = card.reference(round)
    chance = weight * draws.probability
    tested = torch.nn.functional.one_hot(emitted[:, 0].clamp(min=0), len(target)).double()
    return (chance[:, None] * torch.where(count[:, None] > 0, tested, draws.residual_laws[0])).sum(0).numpy(), None


RUNNERS = {"cpu": by_templates, "reference": by_reference}


@pytest.mark.parametrize("backend", RUNNERS)
@pytest.mark.parametrize("scheme", CARDS)
def test_a_node_emits_the_target_law(backend, scheme):
    """Enumerated: every gap and shape, 1 to 4 children."""
    if backend == "reference" and scheme not in SCRIPTED:
        pytest.skip("its decisions are not scripted here; its integers are the CPU's, below")
    selects = scheme in (*SELECTING, "weighted")  # integrated numerically, or with many levels: slow
    for shape, gap, k in itertools.product(SHAPES, (10, 90, 1500) if selects else GAPS, range(1, most(scheme) + 1)):
        target, draft = (x.numpy() for x in cold_laws.rows(shape, gap))
        assignments = children(CARDS[scheme].draft_kind, draft, k)
        if len(assignments) > (40 if selects else 300) and (gap != 90 or selects and k > 2):
            continue  # hundreds of drafts of a warm law: once is enough
        assert sum(w for _, w in assignments) == pytest.approx(1, abs=1e-12)
        law, _ = RUNNERS[backend](scheme, target, draft, k, assignments)
        np.testing.assert_allclose(law, softmax(target), atol=tolerance(scheme), err_msg=f"{shape}, gap {gap}, {k} children")


def old_rule(t, d, k):
    """`recursive_distinct` with the remaining probability as 1 − Σ, and c in units of the whole draft: law of the first token."""
    law, paths = np.zeros(len(t)), [((), 1.0, 0.0)]
    for _ in range(k):
        below = []
        for gone, chance, c in paths:
            left, residual = 1 - d[list(gone)].sum(), np.maximum(t - c * d, 0)
            for x, p in enumerate(d):
                if x in gone or not left > 0:
                    continue
                accept = min(1.0, residual[x] / residual.sum() * left / p) if residual.sum() > 0 else 0.0
                law[x] += chance * p / left * accept
                below.append(((*gone, x), chance * p / left * (1 - accept), c + residual.sum() / left))
        paths = below
    for _, chance, c in paths:
        residual = np.maximum(t - c * d, 0)
        law += chance * (residual / residual.sum() if residual.sum() > 0 else t)
    return law


def test_control_the_rest_as_a_difference():
    """It is right on warm laws, and off by more than .01 on cold ones of the table."""
    worst = dict.fromkeys((1, 10, 60), 0.0)
    for shape, gap in itertools.product(("cold draft", "tied below", "near"), worst):
        target, draft = (softmax(x.numpy()) for x in cold_laws.rows(shape, gap))
        worst[gap] = max(worst[gap], np.abs(old_rule(target, draft, 3) - target).max())
    assert worst[1] < 1e-10 and worst[60] > 0.01, worst


def test_acceptance_without_replacement():
    """The theory's value on cold laws equals the enumerated one; its estimate agrees."""
    theory = pytest.importorskip("specsample.theory")
    for shape, gap, k in itertools.product(SHAPES, (1, 10, 50), range(1, MOST + 1)):
        target, draft = (x.numpy() for x in cold_laws.rows(shape, gap))
        assignments = children("distinct", draft, k)
        _, accepted = by_templates("recursive_distinct", target, draft, k, assignments)
        laws = softmax(target), softmax(draft)
        assert theory.distinct_acceptance(*laws, k) == pytest.approx(accepted, abs=1e-9), (shape, gap, k)
        value, error = theory.distinct_estimate(*laws, k, 400, np.random.default_rng(k))
        assert abs(value[-1] - accepted) < 5 * error[-1] + 1e-6, (shape, gap, k)


# -- with the real streams ---------------------------------------------------------------------------------------------

TRIALS = 2000  # for each pair of laws
TEMPERATURES = (1e-3, 0.03, 1.0, 30.0, 1e3)


def completed(args, backend):
    """Tokens [B, D + 1]: those of a round, then plain ones at their own positions."""
    verdict = ss.verify(**args, backend=backend)
    tokens, depth = verdict.tokens, verdict.nodes.shape[1]
    for i in range(1, depth + 1):
        at = {"seed": args["seed"], "position": 10_000 + i, "sampling": args.get("sampling", ss.Sampling())}
        plain = ss.sample(args["target_logits"][:, i], backend=backend, **at)
        tokens[:, i] = torch.where(tokens[:, i] >= 0, tokens[:, i], plain)
    return tokens


def joint(law, depth):
    """Joint law of depth + 1 independent tokens of one law"""
    out = law
    for _ in range(depth):
        out = (out[:, None] * law).flatten()
    return out


def chances(tokens, laws):
    """p-value of each group of TRIALS rows of tokens [n·TRIALS, D + 1]; laws: n token laws. Rare cells are pooled."""
    depth, vocab = tokens.shape[1] - 1, len(laws[0])
    code = (tokens * vocab ** torch.arange(depth, -1, -1)).sum(-1).reshape(len(laws), TRIALS)
    found = []
    for outcomes, law in zip(code, laws):
        law = joint(law, depth)
        rare = law * TRIALS < 5
        number = torch.where(rare, 0, (~rare).cumsum(0))
        cells = torch.zeros(int(number.max()) + 1, dtype=torch.float64).index_add(0, number, law)
        found.append(p_value(number[outcomes], cells))
    return found


def repeated(rows, depth):
    """[n, V] -> [n·TRIALS, depth, V]"""
    return rows.float().repeat_interleave(TRIALS, 0)[:, None].expand(-1, depth, -1).contiguous()


def cases():
    """(names, target, draft): the whole table, logits [n, V]"""
    names = list(itertools.product(SHAPES, GAPS))
    target, draft = zip(*(cold_laws.rows(*name) for name in names))
    return names, torch.stack(target), torch.stack(draft)


def unlikely(scheme, k, target, draft, laws, **settings):
    """Indices of the pairs of laws for which completed sequences do not have the target's law: backend cpu."""
    depth = 2 if scheme in ("block", "optimal_block") else 1
    seeds = torch.arange(len(target) * TRIALS) + 10**9 * k
    args = drawn_tree(repeated(target, depth + 1), repeated(draft, depth), k, scheme, seeds, "cpu", **settings)
    if "bins" in CARDS[scheme].options:
        args["options"] = {"bins": 64}
    return [i for i, p in enumerate(chances(completed(args, "cpu"), laws)) if p < FAILURE_RATE]


@pytest.mark.parametrize("scheme", CARDS)
def test_streams(scheme):
    """Every gap and shape, 1 to 4 children, with drafts from `ss.draft`: cpu."""
    require("cpu")
    names, target, draft = cases()
    laws = list(probabilities(target.float()))
    for k in range(1, most(scheme) + 1):
        assert not [names[i] for i in unlikely(scheme, k, target, draft, laws)], k


@pytest.mark.parametrize("scheme", CARDS)
def test_temperatures_of_draft_and_target(scheme):
    """Each from 1e-3 to 1e3, independently, with and without filters on the draft: three children, cpu."""
    require("cpu")
    names = list(itertools.product(TEMPERATURES, TEMPERATURES, (1.0, 0.9)))
    generator = torch.Generator().manual_seed(3)
    target, draft = 1.5 * torch.randn(2, len(names), 6, generator=generator)
    draft = target + 0.7 * draft
    column = lambda i: torch.tensor([n[i] for n in names])
    laws = list(probabilities(target, ss.Sampling(column(0))))
    many = lambda x: x.repeat_interleave(TRIALS)
    settings = {"sampling": ss.Sampling(many(column(0))), "draft_sampling": ss.Sampling(many(column(1)), top_p=many(column(2)))}
    assert not [names[i] for i in unlikely(scheme, min(3, most(scheme)), target, draft, laws, **settings)]


VARIANTS = ("wider", "narrower", "top-k", "greedy", "+inf", "kept statistics")


def varied(variant, target, draft, k, scheme, seeds, backend):
    """Arguments of `verify` for rows [B, 1, V]: with a different draft vocabulary, different draft laws, or kept statistics."""
    sampling = {"top-k": ss.Sampling(0.7, 2), "greedy": ss.Sampling(0.0)}.get(variant)
    if variant == "wider":  # most draws are beyond the target's vocabulary
        top = draft.amax(-1, keepdim=True)
        draft = torch.cat([draft, top + 100, top - 30], -1)
    elif variant == "narrower":
        draft = draft[..., :4].contiguous()
    elif variant == "+inf":
        draft = draft.clone()
        draft[:, :, 2], draft[::2, :, 4] = torch.inf, torch.inf
    args = drawn_tree(target.expand(-1, 2, -1), draft, k, scheme, seeds, backend, draft_sampling=sampling)
    if variant == "kept statistics" and CARDS[scheme].uses_draft_logits:
        args["draft_stats"] = ss.row_stats(draft.flatten(0, 1))
    return args


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scheme", ["recursive_distinct", "top"])
def test_streams_of_other_drafts(scheme, variant):
    """Three children: cpu."""
    require("cpu")
    names, target, draft = cases()
    args = varied(variant, repeated(target, 1), repeated(draft, 1), 3, scheme, torch.arange(len(names) * TRIALS), "cpu")
    found = chances(completed(args, "cpu"), list(probabilities(target.float())))
    assert not [name for name, p in zip(names, found) if p < FAILURE_RATE]


@pytest.mark.parametrize("of", [(0, 1), (0, 1, 0), (1, 2, 0, 1)])
def test_streams_of_several_drafts(of):
    """`weighted` with a cold draft, a flat one and another cold one: cpu."""
    require("cpu")
    names, target, draft = cases()
    rows = torch.stack([draft, torch.zeros_like(draft), draft.flip(-1)], 1).float().repeat_interleave(TRIALS, 0)
    at = {"seed": torch.arange(len(rows)), "position": 50, "backend": "cpu"}
    tokens = [ss.draft(rows[:, g].contiguous(), node=i, **at) for i, g in enumerate(of)]
    args = {"target_logits": repeated(target, 2), "draft_tokens": torch.cat(tokens, 1), "draft_logits": rows, "scheme": "weighted"}
    args |= {"parents": STAR(len(of)), "rows": [0] + [1] * len(of), "draft_rows": list(of), "seed": at["seed"], "position": 50}
    found = chances(completed(args, "cpu"), list(probabilities(target.float())))
    assert not [name for name, p in zip(names, found) if p < FAILURE_RATE]


# -- the same integers on all backends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", CARDS)
@pytest.mark.parametrize("compiled", ("cpu", *on_gpu.NAMES, cuda_on_cpu.NAME))
def test_same_integers(compiled, scheme):
    compiled = require(compiled)
    require_scheme(compiled, scheme)
    _, target, draft = cases()
    copies = 1 if compiled == cuda_on_cpu.NAME else 4
    target, draft = (x.float().repeat(copies, 1)[:, None] for x in (target, draft))
    for k in (3,) if copies == 1 else range(1, most(scheme) + 1):
        args = drawn_tree(
            target.expand(-1, 2, -1), draft, k if CARDS[scheme].trees else 1, scheme, torch.arange(len(target)), "reference"
        )
        identical(ss.verify(**args, backend=compiled), ss.verify(**args, backend="reference"))
    seeds = torch.arange(len(target))
    for variant in VARIANTS if copies > 1 or scheme in ("recursive_distinct", "top") else ():
        args = varied(variant, target, draft, 3 if CARDS[scheme].trees else 1, scheme, seeds, "reference")
        identical(ss.verify(**args, backend=compiled), ss.verify(**args, backend="reference"))


KINDS = ("iid", "distinct", "arrivals", "lists", "top", "topk")


@pytest.mark.parametrize("temperature", [1.0, 1e-6, 1e-16])
@pytest.mark.parametrize("compiled", ("cpu", *on_gpu.NAMES, cuda_on_cpu.NAME))
def test_same_drafts(compiled, temperature):
    compiled = require(compiled)
    _, _, draft = cases()
    draft = draft.float().repeat(1 if compiled == cuda_on_cpu.NAME else 20, 1)
    at = {"seed": 7, "position": 3, "sampling": ss.Sampling(temperature)}
    for kind in KINDS:
        assert torch.equal(*(ss.draft(draft, 4, kind=kind, backend=b, **at) for b in (compiled, "reference"))), kind


@pytest.mark.parametrize("backend", ("reference", "cpu"))
@pytest.mark.parametrize("temperature", [1.0, 1e-4, 1e-9, 1e-16])
def test_what_ties_below_the_first_is_drawn_alike(backend, temperature):
    """The second and third of `distinct`, the drawn one of `top`: uniform, however far below the first they are."""
    backend = require(backend)
    count = 4000
    logits = torch.tensor([0.0, -1.0, -1.0, -1.0]).expand(count, -1) * max(1.0, 1e3 * temperature)
    at = {"sampling": ss.Sampling(temperature), "seed": 1, "position": 2, "backend": backend}
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    tokens = ss.draft(logits, 3, kind="distinct", **at)
    for child in (tokens[:, 1], tokens[:, 2], ss.draft(logits, 2, kind="top", **at)[:, 1]):
        assert p_value(child - 1, uniform) > FAILURE_RATE


@pytest.mark.parametrize("compiled", ("cpu", *on_gpu.NAMES, cuda_on_cpu.NAME))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_lists_are_scored_on_one_scale(compiled, sign):
    """Scores near the size at which a race switches to scores relative to the row's maximum: some lists' would, others' not."""
    compiled = require(compiled)
    B = 40 if compiled == cuda_on_cpu.NAME else 1000
    for first in (0.0, 1e-5):
        logits = sign * torch.tensor([first, 1.0, 1.0]).expand(B, 3, 3)
        args = {"target_logits": logits.contiguous(), "draft_tokens": torch.zeros(B, 2, dtype=torch.int64), "scheme": "lists"}
        args |= {"parents": [-1, -1], "sampling": ss.Sampling(1e-6), "seed": 0, "position": 3}
        identical(ss.verify(**args, backend=compiled), ss.verify(**args, backend="reference"))
