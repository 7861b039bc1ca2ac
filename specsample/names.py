"""Names under which the package is known to torch, in this one place: a kernel that is published under another name has others.

setup.py compiles LIBRARY into the extension (csrc/library.h).
"""

LIBRARY = "specsample"  # torch.ops.specsample
TRITON_LIBRARY = f"{LIBRARY}_triton"
EXTENSION = "_C"  # the compiled part, a module beside this one
