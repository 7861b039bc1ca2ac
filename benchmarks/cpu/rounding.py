"""How often a model's own rounding changes a `race` text: `python -m benchmarks.cpu.rounding`, about three minutes.

With exact logits, `race` gives the text of plain sampling with the same seed, token for token. A float32 model gives
logits whose last bits depend on how many tokens a forward takes; a token changes if the two best scores of its race
are that close. Here the demo's model decodes each prompt plainly, then with each drafter and depth, and the texts are
compared up to the first difference, since what follows it has another prefix. Texts that differ are decoded again
in float64, where they must agree.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import torch
from tqdm import tqdm

import specsample as ss
from benchmarks import RESULTS
from benchmarks.harness import Progress, machine, write_json
from specsample.tools import demo
from specsample.tools.demo_tasks import QUESTIONS, SPELLING

PROMPTS = (
    *QUESTIONS,
    SPELLING,
    "Write a short letter to a landlord about a broken heating.",
    "What is the difference between a virus and a bacterium?",
    "Tell me a story about a lighthouse keeper and a lost dog.",
    "Write a Python function that returns the prime numbers below n.",
    "Name five things to see in Lisbon, with one sentence each.",
)
DRAFTERS, DEPTHS, SEED = ("student", "ngram"), (1, 2, 3, 4), 0


def decode(parts, drafter, depth, ids, options):
    """The new tokens, int64 [n]"""
    draft = None if drafter is None else demo.drafter(parts, drafter)
    output = ss.generate(parts.target, draft, ids, max_new_tokens=options.tokens, depth=depth, scheme="race", seed=SEED)
    return output[0, ids.shape[1] :]


def first_difference(a, b):
    """Index of the first token that differs, or None"""
    n = min(len(a), len(b))
    where = (a[:n] != b[:n]).nonzero()
    return int(where[0]) if len(where) else (None if len(a) == len(b) else n)


def run(options):
    begin = time.perf_counter()
    parts = demo.load(tqdm)
    if parts.student is None:
        raise SystemExit(f"rounding: {parts.why_no_student}")
    prompts = [demo.encode(parts.tokenizer, text) for text in PROMPTS[: options.prompts]]
    progress = Progress(len(prompts) * (1 + len(DRAFTERS) * len(DEPTHS)))
    rows = {(name, depth): {"drafter": name, "depth": depth, "texts": 0, "texts_differing": 0, "tokens_compared": 0}
            for name in DRAFTERS for depth in DEPTHS}  # fmt: skip
    again, done = [], 0
    for i, ids in enumerate(prompts):
        if options.limit and time.perf_counter() - begin > options.limit:
            break
        done += 1
        plain = decode(parts, None, 1, ids, options)
        progress.step(f"prompt {i}, plain")
        for (name, depth), row in rows.items():
            text = decode(parts, name, depth, ids, options)
            at = first_difference(plain, text)
            row["texts"] += 1
            row["tokens_compared"] += len(plain) if at is None else at + 1
            if at is not None:
                row["texts_differing"] += 1
                again.append({"prompt": i, "drafter": name, "depth": depth, "first_difference": at})
            progress.step(f"prompt {i}, {name}, depth {depth}")
    for part in (parts.target, parts.student):
        part.double()
    plain_double = functools.cache(lambda i: decode(parts, None, 1, prompts[i], options))
    for case in again[: options.again]:
        text = decode(parts, case["drafter"], case["depth"], prompts[case["prompt"]], options)
        case["differs_in_float64"] = first_difference(plain_double(case["prompt"]), text) is not None
    total = {key: sum(row[key] for row in rows.values()) for key in ("texts", "texts_differing", "tokens_compared")}
    return {
        "machine": machine(), "model": "SmolLM2-135M-Instruct and its student, float32", "temperature": 1.0,
        "seed": SEED, "prompts": done, "new_tokens": options.tokens, "total": total, "differing": again,
        "seconds": time.perf_counter() - begin, "rows": list(rows.values()),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of a text")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="leave out the prompts that would start later")
    parser.add_argument("--again", type=int, default=4, help="at most so many differing texts are repeated in float64")
    parser.add_argument("--out", type=Path, default=RESULTS / "rounding.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    result = run(options)
    write_json(options.out, result)
    for line in (result["total"], *result["rows"], *result["differing"]):
        print(json.dumps(line))
    wrong = [case for case in result["differing"] if case.get("differs_in_float64")]
    return f"rounding: {len(wrong)} texts differ in float64 too" if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
