"""specsample: exact, fast verification for speculative decoding, from raw logits.

STREAM_VERSION identifies the mapping from seeds to tokens: with the same version, inputs and seed, every backend emits the same
tokens, from release to release. Any change to those tokens increments it, and only in a release that says so.
"""

from . import needs  # noqa: F401  (first: it reports what is missing)
from .api import RowStats, Verdict, draft, log_probs, row_stats, sample, schemes, verify
from .decoding import NgramDrafter, Proposal, Stats, generate
from .info import build_info
from .sampling import Sampling
from .schemes import Scheme
from .version import STREAM_VERSION, __version__

__all__ = [
    "NgramDrafter",
    "Proposal",
    "RowStats",
    "STREAM_VERSION",
    "Sampling",
    "Scheme",
    "Stats",
    "Verdict",
    "__version__",
    "build_info",
    "draft",
    "generate",
    "log_probs",
    "row_stats",
    "sample",
    "schemes",
    "verify",
]


def __getattr__(name):
    """Import `specsample.theory` on first use: it needs NumPy, which nothing else here does."""
    if name != "theory":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return importlib.import_module(".theory", __name__)
