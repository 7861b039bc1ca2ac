"""Limits and tolerances of the rules: numbers that every backend has alike.

The headers have the same: csrc/law.h, csrc/mixture.h, csrc/walk.h.
"""

MAX_NODES = 1024  # of a request
MAX_SIBLINGS = 64  # live children that a multi-draft scheme looks at in one step, by index
MAX_LAWS = 8  # distinct laws among a node's children: those of further draft rows are not looked at
MAX_LISTS = 1024  # of clocks
SLACK = 2.0**-20  # of top-p and min-p: decides exact ties of mass the same way everywhere (see `Sampling`)
MAX_LOGSUMEXP = 32.0  # of given float32 statistics: a larger one has too coarse an ulp to determine the law to 1e-6
