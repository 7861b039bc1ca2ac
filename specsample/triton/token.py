"""`token` in Triton; the reference is specsample/schemes/token.py."""

import torch
import triton
import triton.language as tl

from .kernel import Kernel
from .launch import launch
from .law import BROKEN, prob
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


@triton.jit
def walk(b, span, target, draft, inputs, seed, position, emitted, path, num_accepted, stops, max_depth, P: tl.constexpr):
    """Accept the child x if u·d(x) < t(x), else stop and leave the residual race to `finish`. Works on vectors of P nodes."""
    nodes, drawn = load_nodes(0, inputs, b, span, P)
    node = tl.full((), -1, tl.int32)
    depth, kind = tl.full((), 0, tl.int32), tl.full((), NOTHING, tl.int32)
    row, left = root_row(inputs, b, span), b * 0 - 1
    going = (row >= 0) & (row < span.rows)
    while going:
        law = law_of(target, span, row)
        child = tl.where(depth < max_depth, first_child(nodes, node), -1)
        sound = law.only != BROKEN
        kind = tl.where(sound, tl.where(child >= 0, REST, BONUS), NOTHING)
        going = sound & (child >= 0)
        if going:
            x, left = at_node(nodes.tokens, nodes.ids, child).to(tl.int64), at_node(drawn, nodes.ids, child)
            t, d = prob(row_of(target, b, span, row), target.vocab, law, x), draft_prob_of(draft, left, x)
            going = accept(seed, position, child, t, d)
            if going:
                tl.store(emitted + b * (max_depth + 1) + depth, x)
                tl.store(path + b * max_depth + depth, child)
                row = target_row(inputs, b, span, child)
                node = child
                depth += 1
    tl.store(num_accepted + b, depth)
    store_stop(stops, b, kind, depth, row, left)


@Kernel
def token_kernel(
    target, draft, laws, spans, seeds, positions, emitted, path, num_accepted, stops,
    tokens, parents, rows_of, draft_rows, draft_laws,
    vocab, draft_vocab, rows, count, stride_b, stride_r, draft_stride_b, draft_stride_r, seed, position, max_depth,
    s0, s1, s2, s3, draft_count, draft_total, id_limit, row_a_node, P: tl.constexpr,
):  # fmt: skip
    """The walk of each request over vectors of its nodes: of length P, or FEW if it has no more."""
    b = tl.program_id(0).to(tl.int64)
    span = span_of(b, spans, rows, count)
    here = Target(target, laws, vocab, stride_b, stride_r, spans)
    drafts = Draft(draft, draft_laws, draft_vocab, draft_count, draft_stride_b, draft_stride_r, spans)
    inputs = Inputs(
        tokens, parents, rows_of, draft_rows, draft_laws, s0, s1, s2, s3, draft_count, draft_total, id_limit, row_a_node, spans,
    )  # fmt: skip
    seed, position = spread(seed, seeds, b, 1), spread(position, positions, b, 0)
    if span.nodes <= FEW:
        walk(b, span, here, drafts, inputs, seed, position, emitted, path, num_accepted, stops, max_depth, FEW)
    elif P > FEW:
        walk(b, span, here, drafts, inputs, seed, position, emitted, path, num_accepted, stops, max_depth, P)


def verify(call):
    laws, draft_laws = call.laws(normalised=True), call.draft_laws()
    stops = torch.empty(call.batch, STOP.value, dtype=torch.int64, device=call.device)
    weights = torch.ones(call.batch, dtype=torch.float64, device=call.device)
    tensors, numbers, constants = call.nodes_args(draft_laws)
    launch(
        token_kernel, (call.batch,), call.target, call.draft, laws, call.spans, call.seeds, call.positions,
        call.emitted, call.path, call.num_accepted, stops, *tensors,
        call.vocab, 0 if call.draft is None else call.draft.shape[-1], call.row_count, call.node_count,
        *call.strides(call.target), *call.strides(call.draft), call.seed, call.position, call.max_depth,
        *numbers, **constants,
    )  # fmt: skip
    call.finish(laws, draft_laws, stops, weights)
