"""The host side that all kernels share: how arguments are passed, and which launch settings are used.

BLOCK is the size of a tile of a row. Sums depend on it, so it is a constant of each kernel, and nothing is autotuned.
"""

import contextlib
import os
import shutil
import struct
import sysconfig

import torch
import triton

from . import INTERPRETED, law
from .kernel import aligned

BLOCK, WARPS = 1024, 4
PIECE = 1024  # groups of a race that are processed together
REGISTERS = 168  # limit on NVIDIA: three programs per SM. Without a limit, ptxas chooses its own number.
ALONE = {"warps": 8, "registers": 255}  # for the largest kernels, in which one program does all the work of a request,
ALONE_BLOCK = 512  # and their BLOCK
LAST = {"warps": 8, "registers": 128}  # for the final race of a request
# Multiply-adds are not fused: a fused product is not rounded, so w·norm − d would differ from 0 for equal laws, and the bin of a
# token could depend on where it is looked up. The code grows by three in a hundred instructions.
OPTIONS = {"enable_fp_fusion": False}
# Tiles of 1024 tokens that a race reads together. For unaligned rows a tile takes more registers: races read fewer tiles, and law
# kernels, whose sums depend on BLOCK, get more registers.
TILES, TILES_ANY, LAWS_REGISTERS = 8, 2, 255


def race_tiles(logits, draft=None):
    """TILES for races over rows of logits, and of a draft: no more than a row has"""
    tiles = TILES if all(aligned(x) for x in (logits, draft) if x is not None) else TILES_ANY
    return min(tiles, triton.next_power_of_2(triton.cdiv(logits.shape[-1], 1024)))


def tops_for(logits, programs):
    """Scratch for races in `programs` programs, see groups.py"""
    room = triton.cdiv(logits.shape[-1], 32 * PIECE) * PIECE
    return torch.empty(programs * room, dtype=torch.float32, device=logits.device)


def launch(kernel, grid, *args, warps=WARPS, registers=REGISTERS, **constants):
    """Run kernel over a grid of programs on the device of its tensors."""
    if grid[0] == 0:
        return
    device = next(a.device for a in args if isinstance(a, torch.Tensor))
    on = contextlib.nullcontext() if device.type == "cpu" else getattr(torch, device.type).device(device)
    with on:
        limit = {"maxnreg": registers} if device.type == "cuda" and torch.version.hip is None else {}
        try:
            kernel.form(args)[grid](*args, **constants, num_warps=warps, **OPTIONS, **limit)
        except Exception as error:
            lacking = None if INTERPRETED else lacks()
            if lacking is None:
                raise
            raise RuntimeError(f"backend 'triton': Triton builds its launcher in C at the first call, but {lacking}") from error


def lacks():
    """What Triton's launcher needs but this machine lacks, or None"""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(map(shutil.which, names)):
        return f"there is no C compiler ({' or '.join(names)}); install gcc, or name a compiler in the environment variable CC"
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if not os.path.exists(header):
        return f"Python's headers are missing ({header}); install python3-dev, or use a Python that has them"
    return None


def bits(x):
    """A float64 as an int64 with the same bits: float arguments of a kernel are float32."""
    return struct.unpack("<q", struct.pack("<d", x))[0]


def per_row(number, values):
    """(int, tensor or None) as `streams.spread` expects them."""
    return number, None if values is None else values.contiguous()


def plain(numbers, rows):
    """Whether the sampling is known to be neither greedy nor filtered: then a race needs no statistics of the row."""
    return rows is None and numbers[0] > 0 and numbers[1] < 1 and numbers[2] >= 1 and not numbers[3] > 0


def scale_bits(numbers):
    return bits(1.0 / max(numbers[0], 1e-30))


def laws_of(logits, numbers, sampling, *, owner=None, batch=None, kept=None, normalised=True, stats=None):
    """The laws of all rows of logits [n, V] or [B, R, V]: float64 [n, FIELDS].

    sampling: float64 [4, c], c = batch requests or n rows, or None; owner int64 [n]: the request of each row, if packed
    """
    rows = 1 if logits.dim() == 2 else logits.shape[1]
    count = logits.shape[0] * rows
    batch = logits.shape[0] if batch is None else batch
    owner_free = logits.dim() == 2 and owner is None
    out = torch.empty(count, law.FIELDS.value, dtype=torch.float64, device=logits.device)
    columns = 0 if sampling is None else sampling.shape[1]
    stride_r = 0 if logits.dim() == 2 else logits.stride(1)
    registers = REGISTERS if aligned(logits) else LAWS_REGISTERS
    launch(
        law.laws_kernel, (count,), logits, out, stats, owner, out if sampling is None else sampling.contiguous(),
        *(kept or (None, None, None)), logits.shape[-1], rows, logits.stride(0), stride_r, *map(bits, numbers), columns,
        int(columns not in (0, batch)), count if owner_free else batch, NORMALISED=normalised, BLOCK=BLOCK, registers=registers,
    )  # fmt: skip
    return out
