"""Checks of a kernel's PTX for the compile check: arithmetic that may be fused, and how a token's bin is computed."""

import re

_LINE = re.compile(r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]*)\s+(.*);\s*$", re.M)
_REGISTER = re.compile(r"%[a-z]+\d+")
_SAME_EITHER_WAY = ("mul", "add", "min", "max", "and", "or")
_ONE_HOT = "cvt.rn.f32.u32(selp.b32(1, 0"
_INPUT = ("ld", "mov", "shl", "prmt", "cvt.f32", "atom")  # loads of a logit: which one depends on the copy's layout


def fused(ptx):
    """Number of multiply-adds that are fused, or may be, in float32 and (except where a function requests it) float64"""
    return len(re.findall(r"\bfma\.rn(?:\.ftz)?\.f32(?:x2)?\b|\b(?:mul|add|sub)(?:\.ftz)?\.f(?:32(?:x2)?|64)\b", ptx))


def forms(ptx, root="cvt.rzi.s32.f32"):
    """The number of `root`s, and the set of expressions that they convert, in terms of logits and of numbers of the row (L)."""
    defined, roots = {}, []
    for op, rest in _LINE.findall(ptx):
        target, *operands = re.split(r",\s*(?![^{]*\})", rest)
        if op.startswith(("st", "bra", "bar", "ret")):
            continue
        registers = _REGISTER.findall(target)
        for half, register in enumerate(registers):
            unpacked = op == "mov.b64" and len(registers) == 2  # of a pair: compute capability 10.0 and later compute on pairs
            defined.setdefault(register, []).append((half, operands) if unpacked else (op, operands))
        if op == root:
            roots.append(operands[0])
    known = {}

    def half_of(operand, half):
        """The form of one half of a pair: each half is computed as by the instruction for a single number"""
        ways = defined.get(operand, ())
        if len(ways) != 1:
            return "L"
        op, operands = ways[0]
        if op == "mov.b64" and operands[0].startswith("{"):
            return form(_REGISTER.findall(operands[0])[half])
        if not str(op).endswith(".f32x2"):
            return "L"
        parts = [half_of(x, half) for x in operands]
        return f"{op.removesuffix('x2')}({', '.join(sorted(parts) if op.startswith(_SAME_EITHER_WAY) else parts)})"

    def form(operand):
        if operand not in defined:
            return "L" if operand.startswith("%") else operand
        if operand not in known:
            ways = defined[operand]
            op, operands = ways[0]
            known[operand] = "L"  # several origins, or itself: a loop variable
            if len(ways) == 1 and isinstance(op, int):
                known[operand] = half_of(operands[0], op)
            elif len(ways) == 1 and not op.startswith(_INPUT):
                parts = [form(x) for x in operands]
                parts = sorted(parts) if op.startswith(_SAME_EITHER_WAY) else parts
                known[operand] = f"{op}({', '.join(parts)})"
                if op == "selp.f32" and any(x.startswith("setp.num") for x in parts):
                    known[operand] = "L"  # a NaN test of a logit: of one, or of a pair
                elif op == "selp.f32" and any(x.startswith(_ONE_HOT) for x in parts):  # a point mass: no arithmetic
                    known[operand] = next(x for x in parts if not x.startswith(_ONE_HOT))
        return known[operand]

    return len(roots), {form(x) for x in roots}
