"""What only a GPU can show: graph capture and replay, streams, torch.compile, no synchronisation, large offsets, memory.

That its tokens are the reference's is tested in the other files, whose cases run on `cuda` and `triton` if available.
"""

import pytest
import torch
from conftest import ALL_SCHEMES, CHAIN_SCHEMES, case, identical, require, require_scheme
from on_gpu import NAMES
from trees import drafted_tree

import specsample as ss


@pytest.fixture(params=NAMES, autouse=True)
def backend(request):
    """For tensors on the GPU"""
    require(request.param)
    return request.param


def on_gpu(args):
    return {k: x.cuda() if isinstance(x, torch.Tensor) else x for k, x in args.items()}


def back(verdict):
    return ss.Verdict(*(None if x is None else x.cpu() for x in verdict))


@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_the_default_backend_runs_on_the_gpu_and_is_right(backend, scheme):
    """By default, the first available one that reads the tensors where they are."""
    args = case(7, 3, 5000, torch.bfloat16, scheme, seed=1, sampling=ss.Sampling(0.9, 50, 0.95))
    there = ss.build_info()["backends"]
    if backend != ("cuda" if "cuda" in there else "triton"):
        pytest.skip("the other one is the default here")
    verdict = ss.verify(**on_gpu(args))
    assert verdict.tokens.is_cuda
    identical(back(verdict), ss.verify(**args, backend="reference"))


@pytest.mark.parametrize("B", [4, 16], ids=["rows ahead and an early round", "a round alone"])
@pytest.mark.parametrize("scheme", ALL_SCHEMES)
def test_a_captured_graph_replays_on_new_inputs(backend, scheme, B):
    """With teams, and if all rows are read before the round, with the round's programmatic launch."""
    require_scheme(backend, scheme)
    V = 50_000  # for teams of 8 blocks
    if scheme in CHAIN_SCHEMES:
        first, second = (case(B, 4, V, torch.bfloat16, scheme, seed=s) for s in (2, 3))  # see test_teams.py: FEW, MANY
    else:  # its lists are on the device after the first call
        first, second = (drafted_tree(B, 3, 2, V, scheme, seed=s, dtype=torch.bfloat16) | {"max_depth": 2} for s in (2, 3))
    held = on_gpu(first) | {"backend": backend}
    ss.verify(**held, logprobs="filtered")  # loads the kernels outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        verdict = ss.verify(**held, logprobs="filtered")
    for args in (first, second, first):
        for name, value in on_gpu(args).items():
            if isinstance(value, torch.Tensor):
                held[name].copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        expected = ss.verify(**args, backend="reference")
        identical(back(verdict)._replace(logprobs=None), expected)


def test_nothing_waits_for_the_device(backend):
    args = on_gpu(case(4, 3, 3000, torch.bfloat16, "block", seed=4)) | {"backend": backend}
    tree = on_gpu(drafted_tree(4, 3, 2, 3000, "recursive", seed=4, dtype=torch.bfloat16)) | {"backend": backend}
    assert isinstance(tree["parents"], list)
    rows = args["target_logits"][:, 0]

    def calls():
        ss.verify(**args, logprobs="raw")
        ss.verify(**tree, logprobs="raw")
        ss.draft(rows, 2, kind="arrivals", seed=1, position=2, backend=backend)
        ss.row_stats(rows, backend=backend)

    calls()
    torch.cuda.set_sync_debug_mode("error")
    try:
        calls()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_calls_run_on_the_current_stream(backend):
    """Logits written late by a side stream are seen by a call on that stream."""
    good = torch.full((2, 20_000), -5.0)
    good[:, 777] = 50.0
    source, logits = good.cuda(), torch.zeros(2, 20_000, device="cuda")
    stream = torch.cuda.Stream()
    ss.sample(logits, seed=1, position=1, backend=backend)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        logits.copy_(source, non_blocking=True)
        tokens = ss.sample(logits, seed=1, position=1, backend=backend)
    stream.synchronize()
    assert tokens.tolist() == [777, 777]


@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_compile_fullgraph(backend, scheme):
    args = on_gpu(case(4, 2, 500, torch.bfloat16, scheme, seed=5)) | {"backend": backend}
    logits = args.pop("target_logits")

    def step(logits):
        return ss.verify(logits * 1.0, **args).tokens + 1

    assert torch.equal(torch.compile(step, fullgraph=True)(logits), step(logits))


def test_rows_beyond_2_31_elements(backend):
    vocab, rows = 151_936, 14_200  # 2.16e9 elements
    if torch.cuda.mem_get_info()[0] < 2 * vocab * rows + (1 << 30):
        pytest.skip("not enough GPU memory for 4.3 GB")
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16, device="cuda")
    logits[-1] = 3 * torch.randn(vocab, device="cuda")
    alone = logits[-1:].clone()
    seeds = torch.arange(rows, device="cuda")
    got = ss.sample(logits, seed=seeds, position=5, backend=backend)[-1:]
    assert torch.equal(got, ss.sample(alone, seed=seeds[-1:], position=5, backend=backend))


def test_a_request_whose_rows_lie_beyond_2_31_elements(backend):
    """The last of many requests, whose target and draft rows are views of one large tensor."""
    vocab, rows, depth = 151_936, 14_200, 3
    if torch.cuda.mem_get_info()[0] < 2 * vocab * rows + (1 << 30):
        pytest.skip("not enough GPU memory for 4.3 GB")
    args = on_gpu(case(1, depth, vocab, torch.bfloat16, "token", seed=8))
    large = torch.zeros(rows // 2, 2, vocab, dtype=torch.bfloat16, device="cuda")  # target rows, and draft rows next to them
    large[-depth - 1 :, 0], large[-depth - 1 : -1, 1] = args["target_logits"][0], args["draft_logits"][0]
    far = {"target_logits": large[None, -depth - 1 :, 0], "draft_logits": large[None, -depth - 1 : -1, 1]}
    assert far["draft_logits"].storage_offset() > 1 << 31
    identical(ss.verify(**args | far, backend=backend), ss.verify(**args, backend=backend))
    # … and with an offset that the kernel computes itself.
    B = rows // 2 // (depth + 1)
    many = large[-B * (depth + 1) :].view(B, depth + 1, 2, vocab)
    tokens = torch.zeros(B, depth, dtype=torch.int64, device="cuda")
    tokens[-1:] = args["draft_tokens"]
    seeds = torch.arange(B, device="cuda")
    seeds[-1:] = args["seed"]
    positions = torch.zeros(B, dtype=torch.int64, device="cuda")
    positions[-1:] = args["position"]
    whole = ss.verify(many[:, :, 0], tokens, many[:, :-1, 1], seed=seeds, position=positions, backend=backend)
    identical(ss.Verdict(*(x if x is None else x[-1:] for x in whole)), ss.verify(**args, backend=backend))


def test_scratch_is_small(backend):
    args = on_gpu(case(16, 4, 50_000, torch.bfloat16, "token", seed=6, sampling=ss.Sampling(0.8, 50, 0.9))) | {"backend": backend}
    ss.verify(**args)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    verdict = ss.verify(**args)
    assert torch.cuda.max_memory_allocated() - before < 64 << 10
    assert verdict.tokens.shape == (16, 5)
