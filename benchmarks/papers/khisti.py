"""Khisti et al. 2024, "Multi-draft speculative sampling" (arXiv 2410.18234), on any pair of models.

    acceptance   mean acceptance of a node by scheme and number of drafts, as in their Table 3 (teacher-forced: exact, no decoding)
    efficiency   block efficiency and token rate by number of drafts, drafts at a higher temperature, as in their Table 1
    truncation   `importance` in the paper's own form by sizes of its alphabet and of its linear program, as in their Table 2, and
                 the order by t/d over all tokens: block efficiency, and exact acceptance of a node
    mixed        two drafts at one temperature against two at different temperatures

python -m benchmarks.papers.khisti [--parts acceptance] [--target M --draft M] [--data FILE]
"""

import specsample as ss
from benchmarks import figures
from benchmarks.figures import plt
from benchmarks.papers import common
from benchmarks.papers.common import Setting, efficiency, table
from specsample import theory
from specsample.tools.acceptance import laws

NAMES = {  # the paper's names
    "optimum": "optimal transport", "importance": "importance (IS)", "kseq": "kseq (SpecTr)",
    "recursive": "recursive (SpecInfer)",
}  # fmt: skip
PAPER = ("optimum", "optimal", "importance", "kseq", "recursive")
OTHERS = ("recursive_distinct", "race", "top", "lists")
DECODED = ("optimal_block", "optimal", "importance", "kseq", "recursive")


def main(arguments=None):
    parser = common.parser(__doc__, "khisti")
    parser.add_argument("-k", type=int, nargs="+", default=[2, 3, 4, 5, 6], help="drafts (2 3 4 5 6)")
    parser.add_argument("--acceptance-k", type=int, nargs="+", default=[1, 2, 4, 8], help="the same for Table 3 (1 2 4 8)")
    parser.add_argument("--depth", type=int, default=5, help="tokens of a draft (5)")
    parser.add_argument("--draft-temperatures", type=float, nargs="+", default=[1.2], help="of Table 1 (1.2)")
    parser.add_argument("--alphabet", type=int, nargs="+", default=[10, 20, 40], help="tokens of `importance` (10 20 40)")
    parser.add_argument("--free", type=int, nargs="+", default=[2, 5, 10], help="letters in its linear program (2 5 10)")
    parser.add_argument("--untimed", action="store_true", help="the machine has other work: leave out the token rates")
    options = parser.parse_args(arguments)
    common.run(options, {"acceptance": acceptance, "efficiency": tempered, "truncation": truncation, "mixed": mixed})


def acceptance(bench, options, rows, tables):
    ks = options.acceptance_k
    by_temperature, positions = common.teacher_forced(bench, ks, (None, *options.draft_temperatures))
    for temperature, found in by_temperature.items():
        names = [name for name in (*PAPER, *OTHERS) if name in found]
        for name in found:
            facts = {"scheme": name, "draft_temperature": temperature or 1.0, "positions": positions, "k": ks}
            rows.append({**facts, **found[name]})
        title = f"Mean acceptance at T = 1, drafts at T = {temperature or 1:g}, {positions} positions of the target's texts"
        cells = [[NAMES.get(name, name), *(f"{x:.4f}" for x in found[name]["mean"])] for name in names]
        cells.append(["± (95 %, of the text)", *(f"{x:.3f}" for x in found["optimum"]["half_width_95"])])
        gap = [a - b for a, b in zip(found["optimum"]["mean"], found["optimal"]["mean"])]
        cells.append(["optimum less optimal", *(f"{max(x, 0):.0e}" for x in gap)])
        tables.append(table(title, ["scheme", *(f"K = {k}" for k in ks)], cells))
        if temperature is None:
            figure, panel = plt.subplots(figsize=(6, 4.2))
            for name in names:
                panel.plot(ks, found[name]["mean"], **figures.of(name))
            panel.set(xlabel="drafts K", ylabel="mean acceptance of a node", xscale="log", xticks=ks, xticklabels=ks)
            panel.minorticks_off()
            panel.grid(color="0.92")
            figures.legend(panel)
            figures.save(figure, options.out.with_name("khisti-acceptance.png"))


def tempered(bench, options, rows, tables):
    cells = {"single draft": Setting("token", depth=options.depth)}
    for temperature in options.draft_temperatures:
        for name in DECODED:
            for k in options.k:
                cells[name, k, temperature] = Setting(name, k, options.depth, draft_temperature=temperature)
    decoded = bench.decode(cells)
    single = decoded["single draft"]
    for key, setting in cells.items():
        facts = {"scheme": setting.scheme, "paths": setting.paths, "draft_temperature": setting.draft_temperature or 1.0}
        timed = ("tokens_per_second", "seconds") if options.untimed else ()
        rows.append({**facts, **{name: value for name, value in decoded[key].items() if name not in timed}})
    if "missing" in single:
        return
    for temperature in options.draft_temperatures:
        found = {(name, k): decoded[name, k, temperature] for name in DECODED for k in options.k}
        head = ["scheme", *(f"K = {k}" for k in options.k)]
        title = f"Block efficiency, drafts of {options.depth} tokens at T = {temperature:g} (single draft at T = 1: {{}})"
        title = title.format(f"{single['block_efficiency']:.2f} ± {single['half_width_95']:.2f}")
        tables.append(table(title, head, [[NAMES.get(n, n), *(efficiency(found[n, k]) for k in options.k)] for n in DECODED]))
        if not options.untimed:
            rate = [[NAMES.get(n, n), *(relative(found[n, k], single) for k in options.k)] for n in DECODED]
            tables.append(table("Token rate relative to the single draft", head, rate))
        figure, panel = plt.subplots(figsize=(6, 4.2))
        for name in DECODED:
            points = [(k, *efficiency(found[name, k])) for k in options.k if efficiency(found[name, k])]
            if points:
                x, y, half = zip(*points)
                panel.errorbar(x, y, half, capsize=2, elinewidth=0.8, **figures.of(name))
        panel.axhline(single["block_efficiency"], **figures.of("token", marker="", label="single draft, T = 1"))
        panel.set(xlabel="drafts K", ylabel="tokens a target call", title=f"drafts of {options.depth} at T = {temperature:g}")
        panel.grid(color="0.92")
        figures.legend(panel)
        figures.save(figure, options.out.with_name(f"khisti-efficiency-{temperature:g}.png"))


def relative(row, single):
    return None if "missing" in row else f"{row['tokens_per_second'] / single['tokens_per_second']:.2f} ×"


def truncation(bench, options, rows, tables):
    if "importance" not in ss.schemes():
        rows.append({"scheme": "importance", "missing": "this version does not have the scheme"})
        return
    settings = {
        (alphabet, free): Setting("importance", 2, options.depth, options={"alphabet": alphabet, "s": free})
        for alphabet in options.alphabet
        for free in options.free
    }
    settings[None] = Setting("importance", 2, options.depth)  # the scheme with its defaults
    exactly = truncated_acceptance(bench, options, settings, rows)  # first, since decoding takes all the remaining time
    found = bench.decode(settings)
    rows += [{**cell_facts(cell), **row} for cell, row in found.items()]
    head = ["tokens in the alphabet", *(f"s = {free}" for free in options.free)]
    body = [[str(a), *(efficiency(found[a, free]) for free in options.free)] for a in options.alphabet]
    title = f"`importance` truncated: block efficiency, K = 2, drafts of {options.depth} tokens at T = 1; all tokens in order: {{}}"
    title = title.format("–" if "missing" in found[None] else "{:.2f} ± {:.2f}".format(*efficiency(found[None])))
    tables.append(table(title, head, body))
    if exactly:
        title, body = exactly
        tables.append(table(title, head, body))


def cell_facts(cell):
    """What a row of results says about its cell"""
    return {"scheme": "importance"} | dict(zip(("alphabet", "s"), cell or (0, None)))


def truncated_acceptance(bench, options, settings, rows):
    """(title, cells) for the acceptance of a node, which needs no decoding; None if no position has all cells. A sixth of
    the text suffices for differences at the same positions."""
    pairs = []
    for target, draft in bench.logits(bench.texts()):
        pairs += zip(*laws(target[::6], draft[::6], ss.Sampling(), ss.Sampling()))

    def exact(cell, i):
        return float(theory.importance_acceptance(*pairs[i], 2, *(cell or ())[::-1]))

    found = bench.sweep(settings, range(len(pairs)), exact, common.names)
    counts = [len(x) for x in found.values() if isinstance(x, list)]
    shared = range(min(counts, default=0) if len(counts) == len(found) else 0)  # positions that have all cells
    if not shared:
        return None
    mean = {cell: sum(found[cell][i] for i in shared) / len(shared) for cell in settings}
    rows += [{**cell_facts(cell), "positions": len(shared), "acceptance_of_a_node": mean[cell]} for cell in settings]
    body = [[str(a), *(f"{mean[a, free]:.4f}" for free in options.free)] for a in options.alphabet]
    best = sum(float(theory.optimal_acceptance(*pairs[i], 2)) for i in shared) / len(shared)
    title = f"`importance` truncated: acceptance of a node, K = 2, {len(shared)} positions"
    return f"{title}; all tokens in order: {mean[None]:.4f}, the optimum: {best:.4f}", body


def mixed(bench, options, rows, tables):
    """Two drafts of one model at one temperature, and at two; `weighted` and `race` take drafts from different laws."""
    pairs = [(1.0, 1.0), (1.2, 1.2), (1.0, 1.2), (1.0, 1.5)]
    names = ("optimal", "weighted", "race")
    settings = {}
    for name in names:
        for both in pairs:
            if name != "optimal":
                settings[name, both] = Setting(name, 2, options.depth, draft_temperature=both)
            elif both[0] == both[1]:  # its drafts share one law
                settings[name, both] = Setting(name, 2, options.depth, draft_temperature=both[0])
    found = bench.decode(settings)
    for (name, both), row in found.items():
        rows.append({"scheme": name, "draft_temperatures": both, **row})
    cells = [[name, *(efficiency(found.get((name, both))) for both in pairs)] for name in names]
    head = ["scheme", *(f"T = {a:g}, {b:g}" for a, b in pairs)]
    tables.append(table(f"Block efficiency of two drafts of {options.depth} tokens, at temperatures", head, cells))


if __name__ == "__main__":
    main()
