"""How many loads of logits each loop over a row has in flight, determined from a kernel's machine code with its line information.

A loop that waits for one tile before it loads the next pays the memory latency, most of a microsecond, for every tile.
"""

import sass

_ONE_TOKEN = {"score_of", "score_at", "prob"}  # functions that read the logits of single tokens, not tiles
_BYTES = {"U8": 1, "U16": 2, "64": 8, "128": 16}


def _bytes(op):
    """Bytes that a load reads per thread"""
    name = op[len(sass.guard(op)) :].split()[0]
    return next((_BYTES[part] for part in name.split(".") if part in _BYTES), 4)


def _reads_a_row(op):
    return "LDG" in op and op.functions[:1] == ("stored_logits",)


def loops_over_rows(blocks):
    """[(loads in flight, bytes of them per thread, the functions of the loop)] for the loops that read tiles of rows: the most that
    are in flight when one of them is waited for. blocks: see sass.blocks_of"""
    loops = {(to, i) for i, (_ops, follow) in enumerate(blocks) for to in follow if to <= i}
    bodies = {}
    for i, (ops, _follow) in enumerate(blocks):  # an instruction belongs to the innermost loop around it
        if around := [loop for loop in loops if loop[0] <= i <= loop[1]]:
            bodies.setdefault(min(around, key=lambda loop: loop[1] - loop[0]), []).extend(ops)
    found = []
    for _loop, body in sorted(bodies.items()):
        names = {op.functions[0] for op in body if op.functions} - {None}
        loads = {id(op): _bytes(op) for op in body if _reads_a_row(op)}
        if loads and not names & _ONE_TOKEN:
            size = lambda ids, loads=loads: (len(ids), sum(map(loads.get, ids)))
            most = max((most for _place, most in sass.waits(body, loads, size)), default=(0, 0))
            if most[0]:  # otherwise they are waited for in another loop
                found.append((*most, sorted(names)))
    return found
