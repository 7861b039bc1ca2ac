__version__ = "0.1.0"

# The random streams: which words, clocks and uniforms belong to (seed, position, purpose, slot, token). The same streams, inputs and
# seed give the same tokens on every backend. A change of what a seed's tokens are changes this number, and only a release that says so
# changes it. csrc/philox.h states it too. 1: a word for each token's clock; 2: clocks in groups of 32 tokens.
STREAM_VERSION = 2
