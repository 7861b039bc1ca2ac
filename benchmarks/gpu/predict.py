"""Predicted times of the CUDA kernels, compared with Triton's passes, from the SASS: nothing here runs on a GPU.

    python -m benchmarks.gpu.predict -> benchmarks/results/predicted.md    (needs nvcc, triton, and nvdisasm, CUDA's or Triton's)

passes.py has the passes over rows and their cost, plan.py what a call does, its teams and the guesses.

The predictions assume 90 % of the copy bandwidth, and half or three quarters of the issue slots: 12 warps per SM hide part of the
latencies, and only a GPU can tell how much. A race opens its best groups after its pass, one per warp at a time, and scores the
possible winners: a fixed cost per row, from the instructions on a warp's way through that loop, which wait for each other.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks import RESULTS, ROOT

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "support"))

from nvidia_tools import nvcc, nvidia_tool

from benchmarks.gpu import passes, plan
from benchmarks.gpu.cases import Case, V
from benchmarks.gpu.passes import COPIED, LATENCY, RACE, STATISTICS, rounds

TAIL, BINNED = "ratio histogram, all in the tail", "ratio histogram, none in the tail"
CASES = [
    *(Case(scheme, B, 4, V) for B in (1, 8, 64) for scheme in ("token", "race")),
    *(Case("sample", B, 0, V) for B in (1, 8, 64, 256)),
    *(Case("token", B, 4, V, 0.7, f) for B in (1, 64) for f in ("plain", "top-k", "top-p", "min-p", "all")),
    *(Case("token", B, 4, V + 1, 0.7) for B in (1, 64)),
]
SEVERAL = [(Case("optimal", B, 1, V, K=4), bins) for B in (1, 64) for bins in (TAIL, BINNED)]
# The passes of a request when an SM has one or more of them: both laws, the law after them, and a race.
MANY = {"`token`, one draft": [STATISTICS] * 3 + [RACE], "`sample`": [RACE]}
MANY |= {f"`optimal`, four drafts, {bins.split(', ')[1]}": [*MANY["`token`, one draft"], bins] for bins in (TAIL, BINNED)}
LATENCIES = (0.6e-6, 0.8e-6, 1.0e-6)

DOUBTS = f"""## Where this is not to be believed

- Nothing was measured. The clock, the bandwidth, the latency ({LATENCY * 1e6:.1f} µs) and every number of `ASSUMED` in
  `benchmarks/gpu/plan.py` are guesses, made before any run. Ratios of two passes are better than times; times of a call for one request
  are mostly guesses.
- Bytes in flight over latency is an upper bound of what a pass can ask for: it supposes that all warps wait at the same time. Warps that
  are computing have nothing on its way; then the pass is slower. Warps that drift apart overlap one's work with another's waiting; half or
  three quarters of the issue slots stand for that, and are a guess.
- The second-level cache is left out. A row of 256 KB that several passes read comes from it after the first: filters, `block` and all
  calls for one request are then faster than here; calls that are repeated on the same inputs are.
- Filters: a digit's pass is priced as if no token were above the bound that it starts from. Those that are, are read again and counted by
  atomics one after the other. Of top-k they are few. Of top-p on a flat law they are most of the row, and its three passes cost
  several times what stands here.
- Rows that are not aligned: that the lanes of a narrow load touch {passes.LINES} lines, one a cycle, is a guess. A warp that works has nothing on
  its way there, which only the other warps hide: the sum of the bounds is as likely as the largest.
- Many teams at once: the drain of one is filled by the loads of others only where the bandwidth is what bounds them. Here drains are added
  up as if none were, which is too much; that blocks in clusters wait for room in one part of the GPU is left out, which is too little.
- A race's rounds are those of a plain law. A residual that is almost nothing opens many more groups.
- All drafts are accepted. A round that stops early reads less, and more of it where nothing is read ahead.
- The instructions of Triton are those of its compiled kernels, but how many programs an SM holds is a guess.
"""


def _text(x):
    return "–".join(dict.fromkeys(f"{y:.3g}" for y in (x if isinstance(x, (tuple, list)) else [x])))


def _table(head, rows):
    return ["", f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1), *(f"| {' | '.join(row)} |" for row in rows)]


def _us(*seconds):
    return [f"{x * 1e6:.1f}" for x in seconds]


def of_passes(cuda):
    head = ["pass", "instructions", "of them to 64 bits", "special functions", "issue", "special", "memory", "in flight, KB", "flight",
            "B = 1, half", "half", "three quarters", "drain", "waits", "half", "three quarters"]  # fmt: skip
    rows = []
    for name, one in cuda.items():
        cells = [f"{x:.1f}" for x in (one.instructions, one.wide, one.special)] + _us(one.issue, one.unit, one.memory)
        cells += [f"{one.in_flight / 1e3:.1f}", *_us(one.flight, one.busy())]
        cells += [f"{one.memory / x:.0%}" for x in one.shared] + [f"{one.after}", *_us(one.waits)]
        rows.append([name, *cells, *(f"{one.memory / x:.0%}" for x in one.each)])
    return _table(head, rows)


def of_latency(cuda):
    rows = []
    for name, one in cuda.items():
        shares = [one.memory / max(one.memory / COPIED, one.flight * x / LATENCY) for x in LATENCIES]
        rows.append([name, *(f"{x:.0%}" for x in shares), f"{one.in_flight / (passes.BANDWIDTH * COPIED / passes.SMS) * 1e6:.2f}"])
    return _table(["pass", *(f"{x * 1e6:.1f} µs" for x in LATENCIES), "enough up to, µs"], rows)


def of_unaligned(cuda, apart):
    head = ["pass", "instructions", "issue", "L1", "in flight, KB", "flight", "B = 1, half", "× aligned"]
    rows = []
    for name, one in apart.items():
        cells = [f"{one.instructions:.1f}", *_us(one.issue, one.first), f"{one.in_flight / 1e3:.1f}", *_us(one.flight, one.busy())]
        rows.append([name, *cells, f"{one.busy() / cuda[name].busy():.1f}"])
    return _table(head, rows)


def of_triton(cuda, by_triton):
    rows = []
    for name, one in by_triton.items():
        cells = [f"{x:.1f}" for x in (one.instructions, one.wide, one.special, one.issue * 1e6)]
        rows.append(
            [name, *cells, *(f for x, y in zip(one.shared, cuda[name].shared) for f in (f"{one.memory / x:.0%}", f"{x / y:.2f}"))]
        )
    head = ["pass", "instructions", "of them to 64 bits", "special functions", "issue", "half", "×", "three quarters", "×"]
    return _table(head, rows)


def of_calls(cuda, apart, opened):
    rows = []
    for case, histogram in [(case, None) for case in CASES] + SEVERAL:
        launches = plan.launches(case, histogram)
        found = plan.price(launches, cuda if case.row_bytes % 16 == 0 else apart, opened)
        name = f"`{case.name}`" + (", no token in the tail" if histogram == BINNED else "")
        shape = ", then ".join(f"{launch.teams} × {launch.team}" for launch in launches)
        ranges = ["–".join(dict.fromkeys(f"{x:.1f}" for x in part)) for part in found]
        rows.append([name, shape, *ranges, f"{sum(found[-1]) / 2:.0f}"])
    return _table(["call", "teams", "launches", "barriers", "drains", "passes", "rest", "all", "predicted, µs"], rows)


def of_many(cuda):
    sums = {name: [sum(cuda[x].each[i] for x in names) for i in range(2)] for name, names in MANY.items()}
    first = next(iter(sums.values()))
    rows = [[name, *(f for x, y in zip(both, first) for f in (f"{x * 1e6:.0f}", f"{x / y:.2f}"))] for name, both in sums.items()]
    return _table(["call", "half", "×", "three quarters", "×"], rows)


def main():
    if nvcc() is None or nvidia_tool("nvdisasm") is None:
        sys.exit("not on the path: nvcc, or nvdisasm")
    exact = plan.ASSUMED["exact scores of the tokens that may have won"]
    with tempfile.TemporaryDirectory() as folder:
        cuda, apart, by_triton, opened = passes.measured(Path(folder), exact * 1e-6)
    in_block, in_team = (_text(rounds(n * passes.CREW // 32)) for n in (1, plan.MOST_TEAM))
    assumed = ", ".join(f"{what} {_text(x)}" for what, x in {"round of opened groups": opened * 1e6, **plan.ASSUMED}.items())
    lines = [
        "# Predicted, not measured",
        "",
        f"By `benchmarks/gpu/predict.py` (its docstring, and that of `passes.py`, have the method) for an H200: {passes.SMS} SMs at "
        f"{passes.CLOCK * 1e-9:.2f} GHz, {passes.BANDWIDTH * 1e-12:.1f} TB/s, sm_{passes.ARCH}, V = {passes.VOCAB}, bfloat16, "
        f"{passes.BLOCKS} block a processor. No kernel of this package has run on a GPU for it.",
        "",
        *DOUBTS.splitlines(),
        "",
        "## Passes",
        "",
        "Instructions are those of one token (of both rows where a pass reads two) on the common way through the loop. Times in µs, of a row "
        f"an SM: the bounds from issue slots, special functions, memory, and the bytes in flight, with {LATENCY * 1e6:.1f} µs of latency; "
        "predicted for one row in all (B = 1), and for a row an SM as a share of the bandwidth, if a half or three quarters of the issue "
        "slots are used. Then the drain: instructions from the beginning of the last turn to the end of the pass, on the shortest way; what a "
        f"block waits: one latency, these at {passes.DEPENDENT} cycles each, barriers, and of a race its groups; and the same shares with that.",
        "",
        f"The race has no random word a token: one call of Philox is for 128 tokens of a lane. It opens {passes.OPENED[0]} to "
        f"{passes.OPENED[1]} groups of a row, a warp one at a time: {in_block} rounds of a block's {passes.CREW // 32} warps, {in_team} "
        f"of a team's {plan.MOST_TEAM * passes.CREW // 32}; a round takes {opened * 1e6:.1f} µs ({passes.DEPENDENT} cycles an instruction, "
        f"and {passes.AGAIN * 1e6:.1f} µs each time that the code waits for logits, once more), exact scores of what may have won {exact:g} "
        "µs (a guess).",
        *of_passes(cuda),
        "",
        "## Latency",
        "",
        "The share of the bandwidth that the bytes in flight allow, by the latency of memory, and up to which latency they are enough.",
        *of_latency(cuda),
        "",
        "## Rows that are not aligned to 16 bytes",
        "",
        "A vocabulary that is no multiple of eight: the tokens are read one by one, those of a turn (of one of the rows, where a pass reads "
        "two) together, and packed before the work on the turn before. × aligned: the time for one row in all over that of an aligned one.",
        *of_unaligned(cuda, apart),
        "",
        "## Triton",
        "",
        "The same passes in Triton's kernels (its loop for rows that can be read 16 bytes at a time; four warps, three programs an SM), and "
        "their time over CUDA's for a row an SM or more, if both use a half or three quarters of the issue slots; without what either waits "
        "after a pass. The multi-draft schemes have one program of eight warps a request: not predicted.",
        *of_triton(cuda, by_triton),
        "",
        "## Calls",
        "",
        "All drafts accepted. Teams: how many, and of how many blocks, in each launch: where rows are few, one launch reads all at once and "
        "another walks; elsewhere a request's team reads them one after the other. Passes and drains from the tables above, three quarters to "
        f"half of the issue slots used, a row shared by its team; the rest is counted and priced by guesses, in µs: {assumed}.",
        *of_calls(cuda, apart, opened),
        "",
        "## Many requests",
        "",
        "An SM has a request or more; passes with their waits, one after the other, µs a request and SM if a half or three quarters of "
        "the issue slots are used, and the time over that of `token`.",
        *of_many(cuda),
    ]
    path = RESULTS / "predicted.md"
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
