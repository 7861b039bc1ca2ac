"""The walk of the multi-draft schemes: one program per request goes from the root to the final emitted token.

A scheme is a step: `step(at, BLOCK)` decides among the live children of one node, `at` a Siblings. It returns the token of the
accepted child (−1: none), the Residual from which a token is drawn otherwise, and how many of the first children are accepted if
that token is theirs (for `top`; 0 for the others). It is also called at nodes without children, and returns −1 there.

Nodes are re-read at each level, FEW at a time. Which of them are live, and the children of a step, are kept in memory: vectors over
the nodes would take the registers that the passes over rows need.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .. import limits
from .coupling import TABLES
from .groups import last_race, room_of
from .histogram import SPARE, Pair
from .kernel import Kernel
from .launch import ALONE, ALONE_BLOCK, launch, race_tiles, tops_for
from .law import BROKEN, FIELDS, Law, load_law, load_logits, prob, weights
from .passes import Residual, is_in
from .streams import spread
from .walk import (
    FEW,
    Draft,
    Inputs,
    Target,
    at_node,
    draft_row_of,
    first_of,
    last_stream,
    law_of,
    load_nodes,
    root_row,
    row_of,
    span_of,
    start_of,
    target_row,
)

MAX_SIBLINGS = tl.constexpr(limits.MAX_SIBLINGS)


class Siblings(NamedTuple):
    """The live children of a node that a step chooses among, the rows they belong to, and the program's scratch."""

    pair: object  # histogram.Pair: target row, and draft row of the first child
    count: object  # int32
    seed: object
    position: object
    bins: object  # int32, the option of that name
    list: object  # pointer to int64 [2, MAX_SIBLINGS]: the children's tokens, and their nodes
    sums: object  # see histogram.Bins
    tables: object


@triton.jit
def child(at, j):
    """(token int64, node int32) of child j, a scalar or a vector; 0 if there is none"""
    inside = j < at.count
    node = tl.load(at.list + MAX_SIBLINGS + j, mask=inside, other=0)
    return tl.load(at.list + j, mask=inside, other=0), node.to(tl.int32)


@triton.jit
def target_prob(at, token):
    return prob(at.pair.row, at.pair.vocab, at.pair.target, token)


@triton.jit
def draft_prob(at, token):
    return prob(at.pair.draft_row, at.pair.draft_vocab, at.pair.draft, token)


@triton.jit
def residual(at, scale, floor, bins):
    return Residual(at.pair.draft_row, at.pair.draft_vocab, at.pair.draft, scale, floor, bins, (), ())


@triton.jit
def law_without(row, vocab, law, without, BLOCK: tl.constexpr):
    """The law conditioned on the token not being in `without` (whose weights the caller must zero): relative to the largest of the others,
    however small their share. `only` is BROKEN, and the mass inf, if there is no other token."""
    peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in range(0, vocab, 8 * BLOCK):
        ids = first + tl.arange(0, 8 * BLOCK)
        z = load_logits(row, ids, vocab)
        peak = tl.maximum(peak, tl.max(tl.reshape(tl.where(is_in(ids, without), float("-inf"), z), (BLOCK, 8)), 1))
    top = tl.max(peak, 0)
    mass = tl.full((), 0.0, tl.float64)
    if top >= law.cutoff:
        rest = Law(top, law.cutoff, law.scale, law.mass, law.only)
        total = tl.zeros((BLOCK,), tl.float64)
        for first in range(0, vocab, 8 * BLOCK):
            ids = first + tl.arange(0, 8 * BLOCK)
            part = weights(load_logits(row, ids, vocab), rest)
            total += tl.sum(tl.reshape(tl.where(is_in(ids, without), 0.0, part), (BLOCK, 8)), 1).to(tl.float64)
        mass = tl.sum(total, 0)
    point, gone = law.only >= 0, is_in(law.only, without)
    some = tl.where(point, gone == 0, mass > 0)
    only = tl.where(some, law.only, BROKEN)
    return Law(top, law.cutoff, law.scale, tl.where(some, mass, float("inf")), only)


@triton.jit
def share_of(rest, whole):
    """The probability under `whole` of the tokens of `rest`, a law that excludes some tokens: float64"""
    share = rest.mass / whole.mass * tl.exp((rest.max.to(tl.float64) - whole.max) * rest.scale)
    return tl.where(rest.only >= 0, 1.0, share)


class Scratch(NamedTuple):
    """The scratch memory of a request. One pointer serves all of `room`, to save registers."""

    marks: object  # pointer to int32, one per node: its depth once it is live
    room: object  # pointer to 64-bit words: the list of siblings, the sums of a histogram, sets of its tables; see Siblings
    table: object  # int32: which set of tables
    bins: object


@triton.jit
def sums_at(room):
    """The sums of a histogram in the request's `room`"""
    return room + 2 * MAX_SIBLINGS


@triton.jit
def tables_at(room, table, bins):
    """A set of tables there"""
    return (sums_at(room) + (2 + table * TABLES) * (bins + SPARE)).to(tl.pointer_type(tl.float64))


@triton.jit
def arrive(token, depth, b, span, target, draft, inputs, seed, position, path, max_depth, scratch, POINTS: tl.constexpr):
    """Move to all the live nodes that carry the token (depth 0: to the root). -> (Siblings: those of their children that a step considers,
    under a greedy target only with POINTS; target row; index of the children's draft law; whether a greedy target's only token is
    among all the children)."""
    tokens_of = inputs.tokens + start_of(b, span, inputs.spans, inputs.tokens_stride, False)
    marks, list, last = scratch.marks, scratch.room, span.nodes.to(tl.int32)
    node, first = tl.full((), -1, tl.int32), tl.full((), 0, tl.int32)
    while (depth > 0) & (node < 0) & (first < last):  # the first of them is reported
        ids = first + tl.arange(0, FEW)
        alive = tl.load(marks + ids, mask=ids < last, other=0) == depth
        node = first_of(ids, alive & (tl.load(tokens_of + ids, mask=ids < last, other=-1) == token))
        first += FEW
    if depth > 0:
        tl.store(path + b * max_depth + depth - 1, node)
    row = target_row(inputs, b, span, node)
    law = law_of(target, span, row)
    seen = (law.only == -1) | ((law.only >= 0) & POINTS)
    count, hit, left, first = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32), b * 0, tl.full((), 0, tl.int32)
    tl.debug_barrier()  # the list of the level above has been read
    while (depth < max_depth) & (first < last):
        nodes, drawn = load_nodes(first, inputs, b, span, FEW)
        has = nodes.exists & (nodes.parents >= 0) & (depth > 0)
        above = tl.load(marks + nodes.parents, mask=has, other=0) == depth
        above = above & (tl.load(tokens_of + nodes.parents, mask=has, other=-1) == token)
        live = nodes.exists & ((has & above) | ((depth == 0) & (nodes.parents == -1)))
        tl.store(marks + nodes.ids, tl.where(live, depth + 1, 0), mask=(nodes.ids < last) & (live | (depth == 0)))
        hit = tl.maximum(hit, tl.max((live & (nodes.tokens == law.only)).to(tl.int32), 0))
        rank = count + tl.cumsum((live & seen).to(tl.int32), 0) - 1
        children = live & seen & (rank < MAX_SIBLINGS)
        oldest = first_of(nodes.ids, children)
        left = tl.where((count == 0) & (oldest >= 0), at_node(drawn, nodes.ids, oldest), left)
        count += tl.sum(children.to(tl.int32), 0)
        tl.store(list + rank, nodes.tokens.to(tl.int64), mask=children)
        tl.store(list + MAX_SIBLINGS + rank, nodes.ids.to(tl.int64), mask=children)
        first += FEW
    tl.debug_barrier()
    here, draft_row = row_of(target, b, span, row), draft_row_of(draft, left)
    pair = Pair(here, target.vocab, law, draft_row, draft.vocab, load_law(draft.laws + left * FIELDS))
    tables = tables_at(scratch.room, scratch.table, scratch.bins)
    return Siblings(pair, count, seed, position, scratch.bins, list, sums_at(list), tables), row, left, hit > 0


@triton.jit
def marks_of(marks, b, span, spans, count):
    """The request's part of the marks"""
    if spans is None:
        return marks + b * count
    else:
        return marks + span.node


@triton.jit
def root_exists(inputs, b, span):
    row = root_row(inputs, b, span)
    return (row >= 0) & (row < span.rows)


@Kernel
def tree_kernel(
    target, draft, laws, spans, seeds, positions, emitted, path, num_accepted, marks, room, tops,
    tokens, parents, rows_of, draft_rows, draft_laws,
    vocab, draft_vocab, rows, count, stride_b, stride_r, draft_stride_b, draft_stride_r, seed, position, max_depth, bins, words,
    s0, s1, s2, s3, draft_count, draft_total, id_limit, row_a_node,
    STEP: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    span = span_of(b, spans, rows, count)
    own = Target(target, laws, vocab, stride_b, stride_r, spans)
    drafts = Draft(draft, draft_laws, draft_vocab, draft_count, draft_stride_b, draft_stride_r, spans)
    inputs = Inputs(
        tokens, parents, rows_of, draft_rows, draft_laws, s0, s1, s2, s3, draft_count, draft_total, id_limit, row_a_node, spans,
    )  # fmt: skip
    seed, position = spread(seed, seeds, b, 1), spread(position, positions, b, 0)
    scratch = Scratch(marks_of(marks, b, span, spans, count), room + b * words, 0, bins)
    tops += b * room_of(vocab)
    depth, races, token = tl.full((), 0, tl.int32), b * 0, b * 0
    going = root_exists(inputs, b, span)
    while going:
        at, _row, _left, hit = arrive(
            token, depth, b, span, own, drafts, inputs, seed, position, path, max_depth, scratch, False
        )  # fmt: skip
        pair = at.pair
        token, rest, takes = STEP(at, BLOCK)
        token = tl.where(hit, pair.target.only, token)  # for a greedy target: emitted whether it was drafted or not
        going = token >= 0
        if token < 0:
            s = last_stream(seed, position, depth, at.count > 0, races)
            token = tl.maximum(last_race(pair.row, vocab, pair.target, s, rest, at.count > 0, tops, TILES), -1)
            lanes = tl.arange(0, MAX_SIBLINGS)
            x, _node = child(at, lanes)
            going = tl.max(((x == token) & (lanes < takes)).to(tl.int32), 0) > 0
            races += 1
        tl.store(emitted + b * (max_depth + 1) + depth, token)
        depth += going.to(tl.int32)
    tl.store(num_accepted + b, depth)


def verify_tree(call, step, bins=0):
    """Run a scheme's step over the trees of a round. bins: size of its histogram"""
    launch(tree_kernel, (call.batch,), *tree_args(call, bins), STEP=step, **tree_constants(call))


def tree_args(call, bins, sets=1):
    """The arguments of a walk over trees, with scratch for `sets` sets of tables: `words` words a request (see Scratch)."""
    laws, draft_laws = call.laws(normalised=True), call.draft_laws()
    draft, batch, device = call.draft, call.batch, call.device
    if draft is None:  # no nodes, but a row to point at
        draft, draft_laws = call.target, laws
    marks = torch.empty(call.tokens.shape[0] if call.packed else batch * call.node_count, dtype=torch.int32, device=device)
    words = 2 * MAX_SIBLINGS.value + (2 + sets * TABLES.value) * (bins + SPARE.value)
    room = torch.empty(batch, words, dtype=torch.int64, device=device)
    tensors, numbers, _constants = call.nodes_args(draft_laws)
    return (
        call.target, draft, laws, call.spans, call.seeds, call.positions, call.emitted, call.path, call.num_accepted,
        marks, room, tops_for(call.target, batch), *tensors, call.vocab, draft.shape[-1], call.row_count,
        call.node_count, *call.strides(call.target), *call.strides(draft), call.seed, call.position, call.max_depth, bins,
        words, *numbers,
    )  # fmt: skip


def tree_constants(call):
    return {"BLOCK": ALONE_BLOCK, "TILES": race_tiles(call.target, call.draft)} | ALONE
