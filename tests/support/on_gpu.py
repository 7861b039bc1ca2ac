"""The backends "cuda, from the cpu" and "triton, from the cpu": the ops of a GPU, called with CPU tensors.

Each call copies its tensors to the GPU (whole storages with their strides and offsets) and its results back, so that every
test in this folder runs on a GPU unchanged. `load(backend)` adds it to the backends.
"""

import torch

from specsample import backends

NAMES = ("cuda", "triton")
DEVICE = "cuda"


def missing(backend):
    """Why `backend` cannot run on a GPU here, or None"""
    why = backends.available()[backend]
    if why is None and not torch.cuda.is_available():
        why = "torch.cuda.is_available() is False"
    return why if why is None or torch.cuda.is_available() else f"no CUDA device; {why}"


def moved(value):
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage().to(device=DEVICE)
    there = torch.empty(0, dtype=value.dtype, device=DEVICE)
    return there.set_(storage, value.storage_offset(), value.shape, value.stride())


class Copies:
    """The functions of a backend, for CPU tensors"""

    def __init__(self, functions):
        self.functions = functions

    def __getattr__(self, name):
        op = getattr(self.functions, name)

        def call(*args):
            out = op(*(moved(a) for a in args))
            return out.cpu() if isinstance(out, torch.Tensor) else tuple(x.cpu() for x in out)

        return call


def load(backend):
    """-> the name of the backend that takes CPU tensors"""
    there, name = backends.BACKENDS[backend], f"{backend}, from the cpu"
    backends.BACKENDS[name] = there._replace(functions=Copies(there.functions), device="cpu")
    return name
