"""Every compiled backend emits the reference's integers.

The contract excuses one token in 10 000 (a draw within 1e-5 of its boundary). With the fixed seeds used here no excuse
is needed, so the comparison is exact.
"""

import cuda_on_cpu
import on_gpu
import pytest
import torch
from conftest import ALL_SCHEMES, CHAIN_SCHEMES, case, identical, numbers, require, same_as_reference

import specsample as ss
from specsample import backends

COMPILED = ("cpu", *on_gpu.NAMES, cuda_on_cpu.NAME)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
B_MIXED = 5
SAMPLINGS = {
    "plain": ss.Sampling(),
    "temperature": ss.Sampling(0.7),
    "top-k": ss.Sampling(top_k=5),
    "top-p": ss.Sampling(top_p=0.9),
    "min-p": ss.Sampling(min_p=0.02),
    "all": ss.Sampling(1.3, 50, 0.95, 0.001),
    "greedy": ss.Sampling(0.0),
    "a request": ss.Sampling(
        torch.tensor([0.7, 0.0, 1.0, 1.4, 0.3]),
        torch.tensor([0, 3, 7, 0, 1]),
        torch.tensor([1.0, 0.9, 0.8, 0.95, 1.0]),
        torch.tensor([0.0, 0.1, 0.05, 0.0, 0.2]),
    ),
    "greedy among random": ss.Sampling(torch.tensor([0.0, 1.0, 0.0, 0.8, -1.0])),
}
# Small vocabularies run every setting; large ones, which are slow on the reference, run some.
SMALL = {1: 3, 2: 4, 7: 5, 16: 5, 1000: 4}
LARGE = {
    32000: ("plain", "all", "greedy among random"),
    128257: ("a request",),
    151936: ("top-p",),
}
LOGPROBS = (None, "filtered", "raw")


@pytest.fixture(params=COMPILED, autouse=True)
def compiled(request):
    return require(request.param)


def few(compiled, takes_part):
    """GPU kernels are slow on the CPU: they run some of the many cases."""
    if compiled == cuda_on_cpu.NAME and not takes_part:
        pytest.skip(f"{compiled} takes a part of these cases")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("setting", SAMPLINGS)
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_verify(compiled, scheme, setting, dtype):
    few(compiled, (CHAIN_SCHEMES.index(scheme) + list(SAMPLINGS).index(setting) - DTYPES.index(dtype)) % 3 == 0)
    accepted = 0
    for i, (V, N) in enumerate(SMALL.items()):
        args = case(B_MIXED, N, V, dtype, scheme, seed=i, sampling=SAMPLINGS[setting])
        accepted += int(same_as_reference(args, compiled, LOGPROBS[i % 3]).num_accepted.sum())
    assert accepted > 0


@pytest.mark.parametrize("V, setting", [(V, s) for V, settings in LARGE.items() for s in settings])
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_verify_large_vocabulary(compiled, scheme, V, setting):
    few(compiled, (V, setting) == (32000, "all"))
    dtype = DTYPES[(CHAIN_SCHEMES.index(scheme) + V) % 3]
    sampling = ss.Sampling(*(x[:2] if isinstance(x, torch.Tensor) else x for x in SAMPLINGS[setting]))
    same_as_reference(case(2, 1, V, dtype, scheme, sharpness=2.0, seed=V, sampling=sampling), compiled)


@pytest.mark.parametrize("sharpness", [0.0, 0.1, 30.0])
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_flat_and_certain_laws(compiled, scheme, sharpness):
    for setting in ("plain", "all"):
        same_as_reference(case(16, 3, 500, torch.bfloat16, scheme, sharpness, seed=1, sampling=SAMPLINGS[setting]), compiled)


@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_many_requests(compiled, scheme):
    few(compiled, scheme == "block")
    verdict = same_as_reference(case(500, 4, 33, torch.float32, scheme, seed=2), compiled)
    assert 0.3 < float(verdict.num_accepted.float().mean()) < 3.9


@pytest.mark.parametrize("setting", ["plain", "all", "a request"])
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_one_hot_drafts(compiled, scheme, setting):
    same_as_reference(case(B_MIXED, 4, 300, scheme=scheme, seed=3, one_hot=True, sampling=SAMPLINGS[setting]), compiled, "raw")


@pytest.mark.parametrize("setting", ["plain", "all", "greedy", "a request"])
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_draft_stats(compiled, scheme, setting):
    """Kept statistics save a pass and change no token."""
    N, sampling = 3, SAMPLINGS[setting]
    args = case(B_MIXED, N, 700, torch.bfloat16, scheme, seed=4, sampling=sampling)
    a_row = ss.Sampling(*(x.repeat_interleave(N) if isinstance(x, torch.Tensor) else x for x in sampling))
    for source in ("reference", compiled):
        stats = ss.row_stats(args["draft_logits"].flatten(0, 1), sampling=a_row, backend=source)
        verdict = same_as_reference(args | {"draft_stats": stats}, compiled)
        identical(verdict, ss.verify(**args, backend="reference"))


@pytest.mark.parametrize("draft_vocab", [1, 90, 101, 160])
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_draft_vocabulary(compiled, scheme, draft_vocab):
    for setting in ("plain", "all"):
        args = case(40, 3, 100, scheme=scheme, seed=5, draft_vocab=draft_vocab, sampling=SAMPLINGS[setting])
        verdict = same_as_reference(args, compiled)
        assert int(verdict.tokens.max()) < 100


@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_draft_sampling(compiled, scheme):
    """A draft law with separate settings: one for all, per request, per draft row."""
    B, N, V = 4, 3, 200
    each = ss.Sampling(torch.linspace(0.5, 1.5, B), torch.arange(B) * 9)
    rows = ss.Sampling(torch.linspace(0.0, 1.5, B * N), top_p=torch.linspace(0.5, 1.0, B * N))
    for draft_sampling in (ss.Sampling(0.8, 20), each, rows):
        args = case(B, N, V, scheme=scheme, seed=6, sampling=SAMPLINGS["top-p"])
        same_as_reference(args | {"draft_sampling": draft_sampling}, compiled)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [*SMALL, 32000])
def test_rows(compiled, V, dtype):
    """sample, draft, row_stats and log_probs."""
    few(compiled, V <= 1000 or dtype == torch.bfloat16)
    settings = SAMPLINGS if V <= 1000 else {"a request": SAMPLINGS["a request"]}
    logits = numbers(B_MIXED, V, seed=V, scale=2.0, dtype=dtype)
    kinds = (("iid", 2), ("iid", 5), ("arrivals", 3), ("topk", 3), ("distinct", 3), ("lists", 2), ("top", 3))
    has = backends.BACKENDS[compiled].kinds
    kinds = [kind for kind in kinds if has is None or kind[0] in has]
    ids = torch.arange(B_MIXED)
    for sampling in settings.values():
        at = {"sampling": sampling, "seed": -3, "position": 1 << 33}
        calls = [lambda backend: ss.sample(logits, **at, backend=backend)]
        for kind, k in kinds:
            at_node = at | {"depth": ids % 2, "node": 5 * ids}
            calls.append(lambda backend, kind=kind, k=k, at=at_node: ss.draft(logits, k, kind=kind, **at, backend=backend))
        for call in calls:
            assert torch.equal(call(compiled), call("reference"))

        expected = ss.row_stats(logits, sampling=sampling, backend="reference")
        for name, x, y in zip(expected._fields, ss.row_stats(logits, sampling=sampling, backend=compiled), expected):
            assert x.dtype == torch.float32
            torch.testing.assert_close(x, y, rtol=2e-6, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")
        if V <= 1000:
            expected = ss.log_probs(logits, sampling=sampling, backend="reference")
            got = ss.log_probs(logits, sampling=sampling, backend=compiled)
            assert got.dtype == torch.float32 and expected.dtype == torch.float64
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1e4, -1e6, 1e8, -1e16, 1e20, -1e36])
def test_large_logits(compiled, shift):
    """A law is unchanged if a constant is added to its logits (beyond 2^24 it becomes flat), and so are the clocks."""
    logits = numbers(200, 50, seed=20, scale=2.0) + shift
    for sampling in (SAMPLINGS["plain"], SAMPLINGS["temperature"], SAMPLINGS["top-p"]):
        at = {"sampling": sampling, "seed": 0, "position": 0}
        assert torch.equal(ss.sample(logits, **at, backend=compiled), ss.sample(logits, **at, backend="reference"))


def test_every_scheme_is_compared():
    for name, card in ss.schemes().items():
        assert "reference" in card.backends, f"{name}: add a reference"
        assert name in ALL_SCHEMES and len(card.backends) > 1, f"{name}: no compiled backend has it, so nothing is compared"
