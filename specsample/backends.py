"""Which implementation runs a call: the one dispatch point.

A backend is a namespace with the functions `sample`, `draft`, `row_stats` and `verify` of specsample/ops.py. `reference`
is plain Python over torch; `cpu` and `cuda` are torch's own dispatch of the ops to the compiled kernels; `triton` is
the same ops implemented by Triton kernels.

Nothing here queries the GPU before it must: the query initialises CUDA, and a process forked afterwards could not use CUDA.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from . import extension, ops, triton  # noqa: F401  (ops defines the torch ops)
from .errors import expect
from .names import LIBRARY
from .reference import backend as reference

COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Backend(NamedTuple):
    functions: Any  # the namespace; None if it is known to be unavailable
    device: str | None  # the device type it runs on; "accelerator" = any but the CPU; None = any
    dtypes: tuple | None  # dtypes of logits it accepts; None = any floating dtype
    schemes: tuple | None  # schemes it supports; None = all
    kinds: tuple | None  # kinds of `draft` it supports; None = all
    missing: str | None  # why it is unavailable, as far as that is known without querying the device
    no_device: Callable | None = None  # () -> why there is no device for it, or None; may initialise the device


_C, _missing = extension.load()
_compiled = None if _missing else getattr(torch.ops, LIBRARY)


def build_info():
    """How the compiled extension was built, as it reports it (csrc/module.cpp); {} if there is none"""
    return {} if _missing else _C.build_info()


_built = {"cuda": None, "architectures": "", "schemes": "", "cuda_schemes": "", **build_info()}
_no_cuda = _missing or extension.cuda_misfit(_built["cuda"])


@functools.cache
def _no_gpu():
    return extension.no_gpu(_built["architectures"])


BACKENDS = {
    "cpu": Backend(_compiled, "cpu", COMPILED_DTYPES, tuple(_built["schemes"].split()), None, _missing),
    "cuda": Backend(
        None if _no_cuda else _compiled,
        "cuda",
        COMPILED_DTYPES,
        tuple(_built["cuda_schemes"].split()),
        None,
        _no_cuda,
        None if _no_cuda else _no_gpu,
    ),
    "triton": Backend(
        None if triton.missing else triton.functions,
        "accelerator",
        COMPILED_DTYPES,
        triton.SUPPORTED,
        triton.KINDS,
        triton.missing,
    ),
    "reference": Backend(reference, None, None, None, None, None),
}


def missing(name):
    """Why backend `name` is not available, or None. Queries its device, so do not call it at import time."""
    backend = BACKENDS[name]
    return backend.missing or (backend.no_device() if backend.no_device else None)


def pick(name, logits, argument, scheme=None, kind=None):
    """The functions of backend `name`; if None, those of the best available backend for `logits` (and for the scheme of `verify`
    or the kind of `draft`)."""
    if name is None:
        for backend in BACKENDS.values():
            if backend.functions is not None and _takes(backend, logits.device.type) and _has(backend, scheme, kind):
                if backend.dtypes is None or logits.dtype in backend.dtypes:
                    return backend.functions
    expect(name in BACKENDS, "backend", f"one of {', '.join(BACKENDS)}", repr(name))
    backend = BACKENDS[name]
    # Logits on its device prove that there is one.
    why = backend.missing if logits.device.type == backend.device else missing(name)
    if why is not None:
        raise ValueError(f"backend: {name!r} is not available: {why}")
    if not _has(backend, scheme, kind):
        what, value = ("kind", kind) if scheme is None else ("scheme", scheme)
        others = ", ".join(n for n, b in BACKENDS.items() if _has(b, scheme, kind) and missing(n) is None)
        raise ValueError(f"{what}: the {name} backend has no {value!r} yet; available in {others}")
    if backend.device == "accelerator":
        refusal = triton.refusal(logits.device.type)
        if refusal is not None:
            raise ValueError(f"backend: {name!r} does not take {argument}: {refusal}")
    elif backend.device is not None:
        expect(logits.device.type == backend.device, argument, f"a tensor on {backend.device}", logits.device)
    if backend.dtypes is not None:
        expect(logits.dtype in backend.dtypes, argument, _dtype_names(backend.dtypes), logits.dtype)
    return backend.functions


def _takes(backend, device):
    """Whether a backend may be picked by default for tensors on `device` (Triton's interpreter never is)."""
    return backend.device in (None, device) or backend.device == "accelerator" and device not in ("cpu", "meta")


def _has(backend, scheme, kind):
    in_schemes = scheme is None or backend.schemes is None or scheme in backend.schemes
    return in_schemes and (kind is None or backend.kinds is None or kind in backend.kinds)


def _dtype_names(dtypes):
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


def available():
    """{backend: None if it is available, else why not}"""
    return {name: missing(name) for name in BACKENDS}


def schemes_of(scheme):
    """Names of the available backends that support `scheme`."""
    return tuple(name for name, b in BACKENDS.items() if _has(b, scheme, None) and missing(name) is None)
