"""The Triton kernels under Triton's interpreter, against the reference: the same integers, the published RNG answers.

Not collected by itself: Triton reads TRITON_INTERPRET when the kernels are defined, so tests/test_triton.py runs this file
in a process of its own. By hand: TRITON_INTERPRET=1 python -m pytest tests/support/triton_cases.py

All cases run with every tensor's extent guarded (tests/support/triton_memory.py).
"""

import importlib
import itertools
import json
from pathlib import Path

import cold_laws
import pytest
import torch
import triton
import triton.language as tl
from conftest import CHAIN_SCHEMES as CHAINS
from conftest import case, identical, numbers, packed, widened
from trees import drafted_tree, drawn_tree
from triton_memory import guarded

import specsample as ss
from specsample.triton import SUPPORTED, coupling, groups, histogram, launch, streams
from specsample.triton.law import load_law, load_logits, number
from specsample.triton.passes import Residual, Tokens, residual_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SAMPLINGS = (
    ss.Sampling(),
    ss.Sampling(0.7, top_k=5),
    ss.Sampling(top_p=0.9),
    ss.Sampling(1.3, 50, 0.95, 0.02),
    ss.Sampling(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0, 3, 7]), torch.tensor([0.9, 0.8, 1.0]), min_p=0.05),
)
KNOWN = json.loads((Path(__file__).parents[1] / "data" / "philox.json").read_text())


@pytest.fixture(autouse=True)
def extents():
    with guarded():
        yield


@triton.jit
def _touch(values, out, at, STORE: tl.constexpr, MASKED: tl.constexpr):
    ids = at + tl.arange(0, 4)
    inside = (ids >= 0) & (ids < 4) if MASKED else ids == ids
    if STORE:
        tl.store(out + ids, tl.load(values + tl.arange(0, 4)), mask=inside)
    else:
        tl.store(out + tl.arange(0, 4), tl.load(values + ids, mask=inside, other=0))


@pytest.mark.parametrize("at, store", [(-1, False), (1, False), (-4, True), (1, True), (1 << 20, False)])
def test_control_a_stray_address_is_caught(at, store):
    """Also where another tensor lies there: all three are views of one."""
    _before, values, _between, out, _after = torch.arange(20).view(5, 4)
    _touch[(1,)](values, out, at, STORE=store, MASKED=True)
    with pytest.raises(Exception, match="a store of bytes" if store else "a load of bytes"):
        _touch[(1,)](values, out, at, STORE=store, MASKED=False)


@triton.jit
def _philox(out, c0, c1, c2, c3, seed):
    zero = tl.full((), 0, tl.uint32)
    c0, c1 = zero + c0.to(tl.uint32), zero + c1.to(tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed.to(tl.int64), c0, c1, zero + c2.to(tl.uint32), zero + c3.to(tl.uint32))
    tl.store(out, r0.to(tl.int64))
    tl.store(out + 1, r1.to(tl.int64))
    tl.store(out + 2, r2.to(tl.int64))
    tl.store(out + 3, r3.to(tl.int64))


@triton.jit
def _words(out, seed, position, slot, PURPOSE: tl.constexpr, SUB: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    seed, position = streams.spread(seed, None, at, 1), streams.spread(position, None, at, 0)
    s = streams.stream(seed, position, PURPOSE, slot.to(tl.int64))
    tl.store(out + tl.arange(0, 16), streams.words_of(s, tl.arange(0, 16), SUB).to(tl.int64))


def test_philox_known_answers():
    for known in KNOWN["philox4x32_10"]:
        counter, key, answer = ([int(w, 16) for w in known[name]] for name in ("counter", "key", "answer"))
        seed = key[0] + (key[1] << 32)
        out = torch.zeros(4, dtype=torch.int64)
        _philox[(1,)](out, *counter, seed - (seed >> 63 << 64))
        assert out.tolist() == answer


def test_stream_known_answers():
    """Words of tokens and their second words."""
    out = torch.zeros(16, dtype=torch.int64)
    for known in KNOWN["streams"]:
        for name, sub in (("words", 0), ("refine", streams.REFINE_BLOCK)):
            want = [int(w, 16) for w in known[name]]
            numbers = (known[name] for name in ("seed", "position", "slot"))
            _words[(1,)](out, *numbers, PURPOSE=known["purpose"], SUB=sub)
            assert out[: len(want)].tolist() == want


GROUPS = 512  # of 16 384 tokens


@triton.jit
def _groups(words, second, least, first, clocks, ids, seed, position, slot, PURPOSE: tl.constexpr, GROUPS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    seed, position = streams.spread(seed, None, at, 1), streams.spread(position, None, at, 0)
    s = streams.stream(seed, position, PURPOSE, slot.to(tl.int64))
    groups = tl.arange(0, GROUPS)
    place = 4 * tl.arange(0, 8)[None, :, None] + tl.arange(0, 4)[None, None, :]
    where = groups[:, None, None] * 32 + place
    tl.store(words + groups, tl.reshape(streams.group_words(s, 0, GROUPS), (GROUPS,)).to(tl.int64))
    tl.store(second + groups, streams.words_of(s, groups, streams.GROUP_BLOCK | streams.REFINE_BLOCK).to(tl.int64))
    clock, place = streams.least_clocks(s, groups)
    tl.store(least + groups, clock)
    tl.store(first + groups, place)
    clock, token = streams.clocks(s, groups[:, None, None])
    tl.store(clocks + where, clock)
    tl.store(ids + where, token)


def groups_of_stream(seed, position, purpose, slot):
    """What the kernels find of groups, by their numbers: (A, S, least clocks, their places, clocks of tokens, the tokens)"""
    whole = lambda *shape: torch.zeros(shape, dtype=torch.int64)
    real = lambda *shape: torch.zeros(shape, dtype=torch.float64)
    out = whole(GROUPS), whole(GROUPS), real(GROUPS), whole(GROUPS), real(GROUPS, 32), whole(GROUPS, 32)
    _groups[(1,)](*out, seed, position, slot, PURPOSE=purpose, GROUPS=GROUPS)
    return out


def same_clocks(found, seed, position, purpose, slot):
    rng, (a, s, least, first, clocks, ids) = ss.reference.rng, found
    stream = *(torch.tensor([x]) for x in (seed, position)), purpose, torch.tensor([slot])
    assert torch.equal(ids.flatten().sort().values, torch.arange(32 * GROUPS))
    group = rng.group_of(ids[:, 0])
    assert (rng.group_of(ids) == group[:, None]).all() and (rng.place_of(ids) == torch.arange(32)).all()
    assert torch.equal(a, rng.group_words(*stream, GROUPS)[0, group])
    assert torch.equal(s, rng.group_words(*stream, GROUPS, second=True)[0, group])
    want_least, want_first = (x[0, group] for x in rng.least_clocks(*stream, GROUPS))
    assert torch.equal(first, want_first)
    torch.testing.assert_close(least, want_least, rtol=1e-14, atol=0)
    torch.testing.assert_close(clocks, rng.clocks(*stream, 32 * GROUPS)[0, ids], rtol=1e-14, atol=0)


@pytest.mark.parametrize("stream", [(0, 0, 0, 0), (-5, (1 << 40) + 3, 2, 1), (1 << 62, 77, 4, (1 << 24) - 1), (9, -1, 5, 6)])
def test_clocks_in_groups(stream):
    """The words of groups and the places of tokens, and clocks to the last digits of the reference's."""
    same_clocks(groups_of_stream(*stream), *stream)


def test_clocks_at_the_ends_of_the_range(monkeypatch):
    """Words that are refined and words next to 2³², which random streams meet once in a million, of tokens and of groups."""
    ends = torch.tensor([0, 1, 5, 4095, 4096, 4097, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1])
    words, groups, right = ss.reference.rng.words, ss.reference.rng.group_words, streams.philox_of
    forced = lambda n: ends[torch.arange(n) % 11][None]

    def philox_of(s, block):
        sub = int(block.handle.data.flat[0]) >> 30
        if sub & 2:
            return right(s, block)
        four, out = (block & 0x3FFFFFFF).to(tl.int32), []
        for i in range(4):
            number = (four >> 5) * 128 + 32 * i + (four & 31) if sub else 4 * four + i  # the reference's
            out.append(tl.full(number.shape, 7, tl.uint32))
            for j, x in enumerate(ends.tolist()):
                out[i] = tl.where(number % 11 == j, tl.full(number.shape, x, tl.uint32), out[i])
        return out

    monkeypatch.setattr(streams, "philox_of", philox_of)
    rng = ss.reference.rng
    monkeypatch.setattr(rng, "words", lambda *a, refine=False: words(*a, refine=refine) if refine else forced(a[-1]))
    monkeypatch.setattr(rng, "group_words", lambda *a, second=False: groups(*a, second=second) if second else forced(a[-1]))
    least, _places = rng.least_clocks(torch.tensor([9]), torch.tensor([4]), 0, torch.tensor([0]), 33)
    assert least[0].unique().numel() > 11 and least.min() < 1e-11 and least.max() > 0.6
    found = groups_of_stream(9, 4, 0, 0)
    same_clocks((forced(GROUPS)[0][rng.group_of(found[5][:, 0])], *found[1:]), 9, 4, 0, 0)


@triton.jit
def _log2_below(words, out):
    tl.store(out + tl.arange(0, 64), streams.log2_below(tl.load(words + tl.arange(0, 64)).to(tl.uint32)))


def test_bound_of_the_logarithm():
    """Never above log2 of any uniform of the word (but for float32), and at most .0861 below that of the word."""
    random = torch.randint(0, 1 << 32, (30,), generator=torch.Generator().manual_seed(3))
    ends = [x for e in range(0, 33, 2) for x in ((1 << e) - 1, 1 << e)]
    words = torch.cat([torch.tensor(ends).clamp(max=(1 << 32) - 1), random])[:64]
    out = torch.zeros(64, dtype=torch.float32)
    _log2_below[(1,)](words, out)
    least = torch.where(words == 0, 2.0**-65, words / 2.0**32)  # a refined uniform of the word 0 is (r + ½)/2⁶⁴
    assert (out <= least.log2() + 2e-5).all()
    assert (out >= least.log2() - 0.0862)[words > 0].all()
    assert out[words == 0].tolist() == [-67.0]


@triton.jit
def _residual_tops(
    target, draft, laws, draft_laws, tops, vocab, draft_vocab, scale, floor, listed, count, WITHOUT: tl.constexpr
):  # fmt: skip
    law, other = load_law(laws), load_law(draft_laws)
    without = ()
    if WITHOUT:
        without = Tokens(listed, count)
    rest = Residual(draft, draft_vocab, other, number(scale), number(floor), (), without, ())
    groups.residual_tops(target, vocab, law, rest, tops, 2)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1, 2.0, "cold", "filtered", "wide", "narrow", "without", "floor"])
def test_bounds_of_residuals(noise):
    """Not below log2 of any weight of a group (but for what `may_win` allows), and no more above than the least d/t makes of it
    (cold laws: of tokens without any weight too)."""
    V, of = 2500, noise if isinstance(noise, float) else 0.1
    width = {"wide": 2700, "narrow": 2300}.get(noise, V)
    target = numbers(1, V, seed=1, scale=3.0)
    draft = torch.nn.functional.pad(target, (0, max(0, width - V)), value=-1.0)[:, :width] + of * numbers(1, width, seed=2)
    target[0, 40:50], draft[0, 60:100], target[0, 61] = torch.nan, -torch.inf, -torch.inf
    if noise == "cold":  # most of it is beyond float32's exponents
        target, draft = 300 * target, 299 * draft
    sampling = ss.Sampling(1.0, 700, 0.99) if noise == "filtered" else ss.Sampling(0.9)
    settings = [float(x) for x in (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)]
    laws, draft_laws = (launch.laws_of(x, settings, None) for x in (target, draft))
    scale, floor = (0.7, 0.05) if noise == "floor" else (0.9, 0.0)
    listed = draft[0].nan_to_num(-torch.inf, neginf=-torch.inf).topk(3).indices
    tops = launch.tops_for(target, 1)
    _residual_tops[(1,)](
        target, draft, laws, draft_laws, tops, V, width, launch.bits(scale), launch.bits(floor), listed, 3, noise == "without"
    )
    t, d = (ss.reference.rows.log_probs(x, settings, None)[0].exp() for x in (target, draft))
    d = torch.nn.functional.pad(d, (0, max(0, V - width)))[:V]
    d = d.index_fill(0, listed, 0.0) if noise == "without" else d
    w, group = torch.maximum(scale * t - d, floor * t), ss.reference.rng.group_of(torch.arange(V))
    zero = torch.zeros(96, dtype=torch.float64)
    of_group = lambda x, how: zero.scatter_reduce(0, group, x, how, include_self=False)
    log_w = of_group(w.clamp(min=0), "amax").log2()
    some = log_w > -torch.inf
    assert some.sum() > (0 if noise == "cold" else 3)
    assert (tops[:96] + 2e-3 + 5e-7 * tops[:96].abs().clamp(max=1e6) >= log_w)[some].all()
    ratio = of_group(torch.where(t > 0, d / t, torch.inf), "amin")
    want = of_group(t, "amax") * torch.maximum((scale - ratio).clamp(min=0), torch.tensor(floor)) + 1e-4 * of_group(t, "amax")
    kept = want > 2.0**-100
    assert (tops[:96].double() <= want.log2() + 0.0865)[kept].all() and kept.sum() > 3 or noise == "cold"


@triton.jit
def _binned_tops(target, draft, laws, draft_laws, tops, weights, sums, tables, vocab, k, bins, scale):
    law, other = load_law(laws), load_law(draft_laws)
    full = histogram.histogram(
        histogram.Pair(target, vocab, law, draft, vocab, other), histogram.bins_for(k, bins, vocab, sums, tables), 256
    )
    coupling.solve(full)
    rest = Residual(draft, vocab, other, number(scale), number(scale) * 0.0, full, (), ())
    groups.residual_tops(target, vocab, law, rest, tops, 2)
    ids = tl.arange(0, 4096)
    relative = (load_logits(target, ids, vocab).to(tl.float64) - law.max) * law.scale
    tl.store(weights + ids, residual_weights(target, vocab, law, relative, ids, rest), mask=ids < vocab)


@pytest.mark.parametrize("scale", [1.0, 0.9])
@pytest.mark.parametrize("k, bins, noise", [(2, 1024, 0.1), (2, 16, 0.5), (4, 1024, 1.0), (8, 64, 0.3), (3, 128, "far")])
def test_bounds_of_residuals_by_bins(k, bins, noise, scale):
    """The same where the draft counts ρ times, ρ by bins of t/d."""
    V = 3000
    target = numbers(1, V, seed=k, scale=3.0)
    draft = target + (0.2 if noise == "far" else noise) * numbers(1, V, seed=9)
    if noise == "far":
        draft[0, ::7] -= 12.0
        draft[0, 1::7] += 2.0
    laws, draft_laws = (launch.laws_of(x, [1.0, 0.0, 1.0, 0.0], None) for x in (target, draft))
    tops, weights = launch.tops_for(target, 1), torch.zeros(V, dtype=torch.float64)
    sums = torch.zeros(2, bins + 2, dtype=torch.int64)
    tables = torch.zeros(coupling.TABLES.value, bins + 2, dtype=torch.float64)
    _binned_tops[(1,)](target, draft, laws, draft_laws, tops, weights, sums, tables, V, k, bins, launch.bits(scale))
    group = ss.reference.rng.group_of(torch.arange(V))
    most = torch.zeros(96, dtype=torch.float64).scatter_reduce(0, group, weights.clamp(min=0), "amax")
    assert (tops[:96] + 2e-3 >= most.log2())[most > 0].all() and (most > 0).any()
    t = torch.zeros(96, dtype=torch.float64).scatter_reduce(0, group, target[0].double().softmax(0), "amax")
    assert (tops[:96].exp2() <= 1.07 * scale * t).all()
    if noise == 0.1:  # near laws: the bounds must tell
        assert (tops[:96].exp2() < 0.3 * scale * t).sum() > 80


def test_a_winner_beside_another_at_its_place():
    """A race holds one group of each place of its pieces of 32 768 tokens. Here all tokens with mass share one place, so that later
    arrivals, and residuals, are found when the tops are read again."""
    logits = torch.full((3, 98304), -9.0)
    at, wide = {"seed": 5, "position": 7 * torch.arange(3)}, (1, 32768 + 2, 65536 + 3)
    logits[:, wide] = torch.tensor([9.0, 8.5, 9.5])
    want = ss.draft(logits, 3, kind="arrivals", backend="reference", **at)
    assert (want % 32768 < 8).all() and (want[0] != want[1]).any()
    assert torch.equal(ss.draft(logits, 3, kind="arrivals", backend="triton", **at), want)
    target, draft = logits[:, None].repeat(1, 2, 1), logits[:, None].clone()
    draft[..., wide[1]] = 12.0  # drafted mostly, and more than the target has of it
    tokens = torch.full((3, 1), wide[1])
    verdicts = [ss.verify(target, tokens, draft, scheme="token", backend=b, **at) for b in ("triton", "reference")]
    identical(*verdicts)
    assert (verdicts[1].num_accepted == 0).any()


@pytest.mark.parametrize("i, V", list(enumerate((1, 2, 7, 33, 1000, 2051))))
def test_rows(i, V):
    """sample, draft and row_stats."""
    logits = numbers(3, V, seed=V, scale=2.0, dtype=DTYPES[i % 3])
    for sampling in (SAMPLINGS[i % 4], SAMPLINGS[4])[: 1 if V > 1000 else 2]:
        at = {"sampling": sampling, "seed": -3 - i, "position": (1 << 33) + i}
        more = (("distinct", 3), ("lists", 2), ("top", 3), ("top", 1)) if 1 < V < 1000 else ()
        for kind, k in (("iid", 2), ("arrivals", 3), ("topk", 3), *more):
            node = {"kind": kind, "depth": torch.arange(3) % 2, "node": 5 * torch.arange(3)}
            assert torch.equal(
                ss.draft(logits, k, **node, **at, backend="triton"), ss.draft(logits, k, **node, **at, backend="reference")
            ), kind
        assert torch.equal(ss.sample(logits, **at, backend="triton"), ss.sample(logits, **at, backend="reference"))
        expected = ss.row_stats(logits, sampling=sampling, backend="reference")
        for x, y in zip(ss.row_stats(logits, sampling=sampling, backend="triton"), expected):
            torch.testing.assert_close(x, y, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shift", [-1e6, 1e8, 1e20])
def test_large_logits(shift):
    logits = numbers(8, 50, seed=20, scale=2.0) + shift
    at = {"seed": 0, "position": 0}
    assert torch.equal(ss.sample(logits, **at, backend="triton"), ss.sample(logits, **at, backend="reference"))


def odd_rows(width, like):
    """Rows with nothing finite, one finite logit, +inf, NaN among others, and two that tie."""
    rows = like.clone()
    rows[0] = -torch.inf
    rows[1] = torch.nan
    rows[1, width // 2] = 1.0
    rows[2, :: max(1, width // 3)] = torch.inf
    rows[3, ::2] = torch.nan
    rows[4] = 0.0
    return rows


def test_odd_rows():
    logits = odd_rows(9, numbers(5, 9, seed=1))
    for sampling in (ss.Sampling(), ss.Sampling(0.0), ss.Sampling(1.0, 3, 0.8, 0.01)):
        at = {"sampling": sampling, "seed": 1, "position": 2}
        assert torch.equal(ss.sample(logits, **at, backend="triton"), ss.sample(logits, **at, backend="reference"))
        for kind in ("arrivals", "topk", "distinct", "top"):
            got, want = (ss.draft(logits, 4, kind=kind, **at, backend=name) for name in ("triton", "reference"))
            assert torch.equal(got, want), (kind, got, want)
        got, want = (ss.row_stats(logits, sampling=sampling, backend=name) for name in ("triton", "reference"))
        for x, y in zip(got, want):
            torch.testing.assert_close(x, y, rtol=2e-6, atol=2e-6)


def same(args, logprobs=None):
    expected = ss.verify(**args, logprobs=logprobs, backend="reference")
    got = ss.verify(**args, logprobs=logprobs, backend="triton")
    if logprobs:
        torch.testing.assert_close(got.logprobs, expected.logprobs, rtol=1e-5, atol=2e-5)
    identical(got._replace(logprobs=None), expected._replace(logprobs=None))
    return expected


@pytest.mark.parametrize("i, V", list(enumerate((1, 2, 7, 33, 1000))))
@pytest.mark.parametrize("scheme", CHAINS)
def test_verify(scheme, i, V):
    for j, sampling in enumerate((SAMPLINGS[(i + CHAINS.index(scheme)) % 4], SAMPLINGS[4])):
        args = case(3, 1 if V > 100 else 2, V, DTYPES[(i + j) % 3], scheme, seed=i + 10 * j, sampling=sampling)
        same(args, (None, "filtered", "raw")[(i + j) % 3])


@pytest.mark.parametrize("scheme", CHAINS)
def test_acceptance(scheme):
    """Many small requests: every way of stopping occurs."""
    verdict = same(case(14, 2, 5, scheme=scheme, seed=2, noise=0.7))
    assert set(verdict.num_accepted.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("scheme", CHAINS)
def test_draft_forms(scheme):
    """One-hot drafts, placeholders, drafts with a narrower or wider vocabulary, kept statistics."""
    args = case(3, 2, 20, scheme=scheme, seed=3, one_hot=True, sampling=SAMPLINGS[4])
    same(args, "raw")
    args = case(4, 3, 40, scheme=scheme, seed=4)
    args["draft_tokens"][0, 1], args["draft_tokens"][1, 0], args["draft_tokens"][2, 2] = -1, -1, 40
    same(args)
    for width in (30, 50):
        same(case(3, 2, 40, scheme=scheme, seed=5, draft_vocab=width, sampling=SAMPLINGS[1]))
    args = case(3, 2, 40, scheme=scheme, seed=6)
    same(args | {"draft_stats": ss.row_stats(args["draft_logits"].flatten(0, 1), backend="triton")})


@pytest.mark.parametrize("scheme", CHAINS)
def test_odd_rows_among_target_and_draft(scheme):
    args = case(5, 3, 9, scheme=scheme, seed=7)
    for row in range(3):
        args["target_logits"][:, row] = odd_rows(9, args["target_logits"][:, row]).roll(row, 0)
    same(args, "filtered")
    args = case(5, 3, 9, scheme=scheme, seed=8)
    for row in range(3):
        args["draft_logits"][:, row] = odd_rows(9, args["draft_logits"][:, row]).roll(row + 1, 0)
    same(args)


@pytest.mark.parametrize("row_a_node", [False, True])
@pytest.mark.parametrize("scheme", CHAINS)
def test_packed(scheme, row_a_node):
    """Requests of several lengths, one without rows, unused rows at the end: as each alone."""
    cases = [case(1, n, 40, scheme=scheme, seed=9 + n, sampling=SAMPLINGS[1]) for n in (2, 0, 3)]
    cases.insert(1, None)
    same(packed(cases, row_a_node=row_a_node, spare=2), "filtered")


def test_chain_given_as_a_tree():
    for scheme in ("token", "block"):
        args = case(3, 3, 20, scheme=scheme, seed=11)
        order = [2, 0, 1]  # node 0 is the last of the chain's rows
        args |= {"parents": [-1, 0, 1], "rows": [0, 1, 2, 3], "draft_rows": [0, 1, 2]}
        same(args)
        args["target_logits"] = args["target_logits"][:, [1, 2, 0, 3]]
        args["draft_logits"] = args["draft_logits"][:, order]
        same(args | {"rows": [2, 0, 1, 3], "draft_rows": [1, 2, 0]})


def test_race_on_trees():
    """Siblings, equal siblings that are entered together, a node whose parent does not exist, and less depth than nodes."""
    target = numbers(6, 8, 6, seed=12)
    parents = torch.tensor([-1, -1, 0, 1, 1, 3, 2])
    at = {"seed": 5, "position": 100, "scheme": "race"}
    winners = torch.stack([ss.sample(target[:, 0], seed=5, position=100)] * 2, 1)
    below = [ss.sample(target[:, i], seed=5, position=101) for i in (1, 1, 2)]
    tokens = torch.cat([winners, torch.stack(below, 1), torch.randint(6, (6, 2))], 1)
    tokens[4, 0], tokens[5, 1] = -1, 3
    verdict = same({"target_logits": target, "draft_tokens": tokens, "parents": parents, **at}, "raw")
    assert int(verdict.num_accepted.max()) >= 2
    same({"target_logits": target, "draft_tokens": tokens, "parents": parents, "max_depth": 1, **at})


TREES = [scheme for scheme in SUPPORTED if ss.schemes()[scheme].trees]
MULTI = [scheme for scheme in TREES if ss.schemes()[scheme].family == "multi-draft"]


def few_bins(args):
    """The interpreter takes its time for every tile of bins."""
    return args | ({"options": {"bins": 64}} if "bins" in ss.schemes()[args["scheme"]].options else {})


@pytest.mark.parametrize("scheme", TREES)
def test_trees(scheme):
    """Paths of really drawn tokens, from laws that are near the target's and from others; greedy requests among them."""
    accepted = 0
    mixed = ss.Sampling(torch.tensor([1.0, 0.0, 0.7]), 20, 0.95)
    for i, (k, depth, V, noise) in enumerate(((2, 2, 7, 0.5), (3, 2, 40, 0.0), (4, 1, 300, 2.0))):
        other = {"dtype": DTYPES[i], "noise": noise, "sampling": (mixed, None, ss.Sampling(0.8))[i]}
        args = few_bins(drafted_tree(3, k, depth, V, scheme, draft_vocab=(None, 43, 250)[i], **other))
        accepted += int(same(args, ("raw", None, "filtered")[i]).num_accepted.sum())
    assert 3 <= accepted <= 14


@pytest.mark.parametrize("scheme", ["kseq", "optimal", "optimal_block"])
def test_default_bins(scheme):
    """More tiles of bins than one, a tail, and more draws than are usual."""
    same(drafted_tree(1, 3, 1, 2100, scheme, seed=1))
    same(few_bins(drafted_tree(1, 9, 1, 60, scheme, seed=2, noise=2.0)))


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_no_drafts_with_a_draft_tensor(scheme):
    """Draft logits without a row: dense, packed, and with nodes that name rows which are not there."""
    args = case(3, 0, 9, scheme="token", seed=21) | {"scheme": scheme}
    same(args | {"draft_logits": args["target_logits"][:, :0]})
    lost = {"draft_tokens": torch.zeros(3, 1, dtype=torch.int64), "draft_rows": [0], "rows": [0, 0], "parents": [-1]}
    got = ss.verify(**args | lost | {"draft_logits": args["target_logits"][:, :0], "backend": "triton"})
    if ss.schemes()[scheme].uses_draft_logits:
        identical(got, widened(ss.verify(**args, backend="reference"), 1))
    cu = torch.arange(4, dtype=torch.int32)
    flat = args["target_logits"].flatten(0, 1)
    tokens = torch.zeros(0, dtype=torch.int64)
    same(args | {"target_logits": flat, "draft_logits": flat[:0], "draft_tokens": tokens, "cu_rows": cu, "max_depth": 2})


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_more_nodes_than_are_looked_at_together(monkeypatch, scheme):
    """Several requests in one call, some of few nodes: as if few were two."""
    for name in ("tree", "token", "block", "race", "call"):
        monkeypatch.setattr(importlib.import_module(f"specsample.triton.{name}"), "FEW", tl.constexpr(2))
    if scheme in ("token", "block"):
        calls = [case(1, n, 5, scheme=scheme, seed=9 + n, noise=0.2) for n in (3, 1)]
    else:
        calls = [drafted_tree(1, k, depth, 5, scheme, seed=3, noise=0.2) for k, depth in ((3, 2), (1, 1))]
    for args in calls:
        nodes = args["draft_tokens"].shape[1]
        same(few_bins(args))
        args |= {"position": torch.tensor([50]), "parents": torch.tensor(args.get("parents", range(-1, nodes - 1)))}
        # packed: a row a node, those that are not used are left as they are
        for name, rows in (("target_logits", nodes + 1), ("draft_logits", nodes)):
            args[name] = torch.nn.functional.pad(args[name], (0, 0, 0, rows - args[name].shape[1]))
    both = packed(calls) | {name: torch.cat([c[name] for c in calls]) for name in ("parents",)} | {"max_depth": 3}
    if "rows" in calls[0]:
        both |= {name: torch.tensor([x for c in calls for x in c[name]]) for name in ("rows", "draft_rows")}
    same(few_bins(both))


@pytest.mark.parametrize("scheme", MULTI)
def test_odd_trees(scheme):
    """Missing nodes, rows that are broken or share all mass, certain laws, a row of drafts that does not exist."""
    args = few_bins(drafted_tree(6, 2, 2, 9, scheme, seed=3))
    tokens, target, draft = args["draft_tokens"].clone(), args["target_logits"].clone(), args["draft_logits"].clone()
    tokens[0, 0], tokens[1, 2], tokens[2, 1] = -1, 9, -5
    target[3, 0, ::2], target[4, 1], target[5, 0] = torch.inf, -torch.inf, torch.nan
    target[5, 0, 4] = 0.0
    draft[1, 1], draft[3, 0, 1:], draft[4, 0, :3] = -torch.inf, -torch.inf, torch.inf
    odd = args | {"draft_tokens": tokens, "target_logits": target, "draft_logits": draft}
    same(odd, "filtered")
    if scheme == "recursive":
        same(odd | {"draft_rows": [0, 1, 7, 1], "max_depth": 1})
    none = {name: odd[name] for name in ("target_logits", "scheme", "seed", "position")}
    same(none | {"draft_tokens": tokens[:, :0], "rows": [0]})


@pytest.mark.parametrize("scheme", MULTI + ["lists", "race"])
def test_packed_trees(scheme):
    """Requests of several trees in one call, the siblings' rows shared."""
    sizes, trees, filler = (3, 1, 2), [], torch.zeros(1, 12)
    for k in sizes:  # a row a node: those that are not used are left as they are
        tree = drafted_tree(1, k, 1, 12, scheme, seed=4 + k)
        spare = filler.expand(1, k - 1, 12)
        tree["target_logits"] = torch.cat([tree["target_logits"], spare], 1)
        tree["draft_logits"] = torch.cat([tree["draft_logits"], spare], 1)
        trees.append(tree | {"position": torch.tensor([50])})
    args = packed([trees[0], None, *trees[1:]]) | {"max_depth": 1}
    args["parents"] = torch.tensor([-1] * sum(sizes))
    args["draft_rows"] = torch.zeros(sum(sizes), dtype=torch.int64)
    args["rows"] = torch.tensor([row for k in sizes for row in [0] + [1] * k])
    same(few_bins(args))


@pytest.mark.parametrize("scheme", MULTI + ["lists"])
def test_one_child_a_node(scheme):
    """The chain schemes' integers."""
    single = {"optimal_block": "block", "lists": "race"}.get(scheme, "token")
    args = case(3, 2, 11, scheme=single, seed=15)
    identical(ss.verify(**args | {"scheme": scheme}, backend="triton"), ss.verify(**args, backend="reference"))


def test_given_lists():
    args = drafted_tree(4, 3, 2, 8, "lists", seed=5)
    same(args | {"lists": [0, 0, 1, 1, 2, 2]})
    same(args | {"lists": [5, 5, 1, 1, 1024, -1]})


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_cold_laws(scheme):
    """Gaps at which float exponentials have vanished (cold_laws.py), in one call."""
    pairs = [cold_laws.rows(*name) for name in zip(cold_laws.SHAPES, itertools.cycle((1500, 90)))]
    target, draft = (torch.stack(x).float()[:, None] for x in zip(*pairs))
    k = 3 if ss.schemes()[scheme].trees else 1
    same(few_bins(drawn_tree(target.expand(-1, 2, -1), draft, k, scheme, torch.arange(len(target)), "reference")))


@pytest.mark.parametrize("temperature", [1.0, 1e-16])
def test_cold_drafts(temperature):
    draft = torch.stack([cold_laws.rows(shape, 1500)[1] for shape in ("cold draft", "tied below", "warm below")]).float()
    at = {"seed": 7, "position": 3, "sampling": ss.Sampling(temperature)}
    for kind in ("distinct", "arrivals", "top"):
        assert torch.equal(*(ss.draft(draft, 4, kind=kind, backend=b, **at) for b in ("triton", "reference"))), kind


def test_lists_are_scored_on_one_scale():
    """Scores near 1e6: some lists' beyond it, others' not."""
    logits = torch.tensor([0.0, 1.0, 1.0]).expand(12, 3, 3).contiguous()
    args = {"target_logits": logits, "draft_tokens": torch.zeros(12, 2, dtype=torch.int64), "parents": [-1, -1]}
    same(args | {"scheme": "lists", "sampling": ss.Sampling(1e-6), "seed": 0, "position": 3})


@pytest.mark.parametrize(
    "scheme, module, name",
    [("recursive", "recursive", "clipped_mass"), ("optimal", "optimal", "select"), ("recursive", "tree", "last_stream"),
     ("top", "top", "law_without"), ("kseq", "kseq", "threshold"), ("optimal_block", "optimal_block", "select"),
     ("recursive_distinct", "recursive_distinct", "law_without"), ("lists", "lists", "lists_of")],
)  # fmt: skip
def test_control_a_broken_tree_kernel_is_caught(monkeypatch, scheme, module, name):
    """A piece of a scheme left out makes a difference to the cases above."""
    wrong = {
        "clipped_mass": lambda at, c, block: c * 0 + 1,  # the residual is not updated between siblings
        "select": lambda at, bins: (at.count * 0, 1.0),  # the first draw, as if it had the draft's law
        "last_stream": lambda seed, position, depth, rest, slot: right(seed, position, depth, rest == 0, slot),
        "threshold": lambda bins: bins.k.to(tl.float64),  # lossless as well, and another law of acceptance
        "law_without": lambda row, vocab, law, without, block: law,  # what is left is as it was
        "lists_of": lambda lists, parents, *rest: right(lists, parents, *rest) + 1,
    }[name]
    target = importlib.import_module(f"specsample.triton.{module}")
    right = getattr(target, name)
    monkeypatch.setattr(target, name, wrong)
    args = few_bins(drafted_tree(16, 3, 1, 5, scheme, seed=6, noise=1.5))
    with pytest.raises(AssertionError, match="against"):
        same(args)


@pytest.mark.parametrize(
    "module, name", [("token", "accept"), ("block", "accept"), ("walk", "last_race"), ("race", "winner_of_law")]
)
def test_control_a_broken_kernel_is_caught(monkeypatch, module, name):
    """A kernel that accepts everything, or races with the next row's clocks, differs from the reference."""
    target = importlib.import_module(f"specsample.triton.{module}")
    right = getattr(target, name)
    if name == "accept":
        wrong = triton.jit(_accept_all)
    else:
        wrong = lambda *a: right(*(x._replace(position=x.position + 1) if hasattr(x, "tag") else x for x in a))
    monkeypatch.setattr(target, name, wrong)
    scheme = module if module in SUPPORTED else "token"
    args = case(10, 2, 5, scheme=scheme, seed=2, noise=0.7)
    with pytest.raises(AssertionError, match="against"):
        same(args)


def _accept_all(seed, position, node, numerator, denominator):
    return numerator >= 0


def test_compile_and_opcheck():
    """One graph, and the op's schema and fake kernel as torch checks them."""
    args = case(2, 2, 9, scheme="block", seed=13)
    tensors = [args[name] for name in ("target_logits", "draft_tokens", "draft_logits", "seed", "position")]

    def round(target, tokens, draft, seed, position):
        return ss.verify(target, tokens, draft, seed=seed, position=position, scheme="block", backend="triton").tokens

    compiled = torch.compile(round, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*tensors), ss.verify(**args, backend="reference").tokens)
    off = [1.0, 0.0, 1.0, 0.0]
    logits = args["target_logits"][:, 0]
    checks = ("test_schema", "test_faketensor")
    op = torch.ops.specsample_triton
    torch.library.opcheck(op.draft, (logits, 2, "iid", off, None, 5, None, 9, None, 0, None, 0, None), test_utils=checks)
    torch.library.opcheck(
        op.verify,
        (*tensors[:3], None, None, None, None, 2, "token", [], off, None, off, None, None, None, None, 5, None, 9, None, None, 1),
        test_utils=checks,
    )


def test_backend_is_listed():
    assert "triton" in ss.build_info()["backends"]
    assert all("triton" in ss.schemes()[scheme].backends for scheme in SUPPORTED)
