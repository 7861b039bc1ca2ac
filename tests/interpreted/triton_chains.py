"""Rows and chains: the same integers as the reference, whatever the layout; controls that must differ."""

import importlib

import pytest
import torch
import triton
import triton.language as tl  # noqa: F401 (functions under triton.jit must see it)
from conftest import CHAIN_SCHEMES as CHAINS
from conftest import case, identical, numbers, packed, widened
from shared import DTYPES, SAMPLINGS, odd_rows, same

import specsample as ss
from specsample.triton import SUPPORTED, rows

pytest_plugins = ["shared"]


@pytest.mark.parametrize("i, V", list(enumerate((1, 2, 7, 33, 1000, 2051))))
def test_rows(i, V):
    """sample, draft and row_stats."""
    logits = numbers(3, V, seed=V, scale=2.0, dtype=DTYPES[i % 3])
    for sampling in (SAMPLINGS[i % 4], SAMPLINGS[4])[: 1 if V > 1000 else 2]:
        at = {"sampling": sampling, "seed": -3 - i, "position": (1 << 33) + i}
        more = (("distinct", 3), ("lists", 2), ("top", 3), ("top", 1)) if 1 < V < 1000 else ()
        for kind, k in (("iid", 1), ("iid", 3), ("arrivals", 3), ("topk", 3), *more):
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


def test_odd_rows():
    logits = odd_rows(9, numbers(5, 9, seed=1))
    for sampling in (ss.Sampling(), ss.Sampling(0.0), ss.Sampling(1.0, 3, 0.8, 0.01)):
        at = {"sampling": sampling, "seed": 1, "position": 2}
        assert torch.equal(ss.sample(logits, **at, backend="triton"), ss.sample(logits, **at, backend="reference"))
        for kind in ("iid", "arrivals", "topk", "distinct", "top"):
            got, want = (ss.draft(logits, 4, kind=kind, **at, backend=name) for name in ("triton", "reference"))
            assert torch.equal(got, want), (kind, got, want)
        got, want = (ss.row_stats(logits, sampling=sampling, backend=name) for name in ("triton", "reference"))
        for x, y in zip(got, want):
            torch.testing.assert_close(x, y, rtol=2e-6, atol=2e-6)


def independent_children(k, logits=None, **how):
    """(Triton's, the reference's)"""
    logits = numbers(2, 50, seed=6, scale=4.0) if logits is None else logits
    at = {"seed": 8, "position": 3, "node": torch.tensor([(1 << 14) - 1, (1 << 14) + 5])} | how
    return [ss.draft(logits, k, kind="iid", **at, backend=name) for name in ("triton", "reference")]


def test_independent_children(monkeypatch):
    """Tokens that arrive many times, others far below them, and flat laws; with the kernels for few children and for many."""
    near, far = torch.tensor([[1e7, 1e7 - 3, -1e7], [1e7, 1e7, 3.0]]), torch.tensor([[0.0, 9.0, 8.0], [3e38, -3e38, 3e38]])
    for logits in (None, near, far, torch.zeros(2, 5)):
        got, want = independent_children(9, logits)
        assert torch.equal(got, want), logits
        assert logits is not None or all(2 < len(set(row.tolist())) < 8 for row in want)
    got, want = independent_children(33, numbers(1, 9, seed=6), node=1)
    assert torch.equal(got, want)
    monkeypatch.setattr(rows, "FEW_CHILDREN", 8)
    for sampling in SAMPLINGS[:2]:
        assert torch.equal(*independent_children(9, sampling=sampling))


@pytest.mark.parametrize("name", ["renewal", "clock_of", "score_at"])
def test_control_a_wrong_renewal_is_caught(monkeypatch, name):
    """One that is not numbered, an arrival that is forgotten, a score without the token's weight."""
    right = getattr(rows, name)
    wrong = {
        "renewal": lambda s, node, token, number: right(s, node, token, number * 0 + 1),
        "clock_of": lambda s, token: right(s, token) * 0.0,
        "score_at": lambda row, vocab, law, token, clock: right(row, vocab, law, token * 0, clock),
    }
    monkeypatch.setattr(rows, name, wrong[name])
    got, want = independent_children(9)
    assert torch.equal(got[:, 0], want[:, 0]) and not torch.equal(got, want)


@pytest.mark.parametrize("i, V", list(enumerate((1, 2, 7, 33, 1000))))
@pytest.mark.parametrize("scheme", CHAINS)
def test_verify(scheme, i, V):
    for j, sampling in enumerate((SAMPLINGS[(i + CHAINS.index(scheme)) % 4], SAMPLINGS[4])):
        args = case(3, 1 if V > 100 else 2, V, DTYPES[(i + j) % 3], scheme, seed=i + 10 * j, sampling=sampling)
        same(args, (None, "filtered", "raw")[(i + j) % 3])


@pytest.mark.parametrize("scheme", CHAINS)
def test_acceptance(scheme):
    """Many small requests, in which every way of stopping occurs."""
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
    """Requests of several lengths, one without rows, unused rows at the end: each as when alone."""
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


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_no_drafts_with_a_draft_tensor(scheme):
    """Draft logits with no rows: dense, packed, and with nodes that name missing rows."""
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
    """One graph, and the op's schema and fake kernel as checked by torch."""
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
