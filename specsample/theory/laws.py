"""Laws (probability distributions) as used by the functions here: checked, float64, and sorted by the ratio t/d."""

from typing import NamedTuple

import numpy as np

from ..errors import expect


def law(values, name):
    """A checked law: values array or tensor [..., V] -> float64 [..., V], each row scaled to sum to one.

    Rows must be non-negative and finite and sum to one within the rounding of their dtype (1e-6 in float64, 1e-4 in
    float32, 1e-2 in half precision); ValueError names the argument otherwise. Probabilities below 1e-290 count as 0.
    """
    dtype = str(getattr(values, "dtype", "")).split(".")[-1]
    tolerance = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}.get(dtype, 1e-6)
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        values = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array of probabilities, got {type(values).__name__}") from error
    expect(values.ndim >= 1 and values.shape[-1] >= 1, name, "probabilities [..., V], V >= 1", f"shape {values.shape}")
    expect(bool(np.isfinite(values).all() and (values >= 0).all()), name, "finite numbers >= 0", "others among them")
    total = values.sum(-1, keepdims=True)
    worst = float(np.abs(total - 1).max()) if total.size else 0.0
    expect(worst <= tolerance, name, "rows that sum to one", f"a row that is off by {worst:.3g}")
    values = values / total
    return np.where(values < 1e-290, 0.0, values)  # so that every ratio t/d is finite


def pair(target, draft):
    """(target, draft): checked laws broadcast to one shape [..., V]; ValueError if their shapes do not match."""
    target, draft = law(target, "target"), law(draft, "draft")
    width = target.shape[-1]
    expect(draft.shape[-1] == width, "draft", f"V = {width} as in target", f"V = {draft.shape[-1]}")
    try:
        return np.broadcast_arrays(target, draft)
    except ValueError as error:
        raise ValueError(f"draft: expected a shape that broadcasts with {target.shape}, got {draft.shape}") from error


def count(value, name, least=1):
    """An int >= least, or ValueError naming the argument."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    expect(whole and value >= least, name, f"an integer >= {least}", repr(value))
    return int(value)


def ratio(target, draft):
    """t/d of arrays [..., V], inf where d = 0 (those tokens are never drafted)."""
    with np.errstate(over="ignore"):
        return np.divide(target, draft, out=np.full(target.shape, np.inf), where=draft > 0)


class Sorted(NamedTuple):
    """Tokens by ascending ratio t/d, with sums from either end, so that no small sum is lost to cancellation."""

    order: np.ndarray  # int [..., V]
    ratio: np.ndarray  # [..., V]
    lower_target: np.ndarray  # [..., V + 1]: t of the first j tokens
    lower_draft: np.ndarray  # [..., V + 1]
    upper_target: np.ndarray  # [..., V + 1]: t of all tokens except the first j
    upper_draft: np.ndarray  # [..., V + 1]


def by_ratio(target, draft):
    """Sorted ratios and prefix sums of laws [..., V] (or of sums over bins)."""
    r = ratio(target, draft)
    order = np.argsort(r, -1, kind="stable")
    t, d = (np.take_along_axis(x, order, -1) for x in (target, draft))
    return Sorted(order, np.take_along_axis(r, order, -1), _prefix(t), _prefix(d), _suffix(t), _suffix(d))


def _prefix(x):
    return np.concatenate([np.zeros((*x.shape[:-1], 1)), np.cumsum(x, -1)], -1)


def _suffix(x):
    return np.flip(_prefix(np.flip(x, -1)), -1)


def rowwise(function, target, draft):
    """Apply function(t [V], d [V]) -> float to each row of checked laws [..., V] -> float64 [...]"""
    shape, width = target.shape[:-1], target.shape[-1]
    rows = zip(target.reshape(-1, width), draft.reshape(-1, width))
    return np.array([function(t, d) for t, d in rows], dtype=np.float64).reshape(shape)[()]
