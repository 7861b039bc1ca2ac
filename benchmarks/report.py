"""The results as a Markdown table."""

NAMES = {"torch": "torch eager", "reference": "our reference", "multinomial": "softmax, multinomial", "Gumbel": "Gumbel trick"}


def markdown(result):
    machine, memory = result["machine"], result["memory_bandwidth"]
    lines = [
        "# Benchmarks on the CPU",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, kernels for "
        f"{machine['capability']}. torch {machine['torch']}, transformers {machine['transformers']}, specsample "
        f"{machine['specsample']} ({machine['revision'] or 'no revision'}), {machine['date']}; load average "
        f"{machine['load_at_start']:.1f} at the start, {result['seconds']:.0f} s in all"
        + (f"; the time ended before the last {len(result['left_out'])} cases" if result.get("left_out") else "")
        + ".",
        "",
        f"Read bandwidth of memory: {memory['gbps']:.1f} GB/s ({memory['bytes'] >> 20} MiB, best of several torch "
        f"reductions: {memory['reader']})" + _at_end(result) + ".",
        "",
        f"Temperature {result['temperature']}, raw logits. Times are medians of interleaved repetitions; `×` is the "
        "other's time over ours in the same rounds. GB/s counts the bytes that the scheme must read, each once; "
        "`% read` compares it with the fastest plain reduction over the case's own target logits in the same rounds: "
        "for inputs that fit a cache, with that cache. Each case goes over the same requests (32, or B when more) in "
        "calls of B, and its time is the mean call's; `accepted` is the mean number of accepted drafts. `torch eager` is "
        "a batched implementation (competitors.py); for `race` it draws its noise in the call. torch.compile takes tens "
        "of seconds a shape and has peaked float32 logits, V 32000, B 1 and 8, L 4 only; transformers has batch 1 "
        "only. Of one token a row: `argmax` draws nothing; softmax and `torch.multinomial`; the Gumbel trick, which is the largest of "
        "logits less log E, E of torch's generator (for K children: that often, or its K largest).",
        "",
        f"Checked first: {result['agreement']['tokens']} tokens against the reference "
        f"({result['agreement']['differing']} differ); first-token laws of {', '.join(result['checked_laws'])}.",
        "",
    ]
    titles = {
        "verify": "Verification",
        "sample": "Sampling one token a row",
        "draft": "Drafting K children a row",
        "row_stats": "Row statistics",
    }
    for op, title in titles.items():
        rows = [row for row in result["rows"] if row["op"] == op]
        if rows:
            lines += [f"## {title}", "", *_table(rows), ""]
    lines += _scratch(result.get("scratch"))
    return "\n".join(lines)


def _at_end(result):
    end = result.get("memory_bandwidth_at_end")
    return f"; {end['gbps']:.1f} GB/s at the end of the run" if end else ""


def _table(rows):
    others = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    head = ["case", "accepted", "µs", "GB/s", "% read", *(f"{NAMES.get(n, n)} ×" for n in others)]
    body = []
    for row in rows:
        cells = [
            row["case"],
            f"{row['accepted']:.2f}" if "accepted" in row else "",
            f"{row['us']['cpu']['median']:.0f}",
            f"{row['gbps']:.1f}",
            f"{row['percent_of_read']:.0f}" if "percent_of_read" in row else "",
            *(f"{row['ratio'][n]:.1f}" if n in row["ratio"] else "" for n in others),
        ]
        body.append(cells)
    notes = dict.fromkeys(f"{name}: {note}" for row in rows for name, note in row.get("notes", {}).items())
    return table(head, body) + ([""] + [f"- {note}" for note in notes] if notes else [])


def table(head, rows):
    """Lines of a Markdown table: the first column left-aligned, the others right-aligned"""
    lines = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * (len(head) - 1)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def _scratch(scratch):
    if not scratch:
        return []
    lines = [
        "## Scratch memory of one call",
        "",
        f"{scratch['case']}: inputs {scratch['inputs_kb']} KiB, outputs {scratch['outputs_kb']} KiB "
        f"({scratch['nodes']} nodes). Rise of the resident peak (VmHWM) during the call, in a process of its own; "
        f"resolution {scratch['resolution']}.",
        "",
    ]
    for who, name in (("cpu", "specsample"), ("torch", "torch eager")):
        figures = scratch[f"peak_{who}"]
        lines.append(f"- {name}: {figures.get('error') or str(figures['peak_kb']) + ' KiB'}")
    return [*lines, ""]
