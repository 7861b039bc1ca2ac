"""What only a GPU can show: graph capture and replay, streams, torch.compile, no synchronisation, large offsets, memory.

That its tokens are the reference's is in the other files, whose cases run on `cuda` where it is available.
"""

import pytest
import torch
from conftest import SCHEMES, case, identical, require

import specsample as ss


@pytest.fixture(autouse=True)
def gpu():
    require("cuda")


def on_gpu(args):
    return {k: x.cuda() if isinstance(x, torch.Tensor) else x for k, x in args.items()}


def back(verdict):
    return ss.Verdict(*(None if x is None else x.cpu() for x in verdict))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_default_backend_is_cuda_and_right(scheme):
    args = case(7, 3, 5000, torch.bfloat16, scheme, seed=1, sampling=ss.Sampling(0.9, 50, 0.95))
    verdict = ss.verify(**on_gpu(args))
    assert verdict.tokens.is_cuda
    identical(back(verdict), ss.verify(**args, backend="reference"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_captured_graph_replays_on_new_inputs(scheme):
    first, second = (case(4, 3, 3000, torch.bfloat16, scheme, seed=s) for s in (2, 3))
    held = on_gpu(first)
    ss.verify(**held, logprobs="filtered")  # kernels are loaded outside the capture
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


def test_nothing_waits_for_the_device():
    args = on_gpu(case(4, 3, 3000, torch.bfloat16, "block", seed=4))
    rows = args["target_logits"][:, 0]
    ss.verify(**args)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ss.verify(**args, logprobs="raw")
        ss.draft(rows, 2, kind="arrivals", seed=1, position=2)
        ss.row_stats(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_calls_run_on_the_current_stream():
    """Logits that a side stream writes late are seen by a call on that stream."""
    good = torch.full((2, 20_000), -5.0)
    good[:, 777] = 50.0
    source, logits = good.cuda(), torch.zeros(2, 20_000, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        logits.copy_(source, non_blocking=True)
        tokens = ss.sample(logits, seed=1, position=1)
    stream.synchronize()
    assert tokens.tolist() == [777, 777]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compile_fullgraph(scheme):
    args = on_gpu(case(4, 2, 500, torch.bfloat16, scheme, seed=5))
    logits = args.pop("target_logits")

    def step(logits):
        return ss.verify(logits * 1.0, **args).tokens + 1

    assert torch.equal(torch.compile(step, fullgraph=True)(logits), step(logits))


def test_rows_beyond_2_31_elements():
    vocab, rows = 151_936, 14_200  # 2.16e9 elements
    if torch.cuda.mem_get_info()[0] < 2 * vocab * rows + (1 << 30):
        pytest.skip("not enough GPU memory for 4.3 GB")
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16, device="cuda")
    logits[-1] = 3 * torch.randn(vocab, device="cuda")
    alone = logits[-1:].clone()
    seeds = torch.arange(rows, device="cuda")
    got = ss.sample(logits, seed=seeds, position=5)[-1:]
    assert torch.equal(got, ss.sample(alone, seed=seeds[-1:], position=5))


def test_scratch_is_small():
    args = on_gpu(case(16, 4, 50_000, torch.bfloat16, "token", seed=6, sampling=ss.Sampling(0.8, 50, 0.9)))
    ss.verify(**args)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    verdict = ss.verify(**args)
    assert torch.cuda.max_memory_allocated() - before < 64 << 10
    assert verdict.tokens.shape == (16, 5)
