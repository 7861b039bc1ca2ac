"""`optimal` in Triton; the reference is specsample/schemes/optimal.py."""

import triton
import triton.language as tl

from .coupling import priorities, solve
from .histogram import binned, bins_for, histogram, load_pair, with_tail
from .tree import MAX_SIBLINGS, child, draft_prob, residual, target_prob, verify_tree
from .walk import accept, at_node, first_of


@triton.jit
def select(at, bins):
    """The draw with the smallest priority: (its place among the children, ρ of its token)"""
    lanes = tl.arange(0, MAX_SIBLINGS)
    x, node = child(at, lanes)
    known = x < at.pair.vocab  # ids beyond the target's vocabulary have ratio 0
    z, y = load_pair(at.pair, x)
    _t, _d, bin, heavy = binned(at.pair, x, z, y, bins)
    segment = bins.count - 1 - tl.where(known, tl.where(heavy, bin, bins.tail_bin), 0)
    u, ratio = priorities(bins, segment, at.seed, at.position, node)
    u = tl.where(lanes < at.count, u, float("inf"))
    selected = first_of(lanes, u == tl.min(u, 0))
    return selected, at_node(ratio, lanes, selected)


@triton.jit
def step(at, BLOCK: tl.constexpr):
    """Select one draw with law b = ρ·d, then accept it if u·b < t."""
    j, ratio = tl.full((), 0, tl.int32), tl.full((), 1.0, tl.float64)
    bins = bins_for(at.count, at.bins, at.pair.vocab, at.sums, at.tables)
    tail_bin, k = bins.tail_bin, at.count
    if (k > 1) & (at.pair.draft.only < 0):
        full = histogram(at.pair, bins, BLOCK)
        solve(full)
        j, ratio = select(at, full)
        tail_bin = full.tail_bin
    else:  # one draw, or draws that are all the same token: b = d
        k = k * 0
    x, node = child(at, j)
    accepted = accept(at.seed, at.position, node, target_prob(at, x), ratio * draft_prob(at, x)) & (at.count > 0)
    one = tl.full((), 1.0, tl.float64)
    return tl.where(accepted, x, -1), residual(at, one, one * 0.0, with_tail(bins, k, tail_bin)), 0


def verify(call):
    verify_tree(call, step, bins=int(call.options[0]))
