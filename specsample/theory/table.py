"""`python -m specsample theory`: acceptance of every scheme at one node, beside the optimum."""

import pickle
import sys
from pathlib import Path

import numpy as np

from .acceptance import SCHEMES, acceptance
from .distinct import LIMIT, distinct_acceptance
from .laws import pair
from .optimal import binned_acceptance, optimal_acceptance


def zipf_pair(vocab, noise, rng, exponent=1.1):
    """Two laws shaped like a language model's: Zipf logits with N(0, 1) noise, and those plus N(0, noise²).

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
    """A law [..., V] from .npy, .pt (a tensor) or text (numbers; a row a line); ValueError says what is wrong."""
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
    """Print the table of the parsed arguments. -> exit status"""
    try:
        print(text(options))
    except ValueError as error:
        print(f"specsample theory: {error}", file=sys.stderr)
        return 1
    return 0


def text(options):
    """The table: one row a scheme, one column a number of children, means over the rows of the laws."""
    if (options.target is None) != (options.draft is None):
        raise ValueError("--target and --draft: expected both or neither")
    if options.target is None:
        target, draft = zipf_pair(options.vocab, options.noise, np.random.default_rng(options.seed))
        title = f"Zipf-like laws, V = {options.vocab}, draft logits = target logits + N(0, {options.noise:g}²)"
    else:
        target, draft = read(options.target, "target", options.logits), read(options.draft, "draft", options.logits)
        title = f"{options.target} and {options.draft}"
    target, draft = pair(target, draft)
    lines = [f"acceptance at one node, {title}", f"  {'children':<20}" + "".join(f"{k:>9}" for k in options.k)]
    notes = set()
    for scheme in SCHEMES:
        if scheme not in ("optimal", "optimal_block"):
            cells = [_cell(target, draft, k, scheme, options, notes) for k in options.k]
            lines.append(f"  {scheme:<20}" + "".join(f"{cell:>9}" for cell in cells))
    binned = [f"{np.mean(binned_acceptance(target, draft, k)):.4f}" for k in options.k]
    lines.append(f"  {'optimal, 1024 bins':<20}" + "".join(f"{cell:>9}" for cell in binned))
    best = [f"{np.mean(optimal_acceptance(target, draft, k)):.4f}" for k in options.k]
    lines.append(f"  {'the optimum (i.i.d.)':<20}" + "".join(f"{cell:>9}" for cell in best))
    return "\n".join(lines + sorted(notes))


def _cell(target, draft, k, scheme, options, notes):
    if scheme in ("token", "block") and k > 1:
        return "-"
    if scheme == "recursive_distinct" and target.shape[-1] ** (k - 1) > LIMIT // 20:
        notes.add(f"  ~ estimated from {options.samples} draws")
        value = distinct_acceptance(target, draft, k, samples=options.samples, seed=options.seed)
        return f"~{np.mean(value):.3f}"
    return f"{np.mean(acceptance(target, draft, k, scheme)):.4f}"
