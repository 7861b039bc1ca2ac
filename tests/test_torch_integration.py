"""The ops as torch sees them: opcheck, torch.compile without graph breaks or recompilations, fake tensors."""

import pytest
import torch
from conftest import case, identical, numbers, require
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import specsample as ss

B, N, V = 3, 2, 40
OFF = [1.0, 0.0, 1.0, 0.0]
LOGITS = numbers(B, V, seed=1)
TARGET, DRAFT = numbers(B, N + 1, V, seed=2), numbers(B, N, V, seed=3)
TOKENS = torch.tensor([[1, 2], [-1, 4], [39, 0]])
STREAM = (5, None, 9, None)  # seed, seeds, position, positions
STREAMS = (0, torch.arange(B), 0, torch.arange(B) * 3)
A_REQUEST = torch.tensor([[1.0, 0.0, 0.7], [0.0, 4.0, 0.0], [1.0, 0.9, 1.0], [0.0, 0.0, 0.1]], dtype=torch.float64)
CU = torch.tensor([0, 3, 3, 9], dtype=torch.int32)
STATS = tuple(ss.row_stats(DRAFT.flatten(0, 1), backend="reference"))
NONE = (None,) * 3


def verify_args(scheme="token", draft=DRAFT, tree=(None,) * 4, rows=None, stats=NONE, stream=STREAM, kind=0):
    settings = (OFF, rows, OFF, rows)
    return (TARGET, TOKENS, draft, *tree, N, scheme, [], *settings, *stats, *stream, None, kind)


PACKED = (
    TARGET.flatten(0, 1), TOKENS.flatten(), None, None, None, None, None, N, "token", [], OFF, None, OFF, None, *NONE,
    *STREAM, CU, 0,
)  # fmt: skip
# op -> its arguments, by position
OPS = {
    "sample": [(LOGITS, OFF, None, *STREAM), (LOGITS.bfloat16(), OFF, A_REQUEST, *STREAMS)],
    "draft": [
        (LOGITS, 1, "iid", OFF, None, *STREAM, 0, None, 0, None),
        (LOGITS, 3, "arrivals", OFF, A_REQUEST, *STREAMS, 0, torch.arange(B), 0, torch.arange(B)),
        (LOGITS, 2, "topk", OFF, None, *STREAM, 1, None, 4, None),
    ],
    "row_stats": [(LOGITS, [0.7, 5.0, 0.9, 0.01], None), (LOGITS.half(), OFF, A_REQUEST)],
    "verify": [
        verify_args(),
        verify_args("block", kind=1, stats=STATS),
        verify_args("race", draft=None, kind=2, stream=STREAMS, rows=A_REQUEST),
        verify_args("token", tree=(torch.tensor([-1, 0]), torch.tensor([0, 1, 2]), torch.tensor([0, 1]), None)),
        PACKED,
    ],
}


@pytest.fixture(autouse=True)
def _cpu():
    require("cpu")
    torch._dynamo.reset()


@pytest.mark.parametrize("name, i", [(name, i) for name, calls in OPS.items() for i in range(len(calls))])
def test_opcheck(name, i):
    """torch's own checks: the schema, the fake kernel against the real one, static and dynamic shapes under AOT."""
    torch.library.opcheck(getattr(torch.ops.specsample, name), OPS[name][i])


def test_every_op_is_checked():
    from specsample.ops import SCHEMAS

    assert set(OPS) == set(SCHEMAS)


PLAIN = {name: x for name, x in case(B, N, V, seed=4).items() if isinstance(x, torch.Tensor)}
TREE = torch.tensor([-1, 0])
FULL = ss.Sampling(0.8, 20, 0.95, 0.001)


def row_call(function, **settings):
    return lambda seed, position, backend: function(LOGITS, seed=seed, position=position, backend=backend, **settings)


def round_call(**settings):
    data = {name: x for name, x in PLAIN.items() if name not in ("seed", "position")} | settings
    return lambda seed, position, backend: ss.verify(**data, seed=seed, position=position, backend=backend)


# what is compiled: (seed, position, backend) -> tensors
COMPILED = {
    "sample": row_call(ss.sample, sampling=FULL),
    "draft iid": row_call(ss.draft, k=2),
    "draft arrivals": row_call(ss.draft, k=2, kind="arrivals", depth=1),
    "draft topk": row_call(ss.draft, k=3, kind="topk"),
    "row_stats": lambda seed, position, backend: ss.row_stats(LOGITS + seed, sampling=FULL, backend=backend),
    "log_probs": lambda seed, position, backend: ss.log_probs(LOGITS + seed, sampling=FULL, backend=backend),
    "token": round_call(logprobs="filtered"),
    "block": round_call(scheme="block", sampling=FULL),
    "race": round_call(scheme="race", draft_logits=None),
    "settings as tensors": round_call(sampling=ss.Sampling(torch.tensor([0.0, 0.5, 1.0]), top_p=torch.tensor(0.9))),
    "rows": round_call(rows=[0, 1, 2], draft_rows=[0, 1]),
    "tree": round_call(parents=TREE, scheme="race", max_depth=N),
    "tree as a list": round_call(parents=[-1, 0], scheme="race", max_depth=N),
}


def equal(a, b):
    for x, y in zip(a, b) if isinstance(a, tuple) else [(a, b)]:
        assert x is y is None or torch.equal(x, y)


@pytest.mark.parametrize("call", COMPILED)
def test_compile(call):
    """fullgraph, equal to eager, and no new graph for another seed or position."""
    function, counter = COMPILED[call], CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda s, p: function(s, p, None), backend=counter, fullgraph=True)
    equal(compiled(5, 70), function(5, 70, None))
    equal(compiled(6, 71), function(6, 71, None))  # here torch learns that the numbers vary
    graphs = counter.frame_count
    assert graphs <= 2
    for seed, position in ((7, 72), (123456789, 1 << 40), (-3, 12)):
        equal(compiled(seed, position), function(seed, position, None))
    assert counter.frame_count == graphs, "recompiled for another seed or position"


@pytest.mark.parametrize("call", ["token", "sample"])
def test_compile_streams_as_tensors(call):
    function, counter = COMPILED[call], CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda s, p: function(s, p, None), backend=counter, fullgraph=True)
    for i in range(3):
        seed, position = torch.arange(B) + i, torch.full((B,), 9 * i)
        equal(compiled(seed, position), function(seed, position, None))
    assert counter.frame_count == 1


def test_compile_with_inductor():
    """The default compiler, between ordinary operations, with any number of requests and drafts."""

    def round(target, draft, tokens, seed, position):
        verdict = ss.verify(2 * target, tokens, draft + 1, seed=seed, position=position, scheme="block")
        return verdict.tokens, verdict.num_accepted + 1, verdict.nodes

    compiled = torch.compile(round, fullgraph=True, dynamic=True)
    for size in (2, 3, 5):
        args = case(size, N, V, scheme="block", seed=size)
        inputs = [args[name] for name in ("target_logits", "draft_logits", "draft_tokens", "seed", "position")]
        equal(compiled(*inputs), round(*inputs))


@pytest.mark.parametrize("call", ["sample", "row_stats", "token", "block", "race"])
def test_compile_reference(call):
    """The reference is plain torch, so it compiles too."""
    function = COMPILED[call]
    compiled = torch.compile(lambda s, p: function(s, p, "reference"), backend="aot_eager", fullgraph=True)
    equal(compiled(5, 70), function(5, 70, "reference"))


def test_fake_tensors():
    with FakeTensorMode():
        target, draft = torch.empty(B, N + 1, V, dtype=torch.bfloat16), torch.empty(B, N, V, dtype=torch.bfloat16)
        tokens = torch.zeros(B, N, dtype=torch.int64)
        for logprobs in (None, "raw"):
            verdict = ss.verify(target, tokens, draft, seed=0, position=0, logprobs=logprobs)
            assert [(tuple(x.shape), x.dtype) for x in verdict[:3]] == [
                ((B, N + 1), torch.int64), ((B,), torch.int32), ((B, N), torch.int32)
            ]  # fmt: skip
            assert (verdict.logprobs is None) == (logprobs is None)
        assert verdict.logprobs.shape == (B, N + 1) and verdict.logprobs.dtype == torch.float32
        cu_rows = torch.zeros(B + 1, dtype=torch.int32)
        verdict = ss.verify(target.flatten(0, 1), tokens.flatten(), seed=0, position=0, cu_rows=cu_rows, max_depth=7)
        assert [tuple(x.shape) for x in verdict[:3]] == [(B, 8), (B,), (B, 7)]
        assert ss.sample(target[:, 0], seed=0, position=0).shape == (B,)
        for kind in ("iid", "arrivals", "topk"):
            children = ss.draft(draft[:, 0], 5, kind=kind, seed=0, position=0)
            assert children.shape == (B, 5) and children.dtype == torch.int64
        for x in ss.row_stats(target[:, 0]):
            assert x.shape == (B,) and x.dtype == torch.float32


def test_meta_tensors():
    """Shapes without data, through the op itself."""
    got = torch.ops.specsample.sample(LOGITS.to("meta"), OFF, None, *STREAM)
    assert got.device.type == "meta" and got.shape == (B,)


def test_inference_mode_and_gradients(scheme):
    """Logits that require gradients are read like others; the integers carry none."""
    args = case(B, N, V, scheme=scheme, seed=6)
    expected = ss.verify(**args)
    with torch.inference_mode():
        identical(ss.verify(**args), expected)
    asking = {name: args[name].clone().requires_grad_() for name in ("target_logits", "draft_logits")}
    verdict = ss.verify(**args | asking)
    identical(verdict, expected)
    assert not verdict.tokens.requires_grad
