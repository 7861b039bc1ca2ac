"""How many loads of logits each loop over a row has in flight, determined from a kernel's machine code with its line information.

A loop that waits for one tile before it loads the next pays the memory latency, most of a microsecond, for every tile.
"""

import re
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "specsample" / "triton"
_LINE = re.compile(r'//## File "[^"]*?([^"/]+)", line (\d+)')
_LABEL = re.compile(r"^(\.L_x_\d+):")
_CODE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)\s*(.*?)\s*;")
_REGISTER = re.compile(r"\bR(\d+)\b")
_ONE_TOKEN = {"score_of", "prob"}  # functions that read the logits of single tokens, not tiles
_BYTES = {"U8": 1, "U16": 2, "64": 8, "128": 16}


def functions():
    """{(file, line): name of the function there}"""
    found = {}
    for path in SOURCE.glob("*.py"):
        name = None
        for number, line in enumerate(path.read_text().splitlines(), 1):
            name = line[4:].split("(")[0] if line.startswith("def ") else name
            found[path.name, number] = name
    return found


def _instructions(sass, names):
    """(labels' addresses, [(address, opcode, operands, the function it comes from)])"""
    labels, code, waiting, where = {}, [], [], None
    for line in sass.splitlines():
        if found := _LINE.search(line):
            where = names.get((found[1], int(found[2])))
        elif found := _LABEL.match(line):
            waiting.append(found[1])
        elif found := _CODE.match(line):
            labels |= dict.fromkeys(waiting, int(found[1], 16))
            waiting = []
            code.append((int(found[1], 16), found[2], found[3], where))
    return labels, code


def _most_in_flight(body):
    """(loads, bytes per thread): the most row loads in flight when one of them is waited for"""
    pending, best = {}, (0, 0)
    for address, opcode, operands, where in (*body, *body):  # twice: the next iteration may wait for a load of this one
        load = opcode.startswith("LDG")
        target, _, sources = operands.partition(",")
        reads = sources if load or not opcode.startswith(("ST", "RED", "ATOM")) else operands
        reads = {int(r) for r in _REGISTER.findall(reads)} & pending.keys()
        if reads:
            under_way = set(pending.values())
            best = max(best, (len(under_way), sum(n for _at, n in under_way)))
            done = {pending[r] for r in reads}
            pending = {r: one for r, one in pending.items() if one not in done}
        if load and where == "raw_logits":
            n = next((_BYTES[part] for part in opcode.split(".") if part in _BYTES), 4)
            first = int(_REGISTER.search(target)[1])
            pending |= dict.fromkeys(range(first, first + max(1, n // 4)), (address, n))
    return best


def loops_over_rows(sass):
    """[(loads in flight, bytes per thread, the functions of the loop)] for the loops that read tiles of rows"""
    labels, code = _instructions(sass, functions())
    loops = set()
    for address, opcode, operands, _where in code:
        target = re.search(r"\.L_x_\d+", operands)
        if opcode.startswith("BRA") and target and labels.get(target[0], address + 1) <= address:
            loops.add((labels[target[0]], address))
    bodies = {}
    for one in code:  # an instruction belongs to the innermost loop around it
        around = [loop for loop in loops if loop[0] <= one[0] <= loop[1]]
        if around:
            bodies.setdefault(min(around, key=lambda loop: loop[1] - loop[0]), []).append(one)
    found = []
    for _loop, body in sorted(bodies.items()):
        names = {where for _address, _opcode, _operands, where in body} - {None}
        if any(op.startswith("LDG") and where == "raw_logits" for _a, op, _o, where in body) and not names & _ONE_TOKEN:
            found.append((*_most_in_flight(body), sorted(names)))
    return found
