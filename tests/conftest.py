"""Shared by the tests: backends, cases with drafts drawn from the draft's law, packing, and the chi-square test.

Statistical tests fail a correct implementation once in `1 / FAILURE_RATE` sets of seeds; their seeds are fixed, so each
of them always passes or always fails. A negative control must fall below `CAUGHT`, which shows the test's power.
"""

import faulthandler
import os
import threading

import cuda_on_cpu
import on_gpu
import pytest
import tiers
import torch
from models import nearby, tiny_llama

import specsample as ss
from specsample import backends

BACKENDS = ("reference", "cpu", *on_gpu.NAMES)
ALL_SCHEMES = tuple(ss.schemes())
# Those with a rule of their own on chains. The others reduce to one of these there (test_multi_draft.py shows it, token for token).
CHAIN_SCHEMES = tuple(name for name, card in ss.schemes().items() if card.on_chains == name)
FAILURE_RATE = 1e-6
CAUGHT = 1e-30

# Most operations here are small, and several processes share the cores: a second thread would spin, waiting for its turn,
# for four times the time that it saves. Tests of threads set their own number.
torch.set_num_threads(1)

# A test that takes longer ends its process, naming itself and where it is, even if it hangs in a call of the CUDA driver, which no
# signal reaches (make gpu sets it; 0: no limit).
TEST_SECONDS = float(os.environ.get("SPECSAMPLE_TEST_SECONDS", "0"))
_terminal = os.fdopen(os.dup(2), "w") if TEST_SECONDS else None  # pytest captures the original


def pytest_collection_modifyitems(items):
    tiers.mark(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    if not TEST_SECONDS:
        return (yield)
    name = lambda: print(f"\ntimed out: {item.nodeid}", file=_terminal, flush=True)
    said = threading.Timer(TEST_SECONDS - min(0.2, TEST_SECONDS / 2), name)
    said.daemon = True
    said.start()
    faulthandler.dump_traceback_later(TEST_SECONDS, exit=True, file=_terminal)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        said.cancel()


def require(backend):
    """Skip the test if `backend` is missing, with the reason. -> the name by which CPU tensors reach it"""
    if backend == cuda_on_cpu.NAME:
        cuda_on_cpu.load()
        return backend
    on_a_gpu = backend in on_gpu.NAMES
    why = on_gpu.missing(backend) if on_a_gpu else ss.build_info()["unavailable"].get(backend)
    if why is not None:
        pytest.skip(f"backend {backend}: {why}")
    return on_gpu.load(backend) if on_a_gpu else backend


def require_scheme(backend, scheme):
    """Skip the test if `backend` lacks `scheme`."""
    schemes = backends.BACKENDS[backend].schemes
    if schemes is not None and scheme not in schemes:
        pytest.skip(f"backend {backend} does not have scheme {scheme} yet")


@pytest.fixture(params=BACKENDS)
def backend(request):
    return require(request.param)


@pytest.fixture(scope="module")
def target():
    """A model that a file's tests only read"""
    return tiny_llama(0)


@pytest.fixture(scope="module")
def draft(target):
    """One whose tokens are often, but not always, the target's"""
    return nearby(target, 0.6, 1)


@pytest.fixture(params=CHAIN_SCHEMES)
def scheme(request):
    return request.param


def numbers(*shape, seed, scale=1.0, dtype=torch.float32):
    """Normal numbers: with a scale of a few units, logits of a law that is neither flat nor certain."""
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def drawn(draft_logits, scheme="token", *, seed, position, sampling=None, backend="reference"):
    """Draft tokens of chains, drawn from draft_logits [B, N, V] in the way that the scheme requires: int64 [B, N]"""
    kind, settings = ss.schemes()[scheme].draft_kind, {"sampling": sampling or ss.Sampling()}
    rows = [
        ss.draft(draft_logits[:, i], kind=kind, seed=seed, position=position, depth=i, node=i, backend=backend, **settings)
        for i in range(draft_logits.shape[1])
    ]
    return torch.cat(rows, 1) if rows else torch.zeros(len(draft_logits), 0, dtype=torch.int64)


def case(
    B, N, V, dtype=torch.float32, scheme="token", sharpness=3.0, seed=0, *,
    noise=0.5, draft_vocab=None, one_hot=False, sampling=None, draft_sampling=None,
):  # fmt: skip
    """Arguments of `verify` (a dict): B chains of N tokens drawn from laws near the target's.

    sharpness: standard deviation of the logits; noise: of the draft's distance from the target, in units of sharpness
    """
    target = numbers(B, N + 1, V, seed=3 * seed, scale=sharpness)
    width = V if draft_vocab is None else draft_vocab
    draft = numbers(B, N, width, seed=3 * seed + 1, scale=sharpness * (noise if V > 0 else 1))
    shared = min(V, width)
    draft[..., :shared] += target[:, :N, :shared]
    target, draft = target.to(dtype), draft.to(dtype)
    generator = torch.Generator().manual_seed(3 * seed + 2)
    seeds = torch.randint(-(1 << 62), 1 << 62, (B,), generator=generator)
    positions = torch.randint(1 << 34, (B,), generator=generator)  # both halves of the counter's position
    law = draft_sampling or sampling
    tokens = drawn(draft, scheme, seed=seeds, position=positions, sampling=law)
    args = {"target_logits": target, "draft_tokens": tokens, "draft_logits": None if one_hot else draft}
    args |= {"scheme": scheme, "seed": seeds, "position": positions}
    if sampling is not None:
        args["sampling"] = sampling
    if draft_sampling is not None:
        args["draft_sampling"] = draft_sampling
    return args


def select(args, index):
    """The requests `index` (a list of ints) of a dense case."""
    out = dict(args)
    for name in ("target_logits", "draft_tokens", "draft_logits", "seed", "position"):
        if isinstance(out.get(name), torch.Tensor):
            out[name] = out[name][index]
    for name in ("sampling", "draft_sampling"):
        if out.get(name) is not None:
            fields = [f[index] if isinstance(f, torch.Tensor) and f.dim() else f for f in out[name]]
            out[name] = ss.Sampling(*fields)
    return out


def packed(cases, *, row_a_node=False, spare=0):
    """Cases of one request each (None: a request without rows) in the packed layout; `spare`: unused rows at the end.

    row_a_node: one draft row per node, instead of rows like the target's
    """
    real = [c for c in cases if c is not None]
    like = real[0]
    target_rows, tokens, drafts, cu = [], [], [], [0]
    for c in cases:
        cu.append(cu[-1] + (0 if c is None else c["target_logits"].shape[1]))
        if c is None:
            continue
        target_rows.append(c["target_logits"][0])
        tokens.append(c["draft_tokens"][0])
        if c.get("draft_logits") is not None:
            rows = c["draft_logits"][0]
            drafts.append(rows if row_a_node else torch.cat([rows, torch.full_like(c["target_logits"][0, :1], 7.0)]))
    filler = torch.full((spare, like["target_logits"].shape[-1]), torch.nan, dtype=like["target_logits"].dtype)
    out = {"target_logits": torch.cat([*target_rows, filler]), "scheme": like["scheme"]}
    out["draft_tokens"] = torch.nn.functional.pad(torch.cat(tokens), (0, spare), value=-7)
    if drafts:
        out["draft_logits"] = torch.cat([*drafts, filler])
    blank = torch.zeros(1, dtype=torch.int64)
    for name in ("seed", "position"):
        out[name] = torch.cat([blank if c is None else c[name] for c in cases])
    for name in ("sampling", "draft_sampling"):
        if like.get(name) is not None:
            out[name] = like[name]
    out["cu_rows"] = torch.tensor(cu, dtype=torch.int32)
    out["max_depth"] = max(c["draft_tokens"].shape[1] for c in real)
    return out


def widened(verdict, depth):
    """A verdict as a call with a larger max_depth would return it."""
    extra = depth - verdict.nodes.shape[1]

    def pad(x, value):
        return None if x is None else torch.nn.functional.pad(x, (0, extra), value=value)

    return ss.Verdict(pad(verdict.tokens, -1), verdict.num_accepted, pad(verdict.nodes, -1), pad(verdict.logprobs, 0.0))


def identical(a, b):
    """Assert that two verdicts are identical bit for bit."""
    for name, x, y in zip(a._fields, a, b):
        assert (x is None) == (y is None), name
        if x is not None:
            assert x.dtype == y.dtype and torch.equal(x, y), f"{name}: {x} against {y}"


def same_as_reference(args, backend, logprobs=None):
    """Assert that `verify` gives the reference's integers, and its log-probabilities within float32's rounding. -> the expected verdict"""
    expected = ss.verify(**args, logprobs=logprobs, backend="reference")
    got = ss.verify(**args, logprobs=logprobs, backend=backend)
    if logprobs:
        torch.testing.assert_close(got.logprobs, expected.logprobs, rtol=1e-5, atol=2e-5)
    identical(got._replace(logprobs=None), expected._replace(logprobs=None))
    return expected


def stacked(verdicts):
    """Verdicts of the same width, concatenated."""
    return ss.Verdict(*(None if x[0] is None else torch.cat(x) for x in zip(*verdicts)))


def probabilities(logits, sampling=None):
    """The law of rows of logits, float64"""
    return ss.log_probs(logits, sampling=sampling or ss.Sampling(), backend="reference").exp()


def p_value(outcomes, law):
    """Chi-square test of outcomes (int64, any shape) against probabilities [cells]; 0 if an impossible one occurs."""
    law = torch.as_tensor(law, dtype=torch.float64).flatten()
    counts = torch.bincount(outcomes.flatten(), minlength=len(law)).double()
    if len(counts) > len(law) or counts[law == 0].sum() > 0:
        return 0.0
    expected = law[law > 0] / law.sum() * counts.sum()
    statistic = ((counts[law > 0] - expected) ** 2 / expected).sum()
    freedom = torch.tensor(max(int((law > 0).sum()) - 1, 1), dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))
