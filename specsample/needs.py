"""What must be there before the rest is imported: torch, and not an old one. What is missing is said in one sentence."""

import re

from .version import OLDEST_TORCH


def torch_error():
    """Why the torch of this environment will not do, or None"""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":  # it is there, and broken: its own message says more
            raise
        return f"specsample needs torch {OLDEST_TORCH} or newer, and there is none: pip install torch"
    found = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if found < tuple(map(int, OLDEST_TORCH.split("."))):
        return f"specsample needs torch {OLDEST_TORCH} or newer, and finds {torch.__version__}: pip install --upgrade torch"
    return None


if (_why := torch_error()) is not None:
    raise ImportError(_why)
