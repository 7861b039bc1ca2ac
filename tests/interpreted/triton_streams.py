"""Triton's random numbers against the published answers and the reference; its bounds for groups."""

import json
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from conftest import identical, numbers

import specsample as ss
from specsample.triton import coupling, groups, histogram, launch, streams
from specsample.triton.law import load_law, load_logits, number
from specsample.triton.passes import Residual, Tokens, residual_weights

pytest_plugins = ["shared"]

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "philox.json").read_text())


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
    """Even if another tensor lies there: all three are views of one."""
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
    """The kernels' results for groups, by number: (A, S, least clocks, their places, clocks of tokens, the tokens)"""
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
    """The words of groups and the places of tokens; clocks agree with the reference's to the last digits."""
    same_clocks(groups_of_stream(*stream), *stream)


def test_clocks_at_the_ends_of_the_range(monkeypatch):
    """Words that are refined and words next to 2³², which random streams meet once in a million, for tokens and groups."""
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
def _again(first, later, tokens, counts, seed, position, node, PURPOSE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    node = node.to(tl.int64)
    s = streams.stream(streams.spread(seed, None, at, 0), streams.spread(position, None, at, 0), PURPOSE, node)
    token, count = tl.load(tokens + at), tl.load(counts + at)
    tl.store(first + at, streams.clock_of(s, token))
    tl.store(later + at, streams.renewal(s, node, token, count))


@pytest.mark.parametrize("refine_below", [1 << 12, 1 << 31])  # half of the words are refined: normally one in a million
def test_renewals(monkeypatch, refine_below):
    """The first clock of a token is that of the race; each later one has a word of its own; of the node, 14 bits count."""
    rng = ss.reference.rng
    monkeypatch.setattr(rng, "REFINE_BELOW", refine_below)
    monkeypatch.setattr(streams, "REFINE_BELOW", tl.constexpr(refine_below))
    tokens = torch.tensor([0, 1, 7, 8, 255, 256, 767, 1023, 1024, 4095, 4096, 5003, 16383, 1 << 30])
    counts, near = torch.arange(14) ** 3 % 1024 + 1, tokens < 1 << 14
    counts[-1] = 1023
    for seed, position, node in ((0, 0, 0), (-5, (1 << 40) + 3, (1 << 14) - 1), (1 << 62, -1, (1 << 14) + 9)):
        first, later = torch.zeros(2, 14, dtype=torch.float64)
        _again[(14,)](first, later, tokens, counts, seed, position, node, PURPOSE=rng.DRAFT)
        stream = [torch.tensor([x]) for x in (seed, position, node)]
        clocks = rng.clocks(*stream[:2], rng.DRAFT, stream[2], 1 << 14)[0, tokens[near]]
        torch.testing.assert_close(first[near], clocks, rtol=1e-14, atol=0)
        want = rng.renewals(*(x.expand(14) for x in stream), tokens, counts)
        torch.testing.assert_close(later, want, rtol=1e-14, atol=0)
        assert later.unique().numel() == 14


@triton.jit
def _log2_below(words, out):
    tl.store(out + tl.arange(0, 64), streams.log2_below(tl.load(words + tl.arange(0, 64)).to(tl.uint32)))


def test_bound_of_the_logarithm():
    """Never below log2 of any uniform of the word (up to float32 rounding), and at most .0861 below log2 of the word."""
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
    """Not below log2 of any weight of a group (up to the slack of `may_win`), and above it by no more than the least d/t implies
    (cold laws: also for tokens without any weight)."""
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
    """The same with the draft scaled by ρ, ρ by bins of t/d."""
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
    if noise == 0.1:  # similar laws: the bounds must distinguish
        assert (tops[:96].exp2() < 0.3 * scale * t).sum() > 80


def test_a_winner_beside_another_at_its_place():
    """A race holds one group for each place of its pieces of 32 768 tokens. Here all tokens with mass share one place, so that
    later arrivals, and residuals, are found when the tops are read again."""
    logits = torch.full((3, 98304), -9.0)
    at, wide = {"seed": 5, "position": 7 * torch.arange(3)}, (1, 32768 + 2, 65536 + 3)
    logits[:, wide] = torch.tensor([9.0, 8.5, 9.5])
    want = ss.draft(logits, 3, kind="arrivals", backend="reference", **at)
    assert (want % 32768 < 8).all() and (want[0] != want[1]).any()
    assert torch.equal(ss.draft(logits, 3, kind="arrivals", backend="triton", **at), want)
    target, draft = logits[:, None].repeat(1, 2, 1), logits[:, None].clone()
    draft[..., wide[1]] = 12.0  # drafted mostly, and more than the target's probability
    tokens = torch.full((3, 1), wide[1])
    verdicts = [ss.verify(target, tokens, draft, scheme="token", backend=b, **at) for b in ("triton", "reference")]
    identical(*verdicts)
    assert (verdicts[1].num_accepted == 0).any()
