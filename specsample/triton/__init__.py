"""The ops as Triton kernels, for accelerators without the compiled extension (pure-Python install, ROCm, XPU).

The ops of specsample/ops.py are declared a second time under `specsample_triton`, from the same schemas and with the same
fake kernels, so `backend="triton"` can be selected even where compiled kernels exist. Triton is imported at the first call.

Each scheme has a file of its name with a function `verify(call)`; walk.py (device) and call.py (host) contain what they share,
tree.py the walk of the multi-draft schemes, each of which is a step for one node. A new scheme is a file and its name in SUPPORTED.

Every kernel runs one program per row or request over tiles of the vocabulary, with one tiling for all launches, and without
libdevice, inline assembly or tuning at call time, so that the interpreter (TRITON_INTERPRET=1) can run it too.
"""

import importlib.util
import os

import torch

from .. import ops
from ..names import TRITON_LIBRARY

SUPPORTED = (  # one per line
    "token",
    "block",
    "race",
    "recursive",
    "recursive_distinct",
    "kseq",
    "optimal",
    "optimal_block",
    "top",
    "lists",
)
KINDS = ("iid", "arrivals", "topk", "distinct", "lists", "top")
INSTALL_HINT = "pip install specsample[triton]"
# Triton reads the variable when kernels are first defined; from then on it is fixed for the process.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")

missing = None if importlib.util.find_spec("triton") else f"the package triton is not installed; {INSTALL_HINT}"


def refusal(device):
    """Why tensors on a device of this type are not accepted, or None."""
    if device == "cpu" and not INTERPRETED:
        return "its kernels run on an accelerator; for tensors on cpu set TRITON_INTERPRET=1 before Python starts (slow)"
    return None


def _implementation(name):
    def run(*args):
        from . import call, rows

        return getattr(call if name == "verify" else rows, name)(*args)

    return run


_library = ops.declare(TRITON_LIBRARY)
for _name in ops.SCHEMAS:
    _library.impl(_name, _implementation(_name), "CompositeExplicitAutograd")

functions = getattr(torch.ops, TRITON_LIBRARY)


def warmup(vocab, **how):
    """Compile the kernels ahead of serving or graph capture; see specsample/triton/warm.py."""
    from .warm import warmup

    return warmup(vocab, **how)
