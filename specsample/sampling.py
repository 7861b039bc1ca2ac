"""`Sampling`: temperature and filters, which define the distribution of a row of logits, and their packing for the ops."""

import math
from typing import NamedTuple

import torch

from .errors import expect

OFF = (1.0, 0.0, 1.0, 0.0)  # the neutral temperature, top_k, top_p, min_p


class Sampling(NamedTuple):
    """Temperature and filters: how a row of logits becomes a probability distribution (its law, in the maths).

    Each field is a number, or a tensor on the logits' device with one value per request (or per row, where a call takes rows).
    Filters act in the order and with the meaning of transformers' warpers (temperature, top-k, top-p, min-p). Each
    reduces to one logit cut-off per row, and every token that ties with the cut-off is kept. The kept tokens, renormalised, are
    the row's distribution everywhere: acceptance, residual, bonus, theory. ValueError naming the field for values out of range.

    temperature  >= 0; 0 means greedy (argmax, lowest id on ties). In a tensor, negative values and NaN are greedy too.
    top_k        keep the k largest logits; 0 is off.
    top_p        keep the likeliest tokens until their mass reaches top_p; 1 is off. A token is dropped when the mass
                 above it is at least top_p·(1 − 2⁻²⁰): with this slack, every backend decides rows whose masses meet top_p
                 exactly (.5, .25, .25 at top_p = .5) the way exact arithmetic does.
    min_p        keep tokens whose probability is at least min_p times the largest (same slack, in favour of keeping);
                 0 is off.
    """

    temperature: float | torch.Tensor = 1.0
    top_k: int | torch.Tensor = 0
    top_p: float | torch.Tensor = 1.0
    min_p: float | torch.Tensor = 0.0


def pack(sampling, counts, device, name="sampling"):
    """Check `sampling` and return (numbers [4], None) or (numbers, float64 tensor [4, n]) for the ops.

    counts: the lengths a tensor field may have (one value per request, or per row); n is the length found.
    """
    if type(sampling) is not Sampling:
        expect(isinstance(sampling, tuple) and len(sampling) == 4, name, "a Sampling", type(sampling).__name__)
        sampling = Sampling(*sampling)
    t, k, p, m = sampling
    if type(t) is type(p) is type(m) is float and type(k) is int:  # most calls end here
        if 0.0 <= t < math.inf and k >= 0 and 0.0 <= p <= 1.0 and 0.0 <= m <= 1.0:
            return [t, float(k), p, m], None
    numbers, tensors, length = list(OFF), None, None
    for i, value in enumerate(sampling):
        if isinstance(value, torch.Tensor):
            field = f"{name}.{Sampling._fields[i]}"
            expect(value.device == device, field, f"a tensor on {device}", value.device)
            expect(value.dtype != torch.bool and not value.is_complex(), field, "a real tensor", value.dtype)
            if value.dim() > 0:
                size = value.numel()
                expect(size in counts, field, f"{' or '.join(map(str, dict.fromkeys(counts)))} values", size)
                expect(length in (None, size), field, f"{length} values like the other fields", size)
                length = size
            tensors = tensors or [None] * 4
            tensors[i] = value.reshape(-1).to(torch.float64)
        else:
            numbers[i] = _number(value, i, name)
    if tensors is None:
        return numbers, None
    length = counts[0] if length is None else length
    rows = [
        torch.full((length,), numbers[i], dtype=torch.float64, device=device) if t is None else t.expand(length)
        for i, t in enumerate(tensors)
    ]
    return numbers, torch.stack(rows)


_RANGES = ("a finite number >= 0", "an integer >= 0", "a number in [0, 1]", "a number in [0, 1]")


def _number(value, i, name):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if i == 0:
        good = 0.0 <= number < math.inf
    elif i == 1:
        good = number >= 0.0 and number == int(number) if math.isfinite(number) else False
    else:
        good = 0.0 <= number <= 1.0
    if not good:
        expect(False, f"{name}.{Sampling._fields[i]}", _RANGES[i], value)
    return number
