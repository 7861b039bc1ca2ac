"""The results of the GPU benchmarks as Markdown, with predictions beside the measurements."""

import re

from benchmarks import RESULTS
from benchmarks.report import table

PREDICTED = RESULTS / "predicted.md"


def predictions(path=PREDICTED):
    """{case: µs} from a Markdown table whose first column names cases and which has a column `predicted, µs`"""
    found, column = {}, None
    for line in path.read_text().splitlines() if path.exists() else ():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|"):
            column = None
        elif column is None:
            column = next((i for i, cell in enumerate(cells) if i and re.fullmatch(r"predicted,? \(?µs\)?", cell)), -1)
        elif column > 0 and len(cells) > column and re.fullmatch(r"[\d.]+", cells[column]):
            found[cells[0]] = float(cells[column])
    return found


def line(row):
    """A measured case as one line"""
    if "failed" in row:
        return f"{row['case']}: FAILED: {row['failed']}"
    parts = []
    for backend, it in row["ours"].items():
        parts.append(f"{backend} {_us(it['us_cold'])} us cold, {_us(it['us_warm'])} warm, {_us(it['us_eager'])} eager, "
                     f"{it['percent_of_copy']:.0f} % of the copy")  # fmt: skip
    parts += [f"{name} {it['ratio']:.1f} x" for name, it in row["others"].items() if "ratio" in it]
    if "beside" in row:
        parts.append(f"{row['beside']['ratio']:.2f} x {row['beside']['scheme']}")
    differing = row["checked"]["differing"]
    return f"{row['case']}: " + ", ".join(parts) + (f", {differing} TOKENS DIFFER" if differing else "")


def _us(value):
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def markdown(result):
    machine = result["machine"]
    rows = [row for row in result["rows"] if "failed" not in row]
    predicted = predictions()
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "cuda", "triton", *machine["peers"])
                         if machine.get(name))  # fmt: skip
    dates = sorted(row["date"] for row in result["rows"]) or [machine["date"]]
    lines = [
        f"# Benchmarks on {machine['gpu']}",
        "",
        f"Driver {machine['driver']}, {versions}, specsample {machine['specsample']} ({machine['revision'] or 'no revision'}), "
        f"{dates[0]} to {dates[-1]}. Device-to-device copy of 512 MiB: {result.get('copy_gbps', 0):.0f} GB/s, both directions "
        "counted.",
        "",
        "bfloat16 logits, peaked rows, drafts really drawn. µs: time on the device, a CUDA graph of calls replayed back to back, "
        "the median; cold: inputs in rotation, so that each call finds its own outside the second-level cache; warm: the same "
        "inputs every time; eager: as Python makes the calls, back to back. GB/s: bytes of the rows that must be read, each once, "
        "in the cold time; % copy: of the bandwidth of a copy of 512 MiB, or of as many bytes as are read where that is less, "
        "measured in the same run. A scheme that stops at a refusal reads less, which the time shows and the percentage does not. "
        "`accepted`: mean number of accepted drafts. Scratch: the rise of allocated memory in a call, results included.",
        "",
        f"Checked first: {result['agreement']['tokens']} tokens against the reference and the CPU kernels "
        f"({result['agreement']['differing']} differ; of the last run); first-token laws of "
        f"{', '.join(result.get('checked_laws', [])) or 'nobody else'}.",
        "",
        *_ours([row for row in rows if row["K"] == 1], predicted),
        *_others(rows),
        *_several([row for row in rows if row["K"] > 1], predicted),
        *_failures(result),
    ]
    return "\n".join(lines)


def _cells(row, it, predicted):
    own = [_us(it["us_cold"]), _us(predicted[row["case"]]) if row["case"] in predicted else ""]
    own += [_us(it["us_warm"]), _us(it["us_eager"]), it["launches"] or "", f"{it['scratch_bytes'] / 1024:.1f}"]
    own += [f"{it['gbps']:.0f}", f"{it['percent_of_copy']:.0f}"]
    return own


def _accepted(row):
    return f"{row['accepted']:.2f}" if "accepted" in row else ""


HEAD = ["µs cold", "predicted", "µs warm", "µs eager", "launches", "scratch, KiB", "GB/s", "% copy"]


def _ours(rows, predicted):
    if not rows:
        return []
    first = next(iter(rows[0]["ours"]))
    more = list(dict.fromkeys(name for row in rows for name in row["ours"] if name != first))
    body = []
    for row in rows:
        it = row["ours"][first]
        slower = [f"{row['ours'][m]['us_cold'] / it['us_cold']:.2f}" if m in row["ours"] else "" for m in more]
        body.append([row["case"], _accepted(row), *_cells(row, it, predicted), *slower])
    return [f"## Ours: {first}", "", *table(["case", "accepted", *HEAD, *(f"{m} ×" for m in more)], body), ""]


def _others(rows):
    """Competitors' time over ours, cold; in brackets without the scaling, filters and softmax that ours includes"""
    rows = [row for row in rows if row["others"]]
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row["others"]))
    body, notes = [], {}
    for row in rows:
        ours, cells = next(iter(row["ours"].values()))["us_cold"], []
        for name in names:
            it = row["others"].get(name, {})
            for note in (it.get("note"), it.get("failed"), it.get("whole", {}).get("graph")):
                if note:
                    notes[f"{name}: {note}"] = None
            cells.append(f"{it['ratio']:.1f} ({it['verify']['us_cold'] / ours:.1f})" if "ratio" in it else "–" if it else "")
        body.append([row["case"], _us(ours), *cells])
    said = (
        "Their time over ours, cold: from the same logits; in brackets their verification alone, from scaled and filtered laws made "
        "before (softmax, filters and float32 copies excluded), still over our whole call. Who waits for the device inside cannot be "
        "captured, and is timed between events around eager calls."
    )
    return ["## Others", "", said, "", *table(["case", "ours, µs", *(f"{n} ×" for n in names)], body), "",
            *(f"- {note}" for note in notes), *([""] if notes else [])]  # fmt: skip


def _several(rows, predicted):
    body = []
    for row in rows:
        it, beside = next(iter(row["ours"].values())), row["beside"]
        body.append([row["case"], _accepted(row), *_cells(row, it, predicted), beside["scheme"], _us(beside["us_cold"]),
                     f"{beside['ratio']:.2f}"])  # fmt: skip
    if not rows:
        return []
    head = ["case", "accepted", *HEAD, "one path", "its µs", "×"]
    said = "Beside the single-draft scheme on the first path of the same inputs; independent children of a row beside one."
    return ["## Several drafts a node", "", said, "", *table(head, body), ""]


def _failures(result):
    lines = [f"- {name}: {why}" for name, why in result.get("left_out", {}).items()]
    lines += [f"- {row['case']}: {row['failed']}" for row in result["rows"] if "failed" in row]
    return ["## Left out, or failed", "", *lines, ""] if lines else []
