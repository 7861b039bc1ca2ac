"""Khisti et al. 2024, "Multi-draft speculative sampling" (arXiv 2410.18234), on any pair of models.

  acceptance   mean acceptance of a node by scheme and number of drafts, as their Table 3 (teacher-forced: exact, no decoding)
  efficiency   block efficiency and token rate by number of drafts, drafts at a higher temperature, as their Table 1
  truncation   `importance` by size of its alphabet and of its linear program, as their Table 2: block efficiency, and exact
               acceptance of a node
  mixed        two drafts of one temperature against two of different temperatures

python benchmarks/papers/khisti.py [--parts acceptance] [--target M --draft M] [--data FILE]
"""

import common
import style
from common import Setting, efficiency, table
from style import plt

import specsample as ss
from specsample import theory
from specsample.acceptance import laws
from specsample import theory

NAMES = {  # as the paper calls them
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
    options = parser.parse_args(arguments)
    common.run(options, {"acceptance": acceptance, "efficiency": tempered, "truncation": truncation, "mixed": mixed})


def acceptance(bench, options, rows, tables):
    ks, texts = options.acceptance_k, bench.texts()
    positions = sum(new for _, new in texts)
    for temperature in (None, *options.draft_temperatures):
        sampling = None if temperature is None else ss.Sampling(temperature)
        found = common.teacher_forced(bench, texts, ks, draft_sampling=sampling)
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
                panel.plot(ks, found[name]["mean"], **style.of(name))
            panel.set(xlabel="drafts K", ylabel="mean acceptance of a node", xscale="log", xticks=ks, xticklabels=ks)
            panel.minorticks_off()
            panel.grid(color="0.92")
            style.legend(panel)
            style.save(figure, options.out.with_name("khisti-acceptance.png"))


def tempered(bench, options, rows, tables):
    progress = common.Progress(1 + len(options.draft_temperatures) * len(DECODED) * len(options.k))
    single = bench.decode(Setting("token", depth=options.depth))
    rows.append({"scheme": "token", "paths": 1, "draft_temperature": 1.0, **single})
    progress.step("single draft")
    for temperature in options.draft_temperatures:
        found = {}
        for name in DECODED:
            for k in options.k:
                setting = Setting(name, k, options.depth, draft_temperature=temperature)
                found[name, k] = bench.decode(setting)
                rows.append({"scheme": name, "paths": k, "draft_temperature": temperature, **found[name, k]})
                progress.step(f"{name}, K = {k}, drafts at T = {temperature:g}")
        head = ["scheme", *(f"K = {k}" for k in options.k)]
        title = f"Block efficiency, drafts of {options.depth} tokens at T = {temperature:g} (single draft at T = 1: {{}})"
        title = title.format(f"{single['block_efficiency']:.2f} ± {single['half_width_95']:.2f}")
        tables.append(table(title, head, [[NAMES.get(n, n), *(efficiency(found[n, k]) for k in options.k)] for n in DECODED]))
        rate = [[NAMES.get(n, n), *(relative(found[n, k], single) for k in options.k)] for n in DECODED]
        tables.append(table("Token rate relative to the single draft", head, rate))
        figure, panel = plt.subplots(figsize=(6, 4.2))
        for name in DECODED:
            points = [(k, *efficiency(found[name, k])) for k in options.k if efficiency(found[name, k])]
            if points:
                x, y, half = zip(*points)
                panel.errorbar(x, y, half, capsize=2, elinewidth=0.8, **style.of(name))
        panel.axhline(single["block_efficiency"], **style.of("token", marker="", label="single draft, T = 1"))
        panel.set(xlabel="drafts K", ylabel="tokens a target call", title=f"drafts of {options.depth} at T = {temperature:g}")
        panel.grid(color="0.92")
        style.legend(panel)
        style.save(figure, options.out.with_name(f"khisti-efficiency-{temperature:g}.png"))


def relative(row, single):
    return None if "missing" in row else f"{row['tokens_per_second'] / single['tokens_per_second']:.2f} ×"


def truncation(bench, options, rows, tables):
    if "importance" not in ss.schemes():
        rows.append({"scheme": "importance", "missing": "this version does not have the scheme"})
        return
    cells = [(alphabet, free) for alphabet in options.alphabet for free in options.free]
    progress, found = common.Progress(len(cells)), {}
    for alphabet, free in cells:
        setting = Setting("importance", 2, options.depth, options={"alphabet": alphabet, "s": free})
        found[alphabet, free] = bench.decode(setting)
        rows.append({"scheme": "importance", "alphabet": alphabet, "s": free, **found[alphabet, free]})
        progress.step(f"importance, {alphabet} tokens, {free} free")
    head = ["tokens in the alphabet", *(f"s = {free}" for free in options.free)]
    body = [[str(a), *(efficiency(found[a, free]) for free in options.free)] for a in options.alphabet]
    title = f"`importance` truncated: block efficiency, K = 2, drafts of {options.depth} tokens at T = 1"
    tables.append(table(title, head, body))

    # The acceptance of a node needs no decoding; a sixth of the text will do for differences at the same positions.
    pairs = []
    for target, draft in bench.logits(bench.texts()):
        pairs += zip(*laws(target[::6], draft[::6], ss.Sampling(), ss.Sampling()))
    progress, body = common.Progress(len(cells)), []
    for alphabet in options.alphabet:
        line = [str(alphabet)]
        for free in options.free:
            mean = sum(float(theory.importance_acceptance(t, d, 2, free, alphabet)) for t, d in pairs) / len(pairs)
            rows.append({"scheme": "importance", "alphabet": alphabet, "s": free, "acceptance_of_a_node": mean})
            line.append(f"{mean:.4f}")
            progress.step(f"acceptance, {alphabet} tokens, {free} free")
        body.append(line)
    best = sum(float(theory.optimal_acceptance(t, d, 2)) for t, d in pairs) / len(pairs)
    title = f"`importance` truncated: acceptance of a node, K = 2, {len(pairs)} positions; the optimum is {best:.4f}"
    tables.append(table(title, head, body))


def mixed(bench, options, rows, tables):
    """Two drafts of one model at one temperature, and at two; `weighted` and `race` take drafts of different laws."""
    pairs = [(1.0, 1.0), (1.2, 1.2), (1.0, 1.2), (1.0, 1.5)]
    names = ("optimal", "weighted", "race")
    progress, cells = common.Progress(len(pairs) * len(names)), []
    for name in names:
        line = [name]
        for both in pairs:
            identical = both[0] == both[1]
            if name == "optimal" and not identical:
                line.append(None)  # its drafts share one law
                progress.step(name)
                continue
            temperature = both[0] if name == "optimal" else both
            row = bench.decode(Setting(name, 2, options.depth, draft_temperature=temperature))
            rows.append({"scheme": name, "draft_temperatures": both, **row})
            line.append(efficiency(row))
            progress.step(f"{name}, drafts at T = {both[0]:g} and {both[1]:g}")
        cells.append(line)
    head = ["scheme", *(f"T = {a:g}, {b:g}" for a, b in pairs)]
    tables.append(table(f"Block efficiency of two drafts of {options.depth} tokens, at temperatures", head, cells))


if __name__ == "__main__":
    main()
