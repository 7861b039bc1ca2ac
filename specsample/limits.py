"""Limits and tolerances of the rules, the same for every backend.

The C++ headers repeat them: csrc/law.h, csrc/mixture.h, csrc/walk.h.
"""

MAX_NODES = 1024  # per request
MAX_SIBLINGS = 64  # live children that a multi-draft scheme considers in one step, in index order
MAX_LAWS = 8  # distinct draft rows among a node's children: children of any further row are not considered
MAX_LISTS = 1024  # clock lists
SLACK = 2.0**-20  # of top-p and min-p: decides exact ties of mass the same way everywhere (see `Sampling`)
MAX_LOGSUMEXP = 32.0  # for float32 row statistics: beyond it one ulp is too coarse to determine the distribution to 1e-6
