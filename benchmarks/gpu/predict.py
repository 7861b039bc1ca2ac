"""Predicted times of the CUDA row passes, and Triton's beside them, from the SASS: nothing here runs on a GPU.

    python -m benchmarks.gpu.predict -> benchmarks/results/predicted.md    (needs nvcc, triton, and nvdisasm, CUDA's or Triton's)

Each pass is compiled alone. In the disassembly, the common way through one turn of its loop is the one of the fewest instructions
that does what every turn must do for bfloat16 (PASSES says what, by the instructions that it takes): 16-byte loads, no slow path.
A warp's instruction serves 32 tokens, one of each lane. Four times follow for a row:

    issue   instructions / (4 a cycle an SM), one block a row; multiplications to 64 bits count twice
    special special functions / (16 lanes a cycle an SM)
    memory  bytes / bandwidth, shared by all SMs
    flight  bytes / (bytes in flight / latency): what the loads of one turn can ask for, which are all that wait at a time

A pass takes at least the largest; predicted are 90 % of the copy bandwidth, and a half or three quarters of the issue slots used:
12 warps an SM hide latencies in part, how much only a GPU can tell. Before the next pass of a block a row drains: at barriers and
conductor steps nothing is on its way (DRAINED). A race then opens its best groups, one a warp at a time, and scores what may win: a
fixed cost of a row, from the instructions of a warp's way through that loop, which wait for each other. Where a processor has several
blocks, one streams while another waits.

A whole call for one request follows from the passes that it waits for, a team of 8 blocks each, and from ASSUMED and CALLS: what is
not a pass is counted in the kernels' text and priced by guesses that stand there.
"""

import heapq
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import RESULTS, ROOT

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "support"))

import triton_compile
from nvidia_tools import nvcc, nvidia_tool

ARCH, SMS, CLOCK, BANDWIDTH = "90", 132, 1.75e9, 4.3e12  # H200; bandwidth of a copy, both directions
VOCAB, ISSUED, COPIED = 128_256, (0.5, 0.75), 0.9
LATENCY = 0.8e-6  # of memory that is busy
DRAINED = (2e-6, 3e-6)  # seconds in which a block has nothing on its way, a pass
LOADS, EXP2, TILE = ("LDG.E.128", 4), ("MUFU.EX2", 32), ("SHFL", 10)
WIDEN = ("IMAD.U32 .*0x10000|SHF.L.U32|IMAD.SHL|PRMT .*RZ", 14)  # from bfloat16
PHILOX, LOG2 = ("IMAD.(WIDE|HI).U32", 18), ("MUFU.LG2", 1)  # one call; a bound of a group
RACE = "race, groups unopened"
# pass: (statement, rows that it reads, instructions of every turn, and of the turns that end a tile or make random words, and after
# how many tokens of a lane these come).
PASSES = {
    "row statistics": (
        "Law law = o.law; max_and_mass(s, law, o.dtype); out[thread_id()] = law.mass",
        1,
        [LOADS, EXP2, WIDEN],
        [TILE],
        32,
    ),
    "mass of a filtered row": ("out[thread_id()] = kept_mass(s, o.law, o.dtype)", 1, [LOADS, EXP2, WIDEN], [TILE], 32),
    "residual mass": ("out[thread_id()] = residual_sum(s, o)", 2, [LOADS, EXP2, WIDEN], [TILE], 32),
    "ratio histogram, all in the tail": (
        "scatter(s, o, s.histogram); out[thread_id()] = s.tile_sum[thread_id() & 255]",
        2,
        [LOADS, EXP2, WIDEN],
        [TILE],
        32,
    ),
    "ratio histogram, none in the tail": (
        "scatter(s, o, s.histogram); out[thread_id()] = s.tile_sum[thread_id() & 255]",
        2,
        [LOADS, EXP2, WIDEN, ("MUFU.RCP", 16), ("ATOMS.ADD", 16)],
        [TILE],
        32,
    ),
    RACE: ("out[thread_id()] = run_race(s, o.dtype).score", 1, [LOADS, ("HMNMX2", 4), LOG2], [PHILOX], 128),
}
# The loop in which a warp opens a group, in the race's text: the group's words, a logit a lane, its own word, exchanges over the warp.
# So many groups of a row are opened whatever its law, if each warp takes its highest bound, and no fewer rounds than this follow.
OPENING, OPENED, LEAST_ROUNDS = [("LDG.E.U16", 1), (PHILOX[0], 36), ("MUFU.LG2", 3), ("SHFL", 5)], (32, 35), (1, 2)
DEPENDENT, AGAIN = 4, 0.3e-6  # cycles of an instruction that waits for the one before it; seconds of a group's logits, read again
# The same pass as one of Triton's kernels has it, and instructions of a turn; a race bounds its groups in a loop of its own.
TRITON = {
    "row statistics": ("laws_kernel", [LOADS, EXP2], []),
    "residual mass": ("masses_kernel", [LOADS, EXP2], []),
    RACE: ("winners_kernel", [LOADS, ("HMNMX2", 4)], [PHILOX, ("FMNMX", 4)]),
}
TEAM = 8
# Microseconds each: guesses. (One for a barrier is a range.) To them comes, from the text, "round of opened groups".
ASSUMED = {
    "launch": 3.0,  # the first of a call
    "launch that began early": 1.0,  # what is left of it when the one before has ended
    "barrier of a team": (0.5, 1.0),
    "set-up of a request": 1.5,
    "first load of a row": 0.8,
    "exact scores of the tokens that may have won": 2.0,
    "step of a token's walk": 1.2,  # two laws, two logits, two exponentials and a random number, asked for beforehand
    "step of a race's walk": 0.5,
    "sums and law of a selection": 8.0,  # O(bins) in double: the histogram's sums, two scalars, the coupling
}
AHEAD = {"launch": 1, "set-up of a request": 1, "first load of a row": 1}
OF_RACE = {"round of opened groups": LEAST_ROUNDS, "exact scores of the tokens that may have won": 1}
# call: (passes waited for, how often what else). All rows are read by the first launch at once. Barriers of a team: one to start, two
# for a sum, three for a race. The second launch starts and sets up while the first runs.
CALLS = {
    "token-B1-L4-V128256-T1-plain": (  # all accepted
        ["row statistics", RACE],
        [
            AHEAD,
            {"barrier of a team": 1 + 2},
            OF_RACE,
            {"launch that began early": 1, "barrier of a team": 3, "first load of a row": 1, "step of a token's walk": 4},
        ],
    ),
    "the same, the first rejected": (
        ["row statistics", RACE],
        [
            AHEAD,
            {"barrier of a team": 1 + 2},
            OF_RACE,
            {"launch that began early": 1, "barrier of a team": 3, "first load of a row": 1, "step of a token's walk": 1},
        ],
    ),
    "sample-B1-V128256-T1-plain": ([RACE], [AHEAD, {"barrier of a team": 3}, OF_RACE]),
    "race-B1-L4-V128256-T1-plain": (  # all accepted
        [RACE],
        [AHEAD, {"barrier of a team": 1 + 3}, OF_RACE, {"launch that began early": 1, "step of a race's walk": 5}],
    ),
}
# What a request reads when an SM has one or more, in passes: both laws, the law after them and a race.
MANY = {"`token`, one draft": ["row statistics"] * 3 + [RACE], "`sample`": [RACE]}
# `optimal` with four drafts of one token: a histogram has four barriers, what follows from its sums one.
for _bins in ("all in the tail", "none in the tail"):
    CALLS[f"optimal-B1-K4-L1-V128256, {_bins}"] = (
        ["row statistics", f"ratio histogram, {_bins}", RACE],
        [
            AHEAD,
            {"barrier of a team": 1 + 2},
            OF_RACE,
            {
                "launch that began early": 1,
                "barrier of a team": 4 + 1 + 3,
                "first load of a row": 2,
                "sums and law of a selection": 1,
                "step of a token's walk": 1,
            },
        ],
    )
    MANY[f"`optimal`, four drafts, {_bins}"] = [*MANY["`token`, one draft"], f"ratio histogram, {_bins}"]
KERNEL = """
#include "csrc/cuda/kernels.h"
namespace specsample {{
__global__ void __launch_bounds__(kBlock, {blocks}) pass_kernel(double* out) {{
  SPS_SHARED(s);
  if (conducts()) return;
  Order o = *s.order;
  o.ratios.of_bin = nullptr;
  {statement};
}}
}}
"""


def constant(pattern, file):
    """A number of the kernels' text"""
    return int(re.search(pattern, (ROOT / "csrc/cuda" / file).read_text())[1])


BLOCKS = constant(r"__launch_bounds__\(kBlock, (\d)\)", "verify_kernel.h")  # of a kernel on an SM: as many as its registers allow
CREW = constant(r"kCrew = (\d+)", "shape.h")  # threads of a block that read


def compiled(statement, folder):
    source, cubin = folder / "pass.cu", folder / "pass.cubin"
    source.write_text(KERNEL.format(statement=statement, blocks=BLOCKS))
    command = [nvcc(), "-std=c++17", "-O3", f"-arch=sm_{ARCH}", f"-I{ROOT}", "-cubin", str(source), "-o", str(cubin)]
    subprocess.run(command, check=True, capture_output=True)
    return cubin


def compiled_by_triton(name, folder):
    kernel, fixed, dtype = next(x for x in triton_compile.variants() if x[0].__name__ == name and x[2] == "bf16")
    target = triton_compile.GPUTarget("cuda", int(ARCH), 32)
    cubin = folder / "triton.cubin"
    cubin.write_bytes(triton_compile.compile_one(kernel, fixed, dtype, target).asm["cubin"])
    return cubin


def disassembled(cubin):
    command = [nvidia_tool("nvdisasm"), "-c", "-ndf", str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def blocks_of(text):
    """[(instructions, blocks that may follow)] of a disassembly"""
    blocks, labels = [[]], {}
    for line in text.splitlines():
        label, op = re.match(r"^(\.L_x_\d+):", line), re.match(r"\s*/\*[0-9a-f]{4,6}\*/\s+(.*?)\s*;", line)
        if (label or op) and blocks[-1] and (label or re.search(r"\b(BRA|EXIT|RET|CALL)\b", blocks[-1][-1])):
            blocks.append([])
        if label:
            labels[label[1]] = len(blocks) - 1
        elif op:
            blocks[-1].append(op[1])
    out = []
    for i, ops in enumerate(blocks):
        last = ops[-1] if ops else ""
        target = re.search(r"\bBRA\b[^`]*`\((\.L_x_\d+)\)", last)
        follow = [i + 1] if i + 1 < len(blocks) else []
        if "CALL" in last or re.search(r"\b(EXIT|RET)\b", last):
            follow = follow if last.startswith("@") and "CALL" not in last else []
        elif target and "BRA.DIV" not in last:
            conditional = last.startswith("@") or re.search(r"BRA(\.\w+)* !?U?P\d", last)
            follow = [labels[target[1]], *(follow if conditional else [])]
        out.append((ops, follow))
    return out


def still_to_come(blocks, start, counts, enough):
    """For each block: of every instruction that is needed, how many at most on the ways from its end back to `start`; None: no way"""
    most, changed = [None] * len(blocks), True
    while changed:
        changed = False
        for i in reversed(range(len(blocks))):
            found = most[i]
            for to in blocks[i][1]:
                if to != start and most[to] is None:
                    continue
                here = (0,) * len(enough) if to == start else tuple(map(min, enough, map(sum, zip(counts[to], most[to]))))
                found = here if found is None else tuple(map(max, found, here))
            changed |= found != most[i]
            most[i] = found
    return most


def turn(blocks, start, needed, limit=1 << 30):
    """Instructions of the shortest way from a block back to it on which `needed` [(pattern, how many)] is done; None: no way that is
    shorter than the limit"""
    counts = [[sum(bool(re.search(pattern, op)) for op in ops) for pattern, _ in needed] for ops, _ in blocks]
    enough = tuple(n for _, n in needed)

    def after(seen, block):
        return tuple(map(min, map(sum, zip(seen, counts[block])), enough))

    most = still_to_come(blocks, start, counts, enough)

    def hopeless(block, seen):
        return most[block] is None or any(n + m < e for n, m, e in zip(seen, most[block], enough))

    begin = (start, after([0] * len(needed), start))
    if hopeless(*begin):
        return None
    length, before = {begin: len(blocks[start][0])}, {begin: None}
    heap, settled = [(length[begin], begin)], set()
    while heap:
        _, state = heapq.heappop(heap)
        if state in settled:
            continue
        if length[state] >= limit:
            return None
        settled.add(state)
        at, seen = state
        for to in blocks[at][1]:
            if to == start and seen == enough:
                way = []
                while state is not None:
                    way, state = blocks[state[0]][0] + way, before[state]
                return way
            key = (to, after(seen, to))
            if hopeless(*key):
                continue
            if length.get(key, 1 << 30) > length[state] + len(blocks[to][0]):
                length[key], before[key] = length[state] + len(blocks[to][0]), state
                heapq.heappush(heap, (length[key], key))
    return None


def common_way(text, needed, loads=True):
    """... of the loop in which that way is shortest. loads: among loops that read rows, 16 bytes at a time; or among the others"""
    blocks = blocks_of(text)
    loops = {(to, i) for i, (_, follow) in enumerate(blocks) for to in follow if to <= i}
    starts = {to for to, i in loops if loads == any("LDG.E.128" in op for ops, _ in blocks[to : i + 1] for op in ops)}
    best = None
    for start in starts:
        best = turn(blocks, start, needed, 1 << 30 if best is None else len(best)) or best
    if best is None:
        raise RuntimeError(f"no loop does all of {needed}")
    return best


def loads_of(way):
    """16-byte loads of bfloat16. Under a predicate and its opposite stand those of a 16-bit row and those of a float32 one, which
    are twice as many."""
    under = Counter(re.match(r"(@!?U?P\d+ )?", op)[0] for op in way if "LDG.E.128" in op)
    opposite = {guard: guard.replace("@!", "@") if "!" in guard else guard.replace("@", "@!") for guard in under}
    return sum(n for guard, n in under.items() if n <= under.get(opposite[guard], n))


class Pass:
    """Instructions of one token on the ways through a loop, and what follows from them, in seconds for a row on an SM"""

    def __init__(self, text, rows, always, last, after, apart=(), threads=CREW * BLOCKS):
        """after: so many tokens of a lane, of each row, have one turn with `last`; apart: of a second loop, which makes the random words;
        threads: of an SM that read"""
        often = common_way(text, always)
        self.turn = 8 * loads_of(often) // rows  # tokens of a lane
        ways = [common_way(text, always + last)] + [often] * (max(1, after // self.turn) - 1)
        turns = [(sum(ways, []), 8 * sum(map(loads_of, ways)) / rows)]
        if apart:
            words = common_way(text, apart, loads=False)
            turns.append((words, 128 * round(sum(bool(re.search(PHILOX[0], op)) for op in words) / PHILOX[1])))

        def each(pattern):
            return sum(sum(bool(re.search(pattern, op)) for op in way) / tokens for way, tokens in turns)

        self.instructions, self.wide, self.special = each(""), each(r"IMAD\.(WIDE|HI)"), each(r"MUFU|F2I|I2F|F2F")
        self.issue = (self.instructions + self.wide) * VOCAB / 32 / 4 / CLOCK
        self.unit = self.special * VOCAB / 16 / CLOCK
        self.memory = rows * VOCAB * 2 * SMS / BANDWIDTH
        self.in_flight = 16 * loads_of(often) * threads
        self.flight = rows * VOCAB * 2 / self.in_flight * LATENCY
        self.alone = max(self.issue / ISSUED[0], self.unit, self.flight)
        self.shared = [max(self.issue / used, self.unit, self.memory / COPIED, self.flight) for used in ISSUED]
        self.waits = sum(DRAINED) / 2  # after it, in its block

    @property
    def each(self):
        """Seconds a row of the SM's blocks, each of which goes through a pass and waits"""
        return [max(busy, (busy + self.waits) / BLOCKS) for busy in self.shared]

    def of_team(self):
        """Seconds for a row shared by a team: warps take a tile, or a turn if that is more, and all wait for the last"""
        chunks, warps = VOCAB / (32 * max(32, self.turn)), TEAM * CREW // 32
        return self.alone / TEAM * math.ceil(chunks / warps) * warps / chunks


def opening(text):
    """Seconds of a warp in which it opens what it has the highest bound of"""
    return len(common_way(text, OPENING, loads=False)) * DEPENDENT / CLOCK + AGAIN


def rounds(warps):
    """In which so many warps open the groups of a row: a range"""
    return [max(least, math.ceil(n / warps)) for n, least in zip(OPENED, LEAST_ROUNDS)]


def call(passes, counts, cuda, prices):
    """-> a range of microseconds for each: launches, barriers, passes, the rest, all"""
    parts = {"launches": [0, 0], "barriers": [0, 0], "passes": [0, 0], "rest": [0, 0]}
    for name in passes:
        for i in range(2):
            parts["passes"][i] += cuda[name].of_team() * 1e6
    for what, often in (item for part in counts for item in part.items()):
        part = parts["launches" if "launch" in what else "barriers" if "barrier" in what else "rest"]
        for i in range(2):
            part[i] += _of_range(often, i) * _of_range(prices[what], i)
    low, high = (sum(part[i] for part in parts.values()) for i in range(2))
    return [*parts.values(), [low, high]]


def _of_range(x, i):
    return x[i] if isinstance(x, tuple) else x


def passes_of(folder):
    """{name: Pass} of CUDA, of Triton, and seconds of opening a group"""
    cuda, by_triton = {}, {}
    for name, (statement, rows, *needed) in PASSES.items():
        text = disassembled(compiled(statement, folder))
        cuda[name] = Pass(text, rows, *needed)
        if name == RACE:
            opened = opening(text)
    cuda[RACE].waits += sum(rounds(CREW // 32)) / 2 * opened + ASSUMED["exact scores of the tokens that may have won"] * 1e-6
    for name, (kernel, always, apart) in TRITON.items():
        text = disassembled(compiled_by_triton(kernel, folder))
        by_triton[name] = Pass(text, PASSES[name][1], always, [], 1, apart, 3 * 128)
    return cuda, by_triton, opened


def _text(x):
    return "–".join(dict.fromkeys(f"{y:.3g}" for y in (x if isinstance(x, (tuple, list)) else [x])))


def main():
    if nvcc() is None or nvidia_tool("nvdisasm") is None:
        sys.exit("not on the path: nvcc, or nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        cuda, by_triton, opened = passes_of(Path(folder))
    prices = {"round of opened groups": opened * 1e6, **ASSUMED}
    in_block, in_team = (_text(rounds(n * CREW // 32)) for n in (1, TEAM))
    lines = [
        "# Predicted, not measured",
        "",
        f"By `benchmarks/predict.py` (its docstring has the method) for an H200: {SMS} SMs at {CLOCK * 1e-9:.2f} GHz, "
        f"{BANDWIDTH * 1e-12:.1f} TB/s, sm_{ARCH}, V = {VOCAB}, bfloat16, a block a row, {BLOCKS} a processor. No kernel of this package "
        "has run on a GPU for it. Instructions are those of one token (of both rows where a pass reads two) on the common way through the "
        "loop. Times in µs, of a row an SM: the bounds from issue slots, special functions, memory, and the bytes in flight, with "
        f"{LATENCY * 1e6:.1f} µs of latency; predicted for one row in all (B = 1), and for a row an SM as a share of the bandwidth, if a "
        "half or three quarters of the issue slots are used. Last, the same with what a block waits after the pass: "
        f"{DRAINED[0] * 1e6:.0f} to {DRAINED[1] * 1e6:.0f} µs in which nothing is on its way (a guess), and of a race its groups.",
        "",
        f"The race has no random word a token: one call of Philox is for 128 tokens of a lane. It opens {OPENED[0]} to {OPENED[1]} groups of "
        f"a row, a warp one at a time: {in_block} rounds of a block's {CREW // 32} warps, {in_team} of a team's {TEAM * CREW // 32}; a round "
        f"takes {opened * 1e6:.1f} µs ({DEPENDENT} cycles an instruction, which wait for each other, and the logits once more), exact scores "
        f"of what may have won {ASSUMED['exact scores of the tokens that may have won']:g} µs (a guess).",
        "",
        "| pass | instructions | of them to 64 bits | special functions | issue | special | memory | in flight, KB | flight | B = 1, half "
        "| half | three quarters | waits | half | three quarters |",
        "|---|" + "--:|" * 14,
    ]
    for name, one in cuda.items():
        figures = [f"{x:.1f}" for x in (one.instructions, one.wide, one.special)]
        figures += [f"{x * 1e6:.1f}" for x in (one.issue, one.unit, one.memory)]
        figures += [f"{x:.1f}" for x in (one.in_flight / 1e3, one.flight * 1e6, one.alone * 1e6)]
        figures += [f"{one.memory / x:.0%}" for x in one.shared] + [f"{one.waits * 1e6:.1f}"]
        lines.append(f"| {name} | {' | '.join(figures + [f'{one.memory / x:.0%}' for x in one.each])} |")
    lines += [
        "",
        "## Triton",
        "",
        "The same passes in Triton's kernels (its loop for rows that can be read 16 bytes at a time; four warps, three "
        "programs an SM), and their time over CUDA's for a row an SM or more, if both use a half or three quarters of the issue slots; "
        "without what either waits after a pass. The multi-draft schemes have one program of eight warps a request: "
        "not predicted.",
        "",
        "| pass | instructions | of them to 64 bits | special functions | issue | half | × | three quarters | × |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in by_triton.items():
        figures = [f"{x:.1f}" for x in (one.instructions, one.wide, one.special, one.issue * 1e6)]
        figures += [f for x, y in zip(one.shared, cuda[name].shared) for f in (f"{one.memory / x:.0%}", f"{x / y:.2f}")]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    said = ", ".join(f"{what} {_text(x)}" for what, x in prices.items())
    lines += [
        "",
        "## A call for one request",
        "",
        f"B = 1, L = 4, {TEAM} blocks a team, two launches: one reads all rows at once, the other walks (`sample` has the first alone); all drafts "
        "accepted. Passes from the table above "
        f"(half of the issue slots used); the rest is counted and priced by guesses, in µs: {said}.",
        "",
        "| call | launches | barriers | passes | rest | all | predicted, µs |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, (passes, counts) in CALLS.items():
        ranges = call(passes, counts, cuda, prices)
        texts = ["–".join(dict.fromkeys(f"{x:.1f}" for x in part)) for part in ranges]
        lines.append(f"| `{name}` | {' | '.join(texts)} | {sum(ranges[-1]) / 2:.0f} |")
    lines += [
        "",
        "## Many requests",
        "",
        "An SM has a request or more; passes with their waits, one after the other, µs a request and SM if a half or three quarters of "
        "the issue slots are used, and the time over that of `token`.",
        "",
        "| call | half | × | three quarters | × |",
        "|---|--:|--:|--:|--:|",
    ]
    sums = {name: [sum(cuda[x].each[i] for x in passes) for i in range(2)] for name, passes in MANY.items()}
    first = next(iter(sums.values()))
    for name, both in sums.items():
        lines.append(f"| {name} | " + " | ".join(f"{x * 1e6:.0f} | {x / y:.2f}" for x, y in zip(both, first)) + " |")
    path = RESULTS / "predicted.md"
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
