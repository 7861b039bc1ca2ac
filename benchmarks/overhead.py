"""What the decoding loop itself costs a step: all but the models' forwards and the kernels, with a model that is next to nothing.

    python benchmarks/overhead.py

One request, a two-layer Llama of width 32, float32, V = 64: the forwards are timed in the models' own calls, the kernels at the
dispatch, and the rest of the wall clock is the loop (and the Python of `ss.draft`, `ss.verify` and `CachedModel`). Writes
benchmarks/results/overhead.json and prints a table.
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import harness  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import specsample as ss  # noqa: E402
from specsample.backends import BACKENDS  # noqa: E402

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
    """Seconds spent inside what it wraps."""

    def __init__(self):
        self.seconds = 0.0

    def timed(self, function):
        @functools.wraps(function)  # the loop reads the signature of a model's forward
        def call(*args, **more):
            start = time.perf_counter()
            try:
                return function(*args, **more)
            finally:
                self.seconds += time.perf_counter() - start

        return call


def tiny(seed, layers):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def measure(repeats, new_tokens):
    """Rows of the results."""
    forwards, kernels = Clock(), Clock()
    target, draft = tiny(0, 2), tiny(1, 1)
    for model in (target, draft):
        model.forward = forwards.timed(model.forward)
    compiled = BACKENDS["cpu"]
    names = ("sample", "draft", "row_stats", "verify")
    BACKENDS["cpu"] = compiled._replace(
        functions=SimpleNamespace(**{name: kernels.timed(getattr(compiled.functions, name)) for name in names})
    )
    prompt = torch.randint(1, 64, (1, 8), generator=torch.Generator().manual_seed(2))
    rows = []
    for name, settings in SETTINGS:
        figures = []
        for seed in range(repeats + 1):
            forwards.seconds = kernels.seconds = 0.0
            arguments = {"draft": draft, "max_new_tokens": new_tokens, "seed": seed, "return_stats": True} | settings
            start = time.perf_counter()
            _, stats = ss.generate(target, input_ids=prompt, **arguments)
            total = time.perf_counter() - start
            parts = {"loop": total - forwards.seconds - kernels.seconds, "forwards": forwards.seconds, "kernels": kernels.seconds}
            figures.append({part: 1e6 * value / stats.target_calls for part, value in parts.items()})
        figures = figures[1:]  # the first is a warm-up
        rows.append({"case": name, "us": {part: statistics.median(f[part] for f in figures) for part in figures[0]}, "n": repeats})
    BACKENDS["cpu"] = compiled
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="overhead", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a run (64)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "overhead.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result = {"machine": harness.machine(), "rows": measure(options.repeats, options.tokens)}
    harness.write_json(options.out, result)
    print("| one request | loop, µs a step | models' forwards | kernels |\n|:--|--:|--:|--:|")
    for row in result["rows"]:
        print(f"| {row['case']} | {row['us']['loop']:.0f} | {row['us']['forwards']:.0f} | {row['us']['kernels']:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
