"""The cost of the patched `_speculative_sampling` of transformers relative to `verify` itself.

    python -m benchmarks.cpu.patch_overhead

One request, four drafts drawn from the draft's law, V = 100 and 32 000, float32, one thread. `verify` is timed inside the function;
the rest is the function's own. Medians over calls, and the fastest tenth, which other work on the machine disturbs least.
"""

import os
import statistics
import sys
import time

import torch

from specsample.integrations import transformers as adapter


def measure(vocab, calls):
    """-> microseconds of each call: in `verify`, and in the rest"""
    generator = torch.Generator().manual_seed(0)
    new = 3 * torch.randn(1, 5, vocab, generator=generator)
    candidates = new[:, :4] + torch.randn(1, 4, vocab, generator=generator)
    drafts = torch.multinomial(candidates[0].softmax(-1), calls, replacement=True, generator=generator).T
    texts = [torch.cat([torch.zeros(20, dtype=torch.int64), row])[None] for row in drafts]
    verify, inside, rest = adapter.verify, [], []

    def timed(*args, **given):
        start = time.perf_counter()
        verdict = verify(*args, **given)
        inside.append(1e6 * (time.perf_counter() - start))
        return verdict

    adapter.verify = timed
    try:
        for ids in texts:
            start = time.perf_counter()
            adapter.speculative_sampling(ids, candidates, 4, new)
            rest.append(1e6 * (time.perf_counter() - start) - inside[-1])
    finally:
        adapter.verify = verify
    return inside, rest


def main(calls=3000):
    torch.set_num_threads(1)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("| V | in verify, µs | the rest, µs | the rest, fastest tenth |")
    print("|--:|--:|--:|--:|")
    for vocab in (100, 32_000):
        measure(vocab, 20)
        inside, rest = measure(vocab, calls)
        print(f"| {vocab} | {statistics.median(inside):.1f} | {statistics.median(rest):.1f} | {sorted(rest)[calls // 10]:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
