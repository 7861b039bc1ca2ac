"""What a kernel is compiled for, and what may vary from call to call without compiling it again.

Left to itself, Triton compiles a kernel anew when a number becomes a multiple of 16, 1, or larger than an int32, and when a pointer
becomes a multiple of 16 bytes or no longer is: with the batch, with a slice of a tensor, with a position. In the middle of serving
that is a second or more. Here a kernel has two forms, for rows of logits that can be read 16 bytes at a time and for any others;
beyond that, dtypes, constants, and which tensors are given decide, and nothing else.
"""

import inspect

import triton
import triton.language as tl

# Numbers of 64 bits. All others are counts, below 2³¹.
_WIDE = {
    "seed", "position", "depth", "node", "scale", "temperature", "top_k", "top_p", "min_p", "stride", "stride_b", "stride_r",
    "draft_stride_b", "draft_stride_r",
}  # fmt: skip
_ROWS = ("logits", "target", "draft")
_SHAPE = ("vocab", "draft_vocab", "stride", "stride_b", "stride_r", "draft_stride_b", "draft_stride_r")


class Kernel:
    """A kernel in its two forms; `launch.launch` takes the one that fits the arguments."""

    def __init__(self, function):
        self.__name__ = function.__name__
        function.__annotations__.update(dict.fromkeys(_WIDE & set(inspect.signature(function).parameters), tl.int64))
        names = list(inspect.signature(function).parameters)
        varying = [n for n in names if function.__annotations__.get(n) is not tl.constexpr]
        self.rows = [names.index(name) for name in _ROWS if name in names]
        self.any = triton.jit(do_not_specialize=varying)(function)
        self.aligned = triton.jit(do_not_specialize=[n for n in varying if n not in _ROWS + _SHAPE])(function)
        if not self.rows:
            self.aligned = self.any

    def form(self, args):
        """The form for these arguments, by position"""
        rows = [args[i] for i in self.rows if args[i] is not None]
        return self.aligned if rows and all(map(aligned, rows)) else self.any


def aligned(logits):
    """Whether rows can be read 16 bytes at a time, as Triton sees it."""
    return all(n % 16 == 0 for n in (logits.data_ptr(), logits.shape[-1], *logits.stride()[:-1]))
