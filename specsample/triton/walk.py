"""One verification round: the layout of requests, what the schemes' kernels share, and the host side of `verify`.

A round runs in a few launches: the laws of all rows in parallel, the scheme's walk (one program a request, on scalars and a
vector of its nodes), and one race for each request's last token. A walk leaves a *stop*: which race that is.
"""

import importlib
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import BLOCK, laws_of, launch, per_row
from .law import BROKEN, FIELDS, load_law, load_logits
from .passes import race_pass
from .streams import ACCEPT, CLOCK, RESIDUAL, spread, stream, uniform

MAX_NODES = 1024
NOTHING, BONUS, REST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # kinds of stops
STOP = tl.constexpr(4)  # int64 fields: kind, depth, target row, draft (law index, or the token of a one-hot draft)
_NO_NODE = tl.constexpr(1 << 30)


class Span(NamedTuple):
    """Where a request's rows and nodes lie, int64. Packed: indices of rows and nodes; dense: b·R and b·N."""

    row: object
    rows: object
    node: object
    nodes: object


class Nodes(NamedTuple):
    """A request's nodes, vectors of P."""

    ids: object  # int32
    tokens: object  # int32, −1 where no node exists
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
def row_base(logits, b, span, spans, stride_b, stride_r):
    """Pointer to a request's row 0."""
    if spans is None:
        return logits + b * stride_b
    else:
        return logits + span.row * stride_r


@triton.jit
def node_values(values, default, at, inside):
    if values is None:
        return default
    else:
        return tl.load(values + at, mask=inside, other=-1).to(tl.int64)


@triton.jit
def target_row(rows, rows_start, node):
    """Row of a node (−1: the root), int64"""
    if rows is None:
        return (node + 1).to(tl.int64)
    else:
        return tl.load(rows + rows_start + node + 1).to(tl.int64)


@triton.jit
def start_of(b, span, spans, stride, is_row: tl.constexpr):
    """Where a request's entries begin in a per-node input; dense: `stride` entries a request (0: one list for all)."""
    if spans is None:
        return b * stride
    elif is_row:
        return span.row
    else:
        return span.node


@triton.jit
def load_nodes(
    b, span, spans, tokens, parents, rows, draft_rows, draft_laws, tokens_stride, parents_stride, rows_stride,
    draft_rows_stride, draft_count, draft_total, id_limit, ROW_A_NODE: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """-> (Nodes, index of each node's draft law int64 [P]); draft_laws None: one-hot drafts, whose index is the token."""
    ids = tl.arange(0, P)
    inside = ids < span.nodes
    token = tl.load(tokens + start_of(b, span, spans, tokens_stride, False) + ids, mask=inside, other=-1).to(tl.int64)
    wide = ids.to(tl.int64)
    parent = node_values(parents, wide - 1, start_of(b, span, spans, parents_stride, False) + ids, inside)
    rows_start = start_of(b, span, spans, rows_stride, True)
    row = node_values(rows, wide + 1, rows_start + ids + 1, inside)
    exists = inside & (token >= 0) & (token < id_limit) & (parent >= -1) & (parent < ids) & (row >= 0) & (row < span.rows)
    law = token
    if draft_laws is not None:
        above = node_values(rows, parent + 1, rows_start + tl.maximum(parent, -1) + 1, exists)
        first, count = span.row, span.rows
        if ROW_A_NODE:
            above, first, count = wide, span.node, span.nodes
        if spans is None:
            first, count = b * draft_count, b * 0 + draft_count
        drawn = node_values(draft_rows, above, start_of(b, span, spans, draft_rows_stride, False) + ids, inside)
        exists = exists & (drawn >= 0) & (drawn < count) & (first + drawn < draft_total)
        law = first + drawn
        exists = exists & (tl.load(draft_laws + law * FIELDS + 4, mask=exists, other=BROKEN) != BROKEN)
    token = tl.where(exists, token, -1).to(tl.int32)
    return Nodes(ids, token, parent.to(tl.int32), exists), law


@triton.jit
def first_child(nodes, node):
    """Lowest existing child of `node` (−1: the root); −1 where none: int32"""
    child = tl.min(tl.where(nodes.exists & (nodes.parents == node), nodes.ids, _NO_NODE), 0)
    return tl.where(child == _NO_NODE, -1, child)


@triton.jit
def at_node(values, ids, node):
    """values[node] of a vector over the nodes; 0 where node is −1"""
    return tl.sum(tl.where(ids == node, values, 0), 0)


@triton.jit
def draft_rows_of(draft_logits, law, draft_count, stride_b, stride_r, spans):
    """Pointer to the draft row of a law index."""
    if spans is None:
        return draft_logits + (law // draft_count) * stride_b + (law % draft_count) * stride_r
    else:
        return draft_logits + law * stride_r


@triton.jit
def accept(seed, position, node, numerator, denominator):
    """u·denominator < numerator for the acceptance uniform of `node`"""
    return uniform(stream(seed, position, ACCEPT, node)) * denominator < numerator


@triton.jit
def store_stop(stops, b, kind, depth, row, draft):
    tl.store(stops + b * STOP, kind.to(tl.int64))
    tl.store(stops + b * STOP + 1, depth.to(tl.int64))
    tl.store(stops + b * STOP + 2, row)
    tl.store(stops + b * STOP + 3, draft)


@triton.jit(do_not_specialize=["rows", "draft_count", "seed", "position", "max_depth"])
def finish_kernel(
    target, draft, laws, draft_laws, spans, seeds, positions, stops, weights, out,
    vocab, draft_vocab, rows, draft_count, stride_b, stride_r, draft_stride_b, draft_stride_r, seed, position, max_depth,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The token that each request emits where its walk stopped: of the target's law on the token's own clocks (BONUS), or of
    (weight·t − d)⁺ on the round's residual stream (REST; where nothing is left, of the target's law)."""
    b = tl.program_id(0).to(tl.int64)
    kind, depth = tl.load(stops + b * STOP), tl.load(stops + b * STOP + 1)
    if kind != NOTHING:
        span = span_of(b, spans, rows, 0)
        index, drawn = tl.load(stops + b * STOP + 2), tl.load(stops + b * STOP + 3)
        row = row_base(target, b, span, spans, stride_b, stride_r) + index * stride_r
        law = load_law(laws + (span.row + index) * FIELDS)
        key, here = spread(seed, seeds, b, 1), spread(position, positions, b, 0)
        s = stream(key, here + depth, CLOCK, b * 0)
        exclude = b * 0 - 1
        winner = law.only
        if kind == REST:
            s = stream(key, here, RESIDUAL, b * 0)
            exclude = drawn
            if draft_laws is not None:
                draft_law = load_law(draft_laws + drawn * FIELDS)
                exclude = draft_law.only  # (w t − 1)⁺ vanishes on a one-hot draft's token, elsewhere the weights are t's
                if (winner < 0) & (exclude < 0):
                    norm = tl.load(weights + b) / law.mass
                    draft_row = draft_rows_of(draft, drawn, draft_count, draft_stride_b, draft_stride_r, spans)
                    _score, winner, _top = race_pass(
                        row, vocab, law, -1, s, float("inf"), 0, draft_row, draft_vocab, draft_law, norm, True, BLOCK
                    )
        tries = 2
        while (winner < 0) & (tries > 0):
            _score, winner, _top = race_pass(
                row, vocab, law, exclude, s, float("inf"), 0, row, vocab, law, 1.0, False, BLOCK
            )
            exclude = b * 0 - 1
            tries -= 1
        tl.store(out + b * (max_depth + 1) + depth, winner)


@triton.jit(do_not_specialize=["rows", "rows_stride", "max_depth"])
def logprobs_kernel(
    target, laws, spans, rows_of, tokens, nodes, out, vocab, rows, stride_b, stride_r, rows_stride, max_depth,
):  # fmt: skip
    """out float32 [B, D + 1]: log-probability of each emitted token under `laws`, 0 where none was emitted."""
    at = tl.program_id(0).to(tl.int64)
    b, depth = at // (max_depth + 1), at % (max_depth + 1)
    token = tl.load(tokens + at)
    value = tl.full((), 0.0, tl.float64)
    if token >= 0:
        node = depth * 0 - 1
        if depth > 0:
            node = tl.load(nodes + b * max_depth + depth - 1).to(tl.int64)
        span = span_of(b, spans, rows, 0)
        row = target_row(rows_of, start_of(b, span, spans, rows_stride, True), node)
        law = load_law(laws + (span.row + row) * FIELDS)
        z = load_logits(row_base(target, b, span, spans, stride_b, stride_r) + row * stride_r, token, vocab)
        value = (z.to(tl.float64) - law.max) * law.scale - tl.log(law.mass)
        value = tl.where(z >= law.cutoff, value, float("-inf"))
        value = tl.where(law.only >= 0, tl.where(law.only == token, 0.0, float("-inf")), value)
    tl.store(out + at, value.to(tl.float32))


class Round:
    """A round's inputs on the host, as the kernels take them, and its outputs."""

    def __init__(
        self, target_logits, draft_tokens, draft_logits, parents, rows, draft_rows, max_depth, settings, draft_settings,
        kept, seed, seeds, position, positions, cu_rows,
    ):  # fmt: skip
        self.target, self.draft, self.max_depth = target_logits, draft_logits, max_depth
        self.settings, self.draft_settings, self.kept = settings, draft_settings, kept
        self.packed = cu_rows is not None
        self.device, self.vocab = target_logits.device, target_logits.shape[-1]
        self.batch = cu_rows.shape[0] - 1 if self.packed else target_logits.shape[0]
        self.tokens = draft_tokens.contiguous()
        self.parents, self.rows, self.draft_rows = (None if x is None else x.contiguous() for x in (parents, rows, draft_rows))
        self.row_count = 0 if self.packed else target_logits.shape[1]
        self.node_count = min(draft_tokens.shape[-1], MAX_NODES)
        self.draft_total = 0 if draft_logits is None else draft_logits.numel() // max(1, draft_logits.shape[-1])
        self.draft_count = 1 if self.packed or draft_logits is None else draft_logits.shape[1]
        self.row_a_node = self.packed and draft_logits is not None and draft_logits.shape[0] != target_logits.shape[0]
        self.id_limit = max(self.vocab, 0 if draft_logits is None else draft_logits.shape[-1])
        self.spans = self._spans(cu_rows) if self.packed else None
        (self.seed, self.seeds), (self.position, self.positions) = per_row(seed, seeds), per_row(position, positions)
        self.emitted = torch.full((self.batch, max_depth + 1), -1, dtype=torch.int64, device=self.device)
        self.path = torch.full((self.batch, max_depth), -1, dtype=torch.int32, device=self.device)
        self.num_accepted = torch.zeros(self.batch, dtype=torch.int32, device=self.device)

    def _spans(self, cu_rows):
        """int64 [B, 4]: first row, rows, first node, nodes of each request, cut to what the tensors have."""
        start = cu_rows[:-1].to(torch.int64)
        count = (cu_rows[1:].to(torch.int64) - start).clamp(min=0)
        nodes = (count - 1).clamp(min=0)
        first = nodes.cumsum(0) - nodes
        total = self.target.shape[0]
        count = torch.where((start < 0) | (start >= total), 0, torch.minimum(count, total - start))
        nodes = torch.minimum(nodes.clamp(max=MAX_NODES), (self.tokens.shape[0] - first).clamp(min=0))
        if self.rows is not None:  # the root's row and a row a node, as far as they are given
            nodes = torch.minimum(nodes, (self.rows.shape[0] - start - 1).clamp(min=0))
        return torch.stack([start.clamp(min=0), count, first, nodes], 1)

    def owner(self, nodes=False, total=None):
        """Request of each packed row (or node) of a tensor of `total`: int64, −1 where nobody's."""
        start, count = self.spans[:, 2 * nodes], self.spans[:, 2 * nodes + 1]
        at = torch.arange(self.target.shape[0] if total is None else total, device=self.device)
        owner = torch.searchsorted((start + count).contiguous(), at, right=True)
        mine = (owner < self.batch) & (at >= start[owner.clamp(max=self.batch - 1)])
        return torch.where(mine, owner, -1)

    def laws(self, *, normalised, settings=None):
        owner = self.owner() if self.packed else None
        return laws_of(self.target, *(settings or self.settings), owner=owner, batch=self.batch, normalised=normalised)

    def draft_laws(self):
        """None for one-hot drafts."""
        if self.draft is None:
            return None
        owner = self.owner(self.row_a_node, self.draft.shape[0]) if self.packed else None
        return laws_of(self.draft, *self.draft_settings, owner=owner, batch=self.batch, kept=self.kept)

    @property
    def width(self):
        """Vector length of a request's nodes."""
        return triton.next_power_of_2(max(self.node_count, 4))

    def strides(self, logits):
        return (0, 0) if logits is None else (logits.stride(0) if logits.dim() == 3 else 0, logits.stride(-2))

    def stride_of(self, values):
        """Entries a request of a dense per-node input; 0: one list for all requests."""
        return 0 if values is None or values.dim() == 1 else values.shape[1]

    def nodes_args(self, draft_laws):
        """(tensors, numbers, constants) of a walk's kernel, in the order of `load_nodes`."""
        lists = (self.tokens, self.parents, self.rows, self.draft_rows)
        numbers = (*map(self.stride_of, lists), self.draft_count, self.draft_total, self.id_limit)
        return (*lists, draft_laws), numbers, {"ROW_A_NODE": self.row_a_node, "P": self.width}

    def finish(self, laws, draft_laws, stops, weights):
        launch(
            finish_kernel, (self.batch,), self.target, self.draft, laws, draft_laws, self.spans, self.seeds, self.positions,
            stops, weights, self.emitted, self.vocab, 0 if self.draft is None else self.draft.shape[-1], self.row_count,
            self.draft_count, *self.strides(self.target), *self.strides(self.draft), self.seed, self.position,
            self.max_depth, BLOCK=BLOCK,
        )  # fmt: skip

    def logprobs(self, laws):
        out = torch.empty(self.emitted.shape, dtype=torch.float32, device=self.device)
        launch(
            logprobs_kernel, (self.emitted.numel(),), self.target, laws, self.spans, self.rows, self.emitted, self.path, out,
            self.vocab, self.row_count, *self.strides(self.target), self.stride_of(self.rows), self.max_depth,
        )  # fmt: skip
        return out


def verify(
    target_logits, draft_tokens, draft_logits, parents, rows, draft_rows, lists, max_depth, scheme, options,
    sampling, sampling_rows, draft_sampling, draft_sampling_rows, draft_max, draft_logsumexp, draft_cutoff,
    seed, seeds, position, positions, cu_rows, logprobs,
):  # fmt: skip
    """The op `specsample_triton::verify` (schema in specsample/ops.py)."""
    from . import SCHEMES

    if scheme not in SCHEMES:
        raise ValueError(f"scheme: the triton backend has {', '.join(SCHEMES)}, got {scheme!r}")
    kept = None if draft_max is None else tuple(s.contiguous() for s in (draft_max, draft_logsumexp, draft_cutoff))
    round = Round(
        target_logits, draft_tokens, draft_logits, parents, rows, draft_rows, max_depth, (sampling, sampling_rows),
        (draft_sampling, draft_sampling_rows), kept, seed, seeds, position, positions, cu_rows,
    )  # fmt: skip
    empty = round.batch == 0 or target_logits.numel() == 0
    if not empty:
        importlib.import_module(f".{scheme}", __package__).verify(round)
    if not logprobs:
        emitted = torch.empty(0, dtype=torch.float32, device=round.device)
    elif empty:
        emitted = torch.zeros(round.emitted.shape, dtype=torch.float32, device=round.device)
    else:
        raw = ([1.0, 0.0, 1.0, 0.0], None) if logprobs == 2 else None
        emitted = round.logprobs(round.laws(normalised=True, settings=raw))
    return round.emitted, round.num_accepted, round.path, emitted
