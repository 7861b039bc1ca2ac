"""One verification round on the host: `verify`, and the inputs, scratch and launches that all schemes share."""

import importlib

import torch

from ..limits import MAX_NODES
from .launch import LAST, launch, laws_of, per_row, race_tiles, tops_for
from .walk import FEW, finish_kernel, logprobs_kernel


class Call:
    """A round's inputs on the host, in the form the kernels expect, and its outputs."""

    def __init__(
        self, target_logits, draft_tokens, draft_logits, parents, rows, draft_rows, lists, max_depth, options, settings,
        draft_settings, kept, seed, seeds, position, positions, cu_rows,
    ):  # fmt: skip
        if draft_logits is not None and draft_logits.numel() == 0:  # an empty draft is the same as none, without nodes
            draft_logits, draft_tokens = None, draft_tokens[..., :0]
        self.target, self.draft, self.max_depth, self.options = target_logits, draft_logits, max_depth, options
        self.settings, self.draft_settings, self.kept = settings, draft_settings, kept
        self.packed = cu_rows is not None
        self.device, self.vocab = target_logits.device, target_logits.shape[-1]
        self.batch = cu_rows.shape[0] - 1 if self.packed else target_logits.shape[0]
        self.tokens = draft_tokens.contiguous()
        per_node = (parents, rows, draft_rows, lists)
        self.parents, self.rows, self.draft_rows, self.lists = (None if x is None else x.contiguous() for x in per_node)
        self.row_count = 0 if self.packed else target_logits.shape[1]
        self.node_count = min(draft_tokens.shape[-1], MAX_NODES)
        self.draft_total = 0 if draft_logits is None else draft_logits.numel() // max(1, draft_logits.shape[-1])
        self.draft_count = 1 if self.packed or draft_logits is None else max(1, draft_logits.shape[1])
        self.row_a_node = self.packed and draft_logits is not None and draft_logits.shape[0] != target_logits.shape[0]
        self.id_limit = max(self.vocab, 0 if draft_logits is None else draft_logits.shape[-1])
        self.spans = self._spans(cu_rows) if self.packed else None
        (self.seed, self.seeds), (self.position, self.positions) = per_row(seed, seeds), per_row(position, positions)
        self.emitted = torch.full((self.batch, max_depth + 1), -1, dtype=torch.int64, device=self.device)
        self.path = torch.full((self.batch, max_depth), -1, dtype=torch.int32, device=self.device)
        self.num_accepted = torch.zeros(self.batch, dtype=torch.int32, device=self.device)

    def _spans(self, cu_rows):
        """int64 [B, 4]: first row, rows, first node, nodes of each request, clipped to the sizes of the tensors."""
        start = cu_rows[:-1].to(torch.int64)
        count = (cu_rows[1:].to(torch.int64) - start).clamp(min=0)
        nodes = (count - 1).clamp(min=0)
        first = nodes.cumsum(0) - nodes
        total = self.target.shape[0]
        count = torch.where((start < 0) | (start >= total), 0, torch.minimum(count, total - start))
        nodes = torch.minimum(nodes.clamp(max=self.width), (self.tokens.shape[0] - first).clamp(min=0))
        if self.rows is not None:  # a row for the root and one per node, as far as given
            nodes = torch.minimum(nodes, (self.rows.shape[0] - start - 1).clamp(min=0))
        return torch.stack([start.clamp(min=0), count, first, nodes], 1)

    def owner(self, nodes=False, total=None):
        """The request that owns each packed row (or node) of a tensor with `total` of them: int64, −1 if none."""
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
        """How many nodes of a request are processed together: FEW, or MAX_NODES if there may be more. In the packed layout the host does
        not know the number; but the walk of a chain ends at max_depth."""
        most = self.node_count if not self.packed else self.max_depth if self.parents is None else MAX_NODES
        return FEW.value if most <= FEW.value else MAX_NODES

    def strides(self, logits):
        return (0, 0) if logits is None else (logits.stride(0) if logits.dim() == 3 else 0, logits.stride(-2))

    def stride_of(self, values):
        """Entries per request of a dense per-node input; 0: one list shared by all requests."""
        return 0 if values is None or values.dim() == 1 else values.shape[1]

    def nodes_args(self, draft_laws):
        """(tensors, numbers, constants) for a walk's kernel, in the order of `walk.Inputs`."""
        lists = (self.tokens, self.parents, self.rows, self.draft_rows)
        numbers = (*map(self.stride_of, lists), self.draft_count, self.draft_total, self.id_limit, int(self.row_a_node))
        return (*lists, draft_laws), numbers, {"P": self.width}

    def finish(self, laws, draft_laws, stops, weights):
        launch(
            finish_kernel, (self.batch,), self.target, self.draft, laws, draft_laws, self.spans, self.seeds, self.positions,
            stops, weights, self.emitted, tops_for(self.target, self.batch), self.vocab,
            0 if self.draft is None else self.draft.shape[-1], self.row_count, self.draft_count, *self.strides(self.target),
            *self.strides(self.draft), self.seed, self.position, self.max_depth, TILES=race_tiles(self.target, self.draft), **LAST,
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
    from . import SUPPORTED

    if scheme not in SUPPORTED:
        raise ValueError(f"scheme: the triton backend has {', '.join(SUPPORTED)}, got {scheme!r}")
    kept = None if draft_max is None else tuple(s.contiguous() for s in (draft_max, draft_logsumexp, draft_cutoff))
    call = Call(
        target_logits, draft_tokens, draft_logits, parents, rows, draft_rows, lists, max_depth, options,
        (sampling, sampling_rows), (draft_sampling, draft_sampling_rows), kept, seed, seeds, position, positions, cu_rows,
    )  # fmt: skip
    empty = call.batch == 0 or target_logits.numel() == 0
    if not empty:
        importlib.import_module(f".{scheme}", __package__).verify(call)
    if not logprobs:
        emitted = torch.empty(0, dtype=torch.float32, device=call.device)
    elif empty:
        emitted = torch.zeros(call.emitted.shape, dtype=torch.float32, device=call.device)
    else:
        raw = ([1.0, 0.0, 1.0, 0.0], None) if logprobs == 2 else None
        emitted = call.logprobs(call.laws(normalised=True, settings=raw))
    return call.emitted, call.num_accepted, call.path, emitted
