"""Sampling, drafting and verification from logits. Every function takes `backend=None`.

Dimensions: B requests, N draft nodes per request (a chain of L tokens has N = L), R rows of logits per request, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import backends
from .arguments import (
    INTS,
    check_draft_logits,
    check_logits,
    check_options,
    check_parents,
    check_stats,
    int_or_tensor,
    per_node,
)
from .errors import expect
from .limits import MAX_NODES
from .reference import backend as reference
from .sampling import Sampling, pack
from .schemes import SCHEMES, Scheme

DRAFT_KINDS = ("iid", "distinct", "arrivals", "lists", "top", "topk")
Integers = int | Tensor  # one for all, or a tensor with one for each
Table = Tensor | Sequence  # of integers
_LOGPROBS = {None: 0, "filtered": 1, "raw": 2}
_DEFAULT = Sampling()


class RowStats(NamedTuple):
    """Statistics of each row of logits, float32 [R] each.

    max        largest logit
    logsumexp  log Σ exp(logit / temperature) over the kept tokens; 0 for a greedy row
    cutoff     smallest logit that the filters keep (−inf: no filter)

    A kept token has log-probability logit / temperature − logsumexp.
    """

    max: Tensor
    logsumexp: Tensor
    cutoff: Tensor


class Verdict(NamedTuple):
    """The outcome of one round for each request. D = max_depth.

    tokens        int64 [B, D + 1]: emitted tokens, padded with −1
    num_accepted  int32 [B]: how many of them are draft tokens. One more token is always emitted, unless its row has no finite logit
    nodes         int32 [B, D]: the accepted nodes, root to leaf, padded with −1: the nodes a KV cache keeps
    logprobs      float32 [B, D + 1]: log-probabilities of the emitted tokens, padded with 0; None if not requested
    """

    tokens: Tensor
    num_accepted: Tensor
    nodes: Tensor
    logprobs: Tensor | None


def schemes() -> dict[str, Scheme]:
    """{name: Scheme}: every verification scheme, with the backends that support it on this machine."""
    return {name: card._replace(backends=backends.schemes_of(name)) for name, card in SCHEMES.items()}


def sample(
    logits: Tensor, *, sampling: Sampling = _DEFAULT, seed: Integers, position: Integers, backend: str | None = None
) -> Tensor:
    """Sample one token from each row: the winner of an exponential race with the clocks of (seed, position).

    logits    [B, V], float32, bfloat16 or float16 (any float dtype under `reference`)
    seed      int64 [B], or an int s, short for s, s + 1, …, s + B − 1
    position  int or int64 [B]: the absolute index of the token
    -> int64 [B]; −1 for a row without a finite logit

    Errors: ValueError naming the argument for wrong shapes, dtypes, devices and ranges.
    Source: the exponential race (Gumbel-max trick); purpose-0 clocks, the same ones that `verify` uses for `race` and the bonus token.
    """
    rows = check_logits(logits, "logits", 2)
    numbers, per_row = pack(sampling, (rows,), logits.device)
    seed, seeds = int_or_tensor(seed, "seed", rows, logits.device)
    position, positions = int_or_tensor(position, "position", rows, logits.device)
    run = backends.pick(backend, logits, "logits").sample
    return run(logits, numbers, per_row, seed, seeds, position, positions)


def draft(
    logits: Tensor,
    k: int = 1,
    *,
    kind: str = "iid",
    sampling: Sampling = _DEFAULT,
    seed: Integers,
    position: Integers,
    depth: Integers = 0,
    node: Integers = 0,
    backend: str | None = None,
) -> Tensor:
    """Draft k children for each row of logits. Each row belongs to one node of the tree, the parent of the children drawn from it.

    logits    [R, V] as in `sample`
    k         int in [1, 1024]: children per row
    kind      "iid": k independent draws, from one race; "distinct": k draws without replacement, in order (`recursive_distinct`);
              "arrivals": the first k arrivals of the race with the clocks of the children's position (`race`; k = 1 is `sample`
              at that position); "lists": child j is the winner on clock list j of the children's position (`lists`);
              "top": the k − 1 likeliest, then one drawn from the rest (`top`); "topk": the k likeliest, lowest id first on ties.
              `schemes()` gives the kind that each scheme needs
    seed      int64 [R], or an int s, short for s, s + 1, …, s + R − 1
    position  int or int64 [R]: the position of the round, i.e. the index of the first token the round will emit
    depth     int or int64 [R]: depth of the parent below the root (0 for the root)
    node      int or int64 [R]: index of the first child in the tree, which selects the row's random numbers: no other row of the
              round may have it. (A plain int suits one row, or rows of different seeds.) "top": child j has index node + j
    -> int64 [R, k]; −1 where fewer than k tokens have positive weight ("iid": where none has). For every kind but "top", the
    first children are the same whatever k

    Errors: ValueError naming the argument.
    """
    rows = check_logits(logits, "logits", 2)
    expect(kind in DRAFT_KINDS, "kind", f"one of {', '.join(DRAFT_KINDS)}", repr(kind))
    expect(isinstance(k, int) and 1 <= k <= MAX_NODES, "k", f"an integer in [1, {MAX_NODES}]", k)
    numbers, per_row = pack(sampling, (rows,), logits.device)
    seed, seeds = int_or_tensor(seed, "seed", rows, logits.device)
    position, positions = int_or_tensor(position, "position", rows, logits.device)
    depth, depths = int_or_tensor(depth, "depth", rows, logits.device)
    node, nodes = int_or_tensor(node, "node", rows, logits.device)
    run = backends.pick(backend, logits, "logits", kind=kind).draft
    return run(logits, k, kind, numbers, per_row, seed, seeds, position, positions, depth, depths, node, nodes)


def row_stats(logits: Tensor, *, sampling: Sampling = _DEFAULT, backend: str | None = None) -> RowStats:
    """Maximum, log-sum-exp and cut-off of each row of logits [R, V]: enough to recover its distribution without another pass.

    Pass the statistics of the draft rows to `verify(draft_stats=...)` to save a pass over each of them. `verify` recomputes rows
    whose |logsumexp| exceeds 32 (very low temperatures), where float32 would not determine the probabilities to 1e-6.
    -> RowStats of float32 [R]; ValueError naming the argument
    """
    rows = check_logits(logits, "logits", 2)
    numbers, per_row = pack(sampling, (rows,), logits.device)
    return RowStats(*backends.pick(backend, logits, "logits").row_stats(logits, numbers, per_row))


def log_probs(logits: Tensor, *, sampling: Sampling = _DEFAULT, backend: str | None = None) -> Tensor:
    """Log-probabilities of each row of logits [R, V] after temperature and filters.

    For tests and notebooks: unlike everything else here, it writes R·V numbers. Compiled backends compute the row statistics
    in their kernels and finish in torch.
    -> [R, V], −inf where filtered; float32, or float64 from `reference`. ValueError naming the argument
    """
    rows = check_logits(logits, "logits", 2)
    numbers, per_row = pack(sampling, (rows,), logits.device)
    chosen = backends.pick(backend, logits, "logits")
    if chosen is reference or not logits.numel():
        return reference.log_probs(logits, numbers, per_row)
    # The kernel computes only what is reduced over a row: the maximum and the cut-off. The rest follows here.
    stats = chosen.row_stats(logits, numbers, per_row)
    temperature = logits.new_full((1, 1), numbers[0], dtype=torch.float64) if per_row is None else per_row[0][:, None]
    top, cutoff = stats[0][:, None], stats[2][:, None]
    z = logits.float()
    kept = (z >= cutoff) & (z > -torch.inf)
    infinite, greedy = top == torch.inf, ~(temperature > 0)
    law = (z.double() - top.double()) / torch.where(greedy, 1.0, temperature).clamp(min=1e-30)
    law = torch.where(kept, torch.where(infinite, 0.0, law), -torch.inf)
    law = law - law.logsumexp(-1, keepdim=True)
    winner = z.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argmax(-1, keepdim=True)
    point = torch.full_like(law, -torch.inf).scatter(1, winner, 0.0)
    law = torch.where(greedy, point, law)
    return torch.where(kept.any(-1, keepdim=True), law, -torch.inf).float()


def verify(
    target_logits: Tensor,
    draft_tokens: Tensor,
    draft_logits: Tensor | None = None,
    *,
    parents: Table | None = None,
    rows: Table | None = None,
    draft_rows: Table | None = None,
    lists: Table | None = None,
    max_depth: int | None = None,
    scheme: str = "token",
    options: Mapping[str, float] | None = None,
    sampling: Sampling = _DEFAULT,
    draft_sampling: Sampling | None = None,
    draft_stats: RowStats | None = None,
    seed: Integers,
    position: Integers,
    cu_rows: Tensor | None = None,
    logprobs: Literal["filtered", "raw"] | None = None,
    backend: str | None = None,
) -> Verdict:
    """Verify drafted tokens against the target, for one round of every request, from raw logits.

    The emitted tokens are distributed exactly as if sampled from the target, whatever the draft, as long as the drafts were drawn
    as the scheme requires (`schemes()[scheme].draft_kind`).

    target_logits   [B, R, V]; by default R = N + 1, row 0 after the committed prefix, row i + 1 after draft node i.
                    Packed: [>= total, V]
    draft_tokens    [B, N] int64 or int32 (packed: [>= total − B]); −1 = no such node
    draft_logits    [B, R', V'], the rows the drafts were drawn from; None = deterministic drafts (one-hot) under token and
                    block; race and lists never need them. V' may differ from V: missing ids have weight 0. Packed
                    like the target, or one row per node
    parents         [N] or [B, N] int, tensor or list; −1 = child of the root; each parent precedes its children. None = a chain.
                    Only the first 64 children of a node are considered
    rows            [N + 1] or [B, N + 1] int: target row of the root and of each node. None = 0..N
    draft_rows      [N] or [B, N] int: the draft row each node was drawn from. None = the index of its parent's target row
    lists           [N] or [B, N] int in [0, 1024): clock list of each node (scheme "lists"). None = 0..K − 1 for the root's
                    children, inherited by their descendants
    max_depth       int, the maximum depth, which sets the output width; deeper nodes are ignored. None = N, or the tree's depth
    scheme          see `schemes()`
    options         mapping of names to numbers: settings of the scheme (`schemes()[name].options`)
    sampling        temperature and filters of the target
    draft_sampling  those of the drafts, per request or per draft row; None = the target's
    draft_stats     RowStats of the draft rows, if kept from drafting
    seed            int64 [B], or an int s, short for s, s + 1, …, s + B − 1
    position        int or int64 [B]: the absolute index of the first token this call emits
    cu_rows         int32 [B + 1] with a leading 0: packed layout; request b owns rows cu_rows[b] .. cu_rows[b + 1] − 1 and
                    one node fewer; a request without rows emits nothing. max_depth is required
    logprobs        None, "filtered" (under the target's filtered distribution) or "raw" (temperature 1, no filters)
    backend         None = the best available backend that supports the scheme; or "reference", "cpu", "cuda", "triton"
    -> Verdict

    Trees: siblings may carry the same token (i.i.d. draws can) and are never merged. Accepting a token moves to all live siblings
    that carry it; `nodes` holds the first of them, whose rows are used, so nodes with the same prefix must share target and draft
    rows through `rows` and `draft_rows`. Under every scheme but `race`, the number of a node's children must be fixed before they
    are drawn, and no child may be dropped for its value. At most 1024 nodes; of a node's live children the first 64 are considered.

    Lists of ints are copied to an accelerator by the first call that uses them and kept there: later calls do not wait for a copy,
    and a graph capture needs one such call before it.

    Errors: ValueError naming the argument, for everything that can be checked without reading device memory. In the data: a node
    with an id outside [−1, V), a parent that does not precede it, a row out of range, or a draft row without a finite logit is
    treated as absent; a target row without a finite logit emits −1 and ends the round.
    """
    if not (isinstance(scheme, str) and scheme in SCHEMES):
        expect(False, "scheme", f"one of {', '.join(SCHEMES)}", repr(scheme))
    card, packed = SCHEMES[scheme], cu_rows is not None
    if cu_rows is not None:
        expect(isinstance(cu_rows, torch.Tensor) and cu_rows.dtype == torch.int32, "cu_rows", "an int32 tensor", cu_rows)
        expect(cu_rows.dim() == 1 and cu_rows.shape[0] >= 1, "cu_rows", "shape [B + 1]", tuple(cu_rows.shape))
    check_logits(target_logits, "target_logits", 2 if packed else 3)
    device, shape = target_logits.device, target_logits.shape
    if not isinstance(draft_tokens, torch.Tensor):
        expect(False, "draft_tokens", "a tensor", type(draft_tokens).__name__)
    sizes = draft_tokens.shape
    if draft_tokens.dtype not in INTS:
        expect(False, "draft_tokens", "int64 or int32", draft_tokens.dtype)
    if draft_tokens.device != device:
        expect(False, "draft_tokens", f"a tensor on {device}", draft_tokens.device)
    if cu_rows is not None:
        expect(cu_rows.device == device, "cu_rows", f"a tensor on {device}", cu_rows.device)
        expect(len(sizes) == 1, "draft_tokens", "shape [total − B] when packed", tuple(sizes))
        expect(max_depth is not None, "max_depth", "an int when packed", None)
        batch, nodes, limit = cu_rows.shape[0] - 1, sizes[0], max_depth
    else:
        batch = shape[0]
        if len(sizes) != 2 or sizes[0] != batch:
            expect(False, "draft_tokens", f"shape [{batch}, N]", tuple(sizes))
        nodes = limit = sizes[1]
        if nodes > MAX_NODES:
            expect(False, "draft_tokens", f"at most {MAX_NODES} nodes a request", nodes)
        if rows is None and shape[1] != nodes + 1:
            expect(False, "target_logits", f"shape [{batch}, N + 1 = {nodes + 1}, V]", tuple(shape))
    if draft_logits is None:
        if not card.one_hot and nodes > 0:
            expect(False, "draft_logits", f"the drafts' logits (scheme {card.name!r} needs them)", None)
    else:
        check_draft_logits(draft_logits, target_logits, nodes, packed, rows is not None or draft_rows is not None)
    if parents is not None or rows is not None or draft_rows is not None or lists is not None:
        parents = per_node(parents, "parents", batch, nodes, packed, device)
        rows = per_node(rows, "rows", batch, nodes, packed, device, extra=1)
        draft_rows = per_node(draft_rows, "draft_rows", batch, nodes, packed, device)
        lists = per_node(lists, "lists", batch, nodes, packed, device)
        readable = parents is not None and device.type == "cpu" and not packed and not torch.compiler.is_compiling()
        if readable and (max_depth is None or not card.trees):
            limit = check_parents(parents, card)
    if max_depth is None:
        max_depth = limit
    elif not (isinstance(max_depth, int) and max_depth >= 0):
        expect(False, "max_depth", "an int >= 0", max_depth)
    if options is not None:
        check_options(options, card)
    if not (logprobs is None or (isinstance(logprobs, str) and logprobs in _LOGPROBS)):
        expect(False, "logprobs", 'None, "filtered" or "raw"', repr(logprobs))

    numbers, per_request = pack(sampling, (batch,), device)
    draft_max = draft_logsumexp = draft_cutoff = None
    if draft_sampling is None:
        draft_numbers, draft_rows_sampling = numbers, per_request
    else:
        counts = (batch,) if draft_logits is None else (batch, draft_logits.numel() // max(1, draft_logits.shape[-1]))
        draft_numbers, draft_rows_sampling = pack(draft_sampling, counts, device, "draft_sampling")
    if draft_stats is not None and draft_logits is not None:
        draft_max, draft_logsumexp, draft_cutoff = check_stats(draft_stats, draft_logits)
    if not card.uses_draft_logits:  # checked like the rest, but the drafts' distribution is not used
        draft_logits = draft_rows_sampling = draft_max = draft_logsumexp = draft_cutoff = None
    seed, seeds = int_or_tensor(seed, "seed", batch, device)
    position, positions = int_or_tensor(position, "position", batch, device)

    tokens, num_accepted, path, emitted = backends.pick(backend, target_logits, "target_logits", scheme=scheme).verify(
        target_logits, draft_tokens, draft_logits, parents, rows, draft_rows, lists, max_depth, scheme,
        [float((options or {}).get(name, setting[0])) for name, setting in card.options.items()] if card.options else [],
        numbers, per_request, draft_numbers, draft_rows_sampling, draft_max, draft_logsumexp, draft_cutoff,
        seed, seeds, position, positions, cu_rows, _LOGPROBS[logprobs],
    )  # fmt: skip
    return Verdict(tokens, num_accepted, path, emitted if logprobs is not None else None)
