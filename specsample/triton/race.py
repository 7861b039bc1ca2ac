"""`race` in Triton; the reference is specsample/schemes/race.py. The winners of all nodes' rows are found in parallel."""

import torch
import triton
import triton.language as tl

from .groups import room_of, winner_of_law
from .kernel import Kernel
from .launch import launch, plain, race_tiles, scale_bits, tops_for
from .rows import law_or_plain
from .streams import CLOCK, spread, stream
from .walk import FEW, Inputs, TargetRows, first_row, load_nodes, span_of, start_of, target_row


@Kernel
def winners_kernel(
    target, laws, spans, owner, parents, rows_of, seeds, positions, winners, tops,
    vocab, rows, count, stride_b, stride_r, scale, seed, position, max_depth, s1, s2, TILES: tl.constexpr,
):  # fmt: skip
    """Writes winners int64, one per node and root (dense [B, N + 1], packed like the target's rows): the winner of the node's row on
    the clocks of the next token; −1 if the row or the node does not exist or the row has no finite logit."""
    at = tl.program_id(0).to(tl.int64)
    if owner is None:
        b = at // (count + 1)
    else:
        b = tl.load(owner + at)
    winner = at * 0 - 1
    if b >= 0:
        span = span_of(b, spans, rows, count)
        slot = at - (b * (count + 1) if spans is None else span.row)
        node = slot - 1
        exists = node < span.nodes
        depth = slot
        if parents is not None:
            depth = slot * 0
            start = start_of(b, span, spans, s1, False)
            here = tl.where(exists, node, -1)
            while here >= 0:
                parent = tl.load(parents + start + here).to(tl.int64)
                exists = exists & (parent < here) & (parent >= -1)
                here = tl.where(exists, parent, -1)
                depth += 1
        if exists & (depth <= max_depth):
            row = target_row(TargetRows(rows_of, s2, spans), b, span, node)
            if (row >= 0) & (row < span.rows):
                law = law_or_plain(laws, span.row + row, scale)
                s = stream(spread(seed, seeds, b, 1), spread(position, positions, b, 0) + depth, CLOCK, b * 0)
                row_at = first_row(b, span, spans, target, stride_b, stride_r) + row * stride_r
                room = tops + at * room_of(vocab)
                winner = winner_of_law(row_at, vocab, law, s, laws is not None, room, TILES)
    tl.store(winners + at, winner)


@triton.jit
def walk(b, span, spans, winners, inputs, emitted, path, num_accepted, count, max_depth, P: tl.constexpr):
    nodes, _drawn = load_nodes(0, inputs, b, span, P)
    first = span.row
    if spans is None:
        first = b * (count + 1)
    depth, node = tl.full((), 0, tl.int32), tl.full((), -1, tl.int32)
    children = nodes.exists & (nodes.parents == -1)
    going = span.rows > 0
    while going:
        winner = tl.load(winners + first + node + 1)
        matches = children & (nodes.tokens == winner) & (depth < max_depth)
        moved = tl.min(tl.where(matches, nodes.ids, P), 0)
        tl.store(emitted + b * (max_depth + 1) + depth, winner)
        going = moved < P
        if going:
            tl.store(path + b * max_depth + depth, moved)
            node = moved
            depth += 1
            above = tl.gather(matches.to(tl.int32), tl.maximum(nodes.parents, 0), 0)
            children = nodes.exists & (nodes.parents >= 0) & (above > 0)
    tl.store(num_accepted + b, depth)


@Kernel
def race_walk_kernel(
    spans, winners, emitted, path, num_accepted, tokens, parents, rows_of,
    rows, count, max_depth, s0, s1, s2, id_limit, P: tl.constexpr,
):  # fmt: skip
    """Move to all the children that carry the winner; if there are none, emit it and stop. Works on vectors of P nodes, or of FEW
    if a request has no more."""
    b = tl.program_id(0).to(tl.int64)
    span = span_of(b, spans, rows, count)
    inputs = Inputs(tokens, parents, rows_of, None, None, s0, s1, s2, 0, 0, 0, id_limit, 0, spans)
    if span.nodes <= FEW:
        walk(b, span, spans, winners, inputs, emitted, path, num_accepted, count, max_depth, FEW)
    elif P > FEW:
        walk(b, span, spans, winners, inputs, emitted, path, num_accepted, count, max_depth, P)


def verify(call):
    known = plain(*call.settings)
    laws = None if known else call.laws(normalised=False)
    owner = call.owner() if call.packed else None
    slots = call.target.shape[0] if call.packed else call.batch * (call.node_count + 1)
    winners = torch.empty(slots, dtype=torch.int64, device=call.device)
    parents_stride, rows_stride = call.stride_of(call.parents), call.stride_of(call.rows)
    launch(
        winners_kernel, (slots,), call.target, laws, call.spans, owner, call.parents, call.rows, call.seeds,
        call.positions, winners, tops_for(call.target, slots), call.vocab, call.row_count, call.node_count,
        *call.strides(call.target), scale_bits(call.settings[0]), call.seed, call.position, call.max_depth,
        parents_stride, rows_stride, TILES=race_tiles(call.target),
    )  # fmt: skip
    launch(
        race_walk_kernel, (call.batch,), call.spans, winners, call.emitted, call.path, call.num_accepted,
        call.tokens, call.parents, call.rows, call.row_count, call.node_count, call.max_depth,
        call.stride_of(call.tokens), parents_stride, rows_stride, call.id_limit, P=call.width,
    )  # fmt: skip
