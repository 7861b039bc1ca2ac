"""How the figures draw each scheme: Okabe and Ito's palette, for any colour vision; markers and dashes say it again."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999",
)  # fmt: skip

SCHEMES = {  # name -> (colour, marker, dashes)
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
    colour, marker, dashes = SCHEMES.get(scheme, (GREY, "x", "-"))
    return {"color": colour, "marker": marker, "linestyle": dashes, "label": scheme, "markersize": 6, **more}


def legend(panel, **more):
    """A legend of each label once, in the order of SCHEMES."""
    handles = dict(zip(*reversed(panel.get_legend_handles_labels())))
    order = sorted(handles, key=lambda name: list(SCHEMES).index(name) if name in SCHEMES else len(SCHEMES))
    panel.legend([handles[name] for name in order], order, fontsize=8, frameon=False, **more)


def save(figure, path):
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
