"""Predicted times of the CUDA row passes, from the SASS: nothing here runs on a GPU.

    python benchmarks/predict.py -> benchmarks/results/predicted.md        (needs nvcc and nvdisasm, CUDA's or Triton's)

Each pass is compiled alone, for bfloat16. Its innermost loop with 16-byte loads is found in the disassembly, and its instructions
are counted, but for the blocks of unaligned loads and of slow paths that are called: an upper bound of what an iteration issues,
since all other branches count as taken. A warp's instruction serves 32 tokens, one of each lane. Two times follow for a row:

    issue   instructions / (4 a cycle an SM), one block a row, one block an SM
    memory  bytes / bandwidth, shared by all SMs

A pass takes at least the larger; the predicted one assumes that half of the issue slots are used (12 warps an SM hide latencies in
part) and 90 % of the copy bandwidth.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCH, SMS, CLOCK, BANDWIDTH = "90", 132, 1.75e9, 4.3e12  # H200; bandwidth of a copy, both directions
VOCAB, ISSUED, COPIED = 128_256, 0.5, 0.9
# pass: (statement, rows that it reads)
PASSES = {
    "row statistics": ("Law law = o.law; max_and_mass(s, law, kBfloat16); out[thread_id()] = law.mass", 1),
    "mass of a filtered row": ("out[thread_id()] = kept_mass(s, o.law, kBfloat16)", 1),
    "residual mass": ("out[thread_id()] = residual_sum(s, o)", 2),
    "ratio histogram": ("scatter(s, o, s.histogram); out[thread_id()] = s.tile_sum[thread_id() & 255]", 2),
}
KERNEL = """
#include "csrc/cuda/kernels.h"
namespace specsample {{
__global__ void __launch_bounds__(kBlock, 1) pass_kernel(double* out) {{
  SPS_SHARED(s);
  if (conducts()) return;
  Order o = *s.order;
  o.dtype = kBfloat16, o.ratios.of_bin = nullptr;
  {};
}}
}}
"""


def disassembled(statement, folder):
    places = [os.environ.get("PATH", ""), *(str(p) for s in sys.path for p in Path(s or ".").glob("triton/backends/nvidia/bin"))]
    tool = shutil.which("nvdisasm", path=os.pathsep.join(places))
    if tool is None or shutil.which("nvcc") is None:
        sys.exit("not on the path: nvcc, or nvdisasm")
    source, cubin = folder / "pass.cu", folder / "pass.cubin"
    source.write_text(KERNEL.format(statement))
    command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{ARCH}", f"-I{ROOT}", "-cubin", str(source), "-o", str(cubin)]
    subprocess.run(command, check=True, capture_output=True)
    return subprocess.run([tool, "-c", "-ndf", str(cubin)], capture_output=True, text=True, check=True).stdout


def hot_loop(text):
    """-> (instructions an iteration, tokens an iteration) of the smallest loop with 16-byte loads"""
    lines, labels = [], {}
    for line in text.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
            lines.append(None)
        elif op := re.match(r"\s*/\*[0-9a-f]{4,6}\*/\s+(.*?)\s*;", line):
            lines.append(op[1])
    loops = []
    for end, op in enumerate(lines):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", op or "")
        start = labels.get(target[1], end) if target else end
        if start < end and any("LDG.E.128" in x for x in lines[start:end] if x):
            loops.append((end - start, start, end))
    _, start, end = min(loops)
    blocks, wide = [[]], 0
    for op in lines[start : end + 1]:
        if op is None:
            blocks.append([])
            continue
        blocks[-1].append(op)
        wide += "LDG.E.128" in op
        if "BRA" in op or "CALL" in op:
            blocks.append([])
    narrow = [b for b in blocks if any("CALL" in x or "LDG" in x and "128" not in x for x in b)]
    return sum(map(len, blocks)) - sum(map(len, narrow)), wide


def main():
    lines = [
        "# Predicted, not measured",
        "",
        f"By `benchmarks/predict.py` (its docstring has the method) for an H200: {SMS} SMs at {CLOCK * 1e-9:.2f} GHz, "
        f"{BANDWIDTH * 1e-12:.1f} TB/s, sm_{ARCH}, V = {VOCAB}, bfloat16. No kernel of this package has run on a GPU for it. "
        "Times in µs; \"full chip\" is a row an SM, B = 1 one row in all. The race is left out: how many tokens take its branches "
        "depends on the data.",
        "",
        "| pass | instructions a token | issue bound, a row | memory bound, full chip | predicted, B = 1 | predicted, full chip | "
        "of the bandwidth |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, (statement, rows) in PASSES.items():
            instructions, wide = hot_loop(disassembled(statement, Path(folder)))
            each = instructions / (8 * wide / rows)  # a lane's, of one token: of both rows where it reads two
            issue = each * VOCAB / 32 / 4 / CLOCK
            memory = rows * VOCAB * 2 * SMS / BANDWIDTH
            full = max(issue / ISSUED, memory / COPIED)
            figures = (issue, memory, issue / ISSUED, full)
            lines.append(f"| {name} | {each:.0f} | " + " | ".join(f"{x * 1e6:.1f}" for x in figures) + f" | {memory / full:.0%} |")
    path = ROOT / "benchmarks/results/predicted.md"
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
