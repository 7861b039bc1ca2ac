"""What the host side of every kernel shares: how arguments travel, and which launch settings are used.

BLOCK is the tile of a row. Results depend on it (sums), so it is one constant and no launch setting is searched for.
"""

import contextlib
import struct

import torch

from . import law

BLOCK, WARPS = 1024, 4
ALONE = {"BLOCK": 512, "warps": 8}  # of the largest kernels, whose programs work alone on a request
# ptxas would rather spill some registers than have fewer programs side by side, unless it is told how many it may use.
REGISTERS = 255


def launch(kernel, grid, *args, warps=WARPS, **constants):
    """Run kernel over a grid of programs on the device of its tensors."""
    if grid[0] == 0:
        return
    device = next(a.device for a in args if isinstance(a, torch.Tensor))
    on = contextlib.nullcontext() if device.type == "cpu" else getattr(torch, device.type).device(device)
    with on:
        limit = {"maxnreg": REGISTERS} if device.type == "cuda" and torch.version.hip is None else {}
        kernel[grid](*args, **constants, num_warps=warps, **limit)


def bits(x):
    """A float as the int64 of its bits: float arguments of a kernel are float32."""
    return struct.unpack("<q", struct.pack("<d", x))[0]


def per_row(number, values):
    """(int, tensor or None) as `streams.spread` takes them."""
    return number, None if values is None else values.contiguous()


def plain(numbers, rows):
    """Whether a setting is known to be neither greedy nor filtered: then a race needs no statistics of the row."""
    return rows is None and numbers[0] > 0 and numbers[1] < 1 and numbers[2] >= 1 and not numbers[3] > 0


def scale_bits(numbers):
    return bits(1.0 / max(numbers[0], 1e-30))


def laws_of(logits, numbers, sampling, *, owner=None, batch=None, kept=None, normalised=True, stats=None):
    """The laws of all rows of logits [n, V] or [B, R, V]: float64 [n, FIELDS].

    sampling: float64 [4, c], c = batch requests or n rows, or None; owner int64 [n]: request of each row, when packed
    """
    rows = 1 if logits.dim() == 2 else logits.shape[1]
    count = logits.shape[0] * rows
    batch = logits.shape[0] if batch is None else batch
    owner_free = logits.dim() == 2 and owner is None
    out = torch.empty(count, law.FIELDS.value, dtype=torch.float64, device=logits.device)
    columns = 0 if sampling is None else sampling.shape[1]
    stride_r = 0 if logits.dim() == 2 else logits.stride(1)
    launch(
        law.laws_kernel, (count,), logits, out, stats, owner, None if sampling is None else sampling.contiguous(),
        *(kept or (None, None, None)), logits.shape[-1], rows, logits.stride(0), stride_r, *map(bits, numbers), columns,
        count if owner_free else batch, BY_ROW=columns not in (0, batch), NORMALISED=normalised, BLOCK=BLOCK,
    )  # fmt: skip
    return out
