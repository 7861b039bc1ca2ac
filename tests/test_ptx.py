"""The CUDA kernels as compiled by nvcc, their PTX executed on the CPU and launched by the shipped code (ptx_machine.py).

Here: every scheme's tokens equal the reference's, on each architecture's text, in teams of every size, with rows read ahead or not;
the launch code's failure modes; and edits of that text, each a mistake that the machine must find. The default run takes some of
the cases; `make check-ptx` (SPECSAMPLE_CHECK_PTX=1) takes all.
"""

import os
import re
import subprocess
import sys

import known_answers
import native
import ptx_machine
import pytest
import torch
from conftest import CHAIN_SCHEMES, case, identical, numbers, packed, stacked, widened
from ptx_cases import DTYPES, FILTERED, KINDS, NAMES, SAMPLINGS, args_of, same
from ptx_machine import ALL, ARCHS, KERNELS, NAME, edited, launches, on

import specsample as ss

# Vocabularies for which the launch code chooses teams of this many blocks (capacity.h), on a GPU with room for them.
WIDE = {1: 777, 2: 5641, 4: 11_300, 8: 22_600}
MANY_BINS = 1200  # their histogram does not fit in shared memory


@pytest.fixture(scope="module", autouse=True)
def machine():
    return ptx_machine.load()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_opcode_is_in_the_table(machine, arch, kernel):
    text = ptx_machine.text(kernel, arch)
    assert KERNELS[kernel] in text and f".target {arch}" in text and len(text) > 100_000
    assert machine.specsample_ptx_unknown(text.encode()).decode() == ""
    assert machine.specsample_ptx_unknown(text.replace("brev.b32", "verb.b32").encode()).decode() == "verb.b32\n"


# -- the same integers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize("arch", ARCHS)
def test_schemes(arch, scheme):
    """Dense, one block per request, in some order of the warps; also log-probabilities."""
    accepted = 0
    at = NAMES.index(scheme) + ARCHS.index(arch)
    settings = [(V, sampling) for V in (7, 130, 1025) for sampling in SAMPLINGS]
    for i, (V, sampling) in enumerate(settings if ALL else [settings[(7 * at + 4 * n) % len(settings)] for n in range(3)]):
        args = args_of(scheme, 3, V, dtype=DTYPES[(at + i) % 3], seed=at + i, sampling=sampling)
        with on(arch, 8, shuffle=i):
            accepted += int(same(args, (None, "filtered", "raw")[i % 3]).num_accepted.sum())
            assert {(a, cluster, early) for _, a, _, cluster, early in launches()} == {(arch, 1, False)}
    assert accepted > 0


@pytest.mark.parametrize("row_a_node", [False, True], ids=["rows like the target", "one row a node"])
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
@pytest.mark.parametrize("arch", ARCHS)
def test_packed_calls(arch, scheme, row_a_node):
    """Requests of unequal length, the second one without rows"""
    cases = [case(1, n, 500, DTYPES[n % 3 - n % 3], scheme, seed=10 + n, sampling=FILTERED) for n in (3, 1, 2)]
    args = packed([cases[0], None, *cases[1:]], row_a_node=row_a_node, spare=1)
    with on(arch, 132 if row_a_node else 8, shuffle=1):
        verdict = ss.verify(**args, backend=NAME)
    expected = stacked([widened(ss.verify(**c, backend="reference"), args["max_depth"]) for c in cases])
    identical(ss.Verdict(*(None if x is None else torch.cat([x[:1], x[2:]]) for x in verdict)), expected)
    assert int(verdict.num_accepted[1]) == 0 and (verdict.tokens[1] == -1).all()


@pytest.mark.parametrize("early", [True, False], ids=["ahead", "not ahead"])
@pytest.mark.parametrize("team", WIDE)
@pytest.mark.parametrize("scheme", NAMES)
def test_teams(scheme, team, early):
    """The launch code chooses the team by the row's length, and whether rows are read ahead by the number of multiprocessors."""
    at = NAMES.index(scheme) + team
    if not ALL and (at + early) % 4:
        pytest.skip("make check-ptx takes every scheme with every team")
    args = args_of(scheme, 2, WIDE[team], dtype=DTYPES[at % 3], seed=at, sampling=(None, FILTERED)[at // 3 % 2])
    processors = 132 if early else 16  # read ahead needs fewer than half as many rows; 16 have room for both requests' teams
    with on("sm_90", processors, shuffle=at):
        same(args, "filtered" if at % 2 else None)
        rounds = [(cluster, is_early) for kernel, _, blocks, cluster, is_early in launches() if blocks == 2 * team]
    assert rounds[-1 if not at % 2 else 0][0] == team, rounds
    assert any(is_early for _, is_early in rounds) == (early and scheme != "lists"), rounds


@pytest.mark.parametrize("scheme", [s for s in NAMES if "bins" in ss.schemes()[s].options])
@pytest.mark.parametrize("arch", ARCHS)
def test_bins_in_global_memory(arch, scheme):
    args = args_of(scheme, 2, WIDE[2], dtype=torch.bfloat16, seed=2, sampling=FILTERED)
    with on(arch, shuffle=3):
        assert int(same(args | {"options": {"bins": MANY_BINS}}).num_accepted.sum()) > 0


@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
@pytest.mark.parametrize("arch", ARCHS)
def test_residuals_and_kept_statistics(arch, scheme):
    """With a draft without logits, and with one whose statistics were kept"""
    with on(arch, shuffle=2):
        args = case(3, 3, 300, torch.bfloat16, scheme, seed=1, one_hot=True, sampling=FILTERED)
        assert (same(args, "raw").num_accepted < 3).any()
        args = case(3, 3, 700, torch.bfloat16, scheme, seed=4, draft_vocab=650)
        stats = ss.row_stats(args["draft_logits"].flatten(0, 1), backend=NAME)
        same(args | {"draft_stats": stats})


@pytest.mark.parametrize("V", [1, 130, WIDE[1], WIDE[8]])
@pytest.mark.parametrize("arch", ARCHS)
def test_rows(arch, V):
    """sample, draft, row_stats"""
    many = ALL or V < 1000
    rows = numbers(3 if many else 1, V, seed=V, scale=2.0, dtype=DTYPES[V % 3])
    for i, sampling in enumerate(SAMPLINGS if ALL else (ss.Sampling(), SAMPLINGS[1 + V % 4])):
        at = {"sampling": sampling, "seed": -3, "position": 1 << 33}
        with on(arch, shuffle=i):
            assert torch.equal(ss.sample(rows, **at, backend=NAME), ss.sample(rows, **at, backend="reference"))
            for kind in KINDS if many else KINDS[2:3]:
                expected = ss.draft(rows, 3, kind=kind, **at, backend="reference")
                assert torch.equal(ss.draft(rows, 3, kind=kind, **at, backend=NAME), expected), kind
            expected = ss.row_stats(rows, sampling=sampling, backend="reference")
            for x, y in zip(ss.row_stats(rows, sampling=sampling, backend=NAME), expected):
                torch.testing.assert_close(x, y, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_known_races_and_odd_rows(arch):
    with on(arch, shuffle=1):
        known_answers.check_races(NAME)
        for dtype in DTYPES if ALL else DTYPES[1:2]:
            known_answers.check_odd_rows(NAME, dtype)


@pytest.mark.parametrize("scheme", NAMES)
def test_no_token_depends_on_the_last_bits_of_approximations(scheme):
    """ex2, lg2 and rcp off by the full documented error, in a direction that depends on the argument"""
    at = NAMES.index(scheme)
    for seed in range(1, 9 if ALL else 3):
        args = args_of(scheme, 4, 500, dtype=DTYPES[seed % 3], seed=at + seed, sampling=SAMPLINGS[(at + seed) % 5])
        with on("sm_90", perturb=seed):
            same(args)


def test_control_approximations_are_perturbed():
    """A row's statistics do depend on them, by a unit in the last place; over many tokens the errors cancel."""
    rows = numbers(64, 3, seed=1, scale=2.0)
    with on("sm_90"):
        exact = ss.row_stats(rows, backend=NAME)
    with on("sm_90", perturb=1):
        off = ss.row_stats(rows, backend=NAME)
    assert torch.equal(exact.max, off.max) and not torch.equal(exact.logsumexp, off.logsumexp)
    torch.testing.assert_close(exact.logsumexp, off.logsumexp, rtol=2e-6, atol=2e-6)


# -- the launch code -----------------------------------------------------------------------------------------------

ROWS = numbers(2, 300, seed=1)


def refused(what, call=lambda: ss.sample(ROWS, seed=1, position=2, backend=NAME)):
    with pytest.raises(RuntimeError, match=what):
        call()


def test_no_rows_no_launch():
    with on("sm_90"):
        assert ss.sample(ROWS[:0], seed=1, position=2, backend=NAME).shape == (0,)
        assert launches() == []


def test_more_rows_than_a_grid_has_are_refused():
    with on("sm_90"):
        rows = torch.zeros(1, 1).expand(1 << 31, 1)
        refused("more than 2\\^31 - 1 rows", lambda: ss.sample(rows, seed=1, position=2, backend=NAME))
        assert launches() == []


def test_the_first_call_may_not_be_captured(machine):
    with on("sm_90", fresh=True):
        machine.specsample_ptx_capturing(1)
        try:
            refused("call any function on this device once before")
            assert machine.specsample_ptx_log().decode() == ""
            machine.specsample_ptx_capturing(0)
            first = ss.sample(ROWS, seed=1, position=2, backend=NAME)
            assert torch.equal(first, ss.sample(ROWS, seed=1, position=2, backend="reference"))
            machine.specsample_ptx_capturing(1)
            ss.sample(ROWS, seed=1, position=2, backend=NAME)  # launched into the graph; verify is already loaded
            ss.verify(**case(2, 3, 100), backend=NAME)
        finally:
            machine.specsample_ptx_capturing(0)


@pytest.mark.parametrize(
    "entry, what",
    [
        ("cudaFuncGetAttributes", "kernel attributes: cudaFuncGetAttributes fails, as it was told"),
        ("cudaDeviceGetAttribute", "device attributes: "),
        ("cudaStreamIsCapturing", "stream capture: "),
        ("cudaLaunchKernelExC", "CUDA launch failed: "),
    ],
)
def test_a_call_that_fails_is_named_and_can_be_made_again(machine, entry, what):
    with on("sm_90", fresh=True):
        machine.specsample_ptx_fail(entry.encode())
        try:
            refused(what)
        finally:
            machine.specsample_ptx_fail(b"")
        assert torch.equal(
            ss.sample(ROWS, seed=1, position=2, backend=NAME), ss.sample(ROWS, seed=1, position=2, backend="reference")
        )


def test_a_gpu_older_than_the_kernels_is_named(machine):
    with on("sm_75", fresh=True):
        refused("no code for this GPU, of compute capability 7.5: .* backend='triton' compiles for this one")


def test_a_gpu_without_room_for_large_clusters_has_smaller_teams(machine):
    rows = numbers(1, WIDE[8], seed=1)
    for clusters in (1, 4, 8):
        with on("sm_90", 132, clusters):
            assert torch.equal(
                ss.sample(rows, seed=1, position=2, backend=NAME), ss.sample(rows, seed=1, position=2, backend="reference")
            )
            assert launches() == [("row_kernel", "sm_90", clusters, clusters, False)]
    with on("sm_90", fresh=True):  # if the query fails, teams are single blocks
        machine.specsample_ptx_fail(b"cudaOccupancyMaxActiveClusters")
        try:
            ss.sample(rows, seed=1, position=2, backend=NAME)
        finally:
            machine.specsample_ptx_fail(b"")
        assert launches() == [("row_kernel", "sm_90", 1, 1, False)]


def test_teams_of_one_device_are_not_those_of_another():
    rows = numbers(2, WIDE[8], seed=1)
    for _ in range(2):
        for processors, team in ((132, 8), (8, 4), (1, 1)):
            with on("sm_90", processors):
                ss.sample(rows, seed=1, position=2, backend=NAME)
                assert [cluster for *_, cluster, _ in launches()] == [team]


@pytest.mark.parametrize("gpu, text, team", [("sm_86", "sm_80", 1), ("sm_100", "sm_90", 2), ("sm_120", "sm_90", 2)])
def test_later_gpus_run_the_text_of_an_older_one(gpu, text, team):
    """A kernel of an older text uses only single blocks, whatever the GPU."""
    args = case(2, 2, WIDE[2], torch.bfloat16, "block", seed=1)
    with on(gpu):
        same(args)
        assert {(a, cluster) for _, a, _, cluster, _ in launches()} == {(text, team)}


def smoke(arch, team, **variables):
    """test_schemes in a separate process, since its variables are read once; every launch in teams of `team`"""
    code = f"import test_ptx as t; print(t.of_every_kind({arch!r}))"
    env = {
        **os.environ,
        "PYTHONPATH": native.PYTHONPATH,
        "SPECSAMPLE_TEAM": str(team),
        **variables,
    }
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, timeout=600)


def of_every_kind(arch):
    """The clusters of all launches with short rows, most of whose blocks then have nothing to do"""
    ptx_machine.load()
    with on(arch, shuffle=5):
        for i, scheme in enumerate(NAMES):
            same(args_of(scheme, 2, (33, 1100)[i % 2], dtype=DTYPES[i % 3], seed=i, sampling=SAMPLINGS[i % 5]))
        return sorted({cluster for *_, cluster, _ in launches()})


@pytest.mark.parametrize("team, ahead", [(8, 1), (2, 0)] if not ALL else [(t, a) for t in (1, 2, 4, 8) for a in (0, 1)])
def test_short_rows_in_teams(team, ahead):
    done = smoke("sm_90", team, SPECSAMPLE_AHEAD=str(ahead))
    assert done.returncode == 0 and done.stdout == f"[{team}]\n", done.stdout + done.stderr[-3000:]


def test_no_teams_before_sm_90():
    done = smoke("sm_80", 2)
    assert done.returncode != 0 and "SPECSAMPLE_TEAM: this GPU, or this build for it, has no teams of 2" in done.stderr, (
        done.stderr[-3000:]
    )


# -- what the machine finds in these kernels -----------------------------------------------------------------------


def barriers(text, names=r"bar\.sync"):
    """Their lines in the text"""
    return [m.start() for m in re.finditer(rf"^\s*(?:TRY: )?(?:{names})[^;]*;", text, re.M)]


def instead(pattern, new, count=0):
    return lambda text: re.sub(pattern, new, text, count=count)


def plainly(match):
    return f"ld.shared.u32 {match[1]}, {match[2]};\nst.shared.u32 {match[2]}, {match[1]};"


EDITS = {  # the mistake: (kernel, architecture, the edit, the diagnosis)
    "the first meeting is missing": ("row", "sm_80", instead(r"bar\.sync %r\d+, %r\d+;", "", 1), "uninitialised|race: "),
    "a crew that leaves": ("row", "sm_90", instead(r"bar\.sync %r\d+, %r\d+;", "ret;", 1), "deadlock: "),
    "a meeting for the crew alone": (
        "row",
        "sm_90",
        instead(r"(mov\.u32 %r\d+,) 384;", r"\1 352;"),
        "uninitialised|race: |deadlock",
    ),
    "a count beyond the block": ("row", "sm_80", instead(r"(mov\.u32 %r\d+,) 384;", r"\1 416;"), "of which the block has 384"),
    "no barrier at all": ("row", "sm_80", instead(r"bar\.sync %r\d+, %r\d+;", ""), "uninitialised|race: "),
    "a team that does not start together": (
        "row",
        "sm_90",
        instead(r"barrier\.cluster\.\w+\.\w+\.aligned;", ""),
        "need not have begun|not initialised",
    ),
    "a barrier for one block too few": (
        "row",
        "sm_90",
        instead(r"(mbarrier\.init\.shared::cta\.b64 \[%r\d+\],) %r\d+;", r"\1 1;"),
        "race: |deadlock",
    ),
    "a barrier for one block too many": (
        "row",
        "sm_90",
        instead(r"(mbarrier\.init\.shared::cta\.b64 \[%r\d+\],) %r\d+;", r"\1 3;"),
        "2 of 3 arrivals",
    ),
    "no arrival": ("row", "sm_90", instead(r"mbarrier\.arrive\S* _, \[theirs\];", ""), "0 of 2 arrivals have come"),
    "an arrival that releases nothing": (
        "row",
        "sm_90",
        instead(r"mbarrier\.arrive\.release", "mbarrier.arrive.relaxed"),
        "race: ",
    ),
    "a wait that acquires nothing": ("row", "sm_90", instead(r"(try_wait\.parity)\.acquire", r"\1.relaxed"), "race: "),
    "a wait of the block's own": (
        "row",
        "sm_90",
        instead(r"mapa\.shared::cluster\.u32 theirs, (%r\d+), %r\d+;", r"mov.u32 theirs, \1;"),
        "deadlock|race: ",
    ),
    "no order within a warp": ("row", "sm_90", instead(r"bar\.warp\.sync -1;", ""), "race: "),
    "a lane left out": (
        "row",
        "sm_80",
        instead(r"(shfl\.sync\.bfly\.b32 [^;]*), %r\d+;", r"\1, 0x7FFFFFFF;"),
        "its own mask does not name",
    ),
    "sums without atomics": ("row", "sm_80", instead(r"atom\.shared\.add\.u32 (%r\d+), (\[%r\d+\]), \S+;", plainly), "race: "),
    "a misaligned load": (
        "row",
        "sm_80",
        instead(r"(ld\.global\.nc\.v4\.u32 [^\[]*\[%rd\d+)\];", r"\1+4];"),
        "misaligned: 16 bytes",
    ),
    "a load beyond the rows": (
        "row",
        "sm_80",
        instead(r"(ld\.global\.nc\.v4\.u32 [^\[]*\[%rd\d+)\];", r"\1+4096];"),
        "out of bounds: 16 bytes",
    ),
    "no wait for the launch before": ("verify", "sm_90", instead(r"griddepcontrol\.wait;", ""), "without griddepcontrol.wait"),
}


def calls(kernel):
    """With rows that have a team of 2 on sm_90"""
    if kernel == "verify":
        return list(ss.verify(**case(2, 3, WIDE[2], torch.bfloat16, "race", seed=1), backend=NAME)[:3])
    rows = numbers(2, WIDE[2] + 7, seed=1, scale=2.0, dtype=torch.bfloat16)[:, : WIDE[2] - 1]
    rows = torch.nn.functional.pad(rows, (0, 1))  # aligned
    at = {"seed": 1, "position": 2, "backend": NAME}
    out = [ss.sample(rows, **at), *ss.row_stats(rows, sampling=FILTERED, backend=NAME)]
    return out + [
        ss.draft(rows[:1], 2, kind=kind, sampling=s, **at)
        for kind, s in (("arrivals", SAMPLINGS[0]), ("topk", SAMPLINGS[0]), ("iid", FILTERED))
    ]


@pytest.mark.parametrize("name", EDITS)
def test_control_mistakes_are_found(name):
    kernel, arch, edit, expected = EDITS[name]
    with on(arch, shuffle=len(name)):
        with edited(kernel, arch, edit), pytest.raises(RuntimeError) as error:
            calls(kernel)
        said = str(error.value).partition("CUDA launch failed: ")[2]
        assert any(part in said for part in expected.split("|")), said
        assert re.search(r"line \d+: ", said)


@pytest.mark.skipif(not ALL, reason="make check-ptx: every barrier of a kernel taken out, one after the other")
@pytest.mark.parametrize("arch", ARCHS)
def test_control_every_barrier_is_missed(machine, arch):
    """Those that run in these calls. The second of a pair, before memory is reused, is not missed if another barrier comes first;
    then no result changes without it either."""
    with on(arch):
        good = calls("row")
        text = ptx_machine.text("row", arch)
        ran = set(map(int, machine.specsample_ptx_ran(b"row", int(arch[3:])).split()))
        places = [
            at
            for at in barriers(text, r"bar\.sync|barrier\.cluster\.wait|mbarrier\.arrive")
            if text.count("\n", 0, at + 1) + 1 in ran
        ]
        missed = 0
        for at in places:
            with edited("row", arch, lambda t, at=at: t[:at] + re.sub(r"(TRY: )?[^\n]*;", r"\1", t[at:], count=1)):
                try:
                    for x, y in zip(calls("row"), good):
                        assert torch.equal(x, y), (
                            f"line {text.count(chr(10), 0, at + 1) + 1}: another result, and nothing was found"
                        )
                except RuntimeError as error:
                    missed += "CUDA launch failed: " in str(error)
        assert len(places) > 20 and missed > 0.7 * len(places), (missed, len(places))
