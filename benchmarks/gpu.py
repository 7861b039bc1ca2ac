"""make gpu, gpu-quick, gpu-bench: build the CUDA kernels for the GPU of this machine, run the tests on it, and time them.

It takes the interpreter as it is (torch, triton, ninja and pytest installed, nvcc on the path), installs nothing, and builds in
place.

    python benchmarks/gpu.py            build, tests, compute-sanitizer, a dozen shapes
    python benchmarks/gpu.py --quick    build, what only a GPU can show and equality of tokens, memcheck; no timings
    python benchmarks/gpu.py --grid     build, and every case that is not measured yet: may be interrupted and goes on

Results: benchmarks/results/<gpu>.json and the same as tables, <gpu>.md.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Files whose cases run on a backend by its name; those that only a GPU can run first.
QUICK_TESTS = ("test_on_gpu", "test_same_integers")
TESTS = (
    *QUICK_TESTS, "test_chi_square", "test_multi_draft", "test_bad_input", "test_layout", "test_independence", "test_peer_bugs",
    "test_fuzz",
)  # fmt: skip
BACKENDS = ("cuda", "triton")
NAMED_SECONDS = 210  # after which no named shape begins: build, tests and timings have eight minutes together
ENGINES = ("vllm", "sglang", "sgl_kernel", "flashinfer")

# What compute-sanitizer runs: every scheme and kind, with and without filters, rows that are aligned and not.
SANITIZED = """
import torch, specsample as ss
for dtype in (torch.float32, torch.bfloat16):
    for V in (777, 4096):
        x = torch.randn(2, 3, V, device="cuda").to(dtype)
        for s in (ss.Sampling(), ss.Sampling(0.8, 40, 0.9)):
            for scheme in ss.schemes():
                if "cuda" in ss.schemes()[scheme].backends:
                    tree = {} if not ss.schemes()[scheme].trees else {"parents": [-1, -1]}
                    ss.verify(x, torch.zeros(2, 2, dtype=torch.int64, device="cuda"), x[:, :2], scheme=scheme, sampling=s,
                              seed=1, position=2, logprobs="raw", backend="cuda", **tree)
            for kind in ("iid", "arrivals", "distinct", "lists", "top", "topk"):
                ss.draft(x[:, 0], 3, kind=kind, sampling=s, seed=1, position=2, backend="cuda")
            ss.row_stats(x[:, 0], sampling=s, backend="cuda")
torch.cuda.synchronize()
"""


def say(message):
    print(f"[gpu] {message}", flush=True)


def gpu_or_exit(torch=None, which=shutil.which):
    """torch, where there is all that is needed; otherwise the process ends and says what is missing"""
    if torch is None:
        try:
            import torch
        except ImportError:
            sys.exit(f"[gpu] {sys.executable} has no torch; name another interpreter: make gpu PYTHON=...")
    if torch.version.cuda is None:
        sys.exit(f"[gpu] no CUDA device: torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        sys.exit("[gpu] no CUDA device: torch.cuda.is_available() is False")
    missing = [tool for tool in ("nvcc", "c++") if which(tool) is None]
    if missing:
        sys.exit(f"[gpu] not on the path: {', '.join(missing)}")
    return torch


def execute(commands):
    """Runs commands {name: (arguments, environment)} at the same time, shows what they say. -> names of those that failed"""
    running = {}
    for name, (arguments, environment) in commands.items():
        say(f"{name}: " + " ".join(a for a in arguments if "\n" not in a))
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        out = tempfile.TemporaryFile("w+") if len(commands) > 1 else None
        process = subprocess.Popen(arguments, cwd=ROOT, env=env, stdout=out, stderr=out and subprocess.STDOUT)
        running[name] = process, out
    failed = []
    for name, (process, out) in running.items():
        status = process.wait()
        if out:
            out.seek(0)
            print(f"--- {name}\n{out.read()}", flush=True)
        if status:
            failed.append(name)
    return failed


def build(capability):
    settings = {"SPECSAMPLE_CUDA": "1", "SPECSAMPLE_CUDA_ARCHS": capability, "SPECSAMPLE_REQUIRE_EXTENSION": "1"}
    return {"the build": ([sys.executable, "setup.py", "build_ext", "--inplace"], settings)}


def tests(quick):
    """The test suite once a backend. Files whose packages are missing skip, and say so."""
    files = [f"tests/{name}.py" for name in (QUICK_TESTS if quick else TESTS)]
    pytest = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *files]
    if importlib.util.find_spec("xdist"):
        pytest += ["-n", str(max(2, min(8, (os.cpu_count() or 2) // 2)))]
    return {f"the tests on {b}": ([*pytest, "-k", f"{b}- or {b}]"], {"OMP_NUM_THREADS": "2"}) for b in BACKENDS}


def sanitizers(tool, quick):
    """memcheck for addresses, racecheck for shared memory, synccheck for barriers"""
    tools = ("memcheck",) if quick else ("memcheck", "racecheck", "synccheck")
    program = [sys.executable, "-c", SANITIZED]
    return {f"compute-sanitizer {t}": ([tool, "--tool", t, "--error-exitcode", "9", *program], {}) for t in tools}


def machine_of(torch):
    """The GPU, and every version that a figure depends on"""
    import harness

    properties = torch.cuda.get_device_properties(0)
    found = harness.machine()
    versions = {name: _version(name) for name in ("triton", *ENGINES)}
    return found | versions | {
        "gpu": torch.cuda.get_device_name(), "capability": capability_of(torch), "cpu_capability": found["capability"],
        "driver": harness.output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown",
        "cuda": torch.version.cuda, "multiprocessors": properties.multi_processor_count,
        "engines": [name for name in ENGINES if versions[name]],
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
    """Timings: of the named shapes anew, or of the grid's that are not there. -> [what went wrong]"""
    for path in (ROOT, ROOT / "benchmarks"):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    import gpu_bench
    import gpu_cases
    import gpu_clock

    import specsample as ss

    machine = machine_of(torch)
    there = [name for name in backends if name in ss.build_info()["backends"]]
    name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    path = options.out or ROOT / "benchmarks/results" / f"{name}.json"
    chosen = [c for c in cases or (gpu_cases.grid() if options.grid else gpu_cases.NAMED) if options.filter in c.name]
    limit = options.limit or (None if options.grid else NAMED_SECONDS)
    failed = gpu_bench.run(
        chosen, gpu or gpu_clock.Gpu(), path, machine, there, say, again=not options.grid, limit=limit, which=which
    )  # fmt: skip
    say(f"written: {path}, {path.with_suffix('.md').name}")
    return failed


def main(arguments=None, torch=None, execute=execute, bench=bench, which=shutil.which):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no timings")
    parser.add_argument("--grid", action="store_true", help="every case instead of the named ones, and no tests")
    parser.add_argument("--no-build", action="store_true", help="use the extension that is there")
    parser.add_argument("--no-tests", action="store_true", help="timings only")
    parser.add_argument("--filter", default="", metavar="SUBSTRING", help="cases whose name has it")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="begin no case later than this")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    options = parser.parse_args(arguments)
    torch, began, failed = gpu_or_exit(torch, which), time.perf_counter(), []
    say(f"{torch.cuda.get_device_name()}, compute capability {capability_of(torch)}, torch {torch.__version__}")

    def step(commands):
        start = time.perf_counter()
        failed.extend(execute(commands))
        say(f"{' and '.join(commands)}: {time.perf_counter() - start:.0f} s")

    if not options.no_build:
        step(build(capability_of(torch)))
        if failed:
            sys.exit("[gpu] failed: the build")
    if not (options.grid or options.no_tests):
        step(tests(options.quick))
        sanitizer = which("compute-sanitizer")
        if sanitizer:
            step(sanitizers(sanitizer, options.quick))
        else:
            say("compute-sanitizer is not on the path: left out")
    if not options.quick:
        failed += bench(torch, options)
    say(f"{time.perf_counter() - began:.0f} s in all")
    return "[gpu] failed: " + "; ".join(failed) if failed else 0


if __name__ == "__main__":
    sys.exit(main())
