"""This tree against an earlier revision, on the CPU: `python -m benchmarks.cpu.before [--filter V128256] [--threads 2 1]`.

The revision is unpacked into build/before/ and built there; this tree is built in place. One process per tree makes the same
inputs, and every measurement of one is followed by the other's, in random order, so that a slow moment of the machine affects
both: ratios are of such neighbours. Tokens are first compared with each tree's own reference.
Writes benchmarks/results/groups.json and a table of it, groups.md. --quick: a handful of cases, this tree against itself.
"""

import argparse
import itertools
import json
import operator
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import RESULTS, ROOT, harness
from benchmarks.cpu import before_cases
from benchmarks.report import table

FLAT_CLOCKS = "6fde190"  # the last revision with one random word per token in every race
BLOCK = 0.01  # seconds per measurement
LARGE, LEAST, MOST = 128_256, 7, 25  # the vocabulary of most aims; rounds of measurements


# -- the trees ---------------------------------------------------------------------------------------------------------


def build(folder, **environment):
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = os.environ | {"SPECSAMPLE_REQUIRE_EXTENSION": "1"} | environment
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"before: {folder} does not build:\n{done.stdout}")


def earlier(revision):
    """(folder of the revision, built; its short name)"""
    name = harness.output_of("git", "rev-parse", "--short", f"{revision}^{{commit}}")
    if name is None:
        sys.exit(f"before: git knows no revision {revision!r}")
    folder = ROOT / "build" / "before" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            packed, unpacked = Path(scratch) / "tree.tar", Path(scratch) / "tree"
            subprocess.run(["git", "archive", "--output", packed, name], cwd=ROOT, check=True)
            shutil.unpack_archive(packed, unpacked)
            unpacked.rename(folder)
    if not list(folder.glob("specsample/*.so")):
        build(folder, SPECSAMPLE_CUDA="0")
    return folder, name


class Tree:
    """A worker process (before_cases.py) that has the package of one tree"""

    def __init__(self, folder, block=BLOCK):
        self.process = subprocess.Popen(
            [sys.executable, before_cases.__file__, str(block)], cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def about(self, folder):
        found = self.ask("about")
        if Path(found.pop("folder")) != folder:
            raise RuntimeError(f"{folder}: its package is not the one that is imported")
        return found

    def ask(self, method, *arguments):
        print(json.dumps([method, *arguments]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended in {method} {arguments}")
        return json.loads(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


# -- measuring ---------------------------------------------------------------------------------------------------------


def quartiles(values):
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def pairs(cases):
    """(what is compared, (tree, case), (tree, case)): the time of the first relative to the second"""
    found = []
    for case in cases:
        found.append(("before / now", ("before", case), ("now", case)))
        law, one = case._replace(op="row_stats"), case._replace(K=1)
        if case.op == "sample" and law in cases:
            found.append(("row_stats before / sample now", ("before", law), ("now", case)))
        if case.op == "draft" and case.K > 1 and one in cases:
            found.append((f"K = {case.K} / K = 1, now", ("now", case), ("now", one)))
    return found


def measured(trees, cases, threads, budget):
    """Result rows for the cases of a group. trees: {"before", "now"}; budget: seconds per case and tree"""
    facts = {name: tree.ask("open", cases, threads) for name, tree in trees.items()}
    seconds = {(name, case): [] for name in trees for case in cases}
    shuffle, begin = random.Random(0).shuffle, time.perf_counter()
    for done in range(MOST):
        if done >= LEAST and time.perf_counter() - begin > budget * len(seconds):
            break
        order = list(enumerate(cases))
        shuffle(order)
        for index, case in order:
            both = list(trees)
            shuffle(both)
            for name in both:
                seconds[name, case].append(trees[name].ask("seconds", index))
    rows = []
    for what, first, second in pairs(cases):
        case = second[1] if what.startswith("row_stats") else first[1]
        row = {"case": case.name, "compared": what, **case._asdict(), "threads": threads}
        row["us"] = [{k: v * 1e6 for k, v in quartiles(seconds[x]).items()} for x in (first, second)]
        row["ratio"] = quartiles([x / y for x, y in zip(seconds[first], seconds[second])])
        row["n"] = len(seconds[first])
        if what == "before / now":
            fact = [facts[name][cases.index(case)] for name in ("before", "now")]
            row["checked"] = {key: sum(f[key] for f in fact) for key in ("tokens", "differing")}
            if case.op == "verify":
                row["accepted"] = [f["accepted"] for f in fact]
        rows.append(row)
    return rows


def compare(folders, groups, threads, budget, block=BLOCK):
    """Result rows of all groups. folders: (before, now); threads: list of thread counts"""
    rows = []
    with Tree(folders[0], block) as before, Tree(folders[1], block) as now:
        about = [tree.about(folder) for tree, folder in zip((before, now), folders)]
        if about[0] != about[1]:
            raise RuntimeError(f"the trees' kernels differ in what they use: {about}")
        progress = harness.Progress(len(groups) * len(threads))
        for cases, count in itertools.product(groups, threads):
            rows += measured({"before": before, "now": now}, cases, count, budget)
            progress.step(cases[0].name)
    return rows


# -- the report --------------------------------------------------------------------------------------------------------


class Aim(NamedTuple):
    text: str
    least: bool  # the bound is a minimum, not a maximum
    bound: float
    rows: list
    by: str = "median"  # or "high": the upper quartile of the ratios, so that noise around 1 does not count as a loss


def aims(rows):
    def of(compared, **fields):
        fields |= {"compared": compared}
        return [row for row in rows if all(row[name] == value for name, value in fields.items())]

    both, large, V = "before / now", f"V = {LARGE:,}".replace(",", " "), LARGE
    token = of(both, kind="token", rows="peaked", B=1, V=V)
    return [
        Aim(f"`sample`, float32, {large}: × faster", True, 3, of(both, op="sample", dtype="float32", V=V)),
        Aim(f"`sample`, bfloat16, {large}: × faster", True, 2.4, of(both, op="sample", dtype="bfloat16", V=V)),
        Aim(f"row statistics before over `sample` now, {large}", True, 1, of("row_stats before / sample now", V=V)),
        Aim(f"`token`, B = 1, peaked rows, {large}: × faster", True, 1.3, token),
        Aim(f"`race`, {large}: × faster", True, 2.5, of(both, kind="race", V=V)),
        Aim(f"`draft`, iid, k = 8 over k = 1, {large}", False, 2, of("K = 8 / K = 1, now", kind="iid", V=V)),
        Aim(f"`row_stats`, bfloat16, {large}: × faster", True, 1.5, of(both, op="row_stats", dtype="bfloat16", V=V)),
        Aim("nothing slower, upper quartile: × faster", True, 1, of(both), "high"),
    ]


def aim_lines(rows):
    """[aim, bound, worst, median, number of cases that reach it, met or not, the worst case]"""
    lines = []
    for aim in aims(rows):
        sign, reached = ("≥", operator.ge) if aim.least else ("≤", operator.le)
        values = [(row["ratio"][aim.by], f"{row['case']}, {_threads(row['threads'])}") for row in aim.rows]
        if not values:
            lines.append([aim.text, f"{sign} {aim.bound:g}", "", "", "", "not measured", ""])
            continue
        worst, case = (min if aim.least else max)(values)
        met = sum(reached(value, aim.bound) for value, _ in values)
        middle = statistics.median(value for value, _ in values)
        figures = [f"{sign} {aim.bound:g}", f"{worst:.2f}", f"{middle:.2f}", f"{met} of {len(values)}"]
        lines.append([aim.text, *figures, "met" if met == len(values) else "not met", case])
    return lines


def _threads(count):
    return f"{count} thread" + ("s" if count > 1 else "")


def markdown(result):
    machine, rows = result["machine"], result["rows"]
    tokens, differing = (sum(row["checked"][key] for row in rows if "checked" in row) for key in ("tokens", "differing"))
    lines = [
        "# Before and now, on the CPU",
        "",
        f"Revision {result['before']} beside {machine['revision'] or 'no revision'}. {machine['cpu']}, {machine['cores']} cores, "
        f"kernels for {machine['capability']}; torch {machine['torch']}, {machine['date']}; load average "
        f"{machine['load_at_start']:.1f} at the start, {result['load_at_end']:.1f} at the end, {result['seconds']:.0f} s in all.",
        "",
        "Two processes, one a tree, measured in turns on the same inputs; `×`: the first time over the second's, the median over "
        "neighbouring measurements with the quartiles in brackets. µs: medians of a call. Temperature 1, no filters; flat logits are "
        f"N(0, 1), peaked ones four times that, Zipf's have exponent 1.1 and noise. {before_cases.ROWS} rows or "
        f"{before_cases.REQUESTS} requests in calls of B; chains of {before_cases.LENGTH} drafts, or K children of the root, `a`: about "
        "how often one draft is accepted. (Drafts of `race` are the target's own winner so often: the same number of rows is read in "
        "both trees.)",
        "",
        f"Checked first: {tokens} tokens against each tree's reference ({differing} differ).",
        "",
        "## Aims",
        "",
        *table(["aim", "bound", "worst", "median", "cases that reach it", "", "the worst case"], aim_lines(rows)),
        "",
    ]
    titles = {
        "row_stats before / sample now": ("A raced row beside its statistics before", "statistics before, µs", "sample now, µs"),
        "before / now": ("Before and now", "before, µs", "now, µs"),
        "K = 8 / K = 1, now": ("Eight children beside one, now", "K = 8, µs", "K = 1, µs"),
    }
    for what, (title, *head) in titles.items():
        for threads in dict.fromkeys(row["threads"] for row in rows):
            found = [row for row in rows if row["compared"] == what and row["threads"] == threads]
            if found:
                body = [_cells(row, what == "before / now") for row in found]
                head_too = ["accepted"] if what == "before / now" else []
                lines += [f"## {title}, {_threads(threads)}", "", *table(["case", *head_too, *head, "×"], body), ""]
    return "\n".join(lines)


def _cells(row, with_accepted):
    accepted = "" if "accepted" not in row else " / ".join(dict.fromkeys(f"{x:.2f}" for x in row["accepted"]))
    ratio = row["ratio"]
    times = [f"{us['median']:.1f}" if us["median"] < 100 else f"{us['median']:.0f}" for us in row["us"]]
    return [row["case"], *([accepted] if with_accepted else []), *times,
            f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"]  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="before", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--revision", default=FLAT_CLOCKS, help=f"what this tree is held against ({FLAT_CLOCKS})")
    parser.add_argument("--quick", action="store_true", help="this tree beside itself, small rows: does it work")
    parser.add_argument("--filter", default="", metavar="SUBSTRING", help="groups with a case whose name has it")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1], help="torch's threads (2, then 1)")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each case and tree (0.5)")
    parser.add_argument("--out", type=Path, help="JSON; beside it the table (benchmarks/results/groups.json; --quick: none)")
    options = parser.parse_args(arguments)
    begin, machine = time.perf_counter(), harness.machine()
    if options.quick:
        (folder, name), groups = (ROOT, "the same tree"), before_cases.quick_groups()
        options.threads, options.budget = options.threads[:1], 0.02
    else:
        (folder, name), groups = earlier(options.revision), before_cases.groups()
        build(ROOT)
    groups = [group for group in groups if any(options.filter in case.name for case in group)]
    rows = compare((folder, ROOT), groups, options.threads, options.budget, BLOCK / 10 if options.quick else BLOCK)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    result = {"before": name, "machine": machine, "load_at_end": load, "seconds": time.perf_counter() - begin, "rows": rows}
    path = options.out or (None if options.quick else RESULTS / "groups.json")
    text = markdown(result)
    if path:
        harness.write_json(path, result)
        path.with_suffix(".md").write_text(text)
    print(text)
    differing = sum(row["checked"]["differing"] for row in rows if "checked" in row)
    return f"before: {differing} tokens differ from the references'" if differing else 0


if __name__ == "__main__":
    sys.exit(main())
