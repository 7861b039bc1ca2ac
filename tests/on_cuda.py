"""The backend "cuda, from the cpu": the CUDA ops on a GPU, called with tensors of the CPU.

Each call copies its tensors to the GPU, whole storages with their strides and offsets, and its results back, so that every
test of this folder runs on a GPU as it stands. `load()` adds it to the backends.
"""

import torch

from specsample import backends

NAME = "cuda, from the cpu"


def moved(value):
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage().cuda()
    there = torch.empty(0, dtype=value.dtype, device="cuda")
    return there.set_(storage, value.storage_offset(), value.shape, value.stride())


class Copies:
    def __getattr__(self, name):
        op = getattr(torch.ops.specsample, name)

        def call(*args):
            out = op(*(moved(a) for a in args))
            return out.cpu() if isinstance(out, torch.Tensor) else tuple(x.cpu() for x in out)

        return call


def load():
    """-> the backend's name"""
    cuda = backends.BACKENDS["cuda"]
    backends.BACKENDS[NAME] = cuda._replace(functions=Copies(), device="cpu")
    return NAME
