"""specsample: exact, fast verification for speculative decoding, from raw logits."""

from .api import RowStats, Verdict, draft, log_probs, row_stats, sample, schemes, verify
from .decoding import NgramDrafter, Proposal, Stats, generate
from .info import build_info
from .sampling import Sampling
from .schemes import Scheme
from .version import __version__

__all__ = [
    "NgramDrafter",
    "Proposal",
    "RowStats",
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
    """`specsample.theory` on first use: it needs NumPy, the rest does not."""
    if name != "theory":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return importlib.import_module(".theory", __name__)
