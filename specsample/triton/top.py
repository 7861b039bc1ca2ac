"""`top` in Triton; the reference is specsample/schemes/top.py."""

import triton
import triton.language as tl

from .law import Law, prob
from .passes import Residual
from .tree import law_without, list_tokens, target_prob, token_of, verify_tree
from .walk import accept


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """The last child, drawn from the draft off the others' tokens T; then one race over t on T and (t − d')⁺ off T."""
    drawn = tl.max(tl.where(at.children, at.ids, -1), 0)
    in_top = at.children & (at.ids != drawn)
    top, pair = list_tokens(at, at.count - 1), at.pair
    peak, mass, only = pair.draft.max, pair.draft.mass, pair.draft.only
    if at.count > 1:
        rest, _share = law_without(pair.draft_row, pair.draft_vocab, pair.draft, top, BLOCK)
        peak, mass, only = rest.max, rest.mass, rest.only
    law = Law(peak, pair.draft.cutoff, pair.draft.scale, mass, only)
    x = token_of(at, drawn)
    repeated = tl.max((in_top & (at.tokens == x)).to(tl.int32), 0) > 0
    d = tl.where(repeated, 0.0, prob(pair.draft_row, pair.draft_vocab, law, x))
    accepted = (drawn >= 0) & accept(at.seed, at.position, drawn, target_prob(at, x), d)
    one = tl.full((), 1.0, tl.float64)
    return tl.where(accepted, drawn, -1), Residual(pair.draft_row, pair.draft_vocab, law, one, one * 0.0, (), top), in_top


def verify(round):
    verify_tree(round, step)
