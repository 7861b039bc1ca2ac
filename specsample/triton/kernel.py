"""What a kernel is specialised for, and what may vary between calls without recompiling it.

By default Triton recompiles a kernel whenever a number becomes 1, a multiple of 16 or larger than an int32, and whenever a pointer
becomes aligned to 16 bytes or ceases to be: with the batch, with a slice of a tensor, with a position. During serving
that costs a second or more. Here a kernel has two forms, for rows of logits that can be read 16 bytes at a time and for any others;
apart from that, only dtypes, constants, and which tensors are passed matter.
"""

import inspect

import triton
import triton.language as tl

# 64-bit numbers. All others are counts, below 2³¹.
_WIDE = {
    "seed", "position", "depth", "node", "scale", "temperature", "top_k", "top_p", "min_p", "stride", "stride_b", "stride_r",
    "draft_stride_b", "draft_stride_r",
}  # fmt: skip
_ROWS = ("logits", "target", "draft")
_SHAPE = ("vocab", "draft_vocab", "stride", "stride_b", "stride_r", "draft_stride_b", "draft_stride_r")


class Kernel:
    """A kernel in its two forms; `launch.launch` picks the one that fits the arguments."""

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
    """Whether rows can be read 16 bytes at a time, by Triton's criteria."""
    return all(n % 16 == 0 for n in (logits.data_ptr(), logits.shape[-1], *logits.stride()[:-1]))
