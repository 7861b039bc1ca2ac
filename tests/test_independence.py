"""A request's result depends only on its own rows, seed and position, bit for bit within a backend."""

import pytest
import torch
from conftest import case, identical, numbers, packed, select, stacked, widened

import specsample as ss

B, N, V = 12, 4, 203
MIXED = ss.Sampling(torch.tensor([0.7, 0.0, 1.0, 1.4] * 3), torch.tensor([0, 3, 7, 0] * 3), torch.tensor([1.0, 0.9, 0.8, 0.95] * 3))
SETTINGS = {
    "plain": {},
    "filters": {"sampling": ss.Sampling(0.9, 40, 0.95, 0.01), "draft_sampling": ss.Sampling(1.2)},
    "a request": {"sampling": MIXED},
    "one-hot": {"one_hot": True},
}


@pytest.fixture(params=SETTINGS)
def args(request, scheme):
    return case(B, N, V, torch.bfloat16, scheme, seed=11, **SETTINGS[request.param])


def verify(args, backend, **changes):
    return ss.verify(**args | {"logprobs": "filtered", "backend": backend} | changes)


def alone(args, backend):
    """Every request in a separate call."""
    return [verify(select(args, [b]), backend) for b in range(B)]


def test_alone(args, backend):
    identical(verify(args, backend), stacked(alone(args, backend)))


def test_permuted(args, backend):
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0)).tolist()
    expected = ss.Verdict(*(x[order] for x in verify(args, backend)))
    identical(verify(select(args, order), backend), expected)


def test_split(args, backend):
    parts = [verify(select(args, list(p)), backend) for p in (range(5), range(5, 6), range(6, B))]
    identical(verify(args, backend), stacked(parts))


def test_among_64(args, backend):
    order = [b % B for b in range(64)]
    verdict = verify(select(args, order), backend)
    identical(ss.Verdict(*(x[:B] for x in verdict)), verify(args, backend))
    identical(ss.Verdict(*(x[60:] for x in verdict)), ss.Verdict(*(x[:4] for x in verify(args, backend))))


def test_padded_nodes(args, backend):
    """−1 at the end of the chain, followed by rows with arbitrary contents."""
    extra = 3
    junk = numbers(B, extra, V, seed=1, dtype=torch.bfloat16)
    changes = {
        "target_logits": torch.cat([args["target_logits"], junk], 1),
        "draft_tokens": torch.nn.functional.pad(args["draft_tokens"], (0, extra), value=-1),
    }
    if args["draft_logits"] is not None:
        changes["draft_logits"] = torch.cat([args["draft_logits"], junk], 1)
    identical(verify(args | changes, backend), widened(verify(args, backend), N + extra))


@pytest.mark.parametrize("row_a_node", [False, True], ids=["rows like the target", "one row a node"])
def test_packed(args, backend, row_a_node):
    """Chains of unequal length, one after another, with and without requests that have no rows."""
    cases, expected = [], []
    for b in range(B):
        one = select(args, [b])
        length = b % (N + 1)
        one["target_logits"] = one["target_logits"][:, : length + 1]
        one["draft_tokens"] = one["draft_tokens"][:, :length]
        if one["draft_logits"] is not None:
            one["draft_logits"] = one["draft_logits"][:, :length]
        cases.append(one)
        expected.append(widened(verify(one, backend), N))
    settings = {name: args[name] for name in ("sampling", "draft_sampling") if name in args}
    joined = packed(cases, row_a_node=row_a_node, spare=3) | settings
    identical(verify(joined, backend), stacked(expected))

    if settings.get("sampling") is MIXED:
        return
    holes = [None, *cases[:5], None, None, *cases[5:], None]
    verdict = verify(packed(holes, row_a_node=row_a_node, spare=3) | settings, backend)
    real = [i for i, c in enumerate(holes) if c is not None]
    empty = [i for i, c in enumerate(holes) if c is None]
    identical(ss.Verdict(*(x[real] for x in verdict)), stacked(expected))
    assert (verdict.tokens[empty] == -1).all() and (verdict.num_accepted[empty] == 0).all()
    assert (verdict.nodes[empty] == -1).all() and (verdict.logprobs[empty] == 0).all()


def test_int_seed_and_position(args, backend):
    """An int seed s is short for s, s + 1, …; an int position applies to every request."""
    for seed in (0, -2, (1 << 62) + 5):
        short = verify(args, backend, seed=seed, position=1 << 35)
        each = verify(args, backend, seed=seed + torch.arange(B), position=torch.full((B,), 1 << 35))
        identical(short, each)


def test_number_and_tensor_settings(scheme, backend):
    args = case(B, N, V, scheme=scheme, seed=12)
    tensors = ss.Sampling(*(torch.full((B,), x) for x in (0.8, 30, 0.9, 0.01)))
    identical(
        verify(args, backend, sampling=ss.Sampling(0.8, 30, torch.tensor(0.9).item(), torch.tensor(0.01).item()),
               draft_sampling=ss.Sampling(torch.tensor(0.8).item())),
        verify(args, backend, sampling=tensors._replace(temperature=torch.full((B,), 0.8, dtype=torch.float64)),
               draft_sampling=ss.Sampling(tensors.temperature)),
    )  # fmt: skip


def test_threads(args, backend):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(verify(args, backend))
        wide = []
        for threads in (1, 2):  # a row large enough to split among threads
            torch.set_num_threads(threads)
            wide.append(ss.sample(numbers(1, 70_001, seed=5), seed=4, position=9, backend=backend))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        identical(results[0], other)
    assert torch.equal(*wide)


def test_threads_large_rows(scheme, require_cpu):
    """Compiled kernels cut a large row into tiles that do not depend on which thread sums them."""
    before = torch.get_num_threads()
    args = case(1, 2, 100_003, torch.bfloat16, scheme, seed=13, sampling=ss.Sampling(0.9, 0, 0.95))
    try:
        torch.set_num_threads(1)
        single = verify(args, "cpu")
        torch.set_num_threads(2)
        double = verify(args, "cpu")
    finally:
        torch.set_num_threads(before)
    identical(single, double)
    among = dict(select(args, [0] * 9))
    identical(ss.Verdict(*(x[8:] for x in verify(among, "cpu"))), single)


@pytest.fixture
def require_cpu():
    from conftest import require

    require("cpu")


def test_int32_tokens(args, backend):
    narrow = {"draft_tokens": args["draft_tokens"].to(torch.int32), "position": args["position"] % 1000}
    wide = {"draft_tokens": args["draft_tokens"], "position": args["position"] % 1000}
    identical(verify(args | narrow, backend), verify(args | wide, backend))
    narrow["position"] = narrow["position"].to(torch.int32)
    identical(verify(args | narrow, backend), verify(args | wide, backend))


def test_seed_and_position_matter(args, backend):
    """Every request depends on its own seed and position, and on no other's."""
    base = verify(args, backend, sampling=ss.Sampling(3.0), draft_sampling=ss.Sampling(3.0))
    for name in ("seed", "position"):
        for b in (0, B - 1):
            value = args[name].clone()
            value[b] += 1 << 33  # the high half of the word
            got = verify(args, backend, sampling=ss.Sampling(3.0), draft_sampling=ss.Sampling(3.0), **{name: value})
            others = [i for i in range(B) if i != b]
            identical(ss.Verdict(*(x[others] for x in got)), ss.Verdict(*(x[others] for x in base)))
    moved = verify(args, backend, sampling=ss.Sampling(3.0), draft_sampling=ss.Sampling(3.0), seed=args["seed"] + 1)
    assert (moved.tokens != base.tokens).any(1).sum() > B // 2


def test_race_does_not_depend_on_the_draft(backend):
    """The emitted tokens are the winners of the clocks, whatever is drafted and from whatever law."""
    args = case(40, N, V, scheme="race", seed=14)
    winners = torch.stack(
        [ss.sample(args["target_logits"][:, i], seed=args["seed"], position=args["position"] + i, backend=backend)
         for i in range(N + 1)], 1
    )  # fmt: skip
    other = {"draft_tokens": (args["draft_tokens"] * 7 + 3) % V, "draft_logits": numbers(40, N, V, seed=9)}
    cut = {"draft_tokens": torch.where(torch.arange(N) < 2, args["draft_tokens"], -1), "draft_logits": None}
    lengths = []
    for changes in ({}, {"draft_logits": None}, other, cut, {"draft_tokens": winners[:, :N]}):
        verdict = ss.verify(**args | changes, backend=backend)
        shown = verdict.tokens >= 0
        assert torch.equal(verdict.tokens[shown], winners[shown])
        assert torch.equal(shown.sum(1), verdict.num_accepted + 1)
        lengths.append(float(verdict.num_accepted.float().mean()))
    assert lengths[0] == lengths[1] > lengths[2] and lengths[4] == N


ROW_CALLS = {
    "sample": lambda x, at, backend: ss.sample(x, **at, backend=backend)[:, None],
    "iid": lambda x, at, backend: ss.draft(x, 2, kind="iid", **at, backend=backend),
    "arrivals": lambda x, at, backend: ss.draft(x, 3, kind="arrivals", **at, backend=backend),
    "topk": lambda x, at, backend: ss.draft(x, 3, kind="topk", **at, backend=backend),
    "row_stats": lambda x, at, backend: torch.stack(ss.row_stats(x, sampling=at["sampling"], backend=backend), 1),
}


@pytest.mark.parametrize("call", ROW_CALLS)
def test_rows(backend, call):
    call = ROW_CALLS[call]
    logits = numbers(B, V, seed=15, scale=3, dtype=torch.float16)
    at = {"sampling": MIXED, "seed": torch.arange(B) * 77, "position": torch.arange(B) * 3}
    expected = call(logits, at, backend)

    def chosen(rows):
        return {
            "sampling": ss.Sampling(*(x[rows] if isinstance(x, torch.Tensor) else x for x in MIXED)),
            "seed": at["seed"][rows],
            "position": at["position"][rows],
        }

    for rows in ([3], list(range(B))[::-1], [b % B for b in range(64)]):
        assert torch.equal(call(logits[rows], chosen(rows), backend), expected[rows])
