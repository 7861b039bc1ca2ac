"""The figures of the README: `python benchmarks/figures.py` (needs NumPy and matplotlib; no models).

acceptance.png   mean acceptance of a node by scheme and number of drafts, from results/papers/khisti-acceptance.json
thresholds.png   what schemes for i.i.d. drafts leave to the residual: Z(c) = Σ (t − c·d)⁺, each at its own c
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import style  # noqa: E402
from style import plt  # noqa: E402

from specsample import theory  # noqa: E402
from specsample.theory.table import zipf_pair  # noqa: E402

RESULTS = HERE / "results"
K, VOCAB, NOISE = 4, 2000, 1.0


def acceptance(path):
    result = json.loads((RESULTS / "papers" / "khisti-acceptance.json").read_text())
    rows = [row for row in result["rows"] if row["draft_temperature"] == 1.0]
    figure, panel = plt.subplots(figsize=(6.2, 4.2))
    for row in rows:
        points = [(k, x) for k, x in zip(row["k"], row["mean"]) if x == x and x is not None]
        # `optimal_block` is `optimal` at one node; schemes of one draft are where K = 1.
        if len(points) > 1 and row["scheme"] != "optimal_block":
            panel.plot(*zip(*points), **style.of(row["scheme"]))
    panel.set(xlabel="drafts K at a node", ylabel="mean acceptance", xscale="log", title=result["pair"])
    panel.title.set_size(9)
    panel.set_xticks(rows[0]["k"], rows[0]["k"])
    panel.minorticks_off()
    panel.grid(color="0.92")
    style.legend(panel)
    style.save(figure, path)


def thresholds(path):
    t, d = zipf_pair(VOCAB, NOISE, np.random.default_rng(0))
    best = theory.optimal_law(t, d, K)
    places = {  # MATH: a scheme rejects all its drafts with chance Z(c), for its own c
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
        look = style.of(name, linestyle="none", markersize=9)
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
    style.save(figure, path)


if __name__ == "__main__":
    thresholds(RESULTS / "thresholds.png")
    acceptance(RESULTS / "acceptance.png")
