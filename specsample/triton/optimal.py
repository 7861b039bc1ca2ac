"""`optimal` in Triton; the reference is specsample/schemes/optimal.py."""

import triton
import triton.language as tl

from .coupling import binned, bins_for, histogram, priorities, solve, with_tail
from .tree import MAX_SIBLINGS, draft_prob, list_tokens, residual, target_prob, token_of, verify_tree
from .walk import accept, at_node, first_of


@triton.jit
def select(at, bins):
    """The draw of the smallest priority: (node, ρ of its token)"""
    lanes = tl.arange(0, MAX_SIBLINGS)
    inside, listed = lanes < at.count, list_tokens(at, at.count)
    token = tl.load(listed.first + lanes, mask=inside, other=0).to(tl.int32)
    node = tl.load(listed.first + MAX_SIBLINGS + lanes, mask=inside, other=0).to(tl.int32)
    known = token < at.pair.vocab  # ids beyond the target's vocabulary have ratio 0
    _t, _d, bin, heavy = binned(at.pair, token, bins)
    segment = bins.count - 1 - tl.where(known, tl.where(heavy, bin, bins.tail_bin), 0)
    u, ratio = priorities(bins, segment, at.seed, at.position, node)
    u = tl.where(inside, u, float("inf"))
    selected = first_of(lanes, inside & (u == tl.min(u, 0)))
    return at_node(node, lanes, selected), at_node(ratio, lanes, selected)


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """Select one draw with law b = ρ·d, then accept it when u·b < t."""
    selected, ratio = first_of(at.ids, at.children), tl.full((), 1.0, tl.float64)
    bins = bins_for(at.count, at.bins, at.pair.vocab, at.sums, at.tables)
    tail_bin, k = bins.tail_bin, at.count
    if (k > 1) & (at.pair.draft.only < 0):
        full = histogram(at.pair, bins, BLOCK)
        solve(full)
        selected, ratio = select(at, full)
        tail_bin = full.tail_bin
    else:  # one draw, or draws that are all the same token: b = d
        k = k * 0
    x = token_of(at, selected)
    accepted = accept(at.seed, at.position, selected, target_prob(at, x), ratio * draft_prob(at, x))
    one = tl.full((), 1.0, tl.float64)
    rest = residual(at, one, one * 0.0, with_tail(bins, k, tail_bin))
    return tl.where((selected >= 0) & accepted, selected, -1), rest, at.ids < 0


def verify(round):
    verify_tree(round, step, bins=int(round.options[0]))
