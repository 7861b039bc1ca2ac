__version__ = "0.1.0"

# The oldest supported torch, whose stable ABI is used: the first with TORCH_TARGET_VERSION and torch::stable::parallel_for. The
# extension then loads in every later version.
OLDEST_TORCH = "2.10"

# The version of the random streams: which words, clocks and uniforms belong to (seed, position, purpose, slot, token). With the
# same streams, inputs and seed every backend emits the same tokens. Any change to the tokens of a seed increments this number,
# and only in a release that says so. csrc/philox.h repeats it, and an extension built with another number is not loaded.
# 1: one word per token's clock. 2: clocks in groups of 32 tokens. 3: several independent children of a row come from one race.
STREAM_VERSION = 3
