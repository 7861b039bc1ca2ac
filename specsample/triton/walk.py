"""One verification round on the device: the layout of requests, and the kernels that all schemes share.

A round runs in a few launches: the laws of all rows in parallel, the scheme's walk (one program per request, on scalars and a
vector of its nodes), and one race for each request's last token. A walk writes a *stop*, which describes that race.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .groups import last_race, room_of
from .kernel import Kernel
from .law import BROKEN, FIELDS, Law, load_law, load_logits, prob
from .passes import draft_left
from .streams import ACCEPT, CLOCK, RESIDUAL, Stream, spread, stream, uniform

FEW = tl.constexpr(64)  # nodes processed together if a request has no more, else MAX_NODES
NOTHING, BONUS, REST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # kinds of stops
STOP = tl.constexpr(4)  # int64 fields: kind, depth, target row, draft (law index, or the token of a one-hot draft)
_NO_NODE = tl.constexpr(1 << 30)


class Span(NamedTuple):
    """The location of a request's rows and nodes, int64. Packed: indices of rows and nodes; dense: b·R and b·N."""

    row: object
    rows: object
    node: object
    nodes: object


class Nodes(NamedTuple):
    """P nodes of a request, as vectors."""

    ids: object  # int32
    tokens: object  # int32, −1 if the node does not exist
    parents: object  # int32
    exists: object  # int1


@triton.jit
def span_of(b, spans, rows, nodes):
    if spans is None:
        return Span(b * rows, b * 0 + rows, b * nodes, b * 0 + nodes)
    else:
        at = spans + b * 4
        return Span(tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3))


@triton.jit
def start_of(b, span, spans, stride, is_row: tl.constexpr):
    """Where a request's entries begin in a per-node input; dense: `stride` entries per request (0: one list for all)."""
    if spans is None:
        return b * stride
    elif is_row:
        return span.row
    else:
        return span.node


class Target(NamedTuple):
    """The rows of target logits of all requests."""

    logits: object  # pointer
    laws: object  # pointer to their laws, see law.py
    vocab: object
    stride_b: object  # int64, in elements
    stride_r: object
    spans: object  # None: dense


class Draft(NamedTuple):
    """The rows of draft logits of all requests, indexed like their laws. One-hot drafts have neither."""

    logits: object  # pointer, or None
    laws: object  # pointer, or None
    vocab: object
    count: object  # dense: rows per request
    stride_b: object  # int64, in elements
    stride_r: object
    spans: object  # None: dense


class Inputs(NamedTuple):
    """The per-node inputs of all requests. A request's start is computed where it is needed, to save registers."""

    tokens: object  # pointer
    parents: object  # pointer, or None: a chain
    rows: object  # pointer, or None: row i + 1
    draft_rows: object  # pointer, or None: the row above
    draft_laws: object  # pointer, or None: one-hot drafts
    tokens_stride: object  # dense: entries per request, 0 if one list is shared by all
    parents_stride: object
    rows_stride: object
    draft_rows_stride: object
    draft_count: object  # dense: draft laws per request
    draft_total: object  # draft laws of all requests
    id_limit: object  # ids at or above this exist in no row
    row_a_node: object  # packed: whether there is one draft row per node
    spans: object  # None: dense


class TargetRows(NamedTuple):
    """The part of Inputs that `target_row` reads, for kernels that need no more."""

    rows: object
    rows_stride: object
    spans: object


@triton.jit
def first_row(b, span, spans, logits, stride_b, stride_r):
    """Pointer to a request's row 0."""
    if spans is None:
        return logits + b * stride_b
    else:
        return logits + span.row * stride_r


@triton.jit
def row_of(target, b, span, row):
    """Pointer to a row of a request."""
    first = first_row(b, span, target.spans, target.logits, target.stride_b, target.stride_r)
    return first + row * target.stride_r


@triton.jit
def law_of(target, span, row):
    return load_law(target.laws + (span.row + row) * FIELDS)


@triton.jit
def node_values(values, default, at, inside):
    if values is None:
        return default
    else:
        return tl.load(values + at, mask=inside, other=-1).to(tl.int64)


@triton.jit
def target_row(inputs, b, span, node):
    """Row of a node (−1: the root), int64; inputs: Inputs or TargetRows"""
    if inputs.rows is None:
        return (node + 1).to(tl.int64)
    else:
        start = start_of(b, span, inputs.spans, inputs.rows_stride, True)
        return tl.load(inputs.rows + start + node + 1).to(tl.int64)


@triton.jit
def root_row(inputs, b, span):
    """Row of the root, int64; −1 if the request has no rows"""
    row = b * 0 - 1
    if span.rows > 0:
        row = target_row(inputs, b, span, tl.full((), -1, tl.int32))
    return row


@triton.jit
def load_nodes(first, inputs, b, span, P: tl.constexpr):
    """-> (the Nodes first .. first + P − 1, index of each node's draft law int64 [P]); for one-hot drafts the index is the token."""
    spans, draft_count = inputs.spans, inputs.draft_count
    ids = first + tl.arange(0, P)
    inside = ids < span.nodes
    token = tl.load(inputs.tokens + start_of(b, span, spans, inputs.tokens_stride, False) + ids, mask=inside, other=-1).to(tl.int64)
    wide = ids.to(tl.int64)
    parent = node_values(inputs.parents, wide - 1, start_of(b, span, spans, inputs.parents_stride, False) + ids, inside)
    rows_start = start_of(b, span, spans, inputs.rows_stride, True)
    row = node_values(inputs.rows, wide + 1, rows_start + ids + 1, inside)
    exists = inside & (token >= 0) & (token < inputs.id_limit)
    exists = exists & (parent >= -1) & (parent < ids) & (row >= 0) & (row < span.rows)
    law = token
    if inputs.draft_laws is not None:
        above = node_values(inputs.rows, parent + 1, rows_start + tl.maximum(parent, -1) + 1, exists)
        start, count = span.row, span.rows
        above = tl.where(inputs.row_a_node == 1, wide, above)
        start = tl.where(inputs.row_a_node == 1, span.node, start)
        count = tl.where(inputs.row_a_node == 1, span.nodes, count)
        if spans is None:
            start, count = b * draft_count, b * 0 + draft_count
        drawn = node_values(inputs.draft_rows, above, start_of(b, span, spans, inputs.draft_rows_stride, False) + ids, inside)
        exists = exists & (drawn >= 0) & (drawn < count) & (start + drawn < inputs.draft_total)
        law = start + drawn
        exists = exists & (tl.load(inputs.draft_laws + law * FIELDS + 4, mask=exists, other=BROKEN) != BROKEN)
    token = tl.where(exists, token, -1).to(tl.int32)
    return Nodes(ids, token, parent.to(tl.int32), exists), law


@triton.jit
def first_of(ids, chosen):
    """The lowest of the chosen nodes (int1 [P]); −1 if none: int32"""
    node = tl.min(tl.where(chosen, ids, _NO_NODE), 0)
    return tl.where(node == _NO_NODE, -1, node)


@triton.jit
def first_child(nodes, node):
    """The lowest existing child of `node` (−1: the root); −1 if none: int32"""
    return first_of(nodes.ids, nodes.exists & (nodes.parents == node))


@triton.jit
def at_node(values, ids, node):
    """values[node] of a vector over the nodes; 0 if node is −1"""
    return tl.sum(tl.where(ids == node, values, 0), 0)


@triton.jit
def draft_row_of(draft, law):
    """Pointer to the draft row with the index `law`."""
    if draft.spans is None:
        return draft.logits + (law // draft.count) * draft.stride_b + (law % draft.count) * draft.stride_r
    else:
        return draft.logits + law * draft.stride_r


@triton.jit
def draft_prob_of(draft, law, token):
    """Probability of a drafted token under the law with that index: float64; 1 for a one-hot draft"""
    d = tl.full((), 1.0, tl.float64)
    if draft.laws is not None:
        d = prob(draft_row_of(draft, law), draft.vocab, load_law(draft.laws + law * FIELDS), token)
    return d


@triton.jit
def draft_law_of(draft, law, target_row, target_law):
    """(row, law) of a draft: those with the index `law`; for a one-hot draft (`law`: its token), the target's row and all mass on the token"""
    if draft.laws is None:
        return target_row, Law(target_law.max, target_law.cutoff, target_law.scale, target_law.mass, law)
    else:
        law = tl.maximum(law, 0)  # if nothing was drafted, this reads the first law, which is not used
        return draft_row_of(draft, law), load_law(draft.laws + law * FIELDS)


@triton.jit
def accept(seed, position, node, numerator, denominator):
    """u·denominator < numerator for the acceptance uniform of `node`"""
    return uniform(stream(seed, position, ACCEPT, node)) * denominator < numerator


@triton.jit
def last_stream(seed, position, depth, rest, slot):
    """The stream of a round's last race: the residual's (`rest`; slot: how many ran before), or the clocks of the token's position."""
    tag = tl.where(rest, (RESIDUAL << 24) + slot, CLOCK << 24)
    return Stream(seed, tl.where(rest, position, position + depth), tag.to(tl.uint32))


@triton.jit
def store_stop(stops, b, kind, depth, row, draft):
    tl.store(stops + b * STOP, kind.to(tl.int64))
    tl.store(stops + b * STOP + 1, depth.to(tl.int64))
    tl.store(stops + b * STOP + 2, row)
    tl.store(stops + b * STOP + 3, draft)


@Kernel
def finish_kernel(
    target, draft, laws, draft_laws, spans, seeds, positions, stops, weights, out, tops,
    vocab, draft_vocab, rows, draft_count, stride_b, stride_r, draft_stride_b, draft_stride_r, seed, position, max_depth,
    TILES: tl.constexpr,
):  # fmt: skip
    """Emit each request's last token, where its walk stopped: from the target's law on the clocks of the token's position (BONUS), or
    from (weight·t − d)⁺ on the round's residual stream (REST; if nothing is left, from the target's law)."""
    b = tl.program_id(0).to(tl.int64)
    kind, depth = tl.load(stops + b * STOP), tl.load(stops + b * STOP + 1)
    if kind != NOTHING:
        span = span_of(b, spans, rows, 0)
        index, drawn = tl.load(stops + b * STOP + 2), tl.load(stops + b * STOP + 3)
        targets = Target(target, laws, vocab, stride_b, stride_r, spans)
        row, law = row_of(targets, b, span, index), law_of(targets, span, index)
        drafts = Draft(draft, draft_laws, draft_vocab, draft_count, draft_stride_b, draft_stride_r, spans)
        draft_row, draft_law = draft_law_of(drafts, drawn, row, law)
        key, at = spread(seed, seeds, b, 1), spread(position, positions, b, 0)
        rest = draft_left(draft_row, draft_vocab, draft_law, tl.load(weights + b))
        s = last_stream(key, at, depth, kind == REST, b * 0)
        winner = last_race(row, vocab, law, s, rest, kind == REST, tops + b * room_of(vocab), TILES)
        tl.store(out + b * (max_depth + 1) + depth, winner)


@Kernel
def logprobs_kernel(
    target, laws, spans, rows_of, tokens, nodes, out, vocab, rows, stride_b, stride_r, rows_stride, max_depth,
):  # fmt: skip
    """Writes out float32 [B, D + 1]: the log-probability of each emitted token under `laws`, 0 where none was emitted."""
    at = tl.program_id(0).to(tl.int64)
    b, depth = at // (max_depth + 1), at % (max_depth + 1)
    token = tl.load(tokens + at)
    value = tl.full((), 0.0, tl.float64)
    if token >= 0:
        node = depth * 0 - 1
        if depth > 0:
            node = tl.load(nodes + b * max_depth + depth - 1).to(tl.int64)
        span = span_of(b, spans, rows, 0)
        inputs = Inputs(tokens, None, rows_of, None, None, 0, 0, rows_stride, 0, 0, 0, 0, 0, spans)
        targets = Target(target, laws, vocab, stride_b, stride_r, spans)
        row = target_row(inputs, b, span, node)
        law = law_of(targets, span, row)
        z = load_logits(row_of(targets, b, span, row), token, vocab)
        value = (z.to(tl.float64) - law.max) * law.scale - tl.log(law.mass)
        value = tl.where(z >= law.cutoff, value, float("-inf"))
        value = tl.where(law.only >= 0, tl.where(law.only == token, 0.0, float("-inf")), value)
    tl.store(out + at, value.to(tl.float32))
