"""The reference backend: pure torch in float64, any device, any float dtype. It is the specification.

It materialises laws of size V and is vectorised over requests only, so that every step reads as the formula it is.
"""

from .rows import draft, log_probs, row_stats, sample
from .walk import verify

__all__ = ["draft", "log_probs", "row_stats", "sample", "verify"]
