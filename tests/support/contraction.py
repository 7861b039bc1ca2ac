"""A kernel's PTX with every product and sum fused that a compiler may fuse, and with none fused beyond what the source fuses.

nvcc fuses a product with the sum that uses it (-fmad) where it sees fit, and ptxas may fuse whatever nvcc left without `.rn`. Both
versions are legal outcomes; `__fmul_rn` and `fmaf` of the source are untouched in both.
"""

import functools
import re
from collections import Counter

import native
from machine_code import SOURCES
from nvidia_tools import nvcc
from ptx_machine import KERNELS

_OPERATION = re.compile(r"^(\s*(?:@!?%p\d+ )?)(mul|add|sub)\.(f32|f64)(\s+)(%\w+), ([^,;]+), ([^,;]+);", re.M)
_WRITTEN = re.compile(r"^\s*(?:@!?%p\d+ )?[a-z][\w.:]*\s+\{?(%\w+)", re.M)
_SIGN = {"f32": "%sign_f32", "f64": "%sign_f64"}


def fused(text):
    """Every sum without `.rn` uses its product unrounded, whatever else uses the product and however far away it is."""
    return fuse(text)[0]


def fuse(text):
    """-> (the PTX, how many were fused)"""
    written = Counter(_WRITTEN.findall(text))
    once = lambda x: written[x] <= 1
    products = {m[5]: (m[6], m[7]) for m in _OPERATION.finditer(text) if m[2] == "mul" and once(m[5]) and once(m[6]) and once(m[7])}
    count = 0

    def replaced(m):
        nonlocal count
        guard, op, kind, space, to, a, b = m.groups()
        if op == "mul" or (a not in products and b not in products):
            return m[0]
        count += 1
        (x, y), rest = (products[a], b) if a in products else (products[b], a)
        turned = "" if op == "add" else rest if a in products else x  # a b - c = a b + (-c), and c - a b = (-a) b + c
        before = f"{guard}neg.{kind}{space}{_SIGN[kind]}, {turned};\n" if turned else ""
        x, rest = (_SIGN[kind] if turned and turned == x else x), (_SIGN[kind] if turned and turned == rest else rest)
        return f"{before}{guard}fma.rn.{kind}{space}{to}, {x}, {y}, {rest};"

    text = _OPERATION.sub(replaced, text)
    return re.sub(r"(\.reg \.pred)", rf".reg .f32 {_SIGN['f32']};\n\t.reg .f64 {_SIGN['f64']};\n\t\1", text, count=1), count


@functools.cache
def split(kernel, arch):
    """The PTX that nvcc generates when it may fuse nothing"""
    folder = native.ROOT / "build/split" / f"{kernel}-{arch}"
    source, ptx = folder / "kernels.cu", folder / "kernels.ptx"
    folder.mkdir(parents=True, exist_ok=True)
    compile_it = f"{nvcc()} -std=c++17 -O3 -fmad=false -arch={arch} -I{native.ROOT} -ptx"
    lines = ["rule nvcc", f"  command = {compile_it} -MD -MF $out.d $in -o $out", "  depfile = $out.d", "  deps = gcc",
             f"build {ptx}: nvcc {source}"]  # fmt: skip
    with native.alone(folder / "source"):
        if not source.exists():
            source.write_text(SOURCES[KERNELS[kernel]])
    native.ninja(folder, lines)
    return ptx.read_text()
