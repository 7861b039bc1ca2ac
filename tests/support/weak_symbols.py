"""Two definitions of one name in objects that are linked together: for weak symbols (inline functions, templates, their static data)
the linker silently keeps the first. `doubled` compares the bodies of those that two sets of objects share."""

import re
import subprocess

# References to other parts of the object: strings, constants, jump tables and cold parts have different addresses in each.
ELSEWHERE = re.compile(r"(\.rodata|\.data|\.LC|\.text)[\w.$]*([+-]0x[0-9a-f]+)?")


def tool(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def weak(path):
    """Mangled names of the weak symbols that an object defines"""
    found = re.findall(r"^[0-9a-f]+ ([VWu]) (\S+)$", tool("nm", "--defined-only", str(path)), re.M)
    return {name for _, name in found}


def bodies(path, names):
    """{name: its body without addresses}, of functions in the order of their instructions"""
    text = tool("objdump", "-dr", "--no-show-raw-insn", "--no-addresses", "-w", str(path))
    parts = re.split(r"^<(\S+)>:\n", text, flags=re.M)[1:]
    found = dict(zip(parts[::2], parts[1::2]))
    out = {}
    for name in names & found.keys():
        body = re.sub(r"\s*\n(Disassembly of section.*)?", "\n", found[name])
        out[name] = ELSEWHERE.sub(r"\1", re.sub(r"#.*|\bnop\w*.*|\bdata16.*|\bxchg +%ax,%ax", "", body)).strip()
    return out


def doubled(some, others):
    """(names that both sets of objects define, those whose bodies differ), demangled"""
    shared = set().union(*map(weak, some)) & set().union(*map(weak, others))
    seen = [{}, {}]
    for side, objects in zip(seen, (some, others)):
        for path in objects:
            for name, body in bodies(path, shared & weak(path)).items():
                side.setdefault(name, set()).add(body)
    differ = {name for name in shared if len(seen[0].get(name, set()) | seen[1].get(name, set())) > 1}
    return readable(shared), readable(differ)


def readable(names):
    return sorted(tool("c++filt", *sorted(names)).splitlines()) if names else []


def check(some, others):
    """Check that both sets define no name of this package. Bodies of other shared names are compared, except those of the C++ library
    and torch, whose sources are the same but which the compiler may optimise differently."""
    shared, differ = doubled(some, others)
    assert len(shared) > 10, "objects that share nothing are not those of one extension"
    assert not [name for name in shared if "specsample" in name]
    assert not [name for name in differ if not re.search(r"\b(std|__gnu_cxx|torch|c10)::", name)]
