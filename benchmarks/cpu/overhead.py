"""The decoding loop's own cost per step: everything but the models' forwards and the kernels, with a nearly free model.

    python -m benchmarks.cpu.overhead [--cpu]

One request, a two-layer Llama of width 32, float32, V = 64: forwards are timed in the models' own calls, kernels at the
dispatch, and the rest of the wall clock is the loop (and the Python of `ss.draft`, `ss.verify` and `CachedModel`), by phase of
`Stats`; `other` includes the argument checks. On a busy machine the wall clock also counts waits for a core; with --cpu all
times are CPU time of the one working thread, which is the same on a quiet machine. Writes
benchmarks/results/overhead.json and prints a table.
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers

import specsample as ss
from benchmarks import RESULTS, harness
from specsample.backends import BACKENDS
from specsample.decoding import stats as laps

SETTINGS = [
    ("plain", {"draft": None}),
    ("token, depth 4", {"scheme": "token", "depth": 4}),
    ("block, depth 4", {"scheme": "block", "depth": 4}),
    ("race, depth 4", {"scheme": "race", "depth": 4}),
    ("recursive, 4 paths of 2", {"scheme": "recursive", "paths": 4, "depth": 2}),
    ("optimal, 4 paths of 2", {"scheme": "optimal", "paths": 4, "depth": 2}),
    ("optimal_block, 4 paths of 4", {"scheme": "optimal_block", "paths": 4, "depth": 4}),
    ("race, tree of 7", {"scheme": "race", "tree": [-1, -1, -1, 0, 0, 1, 3]}),
    ("race, 12 heaviest nodes", {"scheme": "race", "tree": 12, "depth": 4}),
]


class Clock:
    """Seconds spent inside the calls it wraps, by the clock `now`."""

    def __init__(self, now):
        self.seconds, self.now = 0.0, now

    def timed(self, function):
        @functools.wraps(function)  # the loop reads the signature of a model's forward
        def call(*args, **more):
            start = self.now()
            try:
                return function(*args, **more)
            finally:
                self.seconds += self.now() - start

        return call


def tiny(seed, layers):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def measure(repeats, new_tokens, now=time.perf_counter):
    """Rows of the results: medians of microseconds per step"""
    target, draft, functions, clocks = tiny(0, 2), tiny(1, 1), {}, {}
    for name, model in (("target", target), ("draft model", draft)):
        clocks[name] = Clock(now)
        model.forward = clocks[name].timed(model.forward)
    compiled = BACKENDS["cpu"]
    for name in ("sample", "draft", "row_stats", "verify"):
        clocks[name] = Clock(now)
        functions[name] = clocks[name].timed(getattr(compiled.functions, name))
    BACKENDS["cpu"] = compiled._replace(functions=SimpleNamespace(**functions))
    laps.time = SimpleNamespace(perf_counter=now)  # the clock of `Stats`
    prompt = torch.randint(1, 64, (1, 8), generator=torch.Generator().manual_seed(2))
    rows = []
    for name, settings in SETTINGS:
        figures = []
        for seed in range(repeats + 1):
            for clock in clocks.values():
                clock.seconds = 0.0
            arguments = {"draft": draft, "max_new_tokens": new_tokens, "seed": seed, "return_stats": True} | settings
            start = now()
            _, stats = ss.generate(target, input_ids=prompt, **arguments)
            total = now() - start
            parts = split(total, stats.seconds, {clock: clocks[clock].seconds for clock in clocks})
            figures.append({part: 1e6 * value / stats.target_calls for part, value in parts.items()})
        figures = figures[1:]  # the first is a warm-up
        rows.append({"case": name, "us": {part: statistics.median(f[part] for f in figures) for part in figures[0]}, "n": repeats})
    BACKENDS["cpu"], laps.time = compiled, time
    return rows


def split(total, phases, inside):
    """Seconds of the loop, in total and by phase, and of what it calls. phases: `Stats.seconds`; inside: those of each clock"""
    forwards = inside["target"] + inside["draft model"]
    kernels = sum(inside.values()) - forwards
    parts = {
        "draft": phases["draft"] - inside["draft model"] - inside["draft"] - inside["row_stats"],
        "target": phases["prefill"] + phases["target"] - inside["target"],
        "verify": phases["verify"] - inside["verify"] - inside["sample"],
    }
    loop = total - forwards - kernels
    return {"loop": loop, **parts, "other": loop - sum(parts.values()), "forwards": forwards, "kernels": kernels}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="overhead", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a run (64)")
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of the wall clock")
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    clock = time.thread_time if options.cpu else time.perf_counter
    rows = measure(options.repeats, options.tokens, clock)
    result = {"machine": harness.machine(), "clock": clock.__name__, "rows": rows}
    harness.write_json(options.out, result)
    head = ("loop", "draft", "target", "verify", "other", "forwards", "kernels")
    print("| one request, µs a step | loop | = drafting | + target | + verifying | + other | models' forwards | kernels |")
    print("|:--|" + "--:|" * len(head))
    for row in result["rows"]:
        print(f"| {row['case']} | " + " | ".join(f"{row['us'][part]:.0f}" for part in head) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
