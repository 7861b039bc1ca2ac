__version__ = "0.1.0"

# The oldest torch: the one whose stable ABI is used, the first with TORCH_TARGET_VERSION and torch::stable::parallel_for. The
# extension then loads in every later one.
OLDEST_TORCH = "2.10"

# Of the random streams: which words, clocks and uniforms belong to (seed, position, purpose, slot, token). With the same
# streams, inputs and seed every backend emits the same tokens. A change of the tokens of any seed changes this number, and only
# a release that says so changes it. csrc/philox.h states it too, and an extension that was built with another one is not loaded.
# 1: a word for each token's clock. 2: clocks in groups of 32 tokens.
STREAM_VERSION = 2
