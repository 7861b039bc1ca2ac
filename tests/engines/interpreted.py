"""vLLM's V2 model runner on a CPU, its Triton kernels in Triton's interpreter. Call `enable()` before importing vLLM.

vLLM requires a Triton with a CPU backend; this registers one that compiles nothing. The interpreter rejects integer masks, which
Triton itself accepts: they are converted to bool. It also replaces the functions of triton.language for each launch and each call
of a device function, and copies all storage back afterwards: both are left out, because nothing here is compiled and everything is
on the CPU. Use it for few, short texts all the same.

Two things in vLLM's kernels do not run in the interpreter: the kernel of top-k and top-p, in whose place vLLM has a function for
platforms without Triton, and log1p of the GPU's own library, here numpy's.
"""

import os


def enable():
    os.environ["TRITON_INTERPRET"] = os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    import torch
    from triton import backends
    from triton.backends.compiler import BaseBackend, GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import interpreter

    def nothing(*_):
        raise RuntimeError("only interpreted")

    class Compiler(BaseBackend):
        supports_target = staticmethod(lambda target: target.backend == "cpu")
        hash = parse_options = add_stages = load_dialects = get_module_map = nothing

    class Driver(DriverBase):
        is_active = staticmethod(lambda: True)
        get_current_target = lambda self: GPUTarget("cpu", 0, 1)  # noqa: E731
        get_active_torch_device = lambda self: torch.device("cpu")  # noqa: E731
        get_active_torch_device_interface = lambda self: torch.cpu  # noqa: E731
        map_python_to_cpp_type = get_benchmarker = nothing

    backends.backends["cpu"] = backends.Backend(Compiler, Driver)
    for name in ("create_masked_load", "create_masked_store"):
        inner = getattr(interpreter.InterpreterBuilder, name)
        setattr(interpreter.InterpreterBuilder, name, with_bool_mask(inner, 1 if name.endswith("load") else 2))
    interpreter._patch_lang = once(interpreter._patch_lang)
    interpreter._get_np_dtype = by_name(interpreter._get_np_dtype)
    interpreter.GridExecutor._restore_args_dev = lambda *_: None


def with_bool_mask(inner, place):
    def call(self, *args, **kwargs):
        mask = args[place]
        if mask is not None:
            mask.data = mask.data.astype(bool)
        return inner(self, *args, **kwargs)

    return call


def complete():
    """Stand-ins for what does not run in the interpreter; they need vLLM imported."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler_utils

    class Device:
        @staticmethod
        def log1p(x):
            return tl.core.tensor(TensorHandle(np.log1p(x.handle.data), x.handle.dtype), x.type)

    topk_topp_sampler.HAS_TRITON = False
    rejection_sampler_utils.tldevice = Device


class Kept:
    """A scope of replaced functions that are not put back."""

    restore = staticmethod(lambda: None)


def once(patch_lang):
    """Replace the functions of triton.language once for each module of kernels: which of them it sees decides what is replaced."""
    done = set()

    def call(fn):
        if id(fn.__globals__) not in done:
            done.add(id(fn.__globals__))
            patch_lang(fn)
        return Kept

    return call


def by_name(np_dtype):
    """Triton builds a table for each call."""
    found = {}

    def call(given):
        name = given.element_ty.name if given.is_block() else given.name
        if name not in found:
            found[name] = np_dtype(given)
        return found[name]

    return call
