"""`top` in Triton; the reference is specsample/schemes/top.py."""

import triton
import triton.language as tl

from .law import Law, prob
from .passes import Residual, Tokens, is_in
from .tree import child, law_without, target_prob, verify_tree
from .walk import accept


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """Test the last child, drawn from the draft off the other children's tokens T; then one race over t on T and (t − d')⁺ off T."""
    pair, n = at.pair, tl.maximum(at.count - 1, 0)
    top = Tokens(at.list, n)
    peak, mass, only = pair.draft.max, pair.draft.mass, pair.draft.only
    if n > 0:
        rest = law_without(pair.draft_row, pair.draft_vocab, pair.draft, top, BLOCK)
        peak, mass, only = rest.max, rest.mass, rest.only
    law = Law(peak, pair.draft.cutoff, pair.draft.scale, mass, only)
    x, node = child(at, n)
    d = tl.where(is_in(x, top), 0.0, prob(pair.draft_row, pair.draft_vocab, law, x))
    accepted = accept(at.seed, at.position, node, target_prob(at, x), d) & (at.count > 0)
    one = tl.full((), 1.0, tl.float64)
    return tl.where(accepted, x, -1), Residual(pair.draft_row, pair.draft_vocab, law, one, one * 0.0, (), top, ()), n


def verify(call):
    verify_tree(call, step)
