"""`block` in Triton; the reference is specsample/schemes/block.py.

The weights P_i need only the probabilities of the drafted tokens, so they are computed first; then the residual masses M_i of
all positions are summed in parallel, and finding the longest accepted prefix is scalar work.
"""

import torch
import triton
import triton.language as tl

from .kernel import Kernel
from .launch import BLOCK, launch
from .law import BROKEN, FIELDS, load_law, prob
from .passes import draft_left, residual_mass
from .streams import spread
from .walk import (
    BONUS,
    FEW,
    NOTHING,
    REST,
    STOP,
    Draft,
    Inputs,
    Target,
    accept,
    at_node,
    draft_law_of,
    draft_prob_of,
    first_child,
    law_of,
    load_nodes,
    root_row,
    row_of,
    span_of,
    store_stop,
    target_row,
)

STEP = tl.constexpr(4)  # int64 fields per position: node, its token, its target row, draft index of its child (−1: leaf)


@triton.jit
def follow(b, span, target, draft, inputs, steps, weights, lengths, max_depth, P: tl.constexpr):
    nodes, drawn = load_nodes(0, inputs, b, span, P)
    node, depth = tl.full((), -1, tl.int32), tl.full((), 0, tl.int32)
    weight, x, row = tl.full((), 1.0, tl.float64), b * 0 - 1, root_row(inputs, b, span)
    going = (row >= 0) & (row < span.rows)
    tl.store(lengths + b, -1)
    while going:
        law = law_of(target, span, row)
        child = tl.where((depth < max_depth) & (law.only != BROKEN), first_child(nodes, node), -1)
        going = child >= 0
        below = tl.where(going, at_node(drawn, nodes.ids, child), -1)
        at = b * (max_depth + 1) + depth
        tl.store(weights + at, weight)
        tl.store(steps + at * STEP, node.to(tl.int64))
        tl.store(steps + at * STEP + 1, x)
        tl.store(steps + at * STEP + 2, row)
        tl.store(steps + at * STEP + 3, below)
        tl.store(lengths + b, depth)
        if going:
            x = at_node(nodes.tokens, nodes.ids, child).to(tl.int64)
            t, d = prob(row_of(target, b, span, row), target.vocab, law, x), draft_prob_of(draft, below, x)
            ratio = tl.where(d > 0, weight * (t / tl.where(d > 0, d, 1.0)), 1.0)
            weight = tl.minimum(tl.where(t > 0, ratio, 0.0), 1.0)
            row = target_row(inputs, b, span, child)
            node = child
            depth += 1


@Kernel
def weights_kernel(
    target, draft, laws, spans, steps, weights, lengths, tokens, parents, rows_of, draft_rows, draft_laws,
    vocab, draft_vocab, rows, count, stride_b, stride_r, draft_stride_b, draft_stride_r, max_depth,
    s0, s1, s2, s3, draft_count, draft_total, id_limit, row_a_node, P: tl.constexpr,
):  # fmt: skip
    """Follow each chain to its end. Writes steps int64 [B, D + 1, STEP], weights P_i float64 [B, D + 1], lengths (−1: no root)."""
    b = tl.program_id(0).to(tl.int64)
    span = span_of(b, spans, rows, count)
    here = Target(target, laws, vocab, stride_b, stride_r, spans)
    drafts = Draft(draft, draft_laws, draft_vocab, draft_count, draft_stride_b, draft_stride_r, spans)
    inputs = Inputs(
        tokens, parents, rows_of, draft_rows, draft_laws, s0, s1, s2, s3, draft_count, draft_total, id_limit, row_a_node, spans,
    )  # fmt: skip
    if span.nodes <= FEW:
        follow(b, span, here, drafts, inputs, steps, weights, lengths, max_depth, FEW)
    elif P > FEW:
        follow(b, span, here, drafts, inputs, steps, weights, lengths, max_depth, P)


@Kernel
def masses_kernel(
    target, draft, laws, draft_laws, spans, steps, weights, lengths, masses,
    vocab, draft_vocab, rows, draft_count, stride_b, stride_r, draft_stride_b, draft_stride_r, max_depth,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes masses M_i float64 [B, D + 1] where 1 <= i <= length and a node follows"""
    at = tl.program_id(0).to(tl.int64)
    b, i = at // (max_depth + 1), at % (max_depth + 1)
    drawn = at * 0 - 1
    if (i >= 1) & (i <= tl.load(lengths + b)):
        drawn = tl.load(steps + at * STEP + 3)
    if drawn >= 0:
        span = span_of(b, spans, rows, 0)
        row = tl.load(steps + at * STEP + 2)
        targets = Target(target, laws, vocab, stride_b, stride_r, spans)
        here, law = row_of(targets, b, span, row), law_of(targets, span, row)
        drafts = Draft(draft, draft_laws, draft_vocab, draft_count, draft_stride_b, draft_stride_r, spans)
        draft_row, draft_law = draft_law_of(drafts, drawn, here, law)
        weight = tl.load(weights + at)
        mass = residual_mass(here, vocab, law, draft_left(draft_row, draft_vocab, draft_law, weight), BLOCK)
        tl.store(masses + at, mass)


@Kernel
def longest_kernel(
    laws, spans, seeds, positions, steps, weights, lengths, masses, emitted, path, num_accepted, stops, kept_weights,
    rows, seed, position, max_depth,
):  # fmt: skip
    """Accept the longest prefix i with u_i < h_i."""
    b = tl.program_id(0).to(tl.int64)
    first = b * (max_depth + 1)
    length = tl.load(lengths + b)
    seed, position = spread(seed, seeds, b, 1), spread(position, positions, b, 0)
    stop = length * 0
    i = stop + 1
    while i <= length:
        weight, leaf = tl.load(weights + first + i), tl.load(steps + (first + i) * STEP + 3) < 0
        mass = tl.load(masses + first + i)
        sure = leaf | ((mass == 0) & (weight == 1))
        numerator = tl.where(leaf, weight, tl.where(sure, 1.0, mass))
        denominator = tl.where(sure, 1.0, mass + 1.0 - weight)
        node = tl.load(steps + (first + i) * STEP)
        stop = tl.where(accept(seed, position, node, numerator, denominator), i, stop)
        i += 1
    for j in range(0, stop):
        tl.store(path + b * max_depth + j, tl.load(steps + (first + j + 1) * STEP).to(tl.int32))
        tl.store(emitted + first + j, tl.load(steps + (first + j + 1) * STEP + 1))
    tl.store(num_accepted + b, stop.to(tl.int32))
    kind, row, drawn = tl.full((), NOTHING, tl.int32), b * 0, b * 0
    if length >= 0:
        row, drawn = tl.load(steps + (first + stop) * STEP + 2), tl.load(steps + (first + stop) * STEP + 3)
        law = load_law(laws + (span_of(b, spans, rows, 0).row + row) * FIELDS)
        kind = tl.where(law.only == BROKEN, NOTHING, tl.where(drawn >= 0, REST, BONUS))
        tl.store(kept_weights + b, tl.load(weights + first + stop))
    store_stop(stops, b, kind, stop, row, drawn)


def verify(call):
    laws, draft_laws = call.laws(normalised=True), call.draft_laws()
    shape, device = call.emitted.shape, call.device
    steps = torch.empty(*shape, STEP.value, dtype=torch.int64, device=device)
    weights, masses = torch.empty(2, *shape, dtype=torch.float64, device=device)
    lengths = torch.empty(call.batch, dtype=torch.int64, device=device)
    stops = torch.empty(call.batch, STOP.value, dtype=torch.int64, device=device)
    kept_weights = torch.empty(call.batch, dtype=torch.float64, device=device)
    tensors, numbers, constants = call.nodes_args(draft_laws)
    vocabs = (call.vocab, 0 if call.draft is None else call.draft.shape[-1])
    strides = (*call.strides(call.target), *call.strides(call.draft))
    launch(
        weights_kernel, (call.batch,), call.target, call.draft, laws, call.spans, steps, weights, lengths, *tensors,
        *vocabs, call.row_count, call.node_count, *strides, call.max_depth, *numbers, **constants,
    )  # fmt: skip
    launch(
        masses_kernel, (call.emitted.numel(),), call.target, call.draft, laws, draft_laws, call.spans, steps, weights,
        lengths, masses, *vocabs, call.row_count, call.draft_count, *strides, call.max_depth, BLOCK=BLOCK,
    )  # fmt: skip
    launch(
        longest_kernel, (call.batch,), laws, call.spans, call.seeds, call.positions, steps, weights, lengths, masses,
        call.emitted, call.path, call.num_accepted, stops, kept_weights, call.row_count, call.seed, call.position,
        call.max_depth,
    )  # fmt: skip
    call.finish(laws, draft_laws, stops, kept_weights)
