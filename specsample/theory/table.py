"""`python -m specsample theory`: acceptance of every scheme at one node, compared with the optimum."""

import pickle
import sys
from pathlib import Path

import numpy as np

from .curves import Curve, acceptance_curves
from .laws import pair
from .lp import LIMIT, mixed_lp_acceptance
from .weighted import laws_of, weighted_acceptance


def zipf_pair(vocab, noise, rng, exponent=1.1):
    """Two laws shaped like a language model's: from Zipf logits with N(0, 1) noise, and from those plus N(0, noise²).

    rng: numpy Generator -> (target [V], draft [V])
    """
    target = -exponent * np.log(np.arange(1, vocab + 1)) + rng.normal(0, 1, vocab)
    draft = target + rng.normal(0, noise, vocab)
    return softmax(target), softmax(draft)


def softmax(logits):
    """float64 [..., V] -> probabilities"""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def read(path, name, logits):
    """Read a law [..., V] from .npy, .pt (a tensor) or text (numbers, one row per line); ValueError says what is wrong."""
    try:
        if Path(path).suffix == ".npy":
            values = np.load(path)
        elif Path(path).suffix == ".pt":
            import torch

            values = torch.load(path, map_location="cpu", weights_only=True)
        else:
            values = np.loadtxt(path)
    except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{name}: cannot read {path}: {error}") from error
    if not logits:
        return values
    if hasattr(values, "detach"):
        values = values.detach().double().numpy()
    return softmax(np.where(np.isnan(values), -np.inf, np.asarray(values, dtype=np.float64)))


def main(options):
    """Print the table for the parsed arguments. -> exit status"""
    try:
        print(text(options))
    except (ValueError, ImportError) as error:
        print(f"specsample theory: {error}", file=sys.stderr)
        return 1
    return 0


def text(options):
    """The table: one row per scheme, one column per number of children, averaged over the rows of the laws; for several draft laws,
    `several`."""
    if (options.target is None) != (options.draft is None):
        raise ValueError("--target and --draft: expected both or neither")
    if options.target is None:
        target, draft = zipf_pair(options.vocab, options.noise, np.random.default_rng(options.seed))
        title = f"Zipf-like laws, V = {options.vocab}, draft logits = target logits + N(0, {options.noise:g}²)"
    else:
        target, *drafts = (read(path, name, options.logits) for path, name in
                           ((options.target, "target"), *((path, "draft") for path in options.draft)))  # fmt: skip
        if len(drafts) > 1:
            return several(target, drafts, options.draft, options.target)
        draft, title = drafts[0], f"{options.target} and {options.draft[0]}"
    target, draft = pair(target, draft)
    curves = acceptance_curves(target, draft, options.k, samples=options.samples, seed=options.seed)
    rows = [[weighted_acceptance(t, np.repeat(d, k, 0)) for k in options.k] for t, d in _rows(target, draft[..., None, :])]
    curves["weighted"] = Curve(np.array(rows), np.zeros((len(rows), len(options.k))))
    return "\n".join([f"acceptance at one node, {title}", *lines(summary(curves), options.k)])


def several(target, drafts, names, of):
    """The table for one child from each of several draft laws: `token` with each alone, `weighted`, and the optimum over all rules.

    target [..., V]; drafts: a list of [..., V]; averaged over rows
    """
    drafts = [pair(target, draft) for draft in drafts]
    lead = np.broadcast_shapes(*(draft.shape for _, draft in drafts))
    target, drafts = laws_of(target, np.stack([np.broadcast_to(draft, lead) for _, draft in drafts], -2))
    rows = list(_rows(target, drafts))
    out = [f"acceptance at one node, {of} and a child from each of {', '.join(names)}"]
    width = max(len(name) for name in names) + 9
    for i, name in enumerate(names):
        out.append(f"  {'token, ' + name:<{width}}{np.minimum(target, drafts[..., i, :]).sum(-1).mean():>9.4f}")
    out.append(f"  {'weighted':<{width}}{np.mean([weighted_acceptance(t, d) for t, d in rows]):>9.4f}")
    small = target.shape[-1] ** len(names) <= LIMIT
    best = f"{np.mean([mixed_lp_acceptance(t, d) for t, d in rows]):.4f}" if small else "-"
    out.append(f"  {'the optimum':<{width}}{best:>9}")
    return "\n".join(out if small else [*out, f"  - a linear program of more than {LIMIT} variables"])


def _rows(target, drafts):
    """(target [V], drafts [K, V]) of each row"""
    return zip(target.reshape(-1, target.shape[-1]), drafts.reshape(-1, *drafts.shape[-2:]))


def summary(curves):
    """Means over all nodes: {scheme: Curve} -> {scheme: Curve of [len(ks)]}; error: the standard error of the mean"""
    mean = {}
    for name, (value, error) in curves.items():
        value, error = (x.reshape(-1, x.shape[-1]) for x in (value, error))
        mean[name] = Curve(value.mean(0), (error**2).sum(0) ** 0.5 / len(error))
    return mean


def lines(means, ks):
    """The table: one row per scheme, one column per number of children. means: {scheme: Curve of [len(ks)]}"""
    out = [f"  {'children':<20}" + "".join(f"{k:>9}" for k in ks)]
    for name, (value, error) in means.items():
        if name not in ("optimal_block", "optimum"):
            cells = [_cell(v, e) for v, e in zip(value, error)]
            out.append(f"  {name:<20}" + "".join(f"{cell:>9}" for cell in cells))
    best, own = means["optimum"].value, means["optimal"].value
    out.append(f"  {'the optimum (i.i.d.)':<20}" + "".join(f"{v:>9.4f}" for v in best))
    out.append(f"  {'  less optimal':<20}" + "".join(f"{v if v > 1e-12 else 0:>9.1e}" for v in best - own))
    worst = max(float(np.nanmax(error)) for _, error in means.values())
    if worst > 0:
        out.append(f"  ~ an estimate; its standard error is at most {worst:.1g}")
    return out


def _cell(value, error):
    if np.isnan(value):
        return "-"
    return f"~{value:.4f}" if error > 0 else f"{value:.4f}"
