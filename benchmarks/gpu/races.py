"""Reports of compute-sanitizer's racecheck, except for the reads that race on purpose.

One function of the CUDA kernels reads a word of shared memory that others may be raising at the time, since any of its values will
do. The tool's own exclusions work by kernel, and its suppressions need an existing report; so the reports are parsed here, and
those whose every pair includes such a read, identified by function, are dropped. For this the kernels are built with -lineinfo.
"""

import re

from benchmarks import ROOT

CUDA = ROOT / "csrc/cuda"
DELIBERATE = {"block.h": ("current",)}  # file: functions
ACCESS = re.compile(r"\b(Read|Write|Atomic)\w* access(?:es)? (?:at|by) .*? in (?:\S*/)?([^\s/:]+):(\d+)", re.IGNORECASE)


def deliberate():
    """{(file, line)} covering the functions' bodies"""
    lines = set()
    for name, functions in DELIBERATE.items():
        text = (CUDA / name).read_text().splitlines()
        for function in functions:
            (start,) = (i for i, line in enumerate(text) if re.match(rf"SPS_DEVICE \w+ {function}\(", line))
            end = next(i for i in range(start, len(text)) if text[i] == "}")
            lines |= {(name, i + 1) for i in range(start, end + 1)}
    return lines


def reports(output):
    """Reported races: a list of [(kind, file, line)], the first access conflicting with each of the others"""
    found = []
    for line in output.splitlines():
        if "Race reported between" in line:
            found.append([])
        elif not re.match(r"=+\s+and ", line):
            continue
        if found:
            found[-1] += [(kind.capitalize(), file, int(at)) for kind, file, at in ACCESS.findall(line)]
    return found


def judge(status, output):
    """-> what is wrong, or None"""
    meant = deliberate()
    races = reports(output)
    summary = re.search(r"RACECHECK SUMMARY: (\d+) hazard", output)
    if not summary or "wrong: none" not in output:
        return f"the program did not come to its end, or its tokens differ (status {status})"

    def excused(race):
        reads = [kind == "Read" and (file, line) in meant for kind, file, line in race]
        return len(reads) > 1 and (reads[0] or all(reads[1:]))

    bad = [race for race in races if not excused(race)]
    if bad:
        return f"{len(bad)} races that are not meant, the first between {bad[0]}"
    if int(summary[1]) > len(races):
        return f"{summary[1]} hazards, of which {len(races)} could be read"
    others = [line for line in output.splitlines() if re.match(r"=+ .*(Potential invalid|Deadlock|Internal Sanitizer Error)", line)]
    if others:
        return others[0]
    return f"status {status}" if status and not races else None
