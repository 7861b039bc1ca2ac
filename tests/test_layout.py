"""Any strides with a contiguous last dimension, shared rows, packed layouts, small trees: the same as with plain tensors."""

import cuda_on_cpu
import pytest
import torch
from conftest import BACKENDS, case, drawn, identical, numbers, packed, require, select, stacked, widened

import specsample as ss


@pytest.fixture(params=(*BACKENDS, cuda_on_cpu.NAME))
def backend(request):
    return require(request.param)


B, N, V = 4, 3, 41


def inside(x, before=2, after=5, filler=float("nan")):
    """A copy of x [..., R, V] as a slice of a larger buffer full of `filler`."""
    rows, width = x.shape[-2] + 3, x.shape[-1] + before + after
    buffer = torch.full((*x.shape[:-2], rows, width), filler, dtype=x.dtype)
    view = buffer[..., 1 : 1 + x.shape[-2], before : before + x.shape[-1]]
    view.copy_(x)
    return view


def transposed(x):
    """A copy of x [B, R, V] whose rows lie before its requests."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def every_other(x):
    """A copy of x [B, R, V] among rows of NaN."""
    buffer = torch.full((2 * x.shape[0], 2 * x.shape[1], x.shape[2]), torch.nan, dtype=x.dtype)
    buffer[1::2, ::2] = x
    return buffer[1::2, ::2]


VIEWS = {
    "slice": inside,
    "slice of +inf": lambda x: inside(x, 1, 2, float("inf")),
    "slice at 0": lambda x: inside(x, 0, 1),
    "transposed": transposed,
    "every other": every_other,
    "slice of a transpose": lambda x: transposed(inside(x)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_strides(backend, scheme, view, dtype):
    args = case(B, N, V, dtype, scheme, seed=21, sampling=ss.Sampling(0.9, 20, 0.95))
    args["logprobs"], args["backend"] = "filtered", backend
    expected = ss.verify(**args)
    tokens = torch.full((B, 2 * N), -5)
    tokens[:, ::2] = args["draft_tokens"]
    changes = {name: VIEWS[view](args[name]) for name in ("target_logits", "draft_logits")}
    assert not changes["target_logits"].is_contiguous()
    before = {name: x.clone() for name, x in changes.items()}
    identical(ss.verify(**args | changes | {"draft_tokens": tokens[:, ::2]}), expected)
    identical(ss.verify(**args | changes | {"draft_tokens": args["draft_tokens"].t().contiguous().t()}), expected)
    for name, x in changes.items():
        assert torch.equal(x, before[name]), f"{name} was written to"


def test_offsets_of_the_first_logit(backend):
    """Rows that start at every alignment."""
    logits = numbers(3, 70, seed=22, dtype=torch.bfloat16, scale=2)
    expected = ss.sample(logits, seed=1, position=2, backend=backend)
    for offset in range(34):
        buffer = torch.full((3, 70 + 34 + 5), torch.inf, dtype=torch.bfloat16)
        buffer[:, offset : offset + 70] = logits
        view = buffer[:, offset : offset + 70]
        assert torch.equal(ss.sample(view, seed=1, position=2, backend=backend), expected)
        kinds = {kind: ss.draft(view, 2, kind=kind, seed=1, position=2, backend=backend) for kind in ("iid", "topk")}
        for kind, children in kinds.items():
            assert torch.equal(children, ss.draft(logits, 2, kind=kind, seed=1, position=2, backend=backend))
        for x, y in zip(ss.row_stats(view, backend=backend), ss.row_stats(logits, backend=backend)):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_expanded(backend, scheme):
    """Stride 0: one row for all requests, one for all nodes; and strided seeds, positions and settings."""
    row, draft_row = numbers(1, 1, V, seed=23, scale=2), numbers(1, 1, V, seed=24, scale=2)
    target, draft = row.expand(B, N + 1, V), draft_row.expand(B, N, V)
    seed, position = torch.arange(2 * B)[::2], torch.tensor(70).expand(B)
    temperature = torch.linspace(0.5, 1.0, 2 * B)[::2]
    args = {"scheme": scheme, "backend": backend, "draft_tokens": drawn(draft, scheme, seed=seed, position=position)}
    got = ss.verify(target, draft_logits=draft, seed=seed, position=position, sampling=ss.Sampling(temperature), **args)
    plain = ss.Sampling(temperature.contiguous())
    target, draft, seed = target.contiguous(), draft.contiguous(), seed.contiguous()
    expected = ss.verify(target, draft_logits=draft, seed=seed, position=70, sampling=plain, **args)
    identical(got, expected)


def test_strided_statistics(backend):
    args = case(B, N, V, torch.bfloat16, "token", seed=25)
    stats = ss.row_stats(args["draft_logits"].flatten(0, 1), backend=backend)
    spread = ss.RowStats(*(torch.stack([x, torch.full_like(x, 9.0)], 1)[:, 0] for x in stats))
    identical(ss.verify(**args, draft_stats=spread, backend=backend), ss.verify(**args, backend=backend))
    shaped = ss.RowStats(*(x.view(B, N) for x in stats))
    identical(ss.verify(**args, draft_stats=shaped, backend=backend), ss.verify(**args, backend=backend))


def test_outputs_are_new(backend, scheme):
    args = case(B, N, V, scheme=scheme, seed=26)
    first = ss.verify(**args, logprobs="raw", backend=backend)
    kept = [x.clone() for x in first]
    for x in first:
        assert x.is_contiguous() and x.storage_offset() == 0 and x.untyped_storage().nbytes() == x.nbytes
    second = ss.verify(**args, logprobs="raw", backend=backend)
    for x, y, before in zip(first, second, kept):
        assert x.data_ptr() != y.data_ptr()
        y.fill_(3)
        assert torch.equal(x, before)
    assert len({x.data_ptr() for x in (*first, *args.values()) if isinstance(x, torch.Tensor)}) == 9
    assert [x.dtype for x in first] == [torch.int64, torch.int32, torch.int32, torch.float32]


@pytest.mark.parametrize("row_a_node", [False, True], ids=["rows like the target", "one row a node"])
def test_packed_strides(backend, scheme, row_a_node):
    cases = [case(1, n, V, scheme=scheme, seed=30 + n) for n in (2, 3, 1)]
    expected = stacked([widened(ss.verify(**c, backend=backend), 3) for c in cases])
    args = packed([cases[0], None, cases[1], cases[2]], row_a_node=row_a_node)
    args["target_logits"] = inside(args["target_logits"])
    args["draft_logits"] = inside(args["draft_logits"], 1, 0)
    verdict = ss.verify(**args, backend=backend)
    identical(ss.Verdict(*(None if x is None else x[[0, 2, 3]] for x in verdict)), expected)


def test_packed_per_node_inputs(backend, scheme):
    """parents, rows and draft_rows of each request, relative to it."""
    cases = [case(1, n, V, scheme=scheme, seed=40 + n) for n in (2, 0, 3)]
    expected = stacked([widened(ss.verify(**c, backend=backend), 3) for c in cases])
    args = packed(cases)
    joined = {
        "parents": torch.tensor([-1, 0, -1, 0, 1]),
        "rows": torch.tensor([0, 1, 2, 0, 0, 1, 2, 3]),
        "draft_rows": torch.tensor([0, 1, 0, 1, 2]),
    }
    identical(ss.verify(**args, **joined, backend=backend), expected)
    for name, values in joined.items():
        identical(ss.verify(**args, **{name: values.to(torch.int32)}, backend=backend), expected)


@pytest.mark.parametrize("form", ["list", "one for all", "a request"])
def test_rows_in_another_order(backend, scheme, form):
    """rows and draft_rows say where each row is."""
    args = case(B, N, V, scheme=scheme, seed=27)
    expected = ss.verify(**args, backend=backend)
    order, draft_order = [3, 1, 5, 0], [4, 2, 0]
    target, draft = numbers(B, 6, V, seed=28), numbers(B, 5, V, seed=29)
    target[:, order], draft[:, draft_order] = args["target_logits"], args["draft_logits"]
    places = {"rows": order, "draft_rows": draft_order}
    if form != "list":
        places = {k: torch.tensor(x, dtype=torch.int32) for k, x in places.items()}
    if form == "a request":
        places = {k: x.expand(B, -1) for k, x in places.items()}
    identical(ss.verify(**args | {"target_logits": target, "draft_logits": draft} | places, backend=backend), expected)


def test_default_draft_rows_follow_rows(backend, scheme):
    """Without draft_rows, each node was drawn from the draft row with its parent's number among the target rows."""
    args = case(B, N, V, scheme=scheme, seed=31)
    order = [2, 0, 3, 1]
    target, draft = torch.zeros(B, 4, V), torch.zeros(B, 4, V)
    target[:, order], draft[:, order[:N]] = args["target_logits"], args["draft_logits"]
    got = ss.verify(**args | {"target_logits": target, "draft_logits": draft, "rows": order}, backend=backend)
    identical(got, ss.verify(**args, backend=backend))


def test_shared_rows(backend, scheme):
    """A law that does not depend on the prefix: one target row and one draft row for all nodes."""
    target, draft = numbers(B, 1, V, seed=32, scale=2), numbers(B, 1, V, seed=33, scale=2)
    stream = {"seed": 5, "position": 100}
    wide_target, wide_draft = target.repeat(1, N + 1, 1), draft.repeat(1, N, 1)
    tokens = drawn(wide_draft, scheme, **stream)
    expected = ss.verify(wide_target, tokens, wide_draft, scheme=scheme, backend=backend, **stream)
    shared = {"rows": [0] * (N + 1), "draft_rows": [0] * N, "backend": backend}
    identical(ss.verify(target, tokens, draft, scheme=scheme, **shared, **stream), expected)
    del shared["draft_rows"]
    identical(ss.verify(target, tokens, draft, scheme=scheme, **shared, **stream), expected)


@pytest.mark.parametrize("depth", range(N + 1))
def test_max_depth(backend, scheme, depth):
    """Nodes deeper than max_depth are ignored, and the output is as narrow."""
    args = case(40, N, V, scheme=scheme, seed=34, noise=0.2)
    shorter = {
        "target_logits": args["target_logits"][:, : depth + 1],
        "draft_tokens": args["draft_tokens"][:, :depth],
        "draft_logits": args["draft_logits"][:, :depth],
    }
    expected = ss.verify(**args | shorter, logprobs="raw", backend=backend)
    identical(ss.verify(**args, max_depth=depth, logprobs="raw", backend=backend), expected)
    deeper = ss.verify(**args, max_depth=N + 2, backend=backend)
    identical(deeper, widened(ss.verify(**args, backend=backend), N + 2))
    assert (expected.num_accepted == depth).any()


def test_parents_of_a_chain(backend, scheme):
    args = case(B, N, V, scheme=scheme, seed=35)
    expected = ss.verify(**args, backend=backend)
    chain = torch.tensor([-1, 0, 1])
    for parents in ([-1, 0, 1], chain, chain.expand(B, N), chain.to(torch.int32)):
        identical(ss.verify(**args, parents=parents, backend=backend), expected)


# A tree of two levels: nodes 0, 1 are the root's children, 2, 3 node 0's, 4 node 1's.
TREE = [-1, -1, 0, 0, 1]


def test_race_on_a_tree(backend):
    """The emitted tokens are the winners of the clocks, along whichever branch contains them."""
    requests = 60
    target = numbers(requests, 6, V, seed=36, scale=1.5)
    at = {"seed": torch.arange(requests) * 13, "position": torch.arange(requests) + (1 << 32), "backend": backend}
    near = target + numbers(requests, 6, V, seed=37, scale=1.0)

    def children(row, k, depth, node):
        return ss.draft(near[:, row], k, kind="arrivals", depth=depth, node=node, **at)

    tokens = torch.cat([children(0, 2, 0, 0), children(1, 2, 1, 2), children(2, 1, 1, 4)], 1)
    verdict = ss.verify(target, tokens, parents=TREE, scheme="race", **at)
    assert verdict.tokens.shape == (requests, 3)

    def winner(row, depth):
        rows = target[torch.arange(requests), row]
        return ss.sample(rows, **at | {"position": at["position"] + depth})

    row = torch.zeros(requests, dtype=torch.int64)
    alive = torch.ones(requests, dtype=torch.bool)
    for depth in range(3):
        expected = winner(row, depth)
        assert torch.equal(verdict.tokens[:, depth], torch.where(alive, expected, -1))
        if depth < 2:
            below = (torch.tensor(TREE) == row[:, None] - 1) & (tokens == expected[:, None])
            alive = alive & below.any(1)
            node = below.to(torch.int64).argmax(1)
            assert torch.equal(verdict.nodes[:, depth], torch.where(alive, node, -1).to(torch.int32))
            row = torch.where(alive, node + 1, row)
    assert {0, 1, 2} == set(verdict.num_accepted.tolist())
    assert {2, 3, 4} <= set(verdict.nodes[:, 1].tolist())


def test_race_siblings_with_one_token(backend):
    """Accepting a token moves to all siblings that carry it; `nodes` names the first."""
    target = numbers(20, 5, V, seed=38)
    target[:, 2] = target[:, 1]  # equal prefixes have equal rows
    at = {"seed": 3, "position": 50, "backend": backend}
    first = ss.sample(target[:, 0], **at)
    second = ss.sample(target[:, 1], **at | {"position": 51})
    tokens = torch.stack([first, first, (second + 1) % V, second], 1)  # the right child belongs to the second twin
    verdict = ss.verify(target, tokens, parents=[-1, -1, 0, 1], scheme="race", **at)
    assert (verdict.num_accepted == 2).all()
    assert verdict.nodes.tolist() == [[0, 3]] * 20
    assert torch.equal(verdict.tokens[:, :2], torch.stack([first, second], 1))


# -- offsets past 2^31 elements ------------------------------------------------------------------------------------

FAR = 2**31 + 64
FAR_VOCAB = 300


@pytest.fixture(scope="module")
def far():
    """A buffer of 4.3 GB, of which only the pages written take memory."""
    try:
        return torch.empty(FAR + 40 * FAR_VOCAB, dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"not enough memory: {error}")


def at_far(far, x, start=0):
    """x [2, R, V] as a view whose two requests are 2^31 + 64 elements apart."""
    view = far.as_strided(x.shape, (FAR, x.shape[2], 1), start)
    view.copy_(x)
    return view


def test_offsets_past_2_31_of_verify(backend, scheme, far):
    args = case(2, N, FAR_VOCAB, torch.bfloat16, scheme, seed=39, sampling=ss.Sampling(0.9, 0, 0.95))
    expected = stacked([ss.verify(**select(args, [b]), logprobs="raw", backend=backend) for b in range(2)])
    distant = {
        "target_logits": at_far(far, args["target_logits"]),
        "draft_logits": at_far(far, args["draft_logits"], 8 * FAR_VOCAB),
    }
    identical(ss.verify(**args | distant, logprobs="raw", backend=backend), expected)
    second = select(args | distant, slice(1, 2))
    assert second["target_logits"].storage_offset() > 2**31
    identical(ss.verify(**second, logprobs="raw", backend=backend), ss.Verdict(*(x[1:] for x in expected)))


def test_offsets_past_2_31_of_packed_rows(backend, scheme, far):
    """Two rows that far apart: a chain of one node."""
    args = case(1, 1, FAR_VOCAB, torch.bfloat16, scheme, seed=40)
    expected = ss.verify(**args, backend=backend)
    rows = at_far(far, args["target_logits"].transpose(0, 1))[:, 0]
    changes = {"target_logits": rows, "draft_tokens": args["draft_tokens"][0], "draft_logits": args["draft_logits"][0]}
    cu_rows = torch.tensor([0, 2], dtype=torch.int32)
    identical(ss.verify(**args | changes, cu_rows=cu_rows, max_depth=1, backend=backend), expected)


def test_offsets_past_2_31_of_rows(backend, far):
    logits = numbers(2, 1, FAR_VOCAB, seed=41, scale=2, dtype=torch.bfloat16)
    rows, near = at_far(far, logits)[:, 0], logits[:, 0]
    at = {"seed": 1, "position": 2, "backend": backend}
    assert torch.equal(ss.sample(rows, **at), ss.sample(near, **at))
    for kind in ("iid", "arrivals", "topk"):
        assert torch.equal(ss.draft(rows, 3, kind=kind, **at), ss.draft(near, 3, kind=kind, **at))
    for x, y in zip(ss.row_stats(rows, backend=backend), ss.row_stats(near, backend=backend)):
        assert torch.equal(x, y)


@pytest.mark.parametrize("greedy", (False, True))
@pytest.mark.parametrize("scheme", [name for name, card in ss.schemes().items() if card.trees])
def test_more_siblings_than_are_looked_at(scheme, greedy):
    """The first 64 count; some of the others carry the accepted token, and some of those were drawn from nothing. Two levels."""
    require("cpu")
    card, siblings, vocab, batch = ss.schemes()[scheme], 80, 12, 40
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(vocab, (batch, 2 * siblings), generator=generator)
    target, draft = (torch.randn(batch, rows, vocab, generator=generator) for rows in (2, 3))
    draft[:, 2] = -torch.inf
    where = torch.arange(siblings) % 3 == 2  # of the later ones: drawn from nothing
    level = torch.where(where & (torch.arange(siblings) >= 60), 2, 0)
    args = {
        "target_logits": target, "draft_tokens": tokens, "draft_logits": draft if card.uses_draft_logits else None,
        "parents": [-1] * siblings + list(range(siblings)), "rows": [0] + [1] * (2 * siblings), "max_depth": 2, "scheme": scheme,
        "sampling": ss.Sampling(0.0 if greedy else 1.0), "draft_sampling": ss.Sampling(1.0), "seed": 3, "position": 9,
        "draft_rows": torch.cat([level, torch.full((siblings,), 1)]),
    }  # fmt: skip
    expected = ss.verify(**args, backend="reference")
    identical(ss.verify(**args, backend="cpu"), expected)
    assert int(expected.num_accepted.sum()) > batch / 2
