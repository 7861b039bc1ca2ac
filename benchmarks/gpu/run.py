"""make gpu, gpu-quick, gpu-bench: build the CUDA kernels for this machine's GPU, run the tests on it, and time them.

It uses the current interpreter as it is (torch and pytest; ninja, pytest-xdist and triton if present), installs nothing, needs no
network, and builds in place.

    python -m benchmarks.gpu.run            build, smoke, tests, compute-sanitizer, a dozen shapes
    python -m benchmarks.gpu.run --quick    build, smoke, what only a GPU can show and equality of tokens, memcheck: four minutes
    python -m benchmarks.gpu.run --grid     build, and every case not yet measured: may be interrupted and resumed

Each step is a process with a time-out, and its output goes to build/gpu/<step>.log as it is produced. Smoke processes come first;
if one fails, nothing else is run. CUDA comes before Triton. Results: benchmarks/results/<gpu>.json and tables of it, <gpu>.md.
"""

import argparse
import importlib.util
import os
import re
import shutil
import sys
import time
from pathlib import Path

from benchmarks import RESULTS, ROOT
from benchmarks.gpu import races as gpu_races
from benchmarks.gpu.commands import Command, execute, say

# Files whose cases run on a backend given by name; those that only a GPU can run come first.
QUICK_TESTS = ("test_teams", "test_on_gpu", "test_same_integers")
TESTS = (
    *QUICK_TESTS, "test_chi_square", "test_multi_draft", "test_bad_input", "test_layout", "test_independence", "test_peer_bugs",
    "test_fuzz",
)  # fmt: skip
BACKENDS = ("cuda", "triton")
NAMED_SECONDS = 210  # after which no named shape begins: build, tests and timings have eight minutes in total
QUICK_SECONDS = 240  # of --quick in total
PEERS = ("transformers", "flashinfer")
SMOKE_SECONDS = 30
SMOKE = ["-m", "benchmarks.gpu.smoke"]
# Expected seconds of each step of --quick on a machine with 16 cores: guesses from compile times and from counts of tests and
# launches elsewhere, until a GPU gives better ones. Slowest first: if time is short, cut these.
EXPECTED = {
    "the build": 70, "compute-sanitizer memcheck": 40, "the tests on triton": 40, "the tests on cuda": 35,
    "the warm-up of triton": 25, "smoke": 20,
}  # fmt: skip


def python(*arguments):
    return [sys.executable, *arguments]


def tool(name, which=shutil.which):
    """Path of a program of the CUDA toolkit, or None: searched on the path, then in the toolkit's folder"""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    return which(name) or next((f"{h}/bin/{name}" for h in homes if h and os.path.exists(f"{h}/bin/{name}")), None)


def gpu_or_exit(torch=None, which=shutil.which, builds=True, tests=True):
    """torch, if everything needed is present; otherwise the process ends with a message that says what is missing"""
    if torch is None:
        try:
            import torch
        except ImportError:
            sys.exit(f"[gpu] {sys.executable} has no torch; name another interpreter: make gpu PYTHON=...")
    if torch.version.cuda is None:
        sys.exit(f"[gpu] no CUDA device: torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        sys.exit("[gpu] no CUDA device: torch.cuda.is_available() is False")
    missing = [name for name in ("nvcc", "c++") if builds and tool(name, which) is None]
    if missing:
        sys.exit(f"[gpu] not on the path: {', '.join(missing)} (a build made elsewhere: --no-build)")
    wanted = [*(["setuptools"] if builds else []), *(["pytest"] if tests else [])]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"[gpu] {sys.executable} has no {', '.join(missing)}")
    return torch


# The build in a folder of links without pyproject.toml, whose licence older setuptools reject.
IN_FOLDER = (
    "import os, runpy, sys; os.chdir(sys.argv.pop(1)); sys.argv[0] = 'setup.py'; runpy.run_path('setup.py', run_name='__main__')"
)


def build(capability, folder=None):
    """folder: of links to the sources, if setuptools is too old for pyproject.toml"""
    program = python("setup.py") if folder is None else python("-c", IN_FOLDER, str(folder))
    settings = {"SPECSAMPLE_CUDA": "1", "SPECSAMPLE_CUDA_ARCHS": capability, "SPECSAMPLE_REQUIRE_EXTENSION": "1"}
    settings["NVCC_APPEND_FLAGS"] = "-lineinfo"  # for races.py; the code is the same
    return {"the build": Command([*program, "build_ext", "--inplace"], settings, 300)}


def linked(folder, version):
    """A folder for `build`, or None if setuptools of this version can read pyproject.toml (from 77 on)"""
    if int(version.split(".")[0]) >= 77:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("setup.py", "csrc", "specsample"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(ROOT / name)
    return folder


LOADED = """
import specsample as ss
info = ss.build_info()
print(info)
assert "cuda" in info["backends"], info["unavailable"]["cuda"]
"""


def smoke(capability):
    """The extension loads; then each way of launching, in a separate process"""
    first = {"the extension": Command(python("-c", LOADED), {}, SMOKE_SECONDS)}
    teams = (1, 2, 4, 8) if int(capability.split(".")[0]) >= 9 else (1,)
    settings = {f"teams of {n}": {"SPECSAMPLE_TEAM": str(n), "SPECSAMPLE_AHEAD": "0"} for n in teams}
    settings["ahead"] = {"SPECSAMPLE_AHEAD": "1", "SPECSAMPLE_EARLY": "0"}
    settings["programmatic launch"] = {"SPECSAMPLE_AHEAD": "1", "SPECSAMPLE_EARLY": "1"}
    commands = {
        name: Command(python(*SMOKE), {**chosen, "SPECSAMPLE_TRACE": "1", "OMP_NUM_THREADS": "2"}, SMOKE_SECONDS)
        for name, chosen in settings.items()
    }
    commands["a captured graph"] = Command(python(*SMOKE, "--graph"), {"OMP_NUM_THREADS": "2"}, SMOKE_SECONDS)
    return first, commands


def tests(quick, backend):
    """The test suite on a backend. Files whose packages are missing skip and say so."""
    files = [f"tests/{name}.py" for name in (QUICK_TESTS if quick else TESTS)]
    arguments = ["-m", "pytest", "-rs", "-v", "--maxfail=1", "-p", "no:cacheprovider", *files]
    if importlib.util.find_spec("xdist"):
        arguments += ["-n", str(max(2, min(8, (os.cpu_count() or 2) // 2)))]
    each = "60" if backend == "cuda" else "120"  # Triton compiles during the tests
    environment = {"OMP_NUM_THREADS": "2", "SPECSAMPLE_TEST_SECONDS": each}
    selected = [*arguments, "-k", f"{backend}- or {backend}]"]
    return {f"the tests on {backend}": Command(python(*selected), environment, 120 if quick else 400)}


WARM = """
import sys, torch
from benchmarks.gpu.run import layouts
from specsample.triton import warmup
scheme, dtype = sys.argv[1:]
for how in layouts(scheme):
    for vocab in (100, 50_000):
        took = warmup(vocab, schemes=(scheme,), dtype=getattr(torch, dtype), **how)
        print(vocab, *how, f"{took[scheme]:.1f} s", flush=True)
"""


def layouts(scheme):
    """The calls of a scheme that the quick tests make most, as `warmup` takes them. Their trees share one position."""
    import specsample as ss

    card = ss.schemes()[scheme]
    return [{"tree": True, "position": 1}] if card.trees and scheme != "race" else [{}, {"packed": True}]


def warm():
    """Compile Triton's kernels ahead, one process per scheme and dtype; without it every test process would compile the same ones
    within its time-outs. They find them in Triton's cache."""
    from specsample import triton

    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {
        f"the warm-up of triton, {name}, {dtype}": Command(python("-c", WARM, name, dtype), environment, 90)
        for name in triton.SUPPORTED
        for dtype in ("float32", "bfloat16")
    }


def sanitizers(program, quick):
    """memcheck for addresses, racecheck for shared memory, synccheck for barriers: few calls, with teams, and with tensors that
    torch's allocator does not place in larger blocks, whose remainder would hide accesses beyond the end"""
    options = ["--error-exitcode", "9", "--print-limit", "10000"]
    calls = python(*SMOKE, "--few")
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "2"}
    # Errors that CUDA's API returns are checked by its callers; those that torch provokes on purpose do not count.
    own = {"memcheck": ["--report-api-errors", "no"], "racecheck": [], "synccheck": []}
    judges = {"racecheck": gpu_races.judge}
    return {
        f"compute-sanitizer {t}": Command(
            [program, "--tool", t, *own[t], *options, *calls], environment, 90 if quick else 400, judges.get(t, sanitized)
        )
        for t in (("memcheck",) if quick else own)
    }


def sanitized(status, output):
    """-> what is wrong, or None"""
    if "Device not supported" in output:  # as under gVisor
        return "the tool refuses this machine's device, nothing was checked"
    return f"status {status}" if status else None


def machine_of(torch):
    """The GPU, and every version that a figure depends on"""
    from benchmarks import harness

    properties = torch.cuda.get_device_properties(0)
    found = harness.machine()
    versions = {name: _version(name) for name in ("triton", *PEERS)}
    return found | versions | {
        "gpu": torch.cuda.get_device_name(), "capability": capability_of(torch), "cpu_capability": found["capability"],
        "driver": harness.output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown",
        "cuda": torch.version.cuda, "multiprocessors": properties.multi_processor_count,
        "peers": [name for name in PEERS if versions[name]],
    }  # fmt: skip


def _version(package):
    from importlib import metadata

    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return None


def capability_of(torch):
    return ".".join(map(str, torch.cuda.get_device_capability()))


def bench(torch, options, gpu=None, backends=BACKENDS, cases=None, which=None):
    """Timings: of the named shapes, measured again, or of the missing ones of the grid. -> [what went wrong]"""
    import specsample as ss
    from benchmarks.gpu import bench as gpu_bench
    from benchmarks.gpu import cases as gpu_cases
    from benchmarks.gpu import clock as gpu_clock

    machine = machine_of(torch)
    there = [name for name in backends if name in ss.build_info()["backends"]]
    name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    path = options.out or RESULTS / f"{name}.json"
    chosen = [c for c in cases or (gpu_cases.grid() if options.grid else gpu_cases.NAMED) if options.filter in c.name]
    limit = options.limit or (None if options.grid else NAMED_SECONDS)
    failed = gpu_bench.run(
        chosen, gpu or gpu_clock.Gpu(), path, machine, there, say, again=not options.grid, limit=limit, which=which
    )  # fmt: skip
    say(f"written: {path}, {path.with_suffix('.md').name}")
    return failed


def main(arguments=None, torch=None, execute=execute, bench=bench, which=shutil.which, clock=time.perf_counter):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no timings")
    parser.add_argument("--grid", action="store_true", help="every case instead of the named ones, and no tests")
    parser.add_argument("--no-build", action="store_true", help="use the extension that is there (specsample/_C.abi3.so)")
    parser.add_argument("--no-tests", action="store_true", help="timings only")
    parser.add_argument("--filter", default="", metavar="SUBSTRING", help="cases whose name has it")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="begin no case later than this; --quick: end by then")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--logs", type=Path, default=ROOT / "build/gpu", help="folder of what the steps print")
    options = parser.parse_args(arguments)
    with_tests, began = not (options.grid or options.no_tests), clock()
    torch = gpu_or_exit(torch, which, not options.no_build, with_tests)
    capability, failed = capability_of(torch), {}
    say(f"{torch.cuda.get_device_name()}, compute capability {capability}, torch {torch.__version__}, {sys.executable}")
    end = (options.limit or QUICK_SECONDS) if options.quick else float("inf")
    if options.quick:
        plan = {name: seconds for name, seconds in EXPECTED.items() if not (options.no_build and name == "the build")}
        guesses = ", ".join(f"{name} {seconds} s" for name, seconds in plan.items())
        say(f"expected: {guesses}, {sum(plan.values())} s in all; at most {end:.0f} s")

    def step(commands, vital=False):
        start = clock()
        left = end - (start - began)
        if left < 5:
            failed.update(dict.fromkeys(commands, "not run, no time is left"))
            return say(f"{' and '.join(commands)}: no time is left")
        failed.update(execute(commands, options.logs, left))
        say(f"{' and '.join(commands)}: {clock() - start:.0f} s")
        if vital and failed:
            sys.exit("[gpu] failed: " + "; ".join(f"{name}: {why}" for name, why in failed.items()) + "; nothing else was run")

    if not options.no_build:
        step(build(capability, linked(options.logs / "source", _version("setuptools") or "0")), vital=True)
    if with_tests:
        for commands in smoke(capability):
            step(commands, vital=True)
        step(tests(options.quick, "cuda"))
        sanitizer = tool("compute-sanitizer", which)
        if sanitizer:
            step(sanitizers(sanitizer, options.quick))
        else:
            say("compute-sanitizer is not on the path: left out")
        step(warm())
        step(tests(options.quick, "triton"))
    wrong = [f"{name}: {why}" for name, why in failed.items()]
    if not options.quick:
        wrong += bench(torch, options)
    say(f"{clock() - began:.0f} s in all")
    return "[gpu] failed: " + "; ".join(wrong) if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
