"""Lists of ints on an accelerator: copied once, kept for the calls that give the same values again (a static tree's).

A copy from the host waits for the device, and a graph capture forbids it. What is kept goes into ops alone and never out to a
caller, so nobody can write to it.
"""

from functools import lru_cache
from weakref import WeakValueDictionary

import torch
from torch.utils._python_dispatch import _len_torch_dispatch_stack

MOST = 4096  # values of a list that is kept
HOST = ("cpu", "meta")  # devices that nothing waits for
_latest = WeakValueDictionary()  # (values, device) -> the tensor kept last, on whichever stream
_captured = {}  # the same, of graphs: they hold its address, so it stays


def on_device(values, device):
    """int64 tensor of a list, or list of lists, of ints on `device`; TypeError, ValueError or RuntimeError where it is none"""
    # Fake tensors, and what else modes make of tensors, belong to their call alone.
    if device.type in HOST or torch.compiler.is_compiling() or _len_torch_dispatch_stack() > 0:
        return _copy(values, device)
    key, runtime = _key(values), torch.get_device_module(device)
    if key is None or not hasattr(runtime, "current_stream"):
        return _copy(values, device)
    if getattr(runtime, "is_current_stream_capturing", bool)():
        kept = _captured.get((key, device))
        kept = _latest.get((key, device)) if kept is None else kept
        if kept is None:
            raise RuntimeError("a list is copied to the device, which a capture forbids: make one such call before it")
        _captured[key, device] = kept
        return kept
    # By stream too: a tensor's memory, once it is dropped, goes to later work of the stream that it was made on.
    return _kept(key, device, runtime.current_stream(device).stream_id)


@lru_cache(maxsize=128)
def _kept(key, device, stream):
    with torch.inference_mode(False):  # or it could not be used outside of that mode
        _latest[key, device] = tensor = _copy(key, device)
    return tensor


def _copy(values, device):
    return torch.as_tensor(values, dtype=torch.int64).to(device)


def _key(values):
    """The values as tuples, or None where they are too many or not plain ints (tensors hash by place, not by value)."""
    if type(values) not in (list, tuple) or not 0 < len(values) <= MOST:
        return None
    if all(type(row) in (list, tuple) for row in values):
        rows, ints = tuple(map(tuple, values)), [x for row in values for x in row]
    else:
        rows = ints = tuple(values)
    return rows if len(ints) <= MOST and set(map(type, ints)) <= {int} else None
