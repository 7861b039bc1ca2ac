"""The names under which torch knows the package, defined only here: a copy published under another name replaces this file.

setup.py compiles LIBRARY into the extension (csrc/library.h).
"""

LIBRARY = "specsample"  # torch.ops.specsample
TRITON_LIBRARY = f"{LIBRARY}_triton"
EXTENSION = "_C"  # the compiled extension, a module beside this one
