"""specsample: exact, fast verification for speculative decoding, from raw logits.

STREAM_VERSION says which tokens a seed gives: with the same one, the same inputs and the same seed every backend emits the same
tokens, from release to release. Whatever would change them changes it, and only a release that says so does.
"""

from . import needs  # noqa: F401  (first: it says what is missing)
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
    """`specsample.theory` on first use: it needs NumPy, the rest does not."""
    if name != "theory":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return importlib.import_module(".theory", __name__)
