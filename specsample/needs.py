"""What must be present before the rest is imported: a recent enough torch. If it is missing, one sentence says so."""

import re

from .version import OLDEST_TORCH


def torch_error():
    """Why the torch in this environment is not usable, or None"""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":  # torch is installed but broken: its own message says more
            raise
        return f"specsample needs torch {OLDEST_TORCH} or newer, and there is none: pip install torch"
    found = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if found < tuple(map(int, OLDEST_TORCH.split("."))):
        return f"specsample needs torch {OLDEST_TORCH} or newer, and finds {torch.__version__}: pip install --upgrade torch"
    return None


if (_why := torch_error()) is not None:
    raise ImportError(_why)
