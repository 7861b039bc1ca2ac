"""`optimal_block` in Triton; the reference is specsample/schemes/optimal_block.py.

One walk: at each node, select a draw, test the block that ends there, move to the draw. The state at the end of the longest accepted
prefix is kept, including its table of ratios: tables are double-buffered, so the next node's goes to the other buffer.
"""

import triton.language as tl

from .coupling import power, solve
from .groups import last_race, room_of
from .histogram import bins_for, histogram, with_tail
from .kernel import Kernel
from .launch import launch
from .law import FIELDS, load_law
from .optimal import select
from .passes import Residual, residual_mass
from .streams import spread
from .tree import (
    MAX_SIBLINGS,
    Scratch,
    arrive,
    child,
    draft_prob,
    marks_of,
    residual,
    root_exists,
    sums_at,
    tables_at,
    target_prob,
    tree_args,
    tree_constants,
)
from .walk import Draft, Inputs, Target, accept, draft_row_of, first_of, last_stream, law_of, row_of, span_of


@Kernel
def optimal_block_kernel(
    target, draft, laws, spans, seeds, positions, emitted, path, num_accepted, marks, room, tops,
    tokens, parents, rows_of, draft_rows, draft_laws,
    vocab, draft_vocab, rows, count, stride_b, stride_r, draft_stride_b, draft_stride_r, seed, position, max_depth, bins, words,
    s0, s1, s2, s3, draft_count, draft_total, id_limit, row_a_node,
    BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    span = span_of(b, spans, rows, count)
    own = Target(target, laws, vocab, stride_b, stride_r, spans)
    drafts = Draft(draft, draft_laws, draft_vocab, draft_count, draft_stride_b, draft_stride_r, spans)
    inputs = Inputs(
        tokens, parents, rows_of, draft_rows, draft_laws, s0, s1, s2, s3, draft_count, draft_total, id_limit, row_a_node, spans,
    )  # fmt: skip
    seed, position = spread(seed, seeds, b, 1), spread(position, positions, b, 0)
    room += b * words
    first = emitted + b * (max_depth + 1)
    marks = marks_of(marks, b, span, spans, count)
    depth, chosen, token = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32), b * 0
    weight, zero = tl.full((), 1.0, tl.float64), tl.full((), 0.0, tl.float64)  # P_i
    # At the end of the longest accepted prefix: its length and weight, target row, draws, index of their law, and binning (0: b = d)
    stop, stop_row, stop_count, stop_left = depth, b * 0 - 1, depth, b * 0
    stop_weight, stop_k, stop_tail, held = weight, depth, depth, depth
    exists = root_exists(inputs, b, span)
    going = exists
    while going:
        scratch = Scratch(marks, room, 1 - held, bins)
        at, row, left, _hit = arrive(
            token, depth, b, span, own, drafts, inputs, seed, position, path, max_depth, scratch, True
        )  # fmt: skip
        only = at.pair.target.only
        k = tl.where((at.count > 1) & (only < 0) & (at.pair.draft.only < 0), at.count, 0)
        several_to_one = (at.count > 1) & (only >= 0)
        binning = bins_for(at.count, bins, vocab, at.sums, at.tables)
        tail_bin, j, ratio = binning.tail_bin, tl.full((), 0, tl.int32), zero + 1.0
        if k > 0:
            full = histogram(at.pair, binning, BLOCK)
            solve(full)
            j, ratio = select(at, full)
            tail_bin = full.tail_bin
        # A greedy target: its only token is selected if it was drawn, b = 1 − (1 − d)^k.
        d = draft_prob(at, only)
        b_only = tl.where(at.pair.draft.only >= 0, d, 1.0 - power(1.0 - d, at.count))
        if several_to_one:
            lanes = tl.arange(0, MAX_SIBLINGS)
            x, _node = child(at, lanes)
            j = tl.maximum(first_of(lanes, (x == only) & (lanes < at.count)), 0)

        leaf, mass = at.count == 0, tl.maximum(weight - b_only, 0.0)
        if (depth > 0) & (leaf == 0) & (several_to_one == 0):
            rest = residual(at, weight, zero, with_tail(binning, k, tail_bin))
            mass = residual_mass(at.pair.row, vocab, at.pair.target, rest, BLOCK)
        sure = leaf | ((mass == 0) & (weight == 1))
        numerator = tl.where(leaf, weight, tl.where(sure, 1.0, mass))
        if (depth == 0) | accept(seed, position, chosen, numerator, tl.where(sure, 1.0, mass + 1.0 - weight)):
            stop, stop_row, stop_count, stop_left = depth, row, at.count, left
            stop_weight, stop_k, stop_tail, held = weight, k, tail_bin, 1 - held

        token, chosen = child(at, j)
        t = target_prob(at, token)
        law_b = tl.where(several_to_one, b_only, ratio * draft_prob(at, token))
        ratio = tl.where(law_b > 0, weight * (t / tl.where(law_b > 0, law_b, 1.0)), (weight > 0).to(tl.float64))
        weight = tl.minimum(tl.where(t > 0, ratio, 0.0), 1.0)
        going = (leaf == 0) & (weight > 0)  # a weight of 0 stays 0: nothing further is accepted
        tl.store(first + depth, token)
        depth += going.to(tl.int32)

    if exists:
        for i in range(stop, depth + 1):
            tl.store(first + i, -1)
        for i in range(stop, depth):
            tl.store(path + b * max_depth + i, -1)
        tl.store(num_accepted + b, stop)
        law = law_of(own, span, stop_row)
        binning = bins_for(stop_count, bins, vocab, sums_at(room), tables_at(room, held, bins))
        rest = Residual(
            draft_row_of(drafts, stop_left), draft_vocab, load_law(draft_laws + stop_left * FIELDS), stop_weight, zero,
            with_tail(binning, stop_k, stop_tail), (), (),
        )  # fmt: skip
        here = row_of(own, b, span, stop_row)
        s = last_stream(seed, position, stop, stop_count > 0, b * 0)
        winner = last_race(here, vocab, law, s, rest, stop_count > 0, tops + b * room_of(vocab), TILES)
        tl.store(first + stop, tl.maximum(winner, -1))


def verify(call):
    args = tree_args(call, int(call.options[0]), sets=2)
    launch(optimal_block_kernel, (call.batch,), *args, **tree_constants(call))
