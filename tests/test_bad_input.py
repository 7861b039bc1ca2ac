"""A wrong argument raises a ValueError that names it; bad data has a defined result."""

import cuda_on_cpu
import pytest
import torch
from conftest import (
    ALL_SCHEMES,
    BACKENDS,
    CHAIN_SCHEMES,
    case,
    identical,
    numbers,
    packed,
    require,
    require_scheme,
    select,
    stacked,
    widened,
)

import specsample as ss


@pytest.fixture(params=(*BACKENDS, cuda_on_cpu.NAME))
def backend(request):
    return require(request.param)


B, N, V = 3, 2, 9
INF, NAN = float("inf"), float("nan")
LOGITS = numbers(B, N + 1, V, seed=1)
ROWS = LOGITS[:, 0]
INTS = torch.zeros(B, N, dtype=torch.int64)
CU = torch.tensor([0, 3, 6, 9], dtype=torch.int32)
FLAT = {"target_logits": LOGITS.flatten(0, 1), "draft_tokens": INTS.flatten(), "cu_rows": CU, "max_depth": N}
STATS = ss.row_stats(LOGITS[:, :N].flatten(0, 1), backend="reference")
SETTINGS = [  # field of a Sampling, bad values (tensors are refused only by shape and kind: their values are data)
    ("temperature", (-1.0, INF, NAN, "hot", None, torch.ones(B + 4), torch.ones(B, dtype=torch.complex64))),
    ("top_k", (-1, 1.5, INF, torch.ones(2, dtype=torch.int64), torch.ones(B, dtype=torch.bool))),
    ("top_p", (-0.1, 1.1, NAN, torch.ones(B + 1), torch.ones(B, device="meta"))),
    ("min_p", (-0.1, 1.1, NAN, "some", torch.ones(B + 1))),
]
STREAM = (1.5, "a", None, torch.zeros(B), torch.zeros(B + 1, dtype=torch.int64), torch.zeros(B, 1, dtype=torch.int64),
          torch.zeros(B, dtype=torch.int64, device="meta"), 1 << 64)  # fmt: skip
BACKENDS_REFUSED = ("gpu", *ss.build_info()["unavailable"], 3)
PER_NODE = ("zero", torch.zeros(N), torch.zeros(N + 7, dtype=torch.int64), torch.zeros(B + 1, N, dtype=torch.int64),
            torch.zeros(B, N, dtype=torch.int64, device="meta"), [[0.5], []])  # fmt: skip

# (argument as named in the message, its keyword, bad values)
VERIFY = [
    ("target_logits", "target_logits", (
        LOGITS.tolist(), LOGITS[0], LOGITS.long(), LOGITS.transpose(1, 2).contiguous().transpose(1, 2), LOGITS[:, :N],
        LOGITS[:, :, :0])),
    ("draft_tokens", "draft_tokens", (
        INTS.tolist(), INTS.float(), INTS[0], INTS[:2], INTS.bool(), INTS.to("meta"), INTS[..., None])),
    ("draft_logits", "draft_logits", (
        LOGITS.tolist(), LOGITS[0], LOGITS.long(), LOGITS.double(), LOGITS[:2], LOGITS[:, :1], LOGITS.to("meta"),
        LOGITS.transpose(1, 2).contiguous().transpose(1, 2))),
    ("parents", "parents", (*PER_NODE, [-1, -1])),
    ("rows", "rows", PER_NODE),
    ("draft_rows", "draft_rows", PER_NODE),
    ("lists", "lists", PER_NODE),
    ("max_depth", "max_depth", (-1, 1.5, "2")),
    ("scheme", "scheme", ("tokens", None, 3, ["token"])),
    ("options", "options", ({"bins": 4}, {3: 4}, "bins", 4)),
    ("sampling", "sampling", ("greedy", 0.7, (1.0, 0, 1.0), {"temperature": 1.0})),
    ("draft_sampling", "draft_sampling", ("greedy", (1.0, 0, 1.0))),
    ("draft_stats", "draft_stats", (
        STATS.max, STATS[:2], STATS._replace(max=STATS.max[:2]), STATS._replace(cutoff=STATS.cutoff.double()),
        STATS._replace(logsumexp=None), STATS._replace(max=STATS.max.to("meta")))),
    ("seed", "seed", STREAM),
    ("position", "position", STREAM),
    ("logprobs", "logprobs", ("yes", True, 2, ["raw"])),
    ("backend", "backend", BACKENDS_REFUSED),
    *((f"sampling.{f}", "sampling", [ss.Sampling(**{f: x}) for x in bad]) for f, bad in SETTINGS),
    *((f"draft_sampling.{f}", "draft_sampling", [ss.Sampling(**{f: x}) for x in bad]) for f, bad in SETTINGS),
]  # fmt: skip
PACKED = [
    ("cu_rows", "cu_rows", (CU.tolist(), CU.long(), CU[None], CU[:0], CU.to("meta"))),
    ("target_logits", "target_logits", (LOGITS,)),
    ("draft_tokens", "draft_tokens", (INTS, INTS.float().flatten())),
    ("draft_logits", "draft_logits", (LOGITS, LOGITS.flatten(0, 1)[: N * B - 1])),
    ("max_depth", "max_depth", (None, -1)),
    *((name, name, (torch.zeros(N * B - 1, dtype=torch.int64), INTS)) for name in ("parents", "rows", "draft_rows")),
]
ROW_LOGITS = ("logits", "logits", (ROWS.tolist(), LOGITS, ROWS[0], ROWS.long(), ROWS.t().contiguous().t()))
ROW_SAMPLING = [
    ("sampling", "sampling", ("greedy", 0.7, (1.0, 0, 1.0))),
    *((f"sampling.{f}", "sampling", [ss.Sampling(**{f: x}) for x in bad]) for f, bad in SETTINGS),
    ("backend", "backend", BACKENDS_REFUSED),
]
STREAMS = [("seed", "seed", STREAM), ("position", "position", STREAM)]
DRAFT = [
    ("k", "k", (0, -1, 1.5, "2", 1025)),
    ("kind", "kind", ("best", None, 4)),
    ("depth", "depth", STREAM),
    ("node", "node", STREAM),
]
OK_VERIFY = {"target_logits": LOGITS, "draft_tokens": INTS, "draft_logits": LOGITS[:, :N], "seed": 0, "position": 0}
CALLS = {
    "verify": (ss.verify, OK_VERIFY, VERIFY),
    "packed": (ss.verify, FLAT | {"seed": 0, "position": 0}, PACKED),
    "sample": (ss.sample, {"logits": ROWS, "seed": 0, "position": 0}, [ROW_LOGITS, *ROW_SAMPLING, *STREAMS]),
    "draft": (ss.draft, {"logits": ROWS, "seed": 0, "position": 0}, [ROW_LOGITS, *ROW_SAMPLING, *STREAMS, *DRAFT]),
    "row_stats": (ss.row_stats, {"logits": ROWS}, [ROW_LOGITS, *ROW_SAMPLING]),
    "log_probs": (ss.log_probs, {"logits": ROWS}, [ROW_LOGITS, *ROW_SAMPLING]),
}


def shown(value):
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:30]


REFUSED = [
    pytest.param(call, name, keyword, bad, id=f"{call}-{name}-{i}")
    for call, (_, _, table) in CALLS.items()
    for name, keyword, values in table
    for i, bad in enumerate(values)
]


@pytest.mark.parametrize("call, name, keyword, bad", REFUSED)
def test_refused(call, name, keyword, bad):
    function, good, _ = CALLS[call]
    with pytest.raises(ValueError) as caught:
        function(**good | {keyword: bad})
    message = str(caught.value)
    assert message.startswith((name + ":", name + ".", name + "[")), f"{shown(bad)}: {message}"


@pytest.mark.parametrize("call", CALLS)
def test_not_refused(call):
    function, good, _ = CALLS[call]
    function(**good)


def test_too_many_nodes():
    tokens = torch.zeros(1, 1025, dtype=torch.int64)
    with pytest.raises(ValueError, match="^draft_tokens:.*1024.*1025"):
        ss.verify(torch.zeros(1, 1026, 2), tokens, seed=0, position=0)


def test_messages_show_both_sides():
    for function, good, table in CALLS.values():
        _name, keyword, values = table[0]
        with pytest.raises(ValueError, match="expected .* got "):
            function(**good | {keyword: values[-1]})


def test_unavailable_backend_says_why():
    for name, why in ss.build_info()["unavailable"].items():
        with pytest.raises(ValueError) as caught:
            ss.sample(ROWS, seed=0, position=0, backend=name)
        assert why in str(caught.value)


@pytest.mark.parametrize("call", ["verify", "sample", "draft", "row_stats", "log_probs"])
def test_float64_is_the_references(call):
    """Compiled backends reject float64 logits; if no backend is given, the reference takes them."""
    require("cpu")
    function, good, _ = CALLS[call]
    wide = {k: x.double() if k.endswith("logits") else x for k, x in good.items()}
    with pytest.raises(ValueError, match="logits: expected float32 or bfloat16 or float16, got torch.float64"):
        function(**wide, backend="cpu")
    for x, y in zip(function(**wide), function(**good, backend="reference")):
        assert x is y is None or torch.equal(x, y)


# -- data ----------------------------------------------------------------------------------------------------------


def dirty(logits, kind):
    """(logits with something special in them, ordinary logits with the same laws)"""
    bad, clean = logits.clone(), logits.clone()
    ids = torch.arange(logits.shape[-1])
    some = (ids % 3 == 1).expand(logits.shape)
    if kind == "nan":
        bad[some], clean[some] = NAN, -1e30 if logits.dtype != torch.float16 else -6e4
    elif kind == "-inf":
        bad[some], clean[some] = -INF, -1e30 if logits.dtype != torch.float16 else -6e4
    elif kind == "inf":
        bad[some] = INF
        clean = torch.where(some, 0.0, -INF).to(logits.dtype)
    elif kind == "everything":
        bad[some] = INF
        bad[..., 0::3], bad[..., 2::6] = NAN, -INF
        clean = torch.where(some, 5.0, -INF).to(logits.dtype)
    elif kind == "lowest":  # the mask value of many models
        bad[some], clean[some] = torch.finfo(logits.dtype).min, -INF
    elif kind == "all lowest":  # finite: a flat law
        bad[:], clean = torch.finfo(logits.dtype).min, torch.zeros_like(logits)
    return bad, clean


KINDS = ("nan", "-inf", "inf", "everything", "lowest", "all lowest")
LAWS = (ss.Sampling(), ss.Sampling(0.7, 4, 0.9, 0.01), ss.Sampling(0.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_special_logits(backend, scheme, dtype, kind):
    vocab = 70
    for sampling in LAWS:
        args = case(6, 3, vocab, dtype, scheme, seed=2, sampling=sampling)
        pairs = {name: dirty(args[name], kind) for name in ("target_logits", "draft_logits")}
        for which in (("target_logits",), ("draft_logits",), ("target_logits", "draft_logits")):
            results = [
                ss.verify(**args | {name: pairs[name][i] for name in which}, backend=backend, logprobs="filtered") for i in range(2)
            ]
            torch.testing.assert_close(results[0].logprobs, results[1].logprobs, rtol=1e-5, atol=1e-5)
            identical(*(r._replace(logprobs=None) for r in results))
            assert (results[0].tokens < vocab).all() and (results[0].tokens[:, 0] >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_special_logits_of_rows(backend, kind):
    logits = numbers(8, 70, seed=3, scale=2)
    bad, clean = dirty(logits, kind)
    for sampling in LAWS:
        at = {"sampling": sampling, "backend": backend}
        laws = [ss.log_probs(x, **at).double().exp() for x in (bad, clean)]
        torch.testing.assert_close(*laws, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(laws[0].sum(-1), torch.ones(8, dtype=torch.float64))
        at |= {"seed": 5, "position": 6}
        assert torch.equal(*(ss.sample(x, **at) for x in (bad, clean)))
        for kind, k in (("iid", 2), ("arrivals", 1)):
            assert torch.equal(*(ss.draft(x, k, kind=kind, **at) for x in (bad, clean)))


@pytest.mark.parametrize("value", [NAN, -INF])
def test_rows_without_a_finite_logit(backend, value):
    logits = numbers(3, 50, seed=4)
    logits[1] = value
    stream = {"seed": 1, "position": 2, "backend": backend}
    for sampling in LAWS:
        assert (ss.sample(logits, sampling=sampling, **stream) >= 0).tolist() == [True, False, True]
        assert ss.sample(logits, sampling=sampling, **stream)[1] == -1
        for kind in ("iid", "arrivals", "topk"):
            children = ss.draft(logits, 2, kind=kind, sampling=sampling, **stream)
            assert (children[1] == -1).all() and (children[[0, 2], 0] >= 0).all()
        assert (ss.log_probs(logits, sampling=sampling, backend=backend)[1] == -INF).all()
        assert ss.row_stats(logits, sampling=sampling, backend=backend).max[1] == -INF


def test_fewer_tokens_than_children(backend):
    logits = torch.full((2, 8), -INF)
    logits[:, 3], logits[1, 5] = 1.0, 0.0
    for kind in ("arrivals", "topk"):
        children = ss.draft(logits, 4, kind=kind, seed=0, position=0, backend=backend)
        assert [sorted(x for x in row if x >= 0) for row in children.tolist()] == [[3], [3, 5]]
        assert (children[0, 1:] == -1).all() and (children[1, 2:] == -1).all()
    assert ss.draft(logits, 10, kind="topk", seed=0, position=0, backend=backend).shape == (2, 10)
    assert (ss.draft(logits, 4, kind="iid", seed=0, position=0, backend=backend)[0] == 3).all()


@pytest.mark.parametrize("value", [NAN, -INF])
@pytest.mark.parametrize("broken", range(4))
def test_broken_target_row(backend, scheme, broken, value):
    """The tokens before it stand, and nothing follows."""
    args = case(5, 3, 40, scheme=scheme, seed=5, sharpness=1.0)
    args["draft_logits"] = args["target_logits"][:, :3].clone()
    at = {"seed": args["seed"], "position": args["position"], "backend": backend}
    kind = ss.schemes()[scheme].draft_kind
    args["draft_tokens"] = torch.cat([ss.draft(args["draft_logits"][:, i], kind=kind, depth=i, node=i, **at) for i in range(3)], 1)
    whole = ss.verify(**args, backend=backend)
    assert (whole.num_accepted == 3).all()
    args["target_logits"][2, broken] = value
    verdict = ss.verify(**args, backend=backend, logprobs="filtered")
    others = [0, 1, 3, 4]
    assert torch.equal(verdict.tokens[others], whole.tokens[others])
    assert verdict.num_accepted[2] == broken
    assert verdict.tokens[2].tolist() == args["draft_tokens"][2, :broken].tolist() + [-1] * (4 - broken)
    assert verdict.nodes[2].tolist() == [*range(broken)] + [-1] * (3 - broken)
    assert (verdict.logprobs[2, broken:] == 0).all()


@pytest.mark.parametrize("value", [NAN, -INF])
@pytest.mark.parametrize("broken", range(3))
def test_broken_draft_row(backend, scheme, broken, value):
    """The nodes drawn from it are ignored."""
    if not ss.schemes()[scheme].uses_draft_logits:
        pytest.skip(f"{scheme} does not read the draft's law")
    args = case(30, 3, 40, scheme=scheme, seed=6)
    gone = args["draft_tokens"].clone()
    gone[:, broken] = -1
    expected = ss.verify(**args | {"draft_tokens": gone}, backend=backend)
    args["draft_logits"] = args["draft_logits"].clone()
    args["draft_logits"][:, broken] = value
    identical(ss.verify(**args, backend=backend), expected)
    stats = ss.row_stats(args["draft_logits"].flatten(0, 1), backend=backend)
    identical(ss.verify(**args, draft_stats=stats, backend=backend), expected)


IDS = (-1, -2, -(1 << 31), 40, 41, (1 << 31) - 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("bad", [*IDS, 1 << 32, (1 << 32) + 3, -(1 << 63)])
@pytest.mark.parametrize("at", range(3))
def test_ids_out_of_range(backend, scheme, at, bad, dtype):
    """Such a node is ignored: the chain ends before it, as if it were shorter."""
    if dtype == torch.int32 and bad not in IDS:
        pytest.skip("no int32")
    args = case(30, 3, 40, scheme=scheme, seed=7)
    shorter = {"target_logits": args["target_logits"][:, : at + 1], "draft_tokens": args["draft_tokens"][:, :at]}
    shorter["draft_logits"] = args["draft_logits"][:, :at]
    expected = widened(ss.verify(**args | shorter, backend=backend), 3)
    tokens = args["draft_tokens"].clone()
    tokens[:, at] = bad
    identical(ss.verify(**args | {"draft_tokens": tokens.to(dtype)}, backend=backend), expected)


def test_no_drafts(backend, scheme):
    """N = 0 is plain sampling at the round's position."""
    args = case(20, 0, 40, scheme=scheme, seed=8)
    plain = ss.sample(args["target_logits"][:, 0], seed=args["seed"], position=args["position"], backend=backend)
    for draft_logits in (args["draft_logits"], None):
        verdict = ss.verify(**args | {"draft_logits": draft_logits}, backend=backend, logprobs="raw")
        assert torch.equal(verdict.tokens, plain[:, None]) and (verdict.num_accepted == 0).all()
        assert verdict.nodes.shape == (20, 0) and verdict.logprobs.shape == (20, 1)


@pytest.mark.parametrize("name", ALL_SCHEMES)
def test_nodes_of_no_draft_row(backend, name):
    """If the draft has no rows at all, nodes that name one are ignored."""
    require_scheme(backend, name)
    args = case(20, 0, 40, scheme="token", seed=8) | {"scheme": name}
    logits = args["target_logits"]
    nodes = {"draft_tokens": torch.zeros(20, 2, dtype=torch.int64), "draft_logits": logits[:, :0]}
    nodes |= {"rows": [0, 0, 0], "draft_rows": [0, 0], "parents": [-1, 0]}
    if not ss.schemes()[name].uses_draft_logits:
        nodes["draft_tokens"] = nodes["draft_tokens"] - 1
    plain = ss.sample(logits[:, 0], seed=args["seed"], position=args["position"], backend=backend)
    verdict = ss.verify(**args | nodes, backend=backend)
    assert torch.equal(verdict.tokens[:, 0], plain) and (verdict.tokens[:, 1:] == -1).all()
    assert (verdict.num_accepted == 0).all() and (verdict.nodes == -1).all()


@pytest.mark.parametrize("vocab", [0, 40])
def test_no_requests(backend, scheme, vocab):
    logits = torch.zeros(0, 3, vocab)
    verdict = ss.verify(
        logits, torch.zeros(0, 2, dtype=torch.int64), logits[:, :2], scheme=scheme, seed=0, position=0, backend=backend
    )
    assert [tuple(x.shape) for x in verdict[:3]] == [(0, 3), (0,), (0, 2)]
    assert ss.sample(logits[:, 0], seed=0, position=0, backend=backend).shape == (0,)
    assert ss.draft(logits[:, 0], 2, seed=0, position=0, backend=backend).shape == (0, 2)
    assert all(x.shape == (0,) for x in ss.row_stats(logits[:, 0], backend=backend))
    assert ss.log_probs(logits[:, 0], backend=backend).shape == (0, vocab)


def test_one_token_vocabulary(backend, scheme):
    for sampling in LAWS:
        args = case(4, 3, 1, scheme=scheme, seed=9, sampling=sampling)
        verdict = ss.verify(**args, backend=backend)
        assert (verdict.tokens == 0).all() and (verdict.num_accepted == 3).all()


# Row numbers that name no row: the node (or the request, for the root's row) is ignored.
OUTSIDE = (-1, -5, 4, 99, -(1 << 31), (1 << 31) - 1)


@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("name", ["parents", "rows", "draft_rows"])
def test_indices_out_of_range(backend, scheme, name, bad):
    at = 1
    args = case(20, 3, 40, scheme=scheme, seed=10)
    if name == "draft_rows" and not ss.schemes()[scheme].uses_draft_logits:
        pytest.skip(f"{scheme} does not read the draft's law")
    if name == "parents" and bad == -1:
        pytest.skip("a child of the root")
    values = {"parents": [-1, 0, 1], "rows": [0, 1, 2, 3], "draft_rows": [0, 1, 2]}[name]
    values[at + (name == "rows")] = bad
    gone = args["draft_tokens"].clone()
    gone[:, at] = -1
    expected = widened(ss.verify(**args | {"draft_tokens": gone}, backend=backend), 3)
    for dtype in (torch.int64, torch.int32):
        for shape in ((len(values),), (20, len(values))):
            each = torch.tensor(values).to(dtype).expand(shape)
            identical(ss.verify(**args, **{name: each}, max_depth=3, backend=backend), expected)


@pytest.mark.parametrize("bad", OUTSIDE)
def test_root_row_out_of_range(backend, scheme, bad):
    args = case(3, 2, 40, scheme=scheme, seed=11)
    verdict = ss.verify(**args, rows=[bad, 1, 2], draft_rows=[0, 1], backend=backend)
    assert (verdict.tokens == -1).all() and (verdict.num_accepted == 0).all() and (verdict.nodes == -1).all()


def test_parent_after_its_node(backend, scheme):
    args = case(20, 3, 40, scheme=scheme, seed=12)
    gone = args["draft_tokens"].clone()
    gone[:, 1] = -1
    expected = ss.verify(**args | {"draft_tokens": gone}, backend=backend)
    for parents in ([-1, 1, 1], [-1, 2, 1]):
        identical(ss.verify(**args, parents=parents, draft_rows=[0, 1, 2], max_depth=3, backend=backend), expected)


def test_temperature_tensor_below_zero_or_nan_is_greedy(backend, scheme):
    args = case(6, 3, 40, scheme=scheme, seed=13)
    bad = torch.tensor([-1.0, NAN, 0.0, -INF, 1.0, 0.5])
    zero = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.5])
    results = [ss.verify(**args, sampling=ss.Sampling(t), draft_sampling=ss.Sampling(), backend=backend) for t in (bad, zero)]
    identical(*results)
    assert torch.equal(results[0].tokens[:4, 0], args["target_logits"][:4, 0].argmax(-1))
    rows = args["target_logits"][:, 0]
    at = {"seed": 0, "position": 0, "backend": backend}
    for call in (ss.sample, ss.draft):
        assert torch.equal(*(call(rows, sampling=ss.Sampling(t), **at) for t in (bad, zero)))
    assert torch.equal(*(ss.log_probs(rows, sampling=ss.Sampling(t), backend=backend) for t in (bad, zero)))


def test_greedy_takes_the_lowest_id_on_ties(backend):
    logits = torch.zeros(1, 300)
    logits[0, [7, 100, 299]] = 2.0
    for x in (logits, logits * INF):
        assert ss.sample(x, sampling=ss.Sampling(0.0), seed=0, position=0, backend=backend).tolist() == [7]


def test_packed_with_empty_requests_and_padding(backend, scheme):
    cases = [select(case(6, n, 40, scheme=scheme, seed=14), [n]) for n in (2, 0, 3, 1)]
    expected = stacked([widened(ss.verify(**c, backend=backend), 3) for c in cases])
    holes = [cases[0], None, cases[1], cases[2], None, cases[3], None, None]
    verdict = ss.verify(**packed(holes, spare=4), backend=backend)
    real = [i for i, c in enumerate(holes) if c is not None]
    identical(ss.Verdict(*(None if x is None else x[real] for x in verdict)), expected)
    for i in set(range(8)) - set(real):
        assert (verdict.tokens[i] == -1).all() and verdict.num_accepted[i] == 0 and (verdict.nodes[i] == -1).all()


def test_packed_without_any_rows(backend, scheme):
    cu_rows = torch.zeros(4, dtype=torch.int32)
    for rows in (0, 2):
        verdict = ss.verify(
            torch.zeros(rows, 5), torch.zeros(0, dtype=torch.int64), cu_rows=cu_rows, max_depth=2, scheme=scheme,
            seed=0, position=0, backend=backend,
        )  # fmt: skip
        assert verdict.tokens.shape == (3, 3) and (verdict.tokens == -1).all() and (verdict.num_accepted == 0).all()


def test_packed_rows_that_the_tensors_do_not_have(backend):
    """cu_rows is data: whatever it contains, nothing is read out of bounds and no id beyond the vocabulary comes out."""
    good = FLAT | {"seed": 0, "position": 0, "backend": backend}
    for cu in ([0, 3, 6, 12], [0, 3, 2, 9], [0, 3, 6, 1 << 30], [-4, 3, 6, 9], [9, 9, 20, 30]):
        tokens = ss.verify(**good | {"cu_rows": torch.tensor(cu, dtype=torch.int32)}).tokens
        assert (tokens >= -1).all() and (tokens < V).all()


@pytest.mark.parametrize("vocab", [5, 8193, 100_003, 151_936])
def test_no_id_beyond_the_vocabulary(vocab):
    """A row's padding is not part of it: it holds NaN or +inf, and all mass is on the row's last token."""
    require("cpu")
    for filler in (NAN, INF):
        buffer = torch.full((3, 3, vocab + 61), filler, dtype=torch.bfloat16)
        logits = buffer[:, :, :vocab]
        logits[...] = -INF
        logits[0], logits[1, :, -1] = 0.0, 0.0
        tokens = torch.full((3, 2), vocab - 1)
        for scheme in CHAIN_SCHEMES:
            verdict = ss.verify(logits, tokens, logits[:, :2], scheme=scheme, seed=0, position=0, backend="cpu")
            assert (verdict.tokens < vocab).all() and verdict.tokens[1].tolist() == [vocab - 1] * 3
            assert verdict.tokens[2].tolist() == [-1, -1, -1]
