"""The benchmark runner: `python -m benchmarks.cpu.run [--quick] [--schemes token race] [--filter V32000] [--plot]`.

Every case is checked against the reference before it is timed, and timed interleaved with its competitors and with
plain reads of its own inputs; a timed repetition covers the same 32 requests for every batch size.
Writes benchmarks/results/cpu.json and a table of it, cpu.md.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks import RESULTS, harness, registry, report
from benchmarks import competitors as others
from benchmarks.cpu import memory


def parse(arguments):
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a handful of cases, about half a minute")
    parser.add_argument("--schemes", nargs="+", choices=registry.SINGLE_DRAFT, help="verification with these only")
    parser.add_argument("--filter", default="", metavar="SUBSTRING", help="cases whose name has it")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json", help="JSON; beside it the table")
    parser.add_argument("--plot", action="store_true", help="also a figure beside the table (needs matplotlib)")
    parser.add_argument("--budget", type=float, help="seconds for each call of a case (default 0.12, quick 0.06)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="leave out the cases that would start later")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--no-compile", action="store_true", help="without the torch.compile competitors")
    parser.add_argument("--compile-reference", action="store_true", help="torch.compile the reference too: minutes")
    return parser.parse_args(arguments)


class Checker:
    """Compares the compiled backend with the reference. A request's result does not depend on its batch, so the
    reference runs once for the first requests of a kind, and every batch size is compared with it."""

    def __init__(self):
        self.agreement, self.known = harness.Agreement(), {}

    def check(self, case, inputs):
        few = 4 if case.op == "row_stats" else 1 if case.V * case.L > 100_000 else 2
        first = inputs.batches(few)[0]
        if case.op == "row_stats":
            pairs = zip(registry.ours(case, first)(), registry.ours(case, first, "reference")())
            for ours, reference in pairs:
                torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
            return {"requests": few}
        key = case._replace(B=few)
        if key not in self.known:
            self.known[key] = _tokens(registry.ours(case, first, "reference")())
        ours = torch.cat([_tokens(registry.ours(case, part)()) for part in inputs.batches(case.B)[:few]])[:few]
        return {"requests": few, **self.agreement.count(ours, self.known[key])}


def _tokens(result):
    result = result if isinstance(result, torch.Tensor) else result.tokens
    return result if result.dim() == 2 else result[:, None]


def run_case(case, checker, options):
    """One row of the results."""
    inputs = registry.inputs_of(case.rows, case.dtype, case.requests, case.L, case.V)
    batches = inputs.batches(case.B)
    checked = checker.check(case, inputs)
    ours = [registry.ours(case, part) for part in batches]
    accepted = torch.cat([call().num_accepted for call in ours]) if case.op == "verify" else None
    needed, touched = registry.bytes_of(case, accepted)
    calls, notes = registry.competitors(case, batches, options.compile, options.compile_reference)
    size = inputs.target.numel() * inputs.target.element_size()
    readable = case.B * case.row_bytes >= 1 << 16  # below this, a reader's call is timed, not its reading
    timings = harness.time_together(
        {"cpu": registry.over(ours), **calls, **(harness.readers(inputs.target) if readable else {})}, options.budget
    )
    reads = {name: timings.pop(name) for name in list(timings) if name.startswith("read: ")}
    timings = {name: timing.divided(len(batches)) for name, timing in timings.items()}
    ours = timings["cpu"]
    row = {"case": case.name, **case._asdict(), "calls": len(batches), "checked": checked}
    row |= {"bytes_needed": needed, "bytes_read": touched}
    if accepted is not None:
        row["accepted"] = float(accepted.double().mean())
    row["gbps"] = needed / ours.median / 1e9
    if readable:
        row["read_gbps"], row["reader"] = harness.best_reader(reads, size)
        row["percent_of_read"] = 100 * row["gbps"] / row["read_gbps"]
        quickest = size / min(t.minimum for t in reads.values())
        row["percent_of_read_minima"] = 100 * (needed / ours.minimum) / quickest
    row["ratio"] = {n: t.median / ours.median for n, t in timings.items() if n != "cpu"}
    row["ratio_minima"] = {n: t.minimum / ours.minimum for n, t in timings.items() if n != "cpu"}
    row["us"] = {n: {"median": t.median * 1e6, "min": t.minimum * 1e6, "n": t.repetitions} for n, t in timings.items()}
    return {**row, "notes": notes} if notes else row


def main(arguments=None):
    options = parse(arguments)
    options.budget = options.budget or (0.03 if options.quick else 0.12)
    options.compile = not options.no_compile and not options.quick
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    begin = time.perf_counter()
    chosen = [
        case
        for case in registry.cases(options.quick)
        if options.filter in case.name and (options.schemes is None or case.scheme in options.schemes)
    ]
    if not chosen:
        return f"bench: no case has {options.filter!r} in its name"
    large = harness.LARGE // 2 if options.quick else harness.LARGE
    checker, progress = Checker(), harness.Progress(len(chosen) + 2)
    result = {"machine": harness.machine(), "temperature": registry.TEMPERATURE}
    result["checked_laws"] = others.check_all()
    progress.step("laws of the competitors")
    result["memory_bandwidth"] = harness.memory_bandwidth(large)
    progress.step("memory bandwidth")
    rows = []
    for case in chosen:
        if options.limit and time.perf_counter() - begin > options.limit:
            result["left_out"] = [case.name for case in chosen[len(rows) :]]
            break
        rows.append(run_case(case, checker, options))
        progress.step(case.name)
    if not options.quick:  # the machine may have changed during the run
        result["memory_bandwidth_at_end"] = harness.memory_bandwidth(large)
    if memory.STATUS.exists() and not options.filter:
        result["scratch"] = memory.rows(*((8, 4, 32000) if options.quick else ()))
    result["agreement"] = {"tokens": checker.agreement.tokens, "differing": checker.agreement.differing}
    result["seconds"] = time.perf_counter() - begin
    result["rows"] = rows
    harness.write_json(options.out, result)
    table = report.markdown(result)
    options.out.with_suffix(".md").write_text(table)
    print(table)
    if options.plot:
        from benchmarks import figures

        figures.ratios(result, options.out.with_suffix(".png"))
    if not checker.agreement.acceptable:
        return f"bench: {checker.agreement.differing} tokens differ from the reference's"
    return 0


if __name__ == "__main__":
    sys.exit(main())
