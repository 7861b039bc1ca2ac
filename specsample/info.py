"""What was built, what runs here, and why the rest does not."""

from typing import Any

import torch

from . import backends
from .version import STREAM_VERSION, __version__


def build_info() -> dict[str, Any]:
    """dict: version; stream_version: of the random streams (see `specsample`); torch built against and running; cuda version and
    architectures of the compiled part (None, []); cpu: the instruction set its kernels use here and the threads; backends: those
    available; unavailable: {name: why}."""
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
