"""The entry points of the reference backend: pure torch in float64, any device, any float dtype. It is the specification.

It materialises distributions of size V and is vectorised over requests only, so that every step reads like its formula.
"""

import torch

from ..sampling import OFF
from ..schemes import SCHEMES
from .law import Params
from .rows import draft, log_probs, row_stats, sample
from .walk import Round

__all__ = ["draft", "log_probs", "row_stats", "sample", "verify"]


def verify(
    target_logits, draft_tokens, draft_logits, parents, rows, draft_rows, lists, max_depth, scheme, options,
    sampling, sampling_rows, draft_sampling, draft_sampling_rows, draft_max, draft_logsumexp, draft_cutoff,
    seed, seeds, position, positions, cu_rows, logprobs, draws=None,
):  # fmt: skip
    """The op `specsample::verify` (schema in specsample/ops.py), as its specification."""
    card = SCHEMES[scheme]
    stats = None if draft_max is None else (draft_max, draft_logsumexp, draft_cutoff)
    round = Round(
        target_logits, draft_tokens, draft_logits if card.uses_draft_logits else None, parents, rows, draft_rows,
        lists if card.reads_lists else None, max_depth, options, sampling, sampling_rows, draft_sampling, draft_sampling_rows, stats,
        seed, seeds, position, positions, cu_rows, draws,
    )  # fmt: skip
    if round.batch == 0 or target_logits.numel() == 0:
        empty = torch.full((round.batch, max_depth + 1), -1, device=round.device)
        nodes = empty[:, 1:].to(torch.int32)
        tokens, count = empty, torch.zeros(round.batch, dtype=torch.int32, device=round.device)
    else:
        tokens, count, nodes = card.reference(round)
    return tokens, count, nodes, _logprobs(round, tokens, nodes, logprobs)


def _logprobs(round, tokens, nodes, kind):
    """Log-probabilities of the emitted tokens, float32 [B, D + 1], 0 where nothing is emitted; [0] if not requested."""
    if kind == 0:
        return torch.empty(0, device=round.device)
    if kind == 2:
        round.params = Params.of(OFF, None, round.batch, round.device)
    out = torch.zeros(tokens.shape, dtype=torch.float32, device=round.device)
    if round.batch == 0 or round.target_logits.numel() == 0:
        return out
    node = torch.full((round.batch,), -1, device=round.device)
    for depth in range(tokens.shape[1]):
        value = round.target(node).gather(1, tokens[:, depth : depth + 1].clamp(min=0))[:, 0]
        out[:, depth] = torch.where(tokens[:, depth] >= 0, value, 0.0)
        if depth < nodes.shape[1]:
            node = torch.where(nodes[:, depth] >= 0, nodes[:, depth].to(torch.int64), node)
    return out
