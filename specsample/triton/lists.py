"""`lists` in Triton; the reference is specsample/schemes/lists.py. One program per request, one race per live list,
all over the same group maxima of the row."""

import triton
import triton.language as tl

from .. import limits
from .groups import race_of, read_tops, room_of, winner_of
from .kernel import Kernel
from .launch import ALONE, launch, race_tiles, tops_for
from .streams import CLOCK, spread, stream
from .tree import MAX_SIBLINGS
from .walk import Inputs, Target, first_of, law_of, load_nodes, root_row, row_of, span_of, start_of, target_row

MAX_LISTS = tl.constexpr(limits.MAX_LISTS)


@triton.jit
def lists_of(lists, parents, at, inside, P: tl.constexpr):
    """The clock list of each node: as given, or the number of its ancestor among the root's children. int32 [P]"""
    ids = tl.arange(0, P)
    if lists is not None:
        number = tl.load(lists + at, mask=inside, other=-1).to(tl.int32)
    else:
        root = parents == -1
        number = tl.cumsum(root.to(tl.int32), 0) - 1
        above = tl.where((parents >= 0) & (parents < ids), parents, ids)
        reach = 1
        while reach < P:  # pointer doubling: twice as far up each time
            above = tl.gather(above, above, 0)
            reach *= 2
        number = tl.gather(number, above, 0)
    return number


@Kernel
def lists_kernel(
    target, laws, spans, seeds, positions, emitted, path, num_accepted, tops, tokens, parents, rows_of, lists,
    vocab, rows, count, stride_b, stride_r, seed, position, max_depth, s0, s1, s2, s3, id_limit,
    P: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """At each node, find the target's winner on the minimum of the live lists' clocks: those of the children or, at a leaf, of the
    paths that end there. Move to the children that carry it."""
    b = tl.program_id(0).to(tl.int64)
    span = span_of(b, spans, rows, count)
    inputs = Inputs(tokens, parents, rows_of, None, None, s0, s1, s2, 0, 0, 0, id_limit, 0, spans)
    own = Target(target, laws, vocab, stride_b, stride_r, spans)
    nodes, _drawn = load_nodes(0, inputs, b, span, P)
    start = start_of(b, span, spans, s3, False)
    list = lists_of(lists, nodes.parents, start + nodes.ids, nodes.ids < span.nodes, P)
    exists = nodes.exists & (list >= 0) & (list < MAX_LISTS)
    seed, position = spread(seed, seeds, b, 1), spread(position, positions, b, 0)
    tops += b * room_of(vocab)
    here = exists & (nodes.ids < 0)  # the nodes that carry the accepted prefix
    children = exists & (nodes.parents == -1)
    depth = tl.full((), 0, tl.int32)
    row = root_row(inputs, b, span)
    going = (row >= 0) & (row < span.rows)
    while going:
        children = children & (depth < max_depth)
        law = law_of(own, span, row)
        logits = row_of(own, b, span, row)
        ahead = tl.max(children.to(tl.int32), 0) > 0
        ends = tl.where(ahead, children, here)
        ends = ends & (tl.cumsum(ends.to(tl.int32), 0) <= MAX_SIBLINGS)
        best, winner = tl.full((), float("-inf"), tl.float64), law.only
        number = tl.min(tl.where(ends, list, MAX_LISTS), 0)
        number = tl.where(number == MAX_LISTS, 0, number)  # at a root without children
        if law.only == -1:
            read_tops(logits, vocab, tops, TILES)
        while (number < MAX_LISTS) & (law.only == -1):
            s = stream(seed, position + depth, CLOCK, number.to(tl.int64))
            score, id = winner_of(race_of(logits, vocab, law, s, (), float("inf"), 0), tops)
            better = (score > best) | ((score == best) & (id < winner))
            best, winner = tl.where(better, score, best), tl.where(better, id, winner)
            number = tl.min(tl.where(ends & (list > number), list, MAX_LISTS), 0)
        here = children & (nodes.tokens == winner) & (winner >= 0)
        moved = first_of(nodes.ids, here)
        tl.store(emitted + b * (max_depth + 1) + depth, tl.maximum(winner, -1))
        above = tl.gather(here.to(tl.int32), tl.maximum(nodes.parents, 0), 0)
        children = exists & (nodes.parents >= 0) & (above > 0)
        going = moved >= 0
        if going:
            tl.store(path + b * max_depth + depth, moved)
            row = target_row(inputs, b, span, moved)
            depth += 1
    tl.store(num_accepted + b, depth)


def verify(call):
    laws = call.laws(normalised=False)
    inputs = (call.tokens, call.parents, call.rows, call.lists)
    launch(
        lists_kernel, (call.batch,), call.target, laws, call.spans, call.seeds, call.positions, call.emitted, call.path,
        call.num_accepted, tops_for(call.target, call.batch), *inputs, call.vocab, call.row_count, call.node_count,
        *call.strides(call.target), call.seed, call.position, call.max_depth, *map(call.stride_of, inputs), call.id_limit,
        P=call.width, TILES=race_tiles(call.target), **ALONE,
    )  # fmt: skip
