"""Teams of several blocks: every kind of row and call whose passes a team shares, with rows long enough for a team.

On a GPU the launch chooses: 8 blocks for few requests with V = 50 000, and all rows before the round if these are few too. The
emulator is set to do so, with small crews, so that shorter rows suffice.
"""

import contextlib
import os
import subprocess
import sys

import cuda_on_cpu
import native
import on_gpu
import pytest
import torch
from conftest import CHAIN_SCHEMES, case, identical, numbers, packed, require, require_scheme, same_as_reference, stacked, widened
from trees import drafted_tree

import specsample as ss
from specsample import backends

NAMES = (*on_gpu.NAMES, cuda_on_cpu.NAME)
MULTI = tuple(name for name in backends.BACKENDS["cuda"].schemes if name not in CHAIN_SCHEMES)
WIDE, SHORT = 50_000, 2501  # on a GPU; on the emulator
FILTERED = ss.Sampling(0.8, 700, 0.95, 0.001)
# Requests whose rows are all read before the round, and requests with too many rows for that (csrc/cuda/verify.cu) that still
# have a team of 8 blocks each: on GPUs with 132 to 148 multiprocessors.
FEW, MANY = 2, 16


def chains(requests, V, dtype, scheme, **how):
    return case(requests, 4 if requests == MANY else 3, V, dtype, scheme, **how)


def packed_chains(requests, V, scheme, row_a_node):
    """(arguments, cases of one request each): requests of unequal length, the second one without rows"""
    lengths = (3, 1, 2, 4, 3, 0, 3, *[4] * 11) if requests == MANY else (3, 1, 2)
    cases = [case(1, n, V, torch.bfloat16, scheme, seed=10 + i, sampling=FILTERED) for i, n in enumerate(lengths)]
    return packed([cases[0], None, *cases[1:]], row_a_node=row_a_node, spare=1), cases


def trees(requests, V, scheme, **how):
    return drafted_tree(requests, 3, 2, V, scheme, seed=3, dtype=torch.bfloat16, noise=0.3, sampling=FILTERED, **how)


@pytest.fixture(params=NAMES)
def on(request):
    """(backend, V)"""
    return require(request.param), SHORT if request.param == cuda_on_cpu.NAME else WIDE


@pytest.fixture(params=["ahead", "not ahead"])
def requests(request, on):
    """Number of requests; either all rows are read before the round, or the round reads those it reaches."""
    return FEW if request.param == "ahead" else 3 if on[0] == cuda_on_cpu.NAME else MANY


@contextlib.contextmanager
def teams(backend, requests):
    if backend == cuda_on_cpu.NAME:
        with cuda_on_cpu.launches(32, shuffle=requests, team=8 if requests == FEW else 4, ahead=requests == FEW):
            yield
    else:
        yield


def same(args, backend, requests, logprobs=None):
    with teams(backend, requests):
        return same_as_reference(args, backend, logprobs)


@pytest.mark.parametrize("scheme", ["token", "block"])
def test_residual_of_a_deterministic_draft(on, requests, scheme):
    backend, V = on
    for sampling in (ss.Sampling(), FILTERED):
        args = chains(requests, V, torch.bfloat16, scheme, seed=1, one_hot=True, sampling=sampling)
        verdict = same(args, backend, requests)
        assert (verdict.num_accepted < 3).any()  # the residual was needed


@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_filtered_rows(on, requests, scheme):
    backend, V = on
    a_request = ss.Sampling(torch.linspace(0.5, 1.2, requests), torch.arange(requests) * 300, 0.9, 0.001)
    for i, sampling in enumerate((FILTERED, ss.Sampling(top_p=0.9), a_request)):
        args = chains(requests, V, (torch.float32, torch.bfloat16, torch.float16)[i], scheme, seed=2 + i, sampling=sampling)
        verdict = same(args, backend, requests, "raw" if i else "filtered")
        assert (verdict.num_accepted < 3).any()


@pytest.mark.parametrize("row_a_node", [False, True], ids=["rows like the target", "one row a node"])
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_packed_calls(on, requests, scheme, row_a_node):
    backend, V = on
    args, cases = packed_chains(requests, V, scheme, row_a_node)
    with teams(backend, requests):
        verdict = ss.verify(**args, backend=backend)
    expected = stacked([widened(ss.verify(**c, backend="reference"), args["max_depth"]) for c in cases])
    identical(ss.Verdict(*(None if x is None else torch.cat([x[:1], x[2:]]) for x in verdict)), expected)
    assert int(verdict.num_accepted[1]) == 0 and (verdict.tokens[1] == -1).all()


@pytest.mark.parametrize("scheme", MULTI)
def test_trees(on, requests, scheme):
    """With few bins and, for schemes with bins, with more than fit in shared memory."""
    backend, V = on
    require_scheme(backend, scheme)
    accepted = 0
    for bins in (None, 1200) if "bins" in ss.schemes()[scheme].options else (None,):
        args = trees(requests, V, scheme)
        verdict = same(args if bins is None else args | {"options": {"bins": bins}}, backend, requests)
        accepted += int(verdict.num_accepted.sum())
    assert accepted > 0


def test_kept_statistics_and_rows(on, requests):
    backend, V = on
    args = chains(requests, V, torch.bfloat16, "block", seed=5, sampling=FILTERED)
    rows = numbers(requests, V, seed=6, scale=2.0, dtype=torch.bfloat16)
    at = {"sampling": FILTERED, "seed": 3, "position": 1 << 33}
    with teams(backend, requests):
        stats = ss.row_stats(args["draft_logits"].flatten(0, 1), sampling=FILTERED, backend=backend)
        tokens = [ss.draft(rows, 3, kind=kind, **at, backend=backend) for kind in ("iid", "arrivals", "topk", "top", "distinct")]
    same(args | {"draft_stats": stats}, backend, requests)
    for kind, got in zip(("iid", "arrivals", "topk", "top", "distinct"), tokens):
        assert torch.equal(got, ss.draft(rows, 3, kind=kind, **at, backend="reference")), kind


@pytest.mark.parametrize("requests", [FEW, MANY])
@pytest.mark.parametrize("scheme", [name for name in (*CHAIN_SCHEMES, *MULTI) if name != "lists"])  # which never reads ahead
def test_rows_are_few_or_many(scheme, requests):
    """On a GPU each case of this file takes the path in its name: ahead if twice its rows fit the multiprocessors."""
    if scheme in CHAIN_SCHEMES:
        cases = [chains(requests, 9, torch.float32, scheme, one_hot=one_hot) for one_hot in (False, True)]
        cases += [packed_chains(requests, 9, scheme, row_a_node)[0] for row_a_node in (False, True)]
    else:
        cases = [trees(requests, 9, scheme)]
    for args in cases:
        draft = args["draft_logits"] if ss.schemes()[scheme].uses_draft_logits else None
        rows = sum(x.shape[:-1].numel() for x in (args["target_logits"], draft) if x is not None)
        assert [2 * rows <= processors for processors in (132, 148)] == [requests == FEW] * 2, rows
        assert len(args["seed"]) <= 132 // 8 or "cu_rows" in args


# -- debugging aids ----------------------------------------------------------------------------------------------------


def smoke(*arguments, **variables):
    """benchmarks/gpu/smoke.py on the emulator, in a separate process: the variables are read once"""
    cuda_on_cpu.load()  # built before the processes need it
    program = [sys.executable, "-m", "benchmarks.gpu.smoke", "--backend", cuda_on_cpu.NAME, "--vocabulary", "2500", *arguments]
    env = {**os.environ, "PYTHONPATH": str(native.ROOT), **variables}
    return subprocess.run(program, cwd=native.ROOT, env=env, capture_output=True, text=True, timeout=120)


def launches(done):
    assert done.returncode == 0 and "wrong: none" in done.stdout, done.stdout + done.stderr
    return [line.removeprefix("specsample: ") for line in done.stderr.splitlines()]


def test_launches_are_overridden():
    """For each call: all rows ahead, the round, the log-probabilities."""
    require("cpu")
    ahead = {"SPECSAMPLE_AHEAD": "1", "SPECSAMPLE_TRACE": "1"}
    early = launches(smoke("--only", "e, filtered", **ahead, SPECSAMPLE_TEAM="4"))  # race and recursive
    assert early == [f"{n} teams of 4{how}" for rows, depth in ((12, 3), (15, 2)) for n, how in
                     ((rows, ""), (3, ", early"), (3 * (depth + 1), ""))]  # fmt: skip
    late = launches(smoke("--only", "race, filtered", **ahead, SPECSAMPLE_EARLY="0"))
    assert late == [f"{n} teams of 1" for n in (12, 3, 12)]


def test_a_round_is_early_only_behind_its_own_launch():
    """Without rows nothing is read ahead: the work before the round in the stream is then unrelated, and must have ended."""
    code = (
        "import torch, cuda_on_cpu, specsample as ss; cuda_on_cpu.load()\n"
        "args = torch.zeros(2, 0, 9), torch.zeros(2, 0, dtype=torch.int64)\n"
        "print(ss.verify(*args, rows=[0], scheme='race', seed=1, position=1, backend=cuda_on_cpu.NAME).tokens.tolist())"
    )
    cuda_on_cpu.load()
    env = {**os.environ, "PYTHONPATH": native.PYTHONPATH}
    env |= {"SPECSAMPLE_AHEAD": "1", "SPECSAMPLE_TRACE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[[-1], [-1]]\n" and done.stderr == "specsample: 2 teams of 1\n", done.stdout + done.stderr


def test_a_wrong_override_is_named():
    done = smoke("--only", "row_stats", SPECSAMPLE_TEAM="3")
    assert done.returncode != 0 and "SPECSAMPLE_TEAM: expected one of 1, 2, 4, 8, got 3" in done.stderr
