"""What was built, what runs on this machine, and why the rest does not."""

from typing import Any

import torch

from . import backends
from .version import STREAM_VERSION, __version__


def build_info() -> dict[str, Any]:
    """dict: version; stream_version: that of the random streams (see `specsample`); torch_built, torch_running: the torch version
    compiled against and the one in use; cuda, architectures: those the extension was compiled for (None, [] without CUDA); cpu: the
    instruction set its CPU kernels use here; threads; backends: those available; unavailable: {name: reason}."""
    compiled = backends.build_info()
    available = backends.available()
    return {
        "version": __version__,
        "stream_version": STREAM_VERSION,
        "torch_built": compiled.get("torch_built"),
        "torch_running": torch.__version__,
        "cuda": compiled.get("cuda"),
        "architectures": compiled.get("architectures", "").split(),
        "cpu": compiled.get("cpu_capability"),
        "threads": torch.get_num_threads(),
        "backends": [name for name, why in available.items() if why is None],
        "unavailable": {name: why for name, why in available.items() if why is not None},
    }
