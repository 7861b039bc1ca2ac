"""The cost of the passes over rows in the CUDA kernels, and in Triton's, from their machine code. Nothing here runs on a GPU.

Each pass is compiled alone. In the disassembly, the common path ("way") through one turn of its loop is the one with the fewest
instructions that does what every turn must do for bfloat16 (PASSES lists this work by its instructions): 16-byte loads, no slow
path. One instruction of a warp serves 32 tokens, one per lane. Four times follow for a row:

    issue   instructions / (4 per cycle per SM), one block per row; multiplications to 64 bits count twice
    special special functions / (16 lanes per cycle per SM)
    memory  bytes / bandwidth, shared by all SMs
    flight  bytes / (bytes in flight / latency): only the loads of one turn are outstanding at a time

and for a row that is not aligned to 16 bytes, on the way that reads its tokens one by one, also

    L1      two-byte loads, whose 32 lanes touch four lines

A pass takes at least the largest of these. Then the block drains: nothing is in flight until the next pass issues loads. This costs
one latency, the instructions from the last loads to the end of the pass, most of which wait for each other, and barriers.
"""

import math
import re
from typing import NamedTuple

import machine_code
import sass
import triton_compile

ARCH, SMS, CLOCK, BANDWIDTH = "90", 132, 1.75e9, 4.3e12  # H200; copy bandwidth, both directions
VOCAB, ISSUED, COPIED = 128_256, (0.5, 0.75), 0.9  # shares of the issue slots and of the bandwidth that are used
LATENCY = 0.8e-6  # of memory under load
MEETING = 0.05e-6  # one barrier of a block
DEPENDENT, AGAIN = 4, 0.3e-6  # cycles of an instruction that waits for the previous one; seconds to read logits again
LINES = 4  # cycles of a load that touches this many lines of the L1 cache
BLOCKS, CREW = machine_code.BLOCKS, machine_code.CREW

LOADS, ONE_BY_ONE, EXP2, TILE = ("LDG.E.128", 4), r"LDG\.E\.U16", ("MUFU.EX2", 32), ("SHFL", 10)
WIDEN = ("IMAD.U32 .*0x10000|SHF.L.U32|IMAD.SHL|PRMT .*RZ", 14)  # from bfloat16
MAXIMA = ("HMNMX2.BF16", 4)
PHILOX, LOG2 = ("IMAD.(WIDE|HI).U32", 18), ("MUFU.LG2", 1)  # one call; the bound of one group


class Kind(NamedTuple):
    statement: str
    always: tuple  # instructions of every turn,
    last: tuple = ()  # and of turns that end a tile or generate random words,
    after: int = 1  # which come once per this many tokens of a lane
    rows: int = 1
    team: int = 2  # team barriers in the pass; crew: barriers of a block
    crew: int = 0


SCATTER = "scatter(s, o, s.histogram); out[thread_id()] = s.tile_sum[thread_id() & 255]"
SUM = {"always": (LOADS, EXP2, WIDEN), "last": (TILE,), "after": 32}
BINNED = {**SUM, "always": (*SUM["always"], ("MUFU.RCP", 16), ("ATOMS.ADD", 16))}
RACE, DIGIT, MAXIMUM = "race, groups unopened", "digit of a filter, no token in it", "maximum"
STATISTICS, MASS, CLOSE_MASS = "row statistics", "mass of a filtered row", "mass for top-p"
PASSES = {
    STATISTICS: Kind("Law law = o.law; max_and_mass(s, law, o.dtype); out[thread_id()] = law.mass", **SUM, crew=1),
    MAXIMUM: Kind("out[thread_id()] = row_max(s, o.law, o.dtype, Skip())", (LOADS, MAXIMA)),
    DIGIT: Kind(
        "out[thread_id()] = select(s, o.law, o.dtype, o.after_z, o.scale, true, [](float) { return 1ull; })",
        (LOADS, MAXIMA),
        crew=3,
    ),
    CLOSE_MASS: Kind("out[thread_id()] = kept_mass<true>(s, o.law, o.dtype)", (LOADS, ("FFMA", 256), WIDEN), (TILE,), 32),
    MASS: Kind("out[thread_id()] = kept_mass(s, o.law, o.dtype)", **SUM),
    "residual mass": Kind("out[thread_id()] = residual_sum(s, o)", **SUM, rows=2),
    "ratio histogram, all in the tail": Kind(SCATTER, **SUM, rows=2, team=5),
    "ratio histogram, none in the tail": Kind(SCATTER, **BINNED, rows=2, team=5),
    RACE: Kind("out[thread_id()] = run_race(s, o.dtype).score", (LOADS, MAXIMA, LOG2), (PHILOX,), 128, team=3, crew=1),
}
# The race's loop in which a warp opens a group: the group's words, one logit per lane, its own word, exchanges across the warp.
# This many groups of a row are opened, whatever its law, if each warp takes its highest bound, in no fewer rounds than this.
WIDENED = (lambda op: "from_bfloat16" in op.functions, 2)
OPENING, OPENED, LEAST_ROUNDS = [("LDG.E.U16", 2), WIDENED, (PHILOX[0], 36), ("MUFU.LG2", 3), ("SHFL", 5)], (32, 35), (1, 2)
# The same pass in one of Triton's kernels, and instructions of a turn; the race bounds its groups in a separate loop.
TRITON = {
    STATISTICS: ("laws_kernel", [LOADS, EXP2], ()),
    "residual mass": ("masses_kernel", [LOADS, EXP2], ()),
    RACE: ("winners_kernel", [LOADS, ("HMNMX2", 4)], [PHILOX, ("FMNMX", 4)]),
}


def compiled_by_triton(name, folder):
    kernel, fixed, dtype = next(x for x in triton_compile.variants() if x[0].__name__ == name and x[2] == "bf16")
    target = triton_compile.GPUTarget("cuda", int(ARCH), 32)
    cubin = folder / "triton.cubin"
    cubin.write_bytes(triton_compile.compile_one(kernel, fixed, dtype, target).asm["cubin"])
    return cubin


def loads_of(way):
    """The number of 16-byte loads for bfloat16. Those of a 16-bit row and those of a float32 one, twice as many, are under a
    predicate and its opposite."""
    under = [sass.guard(op) for op in way if LOADS[0] in op]
    return sum(1 for guard in under if under.count(guard) <= (under.count(sass.opposite(guard)) or len(under)))


def count(way, pattern):
    return sum(re.search(pattern, op) is not None for op in way)


class Pass:
    """Instructions per token on the ways through a loop, and the resulting times, in seconds for a row on an SM"""

    def __init__(self, blocks, kind, apart=(), threads=CREW * BLOCKS, aligned=True):
        """apart: instructions of a second loop, which generates the random words; threads: those of an SM that read rows"""
        self.kind, rows, always = kind, kind.rows, list(kind.always)
        if not aligned:
            eight = sass.common_way(blocks, always)
            always[0] = (ONE_BY_ONE, 8 * loads_of(eight))
        often = sass.common_way(blocks, always)
        self.turn = (8 * loads_of(often) if aligned else count(often, ONE_BY_ONE)) // rows  # tokens per lane
        turns = max(1, kind.after // self.turn)
        ways = [(sass.common_way(blocks, [*always, *kind.last]) if kind.last else often, self.turn)] + [(often, self.turn)] * (
            turns - 1
        )
        everything = [(sum((way for way, _ in ways), []), self.turn * turns)]
        if apart:
            words = sass.common_way(blocks, apart, loads=False)
            everything.append((words, 128 * round(count(words, PHILOX[0]) / PHILOX[1])))

        def each(pattern):
            return sum(count(way, pattern) / tokens for way, tokens in everything)

        self.instructions, self.wide, self.special = each(""), each(r"IMAD\.(WIDE|HI)"), each(r"MUFU|F2I|I2F|F2F")
        self.issue = (self.instructions + self.wide) * VOCAB / 32 / 4 / CLOCK
        self.unit = self.special * VOCAB / 16 / CLOCK
        self.first = 0 if aligned else each(ONE_BY_ONE) * VOCAB / 32 * LINES / CLOCK  # of the L1 cache
        self.memory = rows * VOCAB * 2 * SMS / BANDWIDTH
        if aligned:
            self.in_flight = 16 * loads_of(often) * threads
        else:
            asked = {id(op) for op in often if re.search(ONE_BY_ONE, op)}
            self.in_flight = 2 * max(n for _, n in sass.waits(often, asked)) * threads
        self.flight = rows * VOCAB * 2 / self.in_flight * LATENCY
        last = next(i for i, (ops, _) in enumerate(blocks) if any(op is often[0] for op in ops))
        self.after = len(sass.way_to(blocks, last, r"\bEXIT\b") or ())  # instructions from the start of a turn to the end
        self.waits = LATENCY + self.after * DEPENDENT / CLOCK + (kind.team + kind.crew + 2) * MEETING

    def busy(self, used=ISSUED[0]):
        """Seconds that an SM needs for a row, apart from memory bandwidth, which all SMs share"""
        return max(self.issue / used, self.unit, self.flight, self.first)

    @property
    def shared(self):
        return [max(self.busy(used), self.memory / COPIED) for used in ISSUED]

    @property
    def each(self):
        """Seconds per row for the blocks of an SM, each of which runs a pass and then waits"""
        return [max(busy, (busy + self.waits) / BLOCKS) for busy in self.shared]

    def of_team(self, team, teams=1, vocab=VOCAB, used=ISSUED[0]):
        """Seconds for a row of each of several teams at once: a warp takes a tile, or a turn if larger; all wait for the last"""
        chunks, warps = vocab / (32 * max(32, self.turn)), team * CREW // 32
        memory = self.memory / SMS * teams / COPIED
        return max(self.busy(used) / team * math.ceil(chunks / warps) * warps / chunks, memory) * vocab / VOCAB


def opening(blocks):
    """Seconds for a warp to open the groups with its highest bound: instructions wait for each other, and the warp for logits"""
    way = sass.common_way(blocks, OPENING, loads=False)
    logits = {id(op) for op in way if "LDG.E.U16" in op}
    waits = [i for i, _ in sass.waits(way, logits)]
    # Logits that were requested together arrive together.
    apart = sum(any(id(op) in logits for op in way[last:i]) for last, i in zip([0, *waits], waits))
    return len(way) * DEPENDENT / CLOCK + apart * AGAIN


def rounds(warps):
    """How many rounds this many warps need to open the groups of a row: a range"""
    return [max(least, math.ceil(n / warps)) for n, least in zip(OPENED, LEAST_ROUNDS)]


def measured(folder, exact):
    """{name: Pass} for CUDA, for CUDA with rows that are not aligned, and for Triton; seconds to open a group. exact: seconds of
    exact scores"""
    cuda, apart, by_triton = {}, {}, {}
    for name, kind in PASSES.items():
        blocks = sass.blocks_of_cubin(machine_code.pass_alone(kind.statement, folder, ARCH))
        cuda[name] = Pass(blocks, kind)
        if "none in the tail" not in name:
            apart[name] = Pass(blocks, kind, aligned=False)
        if name == RACE:
            opened = opening(blocks)
    for race in (cuda[RACE], apart[RACE]):
        race.waits += sum(rounds(CREW // 32)) / 2 * opened + exact
    for name, (kernel, always, words) in TRITON.items():
        kind = PASSES[name]._replace(always=tuple(always), last=(), after=1)
        by_triton[name] = Pass(sass.blocks_of_cubin(compiled_by_triton(kernel, folder)), kind, words, 3 * 128)
    return cuda, apart, by_triton, opened
