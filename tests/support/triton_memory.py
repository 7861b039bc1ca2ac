"""Triton's interpreter with bounds checks: a load, store or atomic outside the tensor that its pointer was derived from fails.

Without this the interpreter reads and writes whatever lies at an address, and an out-of-bounds access goes unnoticed as long as it
does no harm. Every pointer carries the tensor argument that it was derived from; masked addresses are not checked.
"""

import contextlib

import numpy as np
from triton.runtime import interpreter

_DERIVED = ("create_addptr", "create_splat", "create_broadcast", "create_expand_dims", "create_reshape", "create_bitcast")


class OutOfBounds(AssertionError):
    pass


def extent(tensor):
    """(first address, one past the last) of a tensor's elements, strided or not"""
    if tensor.numel() == 0:
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def check(pointers, mask, what):
    bounds = getattr(pointers, "bounds", None)
    address = pointers.data if mask is None else pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
    if address.size == 0:
        return
    if bounds is None:
        raise OutOfBounds(f"{what} through a pointer that was derived from no tensor")
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    low, high = int(address.min()) - bounds[0], int(address.max()) + size - bounds[0]
    if low < 0 or high > bounds[1] - bounds[0]:
        raise OutOfBounds(f"{what} of bytes {low} to {high} of a tensor of {bounds[1] - bounds[0]} bytes")


@contextlib.contextmanager
def guarded():
    builder, convert = interpreter.InterpreterBuilder, interpreter._implicit_cvt
    kept = {name: getattr(builder, name) for name in dir(builder) if name.startswith("create_")}

    def converted(arg):
        out = convert(arg)
        if hasattr(arg, "data_ptr"):
            out.handle.bounds = extent(arg)
        return out

    def derived(name):
        def create(self, *args):
            out = kept[name](self, *args)
            source = next(a for a in args if isinstance(a, interpreter.TensorHandle))
            if hasattr(source, "bounds"):
                out.bounds = source.bounds
            return out

        return create

    def masked_load(self, pointers, mask, *rest):
        check(pointers, mask, "a load")
        return kept["create_masked_load"](self, pointers, mask, *rest)

    def masked_store(self, pointers, value, mask, *rest):
        check(pointers, mask, "a store")
        return kept["create_masked_store"](self, pointers, value, mask, *rest)

    def atomic_rmw(self, operation, pointers, value, mask, *rest):
        check(pointers, mask, "an atomic")
        return kept["create_atomic_rmw"](self, operation, pointers, value, mask, *rest)

    def atomic_cas(self, pointers, *rest):
        check(pointers, None, "an atomic")
        return kept["create_atomic_cas"](self, pointers, *rest)

    ours = {"create_masked_load": masked_load, "create_masked_store": masked_store, "create_atomic_rmw": atomic_rmw,
            "create_atomic_cas": atomic_cas} | {name: derived(name) for name in _DERIVED}  # fmt: skip
    try:
        interpreter._implicit_cvt = converted
        for name, function in ours.items():  # plain loads and stores come to the masked ones
            setattr(builder, name, function)
        yield
    finally:
        interpreter._implicit_cvt = convert
        for name in ours:
            setattr(builder, name, kept[name])
