"""Which scheme should I use? Block efficiency and tokens/s of every scheme by number of paths, depth and temperature.

python -m benchmarks.papers.which [--temperatures 1 0.6] [-k 1 2 4] [--depths 2 4] [--target M --draft M] [--data FILE]

Tokens per call are measured on the whole sample (--prompts, --repeats, --batch). Calls per second are timed before that, one
request at a time, as on a desktop, on the first --timed prompts, and tokens/s is the product: it does not depend on the luck of
a short text. On a machine that serves many requests, target calls cost more with every drafted token, and fewer drafts pay off.
"""

import specsample as ss
from benchmarks import figures
from benchmarks.figures import plt
from benchmarks.papers import common
from benchmarks.papers.common import Setting, efficiency, table


def main(arguments=None):
    parser = common.parser(__doc__, "which", tokens=32)
    parser.add_argument("--timed", type=int, default=2, help="prompts that are decoded against the clock (2)")
    parser.add_argument("-k", type=int, nargs="+", default=[1, 2, 4, 8], help="paths (1 2 4 8)")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 3], help="of the paths (1 3)")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.6], help="of target and draft (1 0.6)")
    parser.add_argument("--schemes", nargs="+", default=[name for name in ss.schemes() if name != "weighted"])
    options = parser.parse_args(arguments)
    common.run(options, {"page": page})


def page(bench, options, rows, tables):
    cells = {}
    for temperature in options.temperatures:
        cells["plain", 0, 0, temperature] = Setting("plain", 0, 0, temperature)
        for name in options.schemes:
            for n in options.depths:
                for k in options.k:
                    if ss.schemes()[name].trees if k > 1 else ss.schemes()[name].on_chains == name:
                        cells[name, k, n, temperature] = Setting(name, k, n, temperature)
    timed = bench.decode(cells, bench.prompts[: options.timed], batch=1)
    found = bench.decode(cells)
    for key, row in found.items():
        if "missing" not in row:
            clock = timed[key]
            row["calls_per_second"] = clock["rounds"] * clock["tokens_per_second"] / clock["emitted"]
            row["tokens_per_second"] = row["block_efficiency"] * row["calls_per_second"]
    for key, row in found.items():
        plain = found["plain", 0, 0, key[3]]
        if "missing" not in row and "missing" not in plain and key[0] != "plain":
            row["times_plain"] = row["tokens_per_second"] / plain["tokens_per_second"]
        rows.append({**cells[key]._asdict(), **row})
    for temperature in options.temperatures:
        here = [row for row in rows if row["temperature"] == temperature]
        tables += [grid(here, options, temperature), recommendation(here, temperature)]
    draw(rows, options)


def grid(rows, options, temperature):
    """One line per scheme: tokens per call ± half an interval, and tokens/s"""
    columns = [(n, k) for n in options.depths for k in options.k]
    head = ["scheme", *(f"depth {n}, K = {k}" for n, k in columns)]
    body = []
    for name in options.schemes:
        found = {(row["depth"], row["paths"]): row for row in rows if of_scheme(row, name)}
        body.append([name, *(cell(found.get(column)) for column in columns)])
    plain = next(row for row in rows if row["scheme"] == "plain")
    speed = "" if "missing" in plain else f" (plain decoding: {plain['tokens_per_second']:.1f} tokens/s)"
    return table(f"T = {temperature:g}: tokens a target call, and tokens/s{speed}", head, body)


def of_scheme(row, name):
    """Whether the row shows this scheme: its own row, or on one path that of its equal."""
    return row["scheme"] == (name if row["paths"] > 1 else ss.schemes()[name].on_chains)


def cell(row):
    if row is None or "missing" in row:
        return None
    value, half = efficiency(row)
    return f"{value:.2f} ± {half:.2f}; {row['tokens_per_second']:.1f}"


def recommendation(rows, temperature):
    """The conclusion from the figures, in a sentence or two."""
    drafted = [row for row in rows if "missing" not in row and row["scheme"] != "plain"]
    if not drafted:
        return f"T = {temperature:g}: nothing was decoded."
    best = max(drafted, key=lambda row: row["block_efficiency"])
    ties = {
        f"{row['scheme']} (K = {row['paths']}, depth {row['depth']})"
        for row in drafted
        if row is not best and row["block_efficiency"] + row["half_width_95"] > best["block_efficiency"]
    }
    fast = max(drafted, key=lambda row: row["tokens_per_second"])
    words = lambda row: f"`{row['scheme']}`, K = {row['paths']}, depth {row['depth']}"
    single = max((row for row in drafted if row["paths"] == 1), key=lambda row: row["block_efficiency"], default=None)
    beside = ""
    if single:
        value = f"{single['block_efficiency']:.2f} ± {single['half_width_95']:.2f}"
        beside = f"; the best on one path: {words(single)}, {value}"
    times = f", {fast['times_plain']:.2f} × plain decoding" if "times_plain" in fast else ""
    return (
        f"T = {temperature:g}: most tokens a call: {words(best)}, "
        f"{best['block_efficiency']:.2f} ± {best['half_width_95']:.2f} ({len(ties)} other settings are within the "
        f"interval){beside}. Most tokens a second: {words(fast)}, {fast['tokens_per_second']:.1f} tokens/s{times}.\n"
    )


def draw(rows, options):
    """One panel per temperature and depth: tokens per call by K."""
    figure, panels = plt.subplots(
        len(options.temperatures), len(options.depths), sharex=True, sharey=True, squeeze=False,
        figsize=(1 + 4 * len(options.depths), 0.6 + 3 * len(options.temperatures)),
    )  # fmt: skip
    for i, temperature in enumerate(options.temperatures):
        for j, n in enumerate(options.depths):
            panel = panels[i, j]
            for name in options.schemes:
                points = [
                    (row["paths"], *efficiency(row))
                    for row in rows
                    if of_scheme(row, name) and (row["depth"], row["temperature"]) == (n, temperature) and efficiency(row)
                ]
                if points:
                    x, y, _ = zip(*points)
                    panel.plot(x, y, **figures.of(name))
            panel.set(title=f"T = {temperature:g}, depth {n}", xscale="log")
            panel.set_xticks(options.k, options.k)
            panel.minorticks_off()
            panel.grid(color="0.92")
    for panel in panels[:, 0]:
        panel.set_ylabel("tokens a target call")
    for panel in panels[-1]:
        panel.set_xlabel("paths K")
    figures.legend(panels[0, -1], loc="upper left", bbox_to_anchor=(1, 1))
    figures.save(figure, options.out.with_name("which.png"))


if __name__ == "__main__":
    main()
