"""Scratch memory of one verification: how far the process's peak rises above its inputs.

Run in a separate process for each figure, `python -m benchmarks.cpu.memory cpu 32 8 128256 bfloat16`: the kernel's high-water mark
of resident memory (VmHWM) covers every allocator, including C++ ones. Linux only.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import ROOT

STATUS = Path("/proc/self/status")


def _kilobytes(field):
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1])


def measure(who, B, L, V, dtype):
    import torch

    import specsample as ss
    from benchmarks import competitors as others

    def call(target, tokens, draft):
        if who == "torch":
            return others.token_torch(target, tokens, draft, 0.7)
        return ss.verify(target, tokens, draft, sampling=ss.Sampling(0.7), seed=0, position=0, backend=who)

    def inputs(batch, vocab):
        target = torch.empty(batch, L + 1, vocab, dtype=getattr(torch, dtype)).normal_()
        return target, torch.zeros(batch, L, dtype=torch.int64), target[:, :-1].clone()

    for vocab in (100, 20000):  # code pages, thread pools and their stacks, for both ways of dividing the work
        for batch in (1, 4):
            call(*inputs(batch, vocab))
    arguments = inputs(B, V)
    call(arguments[0][:2], arguments[1][:2], arguments[2][:2])
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    start = _kilobytes("VmHWM")
    result = call(*arguments)
    peak = _kilobytes("VmHWM")
    outputs = sum(x.numel() * x.element_size() for x in result if x is not None)
    return {"peak_kb": peak - start, "resident_before_kb": before, "outputs_bytes": outputs}


def in_subprocess(who, B, L, V, dtype):
    """measure() in a fresh process; {"error": …} if it is not possible."""
    arguments = [sys.executable, "-m", "benchmarks.cpu.memory", who, *map(str, (B, L, V)), dtype]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def rows(B=32, L=8, V=128256, dtype="bfloat16"):
    """The figures of the package and of eager torch, with the sizes to compare them with, in KiB."""
    item = 2 if dtype == "bfloat16" else 4
    found = {who: in_subprocess(who, B, L, V, dtype) for who in ("cpu", "torch")}
    return {
        "case": f"token-{dtype}-B{B}-L{L}-V{V}",
        "inputs_kb": B * (2 * L + 1) * V * item // 1024,
        "float32_probabilities_kb": B * (2 * L + 1) * V * 4 // 1024,
        "nodes": B * L,
        "outputs_kb": round((B * (L + 1) * 8 + B * 4 + B * L * 4) / 1024, 2),
        "resolution": "pages of 4 KiB; the kernel counts per thread in batches of up to 256 KiB",
        **{f"peak_{who}": figures for who, figures in found.items()},
    }


if __name__ == "__main__":
    who, *shape, dtype = sys.argv[1:]
    print(json.dumps(measure(who, *map(int, shape), dtype)))
