"""Lists of ints on an accelerator: copied once and kept for later calls with the same values (those of a static tree, say).

A copy from the host waits for the device, and a graph capture forbids it. The kept tensors are passed to ops only and never
returned to a caller, so nobody can write to them.
"""

from functools import lru_cache
from weakref import WeakValueDictionary

import torch
from torch.utils._python_dispatch import _len_torch_dispatch_stack

MOST = 4096  # longer lists are not kept
HOST = ("cpu", "meta")  # devices to which a copy does not wait
_latest = WeakValueDictionary()  # (values, device) -> the tensor kept last, on whichever stream
_captured = {}  # the same for tensors used by captured graphs: those hold its address, so it must stay alive


def on_device(values, device):
    """A list, or list of lists, of ints as an int64 tensor on `device`; TypeError, ValueError or RuntimeError if it is not one"""
    # Fake tensors, and whatever else dispatch modes turn tensors into, are valid within their call only.
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
    # Keyed by stream too: once a tensor is freed, its memory is reused by later work on the stream it was allocated on.
    return _kept(key, device, runtime.current_stream(device).stream_id)


@lru_cache(maxsize=128)
def _kept(key, device, stream):
    with torch.inference_mode(False):  # otherwise it could not be used outside that mode
        _latest[key, device] = tensor = _copy(key, device)
    return tensor


def _copy(values, device):
    return torch.as_tensor(values, dtype=torch.int64).to(device)


def _key(values):
    """The values as tuples, or None if there are too many or they are not plain ints (tensors hash by identity, not by value)."""
    if type(values) not in (list, tuple) or not 0 < len(values) <= MOST:
        return None
    if all(type(row) in (list, tuple) for row in values):
        rows, ints = tuple(map(tuple, values)), [x for row in values for x in row]
    else:
        rows = ints = tuple(values)
    return rows if len(ints) <= MOST and set(map(type, ints)) <= {int} else None
