"""Multi-draft schemes on trees: exact laws by enumeration, the selection, one child per node, equality of tokens, and mistakes with
several drafts (negative controls)."""

import itertools

import cuda_on_cpu
import native
import numpy as np
import on_gpu
import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, case, identical, p_value, require, require_scheme
from enumeration import completed, pair
from tree_enumeration import BINARY, BINS, SELECTING, by_reference, by_templates, coarse, code, complete, gap, tolerance
from trees import STAR, drafted_tree, paths

import specsample as ss
from specsample.reference.coupling import Coupling
from specsample.schemes import SCHEMES as CARDS

MULTI = tuple(name for name, card in CARDS.items() if card.family == "multi-draft")
IID = tuple(name for name in MULTI if CARDS[name].draft_kind == "iid")
COMPILED = ("cpu", *on_gpu.NAMES, cuda_on_cpu.NAME)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fewer(backend, usual, emulated):
    """How many cases a backend runs: GPU kernels are slow on the CPU."""
    return emulated if backend == cuda_on_cpu.NAME else usual


TREES = [
    # vocabulary, depth, parents, target style, draft style
    (3, 1, STAR(1), "dense", "dense"),
    (3, 1, STAR(2), "dense", "dense"),
    (5, 1, STAR(2), "dense", "dense"),
    (6, 1, STAR(3), "dense", "zeros"),
    (4, 1, STAR(3), "zeros", "dense"),
    (3, 1, STAR(4), "dense", "dense"),
    (4, 1, STAR(3), "same", "same"),
    (3, 1, STAR(3), "one-hot", "dense"),
    (3, 1, STAR(3), "dense", "one-hot"),
    (2, 3, paths(2, 3), "dense", "dense"),
    (3, 2, paths(2, 2), "dense", "dense"),
    (3, 2, BINARY, "zeros", "dense"),
    (2, 2, BINARY, "dense", "dense"),
]


@pytest.mark.parametrize("vocab, depth, parents, target_style, draft_style", TREES)
@pytest.mark.parametrize("scheme", MULTI)
def test_completed_sequences_have_the_target_law(scheme, vocab, depth, parents, target_style, draft_style):
    target, draft = pair(vocab, depth, target_style, draft_style)
    outcomes, _ = by_templates(scheme, target, draft, vocab, depth, parents)
    assert gap(outcomes, target, vocab, depth) < tolerance(scheme)


@pytest.mark.parametrize(
    "vocab, k, styles", [(3, 2, "dense dense"), (3, 3, "dense zeros"), (4, 2, "zeros dense"), (3, 2, "same same")]
)
@pytest.mark.parametrize("scheme", [s for s in MULTI if s not in (*SELECTING, "weighted")])  # test_weighted.py has its own
def test_reference_has_the_target_law(scheme, vocab, k, styles):
    target, draft = pair(vocab, 1, *styles.split())
    outcomes, accepted = by_reference(scheme, target, draft, vocab, k)
    assert gap(outcomes, target, vocab, 1) < 1e-11
    assert accepted == pytest.approx(by_templates(scheme, target, draft, vocab, 1, STAR(k))[1], abs=1e-11)


# -- the selection -----------------------------------------------------------------------------------------------------


def laws(vocab, seed, alpha=0.7):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(vocab, alpha)), rng.dirichlet(np.full(vocab, alpha))


def optimum(target, draft, k):
    """1 − max over all sets of d(S)^k − t(S)"""
    sets = itertools.chain.from_iterable(itertools.combinations(range(len(target)), r) for r in range(len(target) + 1))
    return 1 - max(draft[list(s)].sum() ** k - target[list(s)].sum() for s in sets)


@pytest.mark.parametrize("k", [2, 3, 4, 8, 33])
@pytest.mark.parametrize("vocab", [2, 3, 6, 40])
def test_selection_is_a_martingale_coupling(vocab, k):
    """E[G(U) | v] = ρ and the exchange v ↔ w is an involution in detailed balance: so U is uniform and Y has law b, exactly."""
    target, draft = laws(vocab, seed=vocab + k)
    places = np.linspace(0.0005, 0.9995, 1500)
    bins, ratio, exchanges, _ = native.load().coupling(target, draft, k, 1024, places)
    law = np.array(ratio) * draft
    assert law.sum() == pytest.approx(1, abs=1e-12)
    v, at, w, rho = np.array(exchanges).T
    density = lambda u: k * (1 - u) ** (k - 1)
    span = np.abs(density(v) - density(w))
    move = np.where(span > 1e-9, np.abs(density(v) - rho) / np.where(span > 1e-9, span, 1), 0)
    assert ((move >= 0) & (move <= 1 + 1e-9)).all()
    mean = (1 - move) * density(v) + move * density(w)
    assert np.abs(mean - rho)[span > 1e-9].max(initial=0) < 1e-9
    assert np.abs(density(v) - rho)[span <= 1e-9].max(initial=0) < 1e-6
    # From w back to v. (Where densities are flat the solution is ill-conditioned, hence the slope.)
    back = native.load().coupling(target, draft, k, 1024, w)[2]
    slope = np.maximum(np.abs(density(v) - rho), 1e-3)
    assert (np.abs(np.array(back)[:, 2] - v) * slope).max() < 1e-7
    if vocab <= 6:
        assert np.minimum(target, law).sum() == pytest.approx(optimum(target, draft, k), abs=2e-3)
        for r in range(1, vocab):  # reachable: b(S) >= d(S)^k
            for s in map(list, itertools.combinations(range(vocab), r)):
                assert law[s].sum() >= draft[s].sum() ** k - 1e-12


@pytest.mark.parametrize("k", [2, 3, 8])
def test_both_texts_of_the_selection_agree(k):
    for seed in range(20):
        target, draft = laws(12, seed, alpha=0.3)
        bins, ratio, _, threshold = native.load().coupling(target, draft, k, 512, [])
        rows = [torch.from_numpy(x)[None] for x in (target, draft)]
        reference = Coupling(*rows, torch.tensor([k]), 512)
        assert reference.kseq_threshold().item() == pytest.approx(threshold, abs=1e-12)
        np.testing.assert_allclose(reference.solve().ratio_of_token[0], ratio, rtol=1e-10)  # sums in another order
        assert reference.bin_of_token[0].tolist() == bins


@pytest.mark.parametrize("k", [2, 4, 8])
def test_bins_cost_little_acceptance(k):
    """On Zipf-like laws of 32 000 tokens, through the reference: at most 1e-3 below the optimum (a scan over sorted ratios)."""
    rng = np.random.default_rng(5)
    logits = -1.1 * np.log(np.arange(1, 32001)) + rng.normal(0, 1, 32000)
    target, draft = (torch.from_numpy(np.exp(z) / np.exp(z).sum()) for z in (logits, logits + rng.normal(0, 1, 32000)))
    order = (target / draft).argsort()
    best = 1 - (draft[order].cumsum(0) ** k - target[order].cumsum(0)).max().clamp(min=0).item()
    ratio = Coupling(target[None], draft[None], torch.tensor([k]), 1024).solve().ratio_of_token[0]
    assert best - 1e-3 <= torch.minimum(target, ratio * draft).sum().item() <= best + 1e-12


# -- acceptance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3])
def test_acceptance_at_one_node(k):
    """`recursive`: 1 − Z(c_k); `kseq`: 1 − (1 − β)^k at its threshold; `optimal`: the optimum; in this order, from `token` up."""
    target, draft = pair(4, 1, "dense", "dense", seed=3)
    t, d = target[()], draft[()]
    rate = {s: by_templates(s, target, draft, 4, 1, STAR(k))[1] for s in MULTI}
    clipped = lambda c: np.maximum(t - c * d, 0).sum()
    c = 0.0
    for _ in range(k):
        c += clipped(c)
    assert rate["recursive"] == pytest.approx(1 - clipped(c), abs=1e-11)
    c = native.load().coupling(t, d, k, BINS, [])[3]
    assert rate["kseq"] == pytest.approx(1 - (1 - (1 - clipped(c)) / c) ** k, abs=1e-11)
    assert rate["optimal"] == pytest.approx(optimum(t, d, k), abs=1e-2) and rate["optimal"] <= optimum(t, d, k) + 1e-6
    assert rate["optimal_block"] == pytest.approx(rate["optimal"], abs=1e-6)
    assert np.minimum(t, d).sum() < rate["recursive"] < rate["kseq"] < rate["optimal"]
    top = np.argsort(-d)[: k - 1]
    rest = d.copy()
    rest[top] = 0
    rest /= rest.sum()
    assert rate["top"] == pytest.approx(t[top].sum() + np.delete(np.minimum(t, rest), top).sum(), abs=1e-11)


def test_block_verification_of_the_selected_path_accepts_more():
    for seed in range(3):
        target, draft = pair(3, 2, "dense", "dense", seed)
        optimal, block = (by_templates(s, target, draft, 3, 2, paths(2, 2))[1] for s in SELECTING)
        assert block >= optimal - 1e-6


# -- one child per node, equality of tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [s for s in CARDS if CARDS[s].trees and s != "race"])
@pytest.mark.parametrize("backend", ("reference", *COMPILED))
def test_one_child_a_node_is_the_single_draft_scheme(backend, scheme):
    backend = require(backend)
    require_scheme(backend, scheme)
    single = {"lists": "race", "optimal_block": "block"}.get(scheme, "token")
    B = fewer(backend, 60, 12)
    for sampling in (ss.Sampling(), ss.Sampling(0.7, 30, 0.9, 0.01), ss.Sampling(torch.tensor([0.0, 1.0] * (B // 2)))):
        args = case(B, 4, 100, scheme=single, seed=5, sampling=sampling)
        expected = ss.verify(**args, backend=backend)
        identical(ss.verify(**args | {"scheme": scheme}, backend=backend), expected)
        identical(ss.verify(**args | {"scheme": scheme}, parents=[-1, 0, 1, 2], backend=backend), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", [s for s in CARDS if CARDS[s].trees])
@pytest.mark.parametrize("compiled", COMPILED)
def test_same_integers(compiled, scheme, dtype):
    compiled = require(compiled)
    require_scheme(compiled, scheme)
    if compiled == cuda_on_cpu.NAME and dtype != DTYPES[list(CARDS).index(scheme) % 3]:
        pytest.skip(f"{compiled} takes one dtype a scheme")
    compared = accepted = 0
    settings = (ss.Sampling(), ss.Sampling(0.7, 20, 0.95, 0.01), ss.Sampling(torch.tensor([0.0, 0.6, 1.0, -1.0, 1.3] * 3)))
    for (k, depth, vocab), noise in itertools.product(
        ((2, 2, 7), (3, 2, 50), (4, 3, 300), (9, 1, 500), (5, 2, 1)), (0.0, 1.0, 3.0)
    ):
        sampling = settings[(vocab + int(noise)) % 3]
        args = drafted_tree(15, k, depth, vocab, scheme, noise=noise, dtype=dtype, sampling=sampling)
        expected = ss.verify(**args, logprobs="raw", backend="reference")
        got = ss.verify(**args, logprobs="raw", backend=compiled)
        identical(got._replace(logprobs=None), expected._replace(logprobs=None))
        compared, accepted = compared + 15, accepted + int(expected.num_accepted.sum())
    assert compared == 225 and accepted > 100


@pytest.mark.parametrize("scheme", MULTI)
@pytest.mark.parametrize("compiled", COMPILED)
def test_large_vocabulary_and_threads(compiled, scheme):
    """A row split over threads, drafts with a narrower and a wider vocabulary."""
    compiled = require(compiled)
    require_scheme(compiled, scheme)
    for draft_vocab in (16_011, 18_000):
        args = drafted_tree(2, 4, 1, 17_000, scheme, draft_vocab=draft_vocab, dtype=torch.bfloat16)
        expected = ss.verify(**args, backend="reference")
        identical(ss.verify(**args, backend=compiled), expected)
        if compiled != "cpu":
            continue
        before = torch.get_num_threads()
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                alone = {n: x[:1] if n in ("target_logits", "draft_tokens", "draft_logits", "seed") else x for n, x in args.items()}
                identical(ss.verify(**alone, backend="cpu"), ss.Verdict(*(x if x is None else x[:1] for x in expected)))
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("scheme", MULTI + ("lists",))
@pytest.mark.parametrize("backend", ("reference", *COMPILED))
def test_requests_are_independent(backend, scheme):
    """Reversed, one by one, packed with an empty request in between: the same tokens."""
    backend = require(backend)
    require_scheme(backend, scheme)
    args = drafted_tree(6, 3, 2, 40, scheme, sampling=ss.Sampling(0.8, 12))
    whole = ss.verify(**args, backend=backend)
    each = ("target_logits", "draft_tokens", "draft_logits", "seed")
    back = ss.verify(**args | {n: args[n].flip(0) for n in each}, backend=backend)
    identical(ss.Verdict(*(x if x is None else x.flip(0) for x in back)), whole)
    for b in range(6):
        one = ss.verify(**args | {n: args[n][b : b + 1] for n in each}, backend=backend)
        identical(one, ss.Verdict(*(x if x is None else x[b : b + 1] for x in whole)))
    # Packed: a row for the root and for each node (rows of equal prefixes repeated), an empty request first.
    rows, N = torch.tensor(args["rows"]), len(args["parents"])
    packed = args | {
        "target_logits": args["target_logits"][:, rows].flatten(0, 1),
        "draft_logits": torch.nn.functional.pad(args["draft_logits"], (0, 0, 0, 1))[:, rows.clamp(max=1)].flatten(0, 1),
        "draft_tokens": args["draft_tokens"].flatten(),
        "parents": torch.tensor(args["parents"]).repeat(6),
        "draft_rows": torch.tensor([0 if p < 0 else p + 1 for p in args["parents"]]).repeat(6),
        "seed": torch.cat([torch.zeros(1, dtype=torch.int64), args["seed"]]),
        "cu_rows": torch.tensor([0, *range(0, 6 * (N + 1) + 1, N + 1)], dtype=torch.int32),
        "max_depth": 2,
    }
    del packed["rows"]
    result = ss.verify(**packed, backend=backend)
    assert result.tokens[0].tolist() == [-1] * 3
    identical(ss.Verdict(*(x if x is None else x[1:] for x in result)), whole)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", MULTI)
def test_errors(scheme):
    args = drafted_tree(2, 2, 1, 9, scheme)
    with pytest.raises(ValueError, match="draft_logits: expected the drafts' logits"):
        ss.verify(**args | {"draft_logits": None})
    with pytest.raises(ValueError, match="options"):
        ss.verify(**args, options={"no_such": 1})
    for name, (_, (least, most), _) in CARDS[scheme].options.items():
        for bad in (least - 1, most + 1, "many"):
            with pytest.raises(ValueError, match=name):
                ss.verify(**args, options={name: bad})
        assert ss.verify(**args, options={name: least}).tokens.shape == (2, 2)


@pytest.mark.parametrize("scheme", MULTI + ("lists",))
@pytest.mark.parametrize("compiled", COMPILED)
def test_bad_data(compiled, scheme):
    """Rows of NaN and inf, ids and rows out of range, missing nodes: the reference's tokens, and never an id >= V."""
    compiled = require(compiled)
    require_scheme(compiled, scheme)
    generator = torch.Generator().manual_seed(9)
    for trial in range(fewer(compiled, 40, 10)):
        args = drafted_tree(8, 3, 2, 11, scheme, seed=trial)
        pick = lambda n: torch.randint(n, (4,), generator=generator)
        for value, name in ((torch.nan, "target_logits"), (torch.inf, "target_logits"), (-torch.inf, "draft_logits")):
            rows = args[name]
            rows[pick(8), pick(rows.shape[1]), pick(11)] = value
        args["draft_logits"][pick(8)[0], 0] = [torch.nan, -torch.inf][trial % 2]
        args["target_logits"][pick(8)[0], pick(3)[0]] = -torch.inf
        tokens = args["draft_tokens"]
        tokens[pick(8), pick(6)] = torch.tensor([-1, 11, 1 << 40, -7])
        args["parents"] = torch.tensor(args["parents"]).expand(8, -1).clone()
        args["parents"][pick(8)[:2], pick(6)[:2]] = torch.tensor([5, -3])
        args["rows"] = torch.tensor(args["rows"]).expand(8, -1).clone()
        args["rows"][pick(8)[0], pick(6)[0] + 1] = 99
        args["max_depth"] = 2
        expected = ss.verify(**args, backend="reference")
        identical(ss.verify(**args, backend=compiled), expected)
        assert int(expected.tokens.max()) < 11


# -- laws with the real streams ----------------------------------------------------------------------------------------

TRIALS = 200_000


@pytest.mark.parametrize("scheme", MULTI + ("lists",))
def test_joint_law_over_two_rounds(scheme):
    """Three paths of depth two over a narrow vocabulary, completed by a plain token of the next round: 200 000 trials, cpu."""
    require("cpu")
    args = drafted_tree(1, 3, 2, 4, scheme, trials=TRIALS) | coarse(scheme)
    law = ss.log_probs(args["target_logits"][0], backend="reference").exp()
    joint = torch.einsum("i,j,k->ijk", *law)
    assert p_value(code(complete(args)), joint) > FAILURE_RATE


@pytest.mark.parametrize("scheme", ["optimal", "kseq", "importance", "recursive"])
def test_control_siblings_drafted_from_one_stream(scheme):
    """Every child of the root drawn with the node index of the first: all are the same token, not i.i.d."""
    require("cpu")
    args = drafted_tree(1, 3, 1, 4, scheme, trials=TRIALS) | coarse(scheme)
    args["draft_tokens"] = args["draft_tokens"][:, :1].expand(-1, 3)
    law = ss.log_probs(args["target_logits"][0], backend="reference").exp()
    assert p_value(code(complete(args, depth=1)), torch.einsum("i,j->ij", *law)) < CAUGHT


# -- mistakes with several drafts: each is biased, and caught ----------------------------------------------------------


def test_control_residual_not_updated_between_siblings():
    """Both children tested with u·d < t and the first residual emitted: (.86, .14), a bug that has shipped."""
    t, d = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    target, draft = {(): t, (0,): t, (1,): t}, {(): d}
    outcomes, _ = by_templates("recursive", target, draft, 2, 1, STAR(2))
    assert gap(outcomes, target, 2, 1) < 1e-12
    wrong = np.zeros(2)
    for x, y in itertools.product(range(2), repeat=2):
        reach = d[x] * d[y]
        residual = np.maximum(t - d, 0) / np.maximum(t - d, 0).sum()
        a, stale = min(1, t[x] / d[x]), min(1, t[y] / d[y])
        wrong[x] += reach * a
        wrong[y] += reach * (1 - a) * stale
        wrong += reach * (1 - a) * (1 - stale) * residual
    np.testing.assert_allclose(wrong, [0.86, 0.14], atol=1e-12)


def merged(tokens):
    return [x if x not in tokens[:i] else -1 for i, x in enumerate(tokens)]


@pytest.mark.parametrize("scheme", IID)
def test_control_duplicates_merged(scheme):
    t, d = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.2, 0.6])
    target = {(): t} | {(x,): t for x in range(3)}
    right, _ = by_templates(scheme, target, {(): d}, 3, 1, STAR(2))
    wrong, _ = by_templates(scheme, target, {(): d}, 3, 1, STAR(2), change=merged)
    assert gap(right, target, 3, 1) < tolerance(scheme) and gap(wrong, target, 3, 1) > 1e-3
    if scheme == "kseq":
        first = completed(wrong, target, 3, 1).sum(1)
        np.testing.assert_allclose(first, [0.554, 0.360, 0.086], atol=2e-3)  # at the exact root; the bins move it slightly


@pytest.mark.parametrize("scheme", IID)
def test_control_a_drawn_child_dropped_for_its_value(scheme):
    target, draft = pair(3, 1, "dense", "dense", seed=4)
    unlikely = int(np.argmin(draft[()]))
    wrong, _ = by_templates(scheme, target, draft, 3, 1, STAR(2), change=lambda x: [-1 if v == unlikely else v for v in x])
    assert gap(wrong, target, 3, 1) > 1e-3


def test_control_wrong_number_of_draws():
    """The law b of three draws when one is left on the path: its draw has law d, not b."""
    target, draft = laws(4, seed=1)
    ratio = np.array(native.load().coupling(target, draft, 3, BINS, [])[1])
    law = ratio * draft
    out = np.minimum(draft, target / ratio)
    rest = np.maximum(target - law, 0)
    out = out + (1 - out.sum()) * rest / rest.sum()
    assert np.abs(out - target).max() > 1e-3


def test_control_binned_mass_in_kseq():
    """`kseq` with Z(c) from the histogram's bins instead of the row, near t = d: wrong in law, where the exact one is not."""
    rng = np.random.default_rng(2)
    draft = rng.dirichlet(np.full(6, 2.0))
    target = draft * (1 + 0.02 * rng.normal(size=6))
    target /= target.sum()

    def law(mass, k=3):
        """Output with the smallest edge c (of a grid) at which mass(c) allows it."""
        for c in np.arange(1, k, 0.001):
            gamma = sum((1 - (1 - mass(c)) / c) ** j for j in range(k))
            if gamma <= c:
                break
        accepted = np.minimum(draft, target / c)
        none = (1 - accepted.sum()) ** k
        rest = np.maximum(target - gamma * accepted, 0)
        return accepted * (1 - none) / accepted.sum() + none * rest / rest.sum()

    bins = np.floor(target / draft * 4 + 0.5)
    clipped = lambda c: np.maximum(target - c * draft, 0).sum()
    binned = lambda c: sum(max((target - c * draft)[bins == b].sum(), 0) for b in set(bins))
    assert np.abs(law(clipped) - target).max() < 1e-12
    assert np.abs(law(binned) - target).max() > 1e-4
