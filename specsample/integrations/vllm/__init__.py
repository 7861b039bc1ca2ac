"""specsample inside vLLM: `SPECSAMPLE_VLLM=token|block|race vllm serve …` (docs/vllm.md).

vLLM loads `register` from the entry point `vllm.general_plugins` in each process. Without the variable, nothing is replaced.
"""

import os

VARIABLE = "SPECSAMPLE_VLLM"
SUPPORTED = ("token", "block", "race")
_done = False


def register():
    """Check this vLLM, then install the scheme that SPECSAMPLE_VLLM names. A second call in the same process does nothing.

    Errors: ValueError for any other value of the variable; RuntimeError, before anything is replaced, for a vLLM whose functions
    differ from those the adapter was written against.
    """
    global _done
    scheme = os.environ.get(VARIABLE, "")
    if _done or scheme in ("", "0", "off"):
        return
    if scheme not in SUPPORTED:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(SUPPORTED)} or off, got {scheme!r}")
    from . import hooks

    hooks.install(scheme)
    _done = True
