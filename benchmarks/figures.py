"""How figures are drawn: `python -m benchmarks.figures` redraws those of the documents (needs NumPy and matplotlib; no models).

results/acceptance.png   mean acceptance of a node by scheme and number of drafts, from results/papers/khisti-acceptance.json
results/thresholds.png   what schemes for i.i.d. drafts leave to the residual: Z(c) = Σ (t − c·d)⁺, each at its own c
results/cpu.png          how many times longer other implementations take, by shape, from results/cpu.json

Schemes have the palette of Okabe and Ito, for any colour vision; markers and dashes repeat the distinction.
"""

import json

import matplotlib

from benchmarks import RESULTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999",
)  # fmt: skip

LOOKS = {  # name -> (colour, marker, dashes)
    "optimum": (BLACK, "", ":"),
    "optimal_block": (VERMILION, "*", "-"),
    "optimal": (BLUE, "o", "-"),
    "importance": (PURPLE, "P", "-."),
    "kseq": (GREEN, "s", "--"),
    "recursive": (ORANGE, "^", "--"),
    "recursive_distinct": (SKY, "v", "-"),
    "top": (GREY, "D", "--"),
    "race": (BLACK, "X", "-"),
    "lists": (VERMILION, "<", ":"),
    "weighted": (YELLOW, "p", "-"),
    "block": (VERMILION, ">", "--"),
    "token": (GREY, ".", ":"),
    "plain": (GREY, "", "-"),
}


def of(scheme, **more):
    """Keyword arguments of `plot` for a scheme"""
    colour, marker, dashes = LOOKS.get(scheme, (GREY, "x", "-"))
    return {"color": colour, "marker": marker, "linestyle": dashes, "label": scheme, "markersize": 6, **more}


def legend(panel, **more):
    """A legend with each label once, in the order of LOOKS."""
    handles = dict(zip(*reversed(panel.get_legend_handles_labels())))
    order = sorted(handles, key=lambda name: list(LOOKS).index(name) if name in LOOKS else len(LOOKS))
    panel.legend([handles[name] for name in order], order, fontsize=8, frameon=False, **more)


def save(figure, path, rect=(0, 0, 1, 1)):
    figure.tight_layout(rect=rect)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# -- figures of the benchmarks -----------------------------------------------------------------------------------------

# Markers and places beside the tick repeat what the colour says.
PEERS = {  # name -> (label, colour, marker, place beside the tick)
    "transformers": ("transformers", VERMILION, "^", -0.22),
    "torch": ("torch eager", BLUE, "o", 0.0),
    "torch.compile": ("torch.compile", GREEN, "s", 0.22),
}


def ratios(result, path):
    """One panel per scheme; peaked logits, float32 filled and bfloat16 hollow; the grey line is equal time."""
    rows = [r for r in result["rows"] if r["op"] == "verify" and r["rows"] == "peaked" and r["V"] >= 1000]
    schemes = list(dict.fromkeys(r["scheme"] for r in rows))
    if not schemes:
        return
    shapes = sorted({(r["V"], r["B"], r["L"]) for r in rows})
    size = (max(5, 0.42 * len(shapes) + 2), 2.4 * len(schemes))
    figure, panels = plt.subplots(len(schemes), 1, sharex=True, sharey=True, squeeze=False, figsize=size)
    for panel, scheme in zip(panels[:, 0], schemes):
        panel.axhline(1, color="0.6", linewidth=1)
        for name, (_, colour, marker, beside) in PEERS.items():
            for dtype, face in (("float32", colour), ("bfloat16", "none")):
                points = [
                    (shapes.index((r["V"], r["B"], r["L"])) + beside, r["ratio"][name])
                    for r in rows
                    if r["scheme"] == scheme and r["dtype"] == dtype and name in r["ratio"]
                ]
                if points:
                    panel.plot(*zip(*points), marker, color=colour, markerfacecolor=face, linestyle="none")
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g} ×")
        for place in range(1, len(shapes)):
            if shapes[place - 1][0] != shapes[place][0]:
                panel.axvline(place - 0.5, color="0.6", linewidth=1, linestyle=":")
        panel.set_title(scheme, loc="left", fontsize=10)
        panel.set_ylabel("time, others / ours")
        panel.grid(axis="y", which="both", color="0.92")
    first = [i == 0 or shapes[i - 1][0] != v for i, (v, _, _) in enumerate(shapes)]
    labels = [f"B {b}, L {n}" + (f"\nV {v}" if new else "") for new, (v, b, n) in zip(first, shapes)]
    panels[-1, 0].set_xticks(range(len(shapes)), labels, rotation=60, ha="right", fontsize=8)
    handles = [plt.Line2D([], [], color=c, marker=m, linestyle="none", label=x) for x, c, m, _ in PEERS.values()]
    handles += [
        plt.Line2D([], [], color="0.3", marker="o", linestyle="none", label="float32 (filled)"),
        plt.Line2D([], [], color="0.3", marker="o", mfc="none", linestyle="none", label="bfloat16 (hollow)"),
    ]
    figure.legend(handles=handles, loc="upper center", ncols=5, fontsize=8, frameon=False)
    save(figure, path, rect=(0, 0, 1, 0.96))


# -- figures of the documents ------------------------------------------------------------------------------------------

K, VOCAB, NOISE = 4, 2000, 1.0


def acceptance(path):
    result = json.loads((RESULTS / "papers" / "khisti-acceptance.json").read_text())
    rows = [row for row in result["rows"] if row["draft_temperature"] == 1.0]
    figure, panel = plt.subplots(figsize=(6.2, 4.2))
    for row in rows:
        points = [(k, x) for k, x in zip(row["k"], row["mean"]) if x == x and x is not None]
        # `optimal_block` is `optimal` at one node; schemes of one draft are at K = 1.
        if len(points) > 1 and row["scheme"] != "optimal_block":
            panel.plot(*zip(*points), **of(row["scheme"]))
    panel.set(xlabel="drafts K at a node", ylabel="mean acceptance", xscale="log", title=result["pair"])
    panel.title.set_size(9)
    panel.set_xticks(rows[0]["k"], rows[0]["k"])
    panel.minorticks_off()
    panel.grid(color="0.92")
    legend(panel)
    save(figure, path)


def thresholds(path):
    import numpy as np

    from specsample import theory
    from specsample.theory.table import zipf_pair

    t, d = zipf_pair(VOCAB, NOISE, np.random.default_rng(0))
    best = theory.optimal_law(t, d, K)
    places = {  # MATH: a scheme rejects all its drafts with probability Z(c), for its own c
        "plain": 0.0,
        "token": 1.0,
        "recursive": float(theory.recursive_thresholds(t, d, K)[-1]),
        "kseq": float(theory.kseq_threshold(t, d, K)),
        "optimal": float(best.c1),
    }
    grid = np.linspace(0, 1.15 * max(places.values()), 300)
    figure, panel = plt.subplots(figsize=(6.2, 4.2))
    panel.plot(grid, [float(theory.clipped_mass(t, d, c)) for c in grid], color="0.3", linewidth=1.2)
    for name, c in places.items():
        z = float(theory.clipped_mass(t, d, c))
        look = of(name, linestyle="none", markersize=9)
        look["marker"] = look["marker"] or "o"
        panel.plot([c], [z], **look)
        panel.plot([c, c], [0, z], color=look["color"], linestyle=":", linewidth=1)
        drafts = {"plain": "no draft", "token": "1 draft"}.get(name, f"{K} drafts")
        beside = (-92, -30) if name == "recursive" else (7, 6)
        panel.annotate(f"{name}, {drafts}\naccepts {1 - z:.3f}", (c, z), beside, textcoords="offset points", fontsize=8)
    panel.set(xlabel="residual threshold c", ylabel="Z(c) = Σ (t − c·d)⁺: all drafts rejected", ylim=(0, 1.12))
    panel.set_xlim(-0.05, 1.3 * max(places.values()))
    panel.set_title(f"Zipf-like laws, V = {VOCAB}, draft logits = target logits + N(0, {NOISE:g}²)", fontsize=9)
    panel.grid(color="0.92")
    save(figure, path)


if __name__ == "__main__":
    thresholds(RESULTS / "thresholds.png")
    acceptance(RESULTS / "acceptance.png")
    ratios(json.loads((RESULTS / "cpu.json").read_text()), RESULTS / "cpu.png")
