"""Disassembled machine code: nvdisasm's listing of a kernel as basic blocks of instructions, and paths ("ways") through its loops.

With line information (nvcc -lineinfo, which changes no instruction), each instruction knows which source functions it comes from.
"""

import functools
import heapq
import re
import subprocess
from pathlib import Path

from nvidia_tools import nvidia_tool

_LABEL = re.compile(r"^(\.L_x_\d+):")
_CODE = re.compile(r"\s*/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;")
_FRAME = re.compile(r'\s*//## File "([^"]+)", line (\d+)')
_HEAD = re.compile(r"^\s{0,2}(?:template <.*?> )?(?:static )?(?:SPS_DEVICE|SPS_HD|__global__) .*?(\w+)\(|^def (\w+)\(")
_KERNEL = re.compile(r"^\s*\.section\s+\.text\.(\w+),", re.M)


class Op(str):
    """An instruction. `frames`: (function, file, line) of the source that it comes from, innermost first; () if unknown"""

    frames = ()

    @functools.cached_property
    def functions(self):
        return tuple(function for function, _, _ in self.frames)


def disassembled(cubin):
    """{kernel: listing}; {} if no disassembler is found (CUDA's, or the one in Triton's package)"""
    if (tool := nvidia_tool("nvdisasm")) is None:
        return {}
    text = subprocess.run([tool, "-c", "-ndf", "-gi", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = _KERNEL.split(text)
    return dict(zip(parts[1::2], parts[2::2]))


@functools.cache
def _functions(path):
    """Function names by line: the last function that began before it. (Lambdas belong to the enclosing function.)"""
    names, name = [None], None
    for line in path.read_text().splitlines():
        head = _HEAD.match(line)
        if head and not line.rstrip().endswith(";"):
            name = "kernel" if head[1] == "__launch_bounds__" else head[1] or head[2]
        names.append(name)
    return names


@functools.cache
def _frame(path, line):
    path = Path(path)
    names = _functions(path) if {"csrc", "specsample"} & set(path.parts) and path.exists() else []
    return (names[line] if line < len(names) else None, path.name, line)


def blocks_of(text):
    """[(instructions, blocks that may follow)] of a listing. (Indirect branches are not followed: a walk's table of schemes.)"""
    blocks, labels, frames, fresh = [[]], {}, (), True
    for line in text.splitlines():
        if found := _FRAME.match(line):
            frames, fresh = ((*(() if fresh else frames), _frame(found[1], int(found[2])))), False
            continue
        label, code = _LABEL.match(line), _CODE.match(line)
        if (label or code) and blocks[-1] and (label or re.search(r"\b(BRA|BRX|EXIT|RET|CALL)\b", blocks[-1][-1])):
            blocks.append([])
        if label:
            labels[label[1]] = len(blocks) - 1
        elif code:
            op = Op(code[2])
            op.frames, fresh = frames, True
            blocks[-1].append(op)
    out = []
    for i, ops in enumerate(blocks):
        last = ops[-1] if ops else ""
        # sm_80 leaves some loops by calling a label; other calls (to slow paths) are not followed.
        target = re.search(r"\b(?:BRA|CALL)\b[^`]*`\((\.L_x_\d+)\)", last)
        follow = [i + 1] if i + 1 < len(blocks) else []
        if re.search(r"\b(EXIT|RET|BRX|CALL)\b", last) and not target:
            follow = follow if last.startswith("@") and "CALL" not in last else []
        elif target and "BRA.DIV" not in last:
            conditional = last.startswith("@") or re.search(r"BRA(\.\w+)* !?U?P\d", last)
            follow = [labels[target[1]], *(follow if conditional else [])]
        out.append((ops, follow))
    return out


def blocks_of_cubin(cubin):
    """blocks_of a cubin's only kernel"""
    (text,) = disassembled(cubin).values()
    return blocks_of(text)


def guard(op):
    """The predicate that guards an instruction, with its sign; "" if there is none"""
    return re.match(r"(@!?U?P\w+ )?", op)[0]


def opposite(guard):
    """The predicate with the other sign; None if there is none"""
    return (guard.replace("@!", "@") if "!" in guard else guard.replace("@", "@!")) or None


def _is(what, op):
    return what(op) if callable(what) else re.search(what, op) is not None


def around(blocks, start, most):
    """-> (the blocks that begin at most `most` instructions after a block, the index of that block among them)"""
    distance, heap = {start: 0}, [(0, start)]
    while heap:
        so_far, at = heapq.heappop(heap)
        so_far += len(blocks[at][0])
        for to in blocks[at][1] if so_far <= most else ():
            if so_far < distance.get(to, 1 << 30):
                distance[to] = so_far
                heapq.heappush(heap, (so_far, to))
    place = {block: i for i, block in enumerate(sorted(distance))}
    return [(blocks[i][0], [place[to] for to in blocks[i][1] if to in place]) for i in place], place[start]


def _still_to_come(blocks, start, counts, enough):
    """For each block: the largest count of every needed instruction over the paths from its end back to `start`; None: no path"""
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
    """Instructions on the shortest path from a block back to it that does all of `needed` [(pattern or test, how many)]; None: no
    such path is shorter than the limit"""
    counts = [[sum(_is(what, op) for op in ops) for what, _ in needed] for ops, _ in blocks]
    enough = tuple(n for _, n in needed)

    def after(seen, block):
        return tuple(map(min, map(sum, zip(seen, counts[block])), enough))

    most = _still_to_come(blocks, start, counts, enough)

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


def common_way(blocks, needed, loads=True):
    """`turn` of the loop in which it is shortest. loads: among the loops that read rows 16 bytes at a time, or among the others"""
    loops = {(to, i) for i, (_, follow) in enumerate(blocks) for to in follow if to <= i}
    starts = {to for to, i in loops if loads == any("LDG.E.128" in op for ops, _ in blocks[to : i + 1] for op in ops)}
    best = None
    for start in starts:
        best = turn(blocks, start, needed, 1 << 30 if best is None else len(best)) or best
    if best is None:
        raise RuntimeError(f"no loop does all of {needed}")
    return best


_WIDE = re.compile(r"^(?:D(?:ADD|MUL|FMA)|IMAD\.WIDE|CS2R(?!\.32)|[FI]2F\.F64)|\.64\b")


def registers(op):
    """(registers that an instruction writes, registers that it reads), 32 bits each"""
    name, _, rest = op[len(guard(op)) :].partition(" ")
    operands = [x.strip() for x in rest.split(",")]
    writes_none = re.match(r"ST|RED\.|BAR|SYNCS|BRA|WARPSYNC|R2P|DEPBAR|NOP", name) or "SETP" in name
    wide = 4 if ".128" in name else 2 if _WIDE.search(name) else 1
    written, read = set(), set()
    for i, operand in enumerate(operands):
        for found in re.finditer(r"(?<![A-Z])R(\d+)(\.64)?", operand):
            first = int(found[1])
            target = not writes_none and all(re.fullmatch(r"!?U?P\w+", x) for x in operands[:i]) and "[" not in operand
            address = "[" in operand
            if target:
                written |= set(range(first, first + wide))
            else:
                stored = writes_none and not address and name.startswith("ST")
                n = 2 if found[2] else wide if stored or name.startswith("D") else 1
                read |= set(range(first, first + n))
    return written, read


def waits(way, loads, size=len):
    """[(place, loads in flight)]: where a way that is run again and again waits for a load, and how many of `loads` (ids) are then
    in flight, those it waits for included; or their `size`"""
    pending, found, guards = {}, {}, {}
    for _ in range(2):  # the second time, the loads of the first are in flight
        for i, op in enumerate(way):
            written, read = registers(op)
            if done := {pending[r] for r in read if r in pending}:
                found[i] = max(size(set(pending.values())), found.get(i, size(())))
                pending = {r: load for r, load in pending.items() if load not in done}
            own = guard(op)  # under the opposite of a load's predicate, only one of the two is executed
            pending = {r: load for r, load in pending.items() if r not in written or own == opposite(guards[load])}
            if id(op) in loads:
                pending |= dict.fromkeys(written - pending.keys(), id(op))
                guards[id(op)] = own
    return sorted(found.items())


def way_to(blocks, start, end):
    """Instructions on the shortest path from the start of a block to one that matches `end`; None: no path"""
    heap, seen = [(0, start, [])], set()
    while heap:
        length, at, way = heapq.heappop(heap)
        if at in seen:
            continue
        seen.add(at)
        ops = blocks[at][0]
        if found := [i for i, op in enumerate(ops) if _is(end, op)]:
            return way + ops[: found[0]]
        for to in blocks[at][1]:
            heapq.heappush(heap, (length + len(ops), to, way + ops))
    return None
