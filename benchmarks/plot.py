"""The figure of a result: how many times longer the others take, by shape. `python benchmarks/plot.py cpu.json`"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's palette, told apart with any colour vision; markers and places say the same once more.
STYLE = {  # name -> (label, colour, marker, place beside the tick)
    "transformers": ("transformers", "#D55E00", "^", -0.22),
    "torch": ("torch eager", "#0072B2", "o", 0.0),
    "torch.compile": ("torch.compile", "#009E73", "s", 0.22),
}


def ratios(result, path):
    """One panel a scheme; peaked logits, float32 filled and bfloat16 hollow; the grey line is equal time."""
    rows = [r for r in result["rows"] if r["op"] == "verify" and r["rows"] == "peaked" and r["V"] >= 1000]
    schemes = list(dict.fromkeys(r["scheme"] for r in rows))
    if not schemes:
        return
    shapes = sorted({(r["V"], r["B"], r["L"]) for r in rows})
    size = (max(5, 0.42 * len(shapes) + 2), 2.4 * len(schemes))
    figure, panels = plt.subplots(len(schemes), 1, sharex=True, sharey=True, squeeze=False, figsize=size)
    for panel, scheme in zip(panels[:, 0], schemes):
        panel.axhline(1, color="0.6", linewidth=1)
        for name, (_, colour, marker, beside) in STYLE.items():
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
    handles = [plt.Line2D([], [], color=c, marker=m, linestyle="none", label=x) for x, c, m, _ in STYLE.values()]
    handles += [
        plt.Line2D([], [], color="0.3", marker="o", linestyle="none", label="float32 (filled)"),
        plt.Line2D([], [], color="0.3", marker="o", mfc="none", linestyle="none", label="bfloat16 (hollow)"),
    ]
    figure.legend(handles=handles, loc="upper center", ncols=5, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "cpu.json"
    ratios(json.loads(source.read_text()), source.with_suffix(".png"))
