"""The CUDA kernels without a GPU: run on the CPU, with one fibre per CUDA thread (csrc/emulator).

Here: random numbers, independence of the launch's shape and of the thread order, sanitizers, and kernels with one mistake each,
which each check must catch. The other test files run their own cases on the same backend (`cuda_on_cpu.NAME`).
"""

import ctypes
import os
import subprocess
import sys

import cuda_on_cpu
import known_answers
import native
import pytest
import torch
from conftest import CHAIN_SCHEMES, case, identical, numbers
from known_answers import GROUPS
from test_sanitizers import FLAGS, library
from trees import drafted_tree

import specsample as ss
from specsample import backends

KNOWN = known_answers.WORDS
TREE = [-1, -1, 0, 0, 1, 4]
KINDS = ("iid", "distinct", "arrivals", "lists", "top", "topk")
MULTI = tuple(name for name in backends.BACKENDS["cuda"].schemes if name not in CHAIN_SCHEMES)
MANY_BINS = 1200  # their histogram does not fit in shared memory
# Threads of a block's crew (0: as on a GPU), the seed of the thread order, blocks per team, whether all rows are read ahead.
LAUNCHES = [(96, 1), (0, 3), (64, 2, 2, True), (32, 5, 8, False)]
SAMPLINGS = (
    ss.Sampling(),
    ss.Sampling(0.8, 700, 0.95, 0.001),
    ss.Sampling(1.2, top_p=0.9),
    ss.Sampling(0.0),
    ss.Sampling(min_p=0.01),
)


def words(values):
    return [int(w, 16) for w in values]


def buffer(kind, values):
    return (kind * len(values))(*values)


@pytest.mark.parametrize("known", KNOWN["philox4x32_10"], ids=lambda c: c["counter"][0])
def test_known_answers_of_random123(known):
    counter, key, answer = (words(known[name]) for name in ("counter", "key", "answer"))
    out = buffer(ctypes.c_uint32, [0] * 4)
    cuda_on_cpu.load().specsample_cuda_on_cpu_philox(buffer(ctypes.c_uint32, counter), buffer(ctypes.c_uint32, key), out)
    assert list(out) == answer


def words_of(known, of_groups, refine, count):
    seed, position, purpose, slot = (known[k] for k in ("seed", "position", "purpose", "slot"))
    out, wide = buffer(ctypes.c_uint32, [0] * count), ctypes.c_int64
    cuda_on_cpu.load().specsample_cuda_on_cpu_words(
        wide(seed), wide(position), purpose, wide(slot), int(of_groups), int(refine), count, out
    )
    return list(out)


@pytest.mark.parametrize("known", KNOWN["streams"], ids=lambda c: f"purpose {c['purpose']}")
def test_known_answers_of_the_stream_map(known):
    for name, refine in (("words", False), ("refine", True)):
        assert words_of(known, False, refine, len(known[name])) == words(known[name])
    for name, second in (("group_words", False), ("second_group_words", True)):
        if name in known:
            got = words_of(known, True, second, GROUPS[-1] + 1)
            assert [got[group] for group in GROUPS] == words(known[name])


def test_known_races():
    cuda_on_cpu.load()
    known_answers.check_races(cuda_on_cpu.NAME)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_odd_rows(dtype):
    cuda_on_cpu.load()
    for launch in (cuda_on_cpu.USUAL[:2], (32, 1, 2), (0, 2, 8)):
        with cuda_on_cpu.launches(*launch):
            known_answers.check_odd_rows(cuda_on_cpu.NAME, dtype)


def everything(V, dtype, sampling):
    """Results of every op: a list of tensors."""
    at = {"backend": cuda_on_cpu.NAME}
    rows = numbers(3, V, seed=V, scale=2.0, dtype=dtype)
    stream = {"seed": 5, "position": 1 << 33, "sampling": sampling}
    out = [ss.sample(rows, **stream, **at), *ss.row_stats(rows, sampling=sampling, **at)]
    out += [ss.draft(rows, 3, kind=kind, **stream, **at) for kind in KINDS]
    for scheme in CHAIN_SCHEMES:
        args = case(3, 3, V, dtype, scheme, seed=9, sampling=sampling)
        out += ss.verify(**args, logprobs="filtered", **at)
    for scheme in MULTI:
        args = drafted_tree(2, 3, 2, V, scheme, seed=2, dtype=dtype, sampling=sampling)
        if V > 2000 and "bins" in ss.schemes()[scheme].options:
            args["options"] = {"bins": MANY_BINS}
        out += ss.verify(**args, **at)[:3]
    target = numbers(2, len(TREE) + 1, V, seed=8, dtype=dtype)
    tokens = torch.cat([ss.draft(target[:, 0], 2, kind="arrivals", seed=3, position=4)] * 3, 1)
    out += ss.verify(target, tokens, parents=TREE, scheme="race", seed=3, position=4, logprobs="raw", **at)
    return out


@pytest.mark.parametrize("V, dtype", [(1, torch.float32), (777, torch.bfloat16), (2500, torch.float16)])
def test_nothing_depends_on_the_launch(V, dtype):
    """Bit for bit, including the last bit of the statistics: sums have a fixed order."""
    for sampling in (ss.Sampling(), ss.Sampling(0.8, 700, 0.95, 0.001)):
        cuda_on_cpu.load()
        expected = everything(V, dtype, sampling)
        for launch in LAUNCHES:
            with cuda_on_cpu.launches(*launch):
                for i, (x, y) in enumerate(zip(everything(V, dtype, sampling), expected)):
                    assert torch.equal(x, y), f"{launch}, result {i}: {x} against {y}"


@pytest.mark.parametrize("team", [1, 2, 4, 8])
@pytest.mark.parametrize("scheme", backends.BACKENDS["cuda"].schemes)
def test_teams_emit_the_integers_of_the_reference(scheme, team):
    """With all rows read ahead; in the wider rows each block has some units and tiles, in the others most have none."""
    at = (*CHAIN_SCHEMES, *MULTI).index(scheme) + team
    accepted = 0
    for i, V in enumerate((5003, 130)):
        settings = {"seed": at, "dtype": (torch.float32, torch.bfloat16, torch.float16)[(at + i) % 3]}
        settings["sampling"] = SAMPLINGS[(at + 2 * i) % len(SAMPLINGS)]
        args = case(8, 3, V, scheme=scheme, **settings) if scheme in CHAIN_SCHEMES else drafted_tree(6, 3, 2, V, scheme, **settings)
        expected = ss.verify(**args, backend="reference")
        with cuda_on_cpu.launches(32, shuffle=at, team=team, ahead=True):
            identical(ss.verify(**args, backend=cuda_on_cpu.NAME), expected)
        accepted += int(expected.num_accepted.sum())
    assert accepted > 0


@pytest.mark.parametrize("scheme", backends.BACKENDS["cuda"].schemes)
def test_no_token_depends_on_the_last_bits_of_approximations(scheme):
    """ex2, lg2 and rcp off by the full documented error, in a direction that depends on the argument"""
    at = (*CHAIN_SCHEMES, *MULTI).index(scheme)
    for seed in range(1, 6):
        settings = {"seed": at + seed, "dtype": (torch.float32, torch.bfloat16, torch.float16)[seed % 3]}
        settings["sampling"] = SAMPLINGS[(at + seed) % len(SAMPLINGS)]
        V = 3000 if seed == 1 else 300
        args = case(8, 3, V, scheme=scheme, **settings) if scheme in CHAIN_SCHEMES else drafted_tree(6, 3, 2, V, scheme, **settings)
        expected = ss.verify(**args, backend="reference")
        with cuda_on_cpu.launches(64, perturb=seed):
            identical(ss.verify(**args, backend=cuda_on_cpu.NAME), expected)


def test_control_approximations_are_perturbed():
    """A row's statistics do depend on them, by a unit in the last place; over many tokens the errors cancel."""
    rows = numbers(64, 3, seed=1, scale=2.0)
    cuda_on_cpu.load()
    exact = ss.row_stats(rows, backend=cuda_on_cpu.NAME)
    with cuda_on_cpu.launches(64, perturb=1):
        off = ss.row_stats(rows, backend=cuda_on_cpu.NAME)
    assert torch.equal(exact.max, off.max) and not torch.equal(exact.logsumexp, off.logsumexp)
    torch.testing.assert_close(exact.logsumexp, off.logsumexp, rtol=2e-6, atol=2e-6)


def test_sums_of_long_rows_do_not_depend_on_the_launch():
    """Tiles of several pieces: a vocabulary above 2^18."""
    rows = numbers(1, (1 << 18) + 1500, seed=1, scale=3.0)
    cuda_on_cpu.load()
    got = []
    for launch in LAUNCHES:
        with cuda_on_cpu.launches(*launch):
            laws = (ss.Sampling(), ss.Sampling(top_p=0.9))
            got.append([ss.row_stats(rows, sampling=law, backend=cuda_on_cpu.NAME) for law in laws])
    assert all(torch.equal(x, y) for other in got[1:] for a, b in zip(other, got[0]) for x, y in zip(a, b))
    expected = torch.logsumexp(rows.double(), -1)
    torch.testing.assert_close(got[0][0].logsumexp.double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_races_over_long_rows(dtype):
    """More turns of a warp than a thread keeps bounds (csrc/cuda/protocol.h): some bounds cover several turns."""
    rows = torch.cat([numbers(2, 70_003, seed=1, scale=scale, dtype=dtype) for scale in (0.1, 4.0)])
    at = {"seed": 3, "position": 9}
    cuda_on_cpu.load()
    for kind in ("arrivals", "iid"):
        expected = ss.draft(rows, 2, kind=kind, **at, backend="reference")
        for launch in ((32, 1), (32, 2, 2), (64, 3)):
            with cuda_on_cpu.launches(*launch):
                assert torch.equal(ss.draft(rows, 2, kind=kind, **at, backend=cuda_on_cpu.NAME), expected), launch


def masses(row, temperature):
    """(largest logit, mass as computed for row statistics, mass as computed for filtered rows)"""
    out, wide = (ctypes.c_double * 3)(), ctypes.c_int64
    code = [torch.float32, torch.bfloat16, torch.float16].index(row.dtype)
    scale = ctypes.c_double(1 / temperature)
    cuda_on_cpu.load().specsample_cuda_on_cpu_mass(ctypes.c_void_p(row.data_ptr()), code, wide(row.numel()), scale, out)
    return list(out)


def odd_rows():
    V, inf, nan = 5000, float("inf"), float("nan")
    some = torch.rand(V, generator=torch.Generator().manual_seed(1)) < 0.3
    yield "one token", torch.tensor([3.7])
    yield "equal", torch.full((V,), -7.3)
    yield "flat", numbers(V, seed=2, scale=0.01)
    yield "usual", numbers(V, seed=3, scale=3.0)
    yield "peaked", torch.cat([numbers(V, seed=4), torch.tensor([40.0])])
    yield "wide", numbers(V, seed=5, scale=3e3)
    yield "far from 0", 9e3 + numbers(V, seed=6, scale=3.0)
    yield "all mass far below the largest", torch.cat([torch.full((1 << 18,), -10.4), torch.zeros(1)])
    yield "large", numbers(V, seed=7, scale=3e4).clamp(-6e4, 6e4)
    yield "NaN", torch.where(some, nan, numbers(V, seed=8, scale=2.0))
    yield "-inf", torch.where(some, -inf, numbers(V, seed=9, scale=2.0))


def off(row, temperature, exact_temperature):
    z = torch.nan_to_num(row.double(), nan=-torch.inf, neginf=-torch.inf)
    expected = float(torch.exp((z - z.max()) / exact_temperature).sum())
    top, *got = masses(row, temperature)
    assert top == float(z.max())
    return max(abs(mass / expected - 1) for mass in got)


@pytest.mark.parametrize("name, row", list(odd_rows()), ids=lambda x: x if isinstance(x, str) else "")
def test_masses_against_float64(name, row):
    """The special-function unit, exact here, adds 2^-22 on a GPU (csrc/cuda/sums.h)."""
    bound = 1.5e-6 if "far below" in name else 3e-7  # there all roundings are the same
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for temperature in (0.05, 0.7, 1.0, 1.3, 20.0):
            assert off(row.to(dtype), temperature, temperature) < bound, (dtype, temperature)


def test_control_an_inexact_temperature_is_seen():
    assert off(numbers(5000, seed=3, scale=3.0), 0.7 * (1 + 2**-21), 0.7) > 3e-7


def test_masses_of_rows_without_one():
    inf, nan = float("inf"), float("nan")
    for row in (torch.full((100,), -inf), torch.full((100,), nan)):
        assert masses(row, 1.0)[0] == -inf
    assert masses(torch.tensor([1.0, inf, 2.0]), 1.0)[0] == torch.finfo(torch.float32).max


def test_a_residual_with_more_candidates_than_the_list_holds():
    """Target and draft so close that their difference is below float resolution, except at the draft: nothing is excluded."""
    V = 60_000
    target, draft = torch.zeros(2, 2, V), torch.zeros(2, 1, V)
    tokens = torch.full((2, 1), 10)
    target[:, 0, 10] = -3.0  # so that the draft is rejected; the others share the difference
    args = {"scheme": "token", "seed": 3, "position": 7}
    expected = ss.verify(target, tokens, draft, backend="reference", **args)
    assert (expected.num_accepted == 0).all()
    cuda_on_cpu.load()
    identical(ss.verify(target, tokens, draft, backend=cuda_on_cpu.NAME, **args), expected)


# -- what the emulator detects -------------------------------------------------------------------------------------


def run_bad(name, shuffle=0, team=1):
    """(the report, the output) of a kernel of csrc/emulator/bad_kernels.h with 64 threads per block"""
    values = buffer(ctypes.c_float, range(64))
    out, message = buffer(ctypes.c_float, [-1.0] * 64), ctypes.create_string_buffer(500)
    with cuda_on_cpu.launches(0, shuffle, team):
        cuda_on_cpu.load().specsample_cuda_on_cpu_bad(name.encode(), values, out, 64, message, 500)
    return message.value.decode(), list(out)


@pytest.mark.parametrize(
    "name, finding",
    [
        ("divergent barrier", "divergent barriers"),
        ("early exit", "a barrier after some threads have left"),
        ("uneven meeting", "a barrier after some threads have left"),
        ("half a warp", "the mask names a lane that has left|deadlock"),
    ],
)
def test_control_wrong_synchronisation_is_reported(name, finding):
    found, _ = run_bad(name)
    assert any(part in found for part in finding.split("|")), found
    assert run_bad("none")[0] == run_bad("order")[0] == ""  # and the emulator has recovered


@pytest.mark.parametrize(
    "name, finding",
    [
        ("block that has not begun", "shared memory of a block that has not begun"),
        ("block that leaves", "shared memory of a block that has left"),
        ("uneven team", "a barrier after some threads have left"),
    ],
)
def test_control_wrong_use_of_a_team_is_reported(name, finding):
    for team in (2, 8):
        assert finding in run_bad(name, team=team)[0]
        assert run_bad("team", team=team)[0] == ""


def test_control_a_missing_barrier_changes_results():
    reverse = [float(i) for i in reversed(range(64))]
    for shuffle in range(6):
        assert run_bad("none", shuffle=shuffle) == run_bad("order", shuffle=shuffle) == ("", reverse)
        assert run_bad("missing barrier", shuffle=shuffle)[1] != reverse
        assert run_bad("team", shuffle, team=4) == ("", reverse)
        assert run_bad("missing team barrier", shuffle, team=4)[1] != reverse


# -- sanitizers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized():
    """The environment for a process that loads the sanitized build"""
    preload = [library("libasan.so"), library("libubsan.so")]
    if None in preload:
        pytest.skip("the compiler has no sanitizer libraries")
    built = cuda_on_cpu.build(native.ROOT / "build/cuda_on_cpu_sanitized", [*FLAGS, *native.TORCH], cuda_on_cpu.CUDA)
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",  # Python's own arenas would hide small buffers from the sanitizer
        "PYTHONPATH": native.PYTHONPATH,
        "SPECSAMPLE_CUDA_ON_CPU_BUILD": str(built),
    }


def run(code, env):
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=native.ROOT / "tests")


def test_no_sanitizer_report(sanitized):
    code = (
        "import torch, cuda_on_cpu, test_cuda_on_cpu as t, specsample as ss; cuda_on_cpu.load()\n"
        "for V, dtype, team in ((1, torch.float32, 1), (777, torch.bfloat16, 1), (1032, torch.float16, 4)):\n"
        "    for s in (ss.Sampling(), ss.Sampling(0.8, 700, 0.95, 0.001)):\n"
        "        with cuda_on_cpu.launches(32, 1, team, team > 1): assert len(t.everything(V, dtype, s)) > 40\n"
        "t.test_a_residual_with_more_candidates_than_the_list_holds()\n"
        "print('done')"
    )
    done = run(code, sanitized)
    assert done.returncode == 0 and "done" in done.stdout, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("name", ["none", "read beyond the row", "write beyond shared memory"])
def test_control_accesses_beyond_the_end_are_reported(sanitized, name):
    done = run(f"import test_cuda_on_cpu as t; t.run_bad({name!r}); print('survived')", sanitized)
    report = done.returncode != 0 and "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert report == (name != "none"), done.stderr[-4000:]


# -- races ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def races():
    """csrc/emulator/races.cpp under ThreadSanitizer: a separate program, to keep Python out of it"""
    if library("libtsan.so") is None:
        pytest.skip("the compiler has no ThreadSanitizer")
    folder = native.ROOT / "build/cuda_races"
    folder.mkdir(parents=True, exist_ok=True)
    source, program = native.ROOT / "csrc/emulator/races.cpp", folder / "races"
    command = ["c++", "-std=c++17", "-O1", "-g1", "-fsanitize=thread", "-w", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def raced(*command):
    """(whether a data race was reported, the process)"""
    done = subprocess.run(command, capture_output=True, text=True)
    if "FATAL: ThreadSanitizer" in done.stderr:  # memory layouts that it does not support
        pytest.skip(done.stderr.strip().splitlines()[-1])
    found = "WARNING: ThreadSanitizer: data race" in done.stderr
    assert (done.returncode != 0) == found, done.stderr[-3000:]
    return found, done


# A mixture of all settings: layouts, teams of 1 to 8, filters, … (races.cpp). `make check-races` runs all, for most of an hour.
CASES = (43, 211, 92, 173, 298, 40, 23)
ALL_RACES = os.environ.get("SPECSAMPLE_CHECK_RACES", "0") not in ("", "0")


@pytest.mark.parametrize("case", range(384) if ALL_RACES else CASES)
def test_no_kernel_has_a_race(races, case):
    """Threads of a block are ordered only by the kernels' barriers and warp exchanges; a missing one is a data race."""
    found, done = raced(races, str(case))
    assert not found and "1 cases" in done.stdout, done.stderr[-5000:]


def test_every_case_is_known(races):
    assert subprocess.run([races, "cases"], capture_output=True, text=True).stdout.strip() == "384"


@pytest.mark.parametrize("what", ["good", "good twice", "good order", "good team"])
def test_control_no_race_is_found_where_there_is_none(races, what):
    assert not raced(races, what)[0]


@pytest.mark.parametrize("what", ["missing barrier", "missing barrier before reuse", "missing meeting", "missing team barrier"])
def test_control_races_are_found(races, what):
    assert raced(races, what)[0]
