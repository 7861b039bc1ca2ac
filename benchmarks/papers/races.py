"""Kobus and Gündüz 2025, "Speculative sampling via exponential races" (arXiv 2504.15475), on any pair of models.

    depth     block efficiency of `race`, `token` and `block` by depth of a chain: measured, and expected on the target's texts
    children  first arrivals (`race`) and clock lists (`lists`) by number of drafts: acceptance of a node, block efficiency
    bound     block efficiency of `race` by number of drafted tokens as a chain, as single drafts and as the heaviest tree, with
              the bounds

python -m benchmarks.papers.races [--parts depth] [--target M --draft M] [--data FILE]
"""

import numpy as np
import torch

import specsample as ss
from benchmarks import figures
from benchmarks.figures import plt
from benchmarks.papers import common
from benchmarks.papers.common import Setting, efficiency, table
from specsample import theory
from specsample.theory.arrivals import up_to
from specsample.tools import expected
from specsample.tools.acceptance import laws

CHAINS = ("block", "token", "race")
RANKS = 64  # distinguished ranks of the target's token among the draft's arrivals
SHAPES = {  # how k nodes are drafted: name -> (setting, how a node's children are ordered, colour, marker, dashes)
    "chain": (lambda k: Setting("race", depth=k), "arrivals", figures.BLUE, "o", "-"),
    "k drafts of one token": (lambda k: Setting("race", k, 1), "arrivals", figures.ORANGE, "s", "--"),
    "heaviest tree": (lambda k: Setting("race", depth=min(k, 8), tree=k), "likeliest", figures.VERMILION, "^", "-."),
}


def main(arguments=None):
    parser = common.parser(__doc__, "races")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8], help="of a chain (1 2 3 4 6 8)")
    parser.add_argument("-k", type=int, nargs="+", default=[1, 2, 4, 8], help="drafts (1 2 4 8)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="drafted tokens (1 2 4 8 16 32)")
    parser.add_argument("--depth", type=int, default=4, help="of the paths in `children` (4)")
    parser.add_argument("--entropy-positions", type=int, default=32, help="positions of the text that give the bound (32)")
    options = parser.parse_args(arguments)
    common.run(options, {"depth": depth, "children": children, "bound": bound})


def depth(bench, options, rows, tables):
    head = ["scheme", *(f"depth {n}" for n in options.depths)]
    found = bench.decode({(name, n): Setting(name, depth=n) for name in CHAINS for n in options.depths})
    predicted, cells = expected_efficiency(bench, options.depths), []
    for name in CHAINS:
        for n in options.depths:
            rows.append({"scheme": name, "depth": n, "expected": predicted[name, n], **found[name, n]})
        cells.append([name, *(efficiency(found[name, n]) for n in options.depths)])
        cells.append([f"{name}, expected", *(f"{predicted[name, n]:.3f}" for n in options.depths)])
    tables.append(table("Block efficiency of a chain", head, cells))
    figure, panel = plt.subplots(figsize=(6, 4.2))
    for name in CHAINS:
        panel.plot(options.depths, [predicted[name, n] for n in options.depths], **figures.of(name))
        drawn = [(n, *efficiency(found[name, n])) for n in options.depths if efficiency(found[name, n])]
        if drawn:
            x, y, half = zip(*drawn)
            panel.errorbar(x, y, half, **figures.of(name, linestyle="none", capsize=2, alpha=0.6, label="_"))
    panel.set(xlabel="depth", ylabel="tokens a target call", title="lines: expected; points: measured", xticks=options.depths)
    panel.grid(color="0.92")
    figures.legend(panel)
    figures.save(figure, options.out.with_name("races-depth.png"))


def expected_efficiency(bench, depths):
    """Expected tokens per target call on the target's own texts, from both models' laws: {(scheme, depth): number}"""
    calls, tokens = {}, 0
    for text, new in bench.texts():
        (logits,) = bench.logits([(text, new)])
        target, draft = map(torch.from_numpy, laws(*logits, ss.Sampling(), ss.Sampling()))
        tokens += new
        for name in CHAINS:
            # The deepest table includes the shallower ones.
            chances = expected.survival(name, target, draft, text[-new:], max(depths))
            for n in depths:
                calls[name, n] = calls.get((name, n), 0.0) + expected.calls(chances[:, :n])
    return {key: tokens / value for key, value in calls.items()}


def children(bench, options, rows, tables):
    names = ("race", "lists")
    found = bench.decode({(name, k): Setting(name, k, options.depth) for name in names for k in options.k})
    by_temperature, positions = common.teacher_forced(bench, options.k, schemes=[*names, "optimal"])
    head, cells = ["", *(f"K = {k}" for k in options.k)], []
    for name, values in by_temperature[None].items():
        facts = {"scheme": name, "what": "acceptance of a node", "positions": positions, "k": options.k}
        rows.append({**facts, **values})
        cells.append([f"acceptance of a node, {name}", *(f"{x:.4f}" for x in values["mean"])])
    for name in names:
        for k in options.k:
            facts = {"scheme": name, "what": "block efficiency", "paths": k, "depth": options.depth}
            rows.append({**facts, **found[name, k]})
        cells.append([f"block efficiency, {name}", *(efficiency(found[name, k]) for k in options.k)])
    tables.append(table(f"First arrivals (race) and clock lists; paths of {options.depth} tokens", head, cells))


def bound(bench, options, rows, tables):
    limits = least_bounds(bench, options)
    decoded = bench.decode({(name, k): shape[0](k) for name, shape in SHAPES.items() for k in options.nodes})
    head, cells = ["k drafted tokens", *map(str, options.nodes)], []
    figure, panel = plt.subplots(figsize=(6, 4.2))
    for name, (_, order, colour, marker, dashes) in SHAPES.items():
        found = [decoded[name, k] for k in options.nodes]
        for k, row in zip(options.nodes, found):
            rows.append({"scheme": "race", "shape": name, "nodes": k, "bound": limits[order][k], **row})
        cells.append([name, *map(efficiency, found)])
        drawn = [(k, *efficiency(row)) for k, row in zip(options.nodes, found) if efficiency(row)]
        if drawn:
            x, y, half = zip(*drawn)
            panel.errorbar(x, y, half, color=colour, marker=marker, linestyle=dashes, capsize=2, label=name)
    for (order, limit), dashes in zip(limits.items(), (":", (0, (1, 4)))):
        cells.append([f"bound, children by {order}", *(f"{limit[k]:.2f}" for k in options.nodes)])
        values = [limit[k] for k in options.nodes]
        panel.plot(options.nodes, values, color=figures.BLACK, linestyle=dashes, label=f"bound, children by {order}")
    panel.set(xlabel="drafted tokens k", ylabel="tokens a target call", xscale="log")
    panel.set_xticks(options.nodes, options.nodes)
    panel.minorticks_off()
    panel.grid(color="0.92")
    panel.legend(fontsize=8, frameon=False)
    figures.save(figure, options.out.with_name("races-bound.png"))
    tables.append(table("Block efficiency of `race` by drafted tokens", head, cells))


def least_bounds(bench, options):
    """{order of the children: {k: the least theory.race_bound over the number of distinguished ranks}}

    R is the rank of the target's token in the order in which a node's children are taken: the draft's arrivals, or its
    likeliest tokens. In a tree of k nodes no child has a rank above k, so ranks above n >= k may count as one value: a round
    exits at one of k + 1 nodes with one of n + 1 ranks, and the exit's entropy is that of the ranks passed. Every token of a
    text is passed once, so the mean of H[R] over the text replaces that of a single prefix.
    """
    target, draft = (torch.cat(x) for x in zip(*bench.logits(bench.texts())))
    step = max(1, len(target) // options.entropy_positions)
    pairs = list(zip(*laws(target[::step], draft[::step], ss.Sampling(), ss.Sampling())))
    most = max(RANKS, *options.nodes)
    entropy = {"arrivals": np.zeros(most), "likeliest": np.zeros(most)}
    progress = common.Progress(len(pairs))
    for count, (t, d) in enumerate(pairs):
        if count and bench.late():
            pairs = pairs[:count]
            break
        within = np.cumsum(t[np.argsort(-d, kind="stable")])[:most]
        within = np.append(within, np.ones(most - len(within)))
        entropy["arrivals"] += entropies(up_to(t, d, most, knots=32).value)
        entropy["likeliest"] += entropies(within)
        progress.step("entropy of ranks")
    least = lambda h, k: min(float(theory.race_bound(h[n - 1], n + 1, k)) for n in range(k, most + 1))
    return {order: {k: least(h / len(pairs), k) for k in options.nodes} for order, h in entropy.items()}


def entropies(within):
    """H of the rank if those above n count as one value, for each n; within [n]: probability of a rank of at most n"""
    chance = np.diff(within, prepend=0.0).clip(1e-300)
    rest = (1 - within).clip(1e-300)
    return np.cumsum(-chance * np.log(chance)) - rest * np.log(rest)


if __name__ == "__main__":
    main()
