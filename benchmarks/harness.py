"""How the benchmarks measure: calls timed together, read bandwidth, checks before time, JSON and Markdown.

What is measured is defined in registry.py, other implementations in competitors.py.
"""

import datetime
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

import specsample as ss

SHORTEST = 5e-4  # seconds: quicker calls are repeated within one repetition, so that the clock's own cost is negligible
LARGE = 1 << 30  # bytes of the buffer for memory bandwidth: larger than any cache


class Timing(NamedTuple):
    median: float  # seconds per call
    minimum: float
    repetitions: int

    def divided(self, count):
        """The mean for each of `count` calls that were timed as one"""
        return Timing(self.median / count, self.minimum / count, self.repetitions)


def time_together(calls, budget, least=5, most=60):
    """{name: Timing} of callables without arguments, interleaved: {name: call}

    Every round runs every call once, in a fresh random order: a slow moment of the machine then affects all of them
    alike, and none always finds the caches as the same other call left them. The rounds end when `budget` seconds per
    call are used up, but not before `least` of them.
    """
    inner = {}
    for name, call in calls.items():
        call()  # allocations, thread pools, compilation
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        inner[name] = min(100, max(1, math.ceil(SHORTEST / took)))
    order, shuffle = list(calls), random.Random(0).shuffle
    seconds = {name: [] for name in calls}
    begin = time.perf_counter()
    for repetition in range(most):
        if repetition >= least and time.perf_counter() - begin > budget * len(calls):
            break
        shuffle(order)
        for name in order:
            call, count = calls[name], range(inner[name])
            start = time.perf_counter()
            for _ in count:
                call()
            seconds[name].append((time.perf_counter() - start) / len(count))
    return {name: Timing(statistics.median(s), min(s), len(s)) for name, s in seconds.items()}


# -- read bandwidth ----------------------------------------------------------------------------------------------------


def readers(tensor):
    """{name: call} that each read the whole of `tensor` once: reductions that compute as little as torch offers.

    Which one is quickest depends on the machine and on where the data lies, so all are timed and the best one counts.
    """
    words = tensor.detach().reshape(-1).view(torch.int64)  # an integer sum has no rounding and may be taken in any order
    floats = words.view(torch.float32)
    half = floats.numel() // 2
    matrix = floats[: floats.numel() // 1024 * 1024].view(-1, 1024)
    ones = torch.ones(1024)
    calls = {
        "read: sum int64": words.sum,
        "read: sum float32": floats.sum,
        "read: amax int64": words.amax,
        "read: dot float32": lambda: torch.dot(floats[:half], floats[half : 2 * half]),
    }
    if matrix.shape[0] > 1:
        calls["read: matrix @ vector"] = lambda: torch.mv(matrix, ones)
    return calls


def best_reader(timings, size):
    """(GB/s, name) of the quickest reader among `timings`, for `size` bytes"""
    name = min((n for n in timings if n.startswith("read: ")), key=lambda n: timings[n].median)
    return size / timings[name].median / 1e9, name.removeprefix("read: ")


def memory_bandwidth(size=LARGE):
    """Read bandwidth of memory with torch's threads: {"gbps", "gbps_of_minimum", "reader", "bytes", "all"}"""
    buffer = torch.ones(size // 4)
    timings = time_together(readers(buffer), budget=0.5)
    gbps, name = best_reader(timings, size)
    quickest = min(t.minimum for t in timings.values())
    every = {n.removeprefix("read: "): round(size / t.median / 1e9, 2) for n, t in timings.items()}
    return {"gbps": gbps, "gbps_of_minimum": size / quickest / 1e9, "reader": name, "bytes": size, "all": every}


# -- correct before timed ----------------------------------------------------------------------------------------------


class Agreement:
    """Counts tokens of a backend against the reference's. Draws within 1e-5 of a boundary may differ: at most 1e-4 of all."""

    def __init__(self):
        self.tokens = self.differing = 0

    def count(self, ours, reference):
        """int64 tensors of equal shape, padded with −1; -> {"tokens", "differing"} of this case"""
        if ours.shape != reference.shape:
            raise AssertionError(f"shapes differ: {tuple(ours.shape)} and the reference's {tuple(reference.shape)}")
        shown = int(((ours >= 0) | (reference >= 0)).sum())
        wrong = int((ours != reference).sum())
        self.tokens, self.differing = self.tokens + shown, self.differing + wrong
        return {"tokens": shown, "differing": wrong}

    @property
    def acceptable(self):
        # One excused draw changes the rest of its request's tokens as well, which a short run must tolerate.
        return self.differing <= max(9, 1e-4 * self.tokens)


def chi_square_threshold(freedom, sigmas=4.75):
    """Wilson and Hilferty's quantile of chi-square: exceeded once in a million runs if the law is right."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + sigmas * math.sqrt(spread)) ** 3


def check_law(name, tokens, law):
    """Raise unless int64 [n] looks like draws from `law` [V]."""
    count = torch.bincount(tokens, minlength=len(law)).double()
    expected = law.double() * len(tokens)
    statistic = float(((count - expected) ** 2 / expected).sum())
    bound = chi_square_threshold(len(law) - 1)
    if len(count) != len(law) or not statistic < bound:
        raise AssertionError(f"{name}: first token has the wrong law: chi-square {statistic:.1f}, bound {bound:.1f}")


# -- the machine and the output ----------------------------------------------------------------------------------------


def output_of(*command):
    try:
        here = Path(__file__).parent
        done = subprocess.run(command, capture_output=True, text=True, cwd=here, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def machine():
    """What the figures depend on and what produced them."""
    try:
        import transformers

        peer = transformers.__version__
    except ImportError:
        peer = None
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "capability": ss.build_info()["cpu"],
        "specsample": ss.__version__,
        "torch": torch.__version__,
        "transformers": peer,
        "python": platform.python_version(),
        "date": now(),
        "revision": output_of("git", "describe", "--always", "--dirty"),
    }


def write_json(path, result):
    """Numbers rounded to five digits, one row per line: small diffs, and greppable."""

    def short(value):
        if isinstance(value, dict):
            return {k: short(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [short(v) for v in value]
        return float(f"{value:.5g}") if isinstance(value, float) else value

    result = short(result)
    head = {k: v for k, v in result.items() if k != "rows"}
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in result["rows"])
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2] + ',\n "rows": [\n' + rows + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class Progress:
    """One line on stderr; if stderr is not a terminal, only every tenth of the way."""

    def __init__(self, total):
        self.total, self.done, self.begin = total, 0, time.perf_counter()

    def step(self, name):
        self.done += 1
        line = f"{self.done}/{self.total} {time.perf_counter() - self.begin:4.0f} s  {name}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="\n" if self.done == self.total else "", file=sys.stderr, flush=True)
        elif self.done * 10 // self.total > (self.done - 1) * 10 // self.total:
            print(line, file=sys.stderr, flush=True)
