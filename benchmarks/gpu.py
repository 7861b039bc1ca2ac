"""make gpu, make gpu-quick: build the CUDA kernels for the GPU of this machine, run the test suite on it, and time them.

It takes the interpreter as it is (torch, ninja and pytest installed, nvcc on the path), installs nothing, and builds in place.
`--quick` leaves the timings out. Results: benchmarks/results/<gpu>.json.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# name: (scheme, B, N, V, sampling as (temperature, top_k, top_p, min_p), and for trees the number of paths of equal length)
PLAIN = (0.8, 0, 1.0, 0.0)
SHAPES = {
    "token-b1-v128256": ("token", 1, 4, 128_256, PLAIN),
    "token-b16-v32000": ("token", 16, 5, 32_000, PLAIN),
    "token-b32-v128256": ("token", 32, 8, 128_256, PLAIN),
    "token-b256-v128256": ("token", 256, 4, 128_256, PLAIN),
    "token-b32-v128256-top-k": ("token", 32, 8, 128_256, (0.8, 50, 1.0, 0.0)),
    "token-b32-v128256-top-p": ("token", 32, 8, 128_256, (0.8, 0, 0.95, 0.0)),
    "token-b32-v128257": ("token", 32, 8, 128_257, PLAIN),  # rows that are not aligned to 16 bytes
    "block-b1-v128256": ("block", 1, 4, 128_256, PLAIN),
    "block-b32-v128256": ("block", 32, 8, 128_256, PLAIN),
    "race-b1-v128256": ("race", 1, 4, 128_256, PLAIN),
    "race-b32-v128256": ("race", 32, 8, 128_256, PLAIN),
    "optimal-b1-k4-v128256": ("optimal", 1, 4, 128_256, PLAIN, 4),
    "optimal-b64-k4-v128256": ("optimal", 64, 4, 128_256, PLAIN, 4),
    "token-b64-n1-v128256": ("token", 64, 1, 128_256, PLAIN),  # the same rows, for comparison
    "optimal_block-b32-k4-v128256": ("optimal_block", 32, 16, 128_256, PLAIN, 4),
    "sample-b1-v151936": ("sample", 1, 0, 151_936, PLAIN),
    "sample-b256-v128256": ("sample", 256, 0, 128_256, PLAIN),
}


def say(message):
    print(f"[gpu] {message}", flush=True)


def run(command, **environment):
    say(" ".join(str(c) for c in command if "\n" not in str(c)))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([str(c) for c in command], cwd=ROOT, env=env).returncode


def gpu_or_exit():
    try:
        import torch
    except ImportError:
        sys.exit(f"[gpu] {sys.executable} has no torch; name another interpreter: make gpu PYTHON=...")
    if torch.version.cuda is None:
        sys.exit(f"[gpu] torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        sys.exit("[gpu] no NVIDIA GPU here (torch.cuda.is_available() is False)")
    missing = [tool for tool in ("nvcc", "c++") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"[gpu] not on the path: {', '.join(missing)}")
    return torch


def seconds(torch, call, repetitions=30):
    """Median over repetitions, by CUDA events; the cache is overwritten before each."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        call()
    taken = []
    for _ in range(repetitions):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(taken)


def graph_of(torch, call):
    """The call as a CUDA graph: its launches without the time of Python."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def arguments(torch, ss, scheme, B, N, V, sampling, paths=1, device="cuda"):
    """Arguments of `verify` for `paths` chains whose laws depend on the depth alone: a target and a draft row a depth."""
    torch.manual_seed(0)
    depth, stream = N // paths, {"seed": 1, "position": 100, "sampling": ss.Sampling(*sampling)}
    logits = 3 * torch.randn(B, depth + 1, V, device=device)
    draft = (logits[:, :depth] + 1.5 * torch.randn(B, depth, V, device=device)).bfloat16()
    kind, level = ss.schemes()[scheme].draft_kind, [i % depth for i in range(N)]
    tokens = [ss.draft(draft[:, d], kind=kind, depth=d, node=i, **stream) for i, d in enumerate(level)]
    args = {"target_logits": logits.bfloat16(), "draft_tokens": torch.cat(tokens, 1), "draft_logits": draft, "scheme": scheme}
    if paths > 1:
        ints = lambda values: torch.tensor(values, device=device)  # noqa: E731
        args |= {"parents": ints([i - 1 if d else -1 for i, d in enumerate(level)]), "max_depth": depth}
        args |= {"rows": ints([0] + [d + 1 for d in level]), "draft_rows": ints(level)}
    return args | stream


def timings(torch):
    import specsample as ss

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() / seconds(torch, lambda: target.copy_(source))
    del source, target
    say(f"device-to-device copy {copy * 1e-9:.0f} GB/s, both directions counted")
    results = {"copy_bytes_per_second": copy, "shapes": {}}
    for name, (scheme, B, N, V, sampling, *paths) in SHAPES.items():
        if scheme == "sample":
            torch.manual_seed(0)
            logits = (3 * torch.randn(B, 1, V, device="cuda")).bfloat16()
            stream = {"seed": 1, "position": 100, "sampling": ss.Sampling(*sampling)}
            call = lambda: ss.sample(logits[:, 0], **stream)  # noqa: B023, E731
            check = torch.equal(call().cpu(), ss.sample(logits[:, 0].cpu(), **stream, backend="cpu"))
            rows, accepted = B, None
        else:
            args = arguments(torch, ss, scheme, B, N, V, sampling, *paths)
            call = lambda: ss.verify(**args)  # noqa: B023, E731
            verdict, depth = call(), N // (paths or [1])[0]
            there = {n: x.cpu() if isinstance(x, torch.Tensor) else x for n, x in args.items()}
            expected = ss.verify(**there, backend="cpu")
            check = torch.equal(verdict.tokens.cpu(), expected.tokens)
            accepted = float(verdict.num_accepted.float().mean())
            # Rows that had to be read, once each: the target's as far as it went, and the draft's of the tested nodes.
            per_request = verdict.num_accepted.double() + 1
            rows = float(per_request.sum()) + (0 if scheme == "race" else float(per_request.clamp(max=depth).sum()))
            if scheme in ("block", "optimal_block"):
                rows = B * (2 * depth + 1)
        eager, replayed = seconds(torch, call), seconds(torch, graph_of(torch, call))
        floor = rows * V * 2
        results["shapes"][name] = {
            "scheme": scheme, "B": B, "N": N, "V": V, "dtype": "bfloat16", "sampling": sampling, "equal_to_cpu": check,
            "paths": (paths or [1])[0], "seconds": eager, "graph_seconds": replayed,
            "accepted": accepted, "bytes_of_rows_once": floor, "fraction_of_copy": floor / replayed / copy,
        }  # fmt: skip
        say(f"{name:26} {eager * 1e6:8.1f} us, as a graph {replayed * 1e6:8.1f} us, rows read once at "
            f"{100 * floor / replayed / copy:5.1f} % of the copy, tokens {'equal' if check else 'DIFFER'}")  # fmt: skip
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no timings")
    parser.add_argument("--no-build", action="store_true", help="use the extension that is there")
    quick, no_build = (vars(parser.parse_args())[k] for k in ("quick", "no_build"))
    torch = gpu_or_exit()
    name, capability = torch.cuda.get_device_name(), ".".join(map(str, torch.cuda.get_device_capability()))
    say(f"{name}, compute capability {capability}, torch {torch.__version__}")
    failed = []
    if not no_build:
        settings = {"SPECSAMPLE_CUDA": "1", "SPECSAMPLE_CUDA_ARCHS": capability, "SPECSAMPLE_REQUIRE_EXTENSION": "1"}
        if run([sys.executable, "setup.py", "build_ext", "--inplace"], **settings):
            sys.exit("[gpu] the build failed")
    if run([sys.executable, "-m", "pytest", "tests/test_on_gpu.py"]):
        failed.append("tests/test_on_gpu.py")
    # The cases of the other files on the backend `cuda`; files whose packages are missing here are left out, and said.
    chosen = ["test_same_integers", "test_bad_input", "test_layout", "test_independence", "test_peer_bugs", "test_chi_square"]
    chosen += ["test_multi_draft", "test_fuzz"]
    if run([sys.executable, "-m", "pytest", *(f"tests/{c}.py" for c in chosen), "-k", "cuda- or cuda]"]):
        failed.append("the test suite on cuda")
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer:
        for tool in ("memcheck", "racecheck", "synccheck"):
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
            if run(command):
                failed.append(f"compute-sanitizer {tool}")
    else:
        say("compute-sanitizer is not on the path: left out")
    if not quick:
        sys.path.insert(0, str(ROOT))
        results = {"gpu": name, "capability": capability, "torch": torch.__version__, "cuda": torch.version.cuda}
        results |= {"python": platform.python_version(), "failed": failed, **timings(torch)}
        failed += [f"{n}: other tokens than cpu" for n, r in results["shapes"].items() if not r["equal_to_cpu"]]
        path = ROOT / "benchmarks/results" / f"{name.lower().replace(' ', '-')}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        say(f"written: {path}")
    sys.exit("[gpu] failed: " + "; ".join(failed) if failed else 0)


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
                              seed=1, position=2, logprobs="raw", **tree)
            for kind in ("arrivals", "distinct", "lists", "top"):
                ss.draft(x[:, 0], 3, kind=kind, sampling=s, seed=1, position=2)
torch.cuda.synchronize()
"""

if __name__ == "__main__":
    main()
