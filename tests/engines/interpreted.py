"""vLLM's V2 model runner on a CPU, its Triton kernels in Triton's interpreter. Call `enable()` before importing vLLM.

vLLM requires a Triton with a CPU backend; this registers one that compiles nothing. The interpreter rejects integer masks, which
Triton itself accepts: they are converted to bool. Each kernel takes some milliseconds per request, so use it for few, short texts.
"""

import os


def enable():
    os.environ["TRITON_INTERPRET"] = os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    import torch
    from triton import backends
    from triton.backends.compiler import BaseBackend, GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime.interpreter import InterpreterBuilder

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
        setattr(InterpreterBuilder, name, with_bool_mask(getattr(InterpreterBuilder, name), 1 if name.endswith("load") else 2))


def with_bool_mask(inner, place):
    def call(self, *args, **kwargs):
        mask = args[place]
        if mask is not None:
            mask.data = mask.data.astype(bool)
        return inner(self, *args, **kwargs)

    return call
