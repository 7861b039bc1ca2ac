"""The ops: one schema and one fake kernel each, defined here and nowhere else.

Compiled kernels register themselves for their device when `specsample._C` is loaded (csrc/row_ops.h, csrc/verify_op.h). Each of
seed, position, sampling, … is passed as a pair (number, tensor or None), so that the common call, which has numbers, need not
create tensors for them.
"""

import torch

from .names import LIBRARY

_SAMPLING = "float[] sampling, Tensor? sampling_rows"
_SEED = "SymInt seed, Tensor? seeds, SymInt position, Tensor? positions"

SCHEMAS = {
    "sample": f"(Tensor logits, {_SAMPLING}, {_SEED}) -> Tensor",
    "draft": (
        f"(Tensor logits, SymInt k, str kind, {_SAMPLING}, {_SEED}, "
        "SymInt depth, Tensor? depths, SymInt node, Tensor? nodes) -> Tensor"
    ),
    "row_stats": f"(Tensor logits, {_SAMPLING}) -> (Tensor max, Tensor logsumexp, Tensor cutoff)",
    "verify": (
        "(Tensor target_logits, Tensor draft_tokens, Tensor? draft_logits, Tensor? parents, Tensor? rows, "
        "Tensor? draft_rows, Tensor? lists, SymInt max_depth, str scheme, float[] options, "
        f"{_SAMPLING}, float[] draft_sampling, Tensor? draft_sampling_rows, "
        "Tensor? draft_max, Tensor? draft_logsumexp, Tensor? draft_cutoff, "
        f"{_SEED}, Tensor? cu_rows, int logprobs) "
        "-> (Tensor tokens, Tensor num_accepted, Tensor nodes, Tensor logprobs)"
    ),
}


def _sample(logits, sampling, sampling_rows, seed, seeds, position, positions):
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _draft(logits, k, kind, sampling, sampling_rows, seed, seeds, position, positions, depth, depths, node, nodes):
    return logits.new_empty(logits.shape[0], k, dtype=torch.int64)


def _row_stats(logits, sampling, sampling_rows):
    return tuple(logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(3))


def _verify(
    target_logits, draft_tokens, draft_logits, parents, rows, draft_rows, lists, max_depth, scheme, options,
    sampling, sampling_rows, draft_sampling, draft_sampling_rows, draft_max, draft_logsumexp, draft_cutoff,
    seed, seeds, position, positions, cu_rows, logprobs,
):  # fmt: skip
    batch = target_logits.shape[0] if cu_rows is None else cu_rows.shape[0] - 1
    return (
        target_logits.new_empty(batch, max_depth + 1, dtype=torch.int64),
        target_logits.new_empty(batch, dtype=torch.int32),
        target_logits.new_empty(batch, max_depth, dtype=torch.int32),
        target_logits.new_empty((batch, max_depth + 1) if logprobs else (0,), dtype=torch.float32),
    )


_FAKES = {"sample": _sample, "draft": _draft, "row_stats": _row_stats, "verify": _verify}


def declare(namespace):
    """Define the ops under torch.ops.<namespace>, with their fake kernels. -> the Library, which the caller must keep alive"""
    library = torch.library.Library(namespace, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
        torch.library.register_fake(f"{namespace}::{name}", _FAKES[name])
    return library


_library = declare(LIBRARY)
