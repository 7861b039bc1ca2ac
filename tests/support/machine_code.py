"""The CUDA kernels' machine code as it is shipped, and how its passes over rows access memory.

A pass is found by line information: the 16-byte loads of `Batch::load`, grouped by caller. The path ("way") through one turn of its
loop is the shortest that contains all of the turn's loads and the work for a dtype (sass.py).
"""

import functools
import re
import subprocess
from typing import NamedTuple

import native
import pytest
import sass
from nvidia_tools import nvcc, nvidia_tool

# One kernel for sample, draft and row_stats, one for verify under every scheme.
SOURCES = {"row_kernel": '#include "csrc/cuda/row_kernels.h"\n', "verify_kernel": '#include "csrc/cuda/verify_kernel.h"\n'}
FOLDER = native.ROOT / "build/cubin"
GATE = ("-v", "-warn-spills", "-warn-lmem-usage")  # options of ptxas
# A kernel with a single pass, for controls and for benchmarks/gpu/predict.py.
PASS = """
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
    """A number from the kernels' source"""
    return int(re.search(pattern, (native.ROOT / "csrc/cuda" / file).read_text())[1])


BLOCKS = constant(r"__launch_bounds__\(kBlock, (\d)\)", "verify_kernel.h")  # of a kernel per SM: as many as its registers allow
CREW = constant(r"kCrew = (\d+)", "shape.h")  # threads of a block that read rows


def command(arch, include=native.ROOT):
    if nvcc() is None:
        pytest.skip("no nvcc in CUDA_HOME or on the path: the CUDA kernels were compiled for the CPU only")
    return [nvcc(), "-std=c++17", "-O3", f"-arch=sm_{arch}", f"-I{include}", "-cubin", "-Xptxas", ",".join(GATE)]


def shipped(kernel, arch):
    """-> (cubin, output of ptxas, PTX) of a kernel, compiled once for all tests: -lineinfo changes no instruction"""
    folder = FOLDER / f"{kernel}-sm_{arch}"
    folder.mkdir(parents=True, exist_ok=True)
    source, cubin, said = folder / "kernels.cu", folder / "kernels.cubin", folder / "kernels.cubin.said"
    compile_it = f"{' '.join(command(arch))} -lineinfo --keep --keep-dir {folder} -MD -MF $out.d"
    lines = [
        "rule nvcc",
        f"  command = {compile_it} $in -o $out 2> $out.said || (cat $out.said; false)",
        "  depfile = $out.d",
        "  deps = gcc",
        f"build {cubin}: nvcc {source}",
    ]
    with native.alone(folder / "source"):
        if not source.exists():
            source.write_text(SOURCES[kernel])
    native.ninja(folder, lines)
    (ptx,) = folder.glob("*.ptx")
    return cubin, said.read_text(), ptx.read_text()


def compiled(source, folder, arch, include=native.ROOT, lines=True):
    """-> (cubin, output of ptxas) of a small kernel"""
    path, out = folder / "kernel.cu", folder / "kernel.cubin"
    path.write_text(source)
    done = subprocess.run(
        [*command(arch, include), *["-lineinfo"] * lines, str(path), "-o", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out, done.stderr


def pass_alone(statement, folder, arch, include=native.ROOT):
    return compiled(PASS.format(statement=statement, blocks=BLOCKS), folder, arch, include)[0]


def blocks_of(cubin):
    """sass.blocks_of_cubin; skips the test if there is no disassembler"""
    if nvidia_tool("nvdisasm") is None:
        pytest.skip("no nvdisasm on the path or in Triton's package")
    return sass.blocks_of_cubin(cubin)


@functools.cache
def kernel_blocks(kernel, arch):
    return blocks_of(shipped(kernel, arch)[0])


# -- passes over rows ----------------------------------------------------------------------------------------------------

_BFLOAT16 = lambda op: "from_bfloat16" in op.functions or "HMNMX2.BF16" in op
_FLOAT16 = lambda op: "from_float16" in op.functions or "HMNMX2 " in op
# dtype: (loads per unit of eight tokens, an operation that every turn has, one that no turn has)
DTYPES = {"bfloat16": (1, _BFLOAT16, _FLOAT16), "float16": (1, _FLOAT16, _BFLOAT16),
          "float32": (2, None, lambda op: _BFLOAT16(op) or _FLOAT16(op))}  # fmt: skip
# reading function: the work of a turn, as an instruction and its count per unit. A maximum has none: the largest logits are found
# before the next loads are issued, and little is left to do with them.
WORK = {"tile_masses": ("MUFU.EX2", 8), "sum_tiles": ("MUFU.EX2", 8), "bound_groups": ("MUFU.LG2", 1 / 4), "each_unit": None}
POLYNOMIAL = ("FFMA", 8 * 8)  # the mass for top-p
TURN = 12 << 10 >> 4  # most instructions of a turn: tests/test_machine_code.py says why
ARITHMETIC = r"MUFU|\b[DFH](ADD|MUL|FMA)2?\b"  # on weights; widening float16 uses HADD2.F32


class Turn(NamedTuple):
    """One turn of a pass's loop over a row of a dtype. `functions`: the one that reads, its caller, …"""

    functions: tuple
    dtype: str
    way: list  # instructions in the order in which they run, from the first wait for a load of the previous turn
    loads: int
    waiting: int  # loads in flight when one of them is first waited for

    @property
    def in_flight(self):
        """Bytes that an SM has requested and not yet received"""
        return 16 * self.waiting * CREW * BLOCKS

    @property
    def before(self):
        """Arithmetic on weights between that wait and the last load of this turn"""
        last = max(i for i, op in enumerate(self.way) if "LDG" in op)
        return [op for op in self.way[:last] if re.search(ARITHMETIC, op) and "HADD2.F32" not in op]


def _streams(blocks):
    """{(function, file, line) of the callers of Batch::load: {(block, guard): their 16-byte loads there}}"""
    found = {}
    for i, (ops, _) in enumerate(blocks):
        for op in ops:
            if "LDG.E.128" in op and "load" in op.functions and "read_unit" not in op.functions:
                callers = op.frames[op.functions.index("load") + 1 :]
                found.setdefault(callers, {}).setdefault((i, sass.guard(op)), []).append(op)
    return found


def turns(blocks):
    """Turns of all passes over rows read 16 bytes at a time, in every dtype. (Without `read_unit`, which rereads few units.)"""
    out = []
    for callers, at in _streams(blocks).items():
        # The loads of a turn stand together: those for 16 bits, and twice as many for float32, under a predicate and its opposite.
        # At the end of a row they stand alone.
        together = {key: ops for key, ops in at.items() if len(ops) > 1}
        assert together, f"{callers}: no two loads stand together"
        least = min(len(ops) for ops in together.values())
        functions = tuple(function for function, _, _ in callers)
        for dtype, (each, does, does_not) in DTYPES.items():
            mine = {key: ops for key, ops in together.items() if len(ops) == each * least}
            loads = {id(op) for ops in mine.values() for op in ops}
            others = {id(op) for ops in together.values() for op in ops} - loads
            needed = [(lambda op, loads=loads: id(op) in loads, len(loads))] + ([(does, 1)] if does else [])
            work = POLYNOMIAL if "kept_mass" in functions and "filter_cutoff" in functions else WORK[functions[0]]
            if work:
                needed.append((rf"\b{re.escape(work[0])}\b", round(work[1] * len(loads) / each)))
            near, start = sass.around(blocks, min(block for block, _ in mine), 4 * TURN)
            way = sass.turn([(ops, [] if any(map(does_not, ops)) else follow) for ops, follow in near], start, needed)
            assert way, f"{functions}, {dtype}: no way has its loads and its work"
            way = [op for op in way if id(op) not in others]
            out.append(Turn(functions, dtype, *_from_first_wait(way, loads)))
    return out


def _from_first_wait(way, loads):
    """-> (the way starting there, the number of loads, how many of them are in flight at that wait)"""
    waits = sass.waits(way, loads)
    assert waits, "nothing that was loaded is ever used"
    i, count = max(waits, key=lambda wait: (wait[1], -wait[0]))
    return way[i:] + way[:i], len(loads), count


# -- barriers of a team --------------------------------------------------------------------------------------------------

# The number of team barriers in each function (team.h). A block's crew meets; one full memory barrier by the lanes that arrive
# makes its writes visible to the other blocks; after the wait nothing stale may be read, so the L1 cache is invalidated.
TEAM_BARRIERS = {"max_and_mass": 2, "sum_of_tiles": 2, "team_max": 2, "team_best": 2, "run_race": 1, "merge_histograms": 2,
                 "histogram": 4, "crew": 1}  # fmt: skip
KINDS = {"meets": r"BAR\.SYNC\S* 0x1,", "full": r"MEMBAR\.(?!ALL\.CTA)", "arrives": r"SYNCS\.ARRIVE|UCGABAR_ARV",
         "waits": r"SYNCS\.PHASECHK|UCGABAR_WAIT", "empties": r"CCTL\.IVALL", "fence": r"\bFENCE"}  # fmt: skip


def fences(blocks, teams):
    """-> the faults in a kernel's memory barriers (none: []). teams: whether it was compiled for teams of several blocks"""
    ops = [op for ops, _ in blocks for op in ops]
    marked = [("", sass.Op())] + [(kind, op) for op in ops for kind, pattern in KINDS.items() if re.search(pattern, op)]
    if not teams:
        return [f"a block alone needs none: {op}" for kind, op in marked if kind not in ("", "meets")]
    wrong, barriers, births = [], {}, 0
    for (last, before), (kind, op) in zip(marked, marked[1:]):
        started = "start_team" in op.functions
        if kind == "full":
            if "MEMBAR.ALL.GPU" not in op:
                wrong.append(f"stronger than a team needs: {op}")
            if not started and (last != "meets" or "team_barrier" not in before.functions):
                wrong.append(f"the crew does not meet before {op}")
        if last == "full" and kind != "arrives":
            wrong.append(f"no arrival after {before}")
        if kind == "arrives" and (last != "full" or sass.guard(before) != sass.guard(op)):
            wrong.append(f"no memory barrier before {op}")
        if last == "waits" and kind != "empties":
            wrong.append(f"what was read before {before} may be read again")
        if kind == "empties" and last != "waits":
            wrong.append(f"no wait before {op}")
        if kind == "fence":
            births += 1
            if births > 1 or not started or "FENCE.VIEW.ASYNC" not in op:
                wrong.append(f"beside the fence at the barriers' birth: {op}")
        if kind == "arrives" and not started:
            function, *callers = op.frames[op.functions.index("team_barrier") + 1 :]
            barriers.setdefault((function[0], *callers), set()).add(function)
    for (function, *callers), places in barriers.items():
        if len(places) != TEAM_BARRIERS.get(function):
            wrong.append(f"{function} of {[f for f, _, _ in callers]}: {len(places)} barriers of the team")
    if not births or not any(kind == "arrives" and "start_team" in op.functions for kind, op in marked):
        wrong.append("the team does not start together")
    return wrong if barriers else [*wrong, "no barrier of the team"]


def text_bytes(blocks):
    return 16 * sum(len(ops) for ops, _ in blocks)
