"""Argument checks shared by the public functions, decoding and the integrations.

Each raises ValueError naming the argument (errors.py). None of them reads accelerator memory.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch

from .errors import expect
from .kept import on_device

INTS = (torch.int64, torch.int32)
STATS = ("max", "logsumexp", "cutoff")  # the fields of RowStats


def in_wider_dtype(target_logits, draft_logits):
    """Both in the wider of their dtypes, which represents both exactly: narrowing would change the distributions sampled from."""
    if target_logits.dtype == draft_logits.dtype:
        return target_logits, draft_logits
    wider = torch.promote_types(target_logits.dtype, draft_logits.dtype)
    return target_logits.to(wider), draft_logits.to(wider)


def check_logits(logits, name, dim):
    """Check a tensor of rows of logits; return the size of its first dimension."""
    if not isinstance(logits, torch.Tensor):
        expect(False, name, "a tensor", type(logits).__name__)
    shape = logits.shape
    if logits.dim() != dim:
        expect(False, name, f"shape {'[B, R, V]' if dim == 3 else '[rows, V]'}", tuple(shape))
    if not logits.dtype.is_floating_point:
        expect(False, name, "float32, bfloat16 or float16", logits.dtype)
    if shape[-1] == 0 and shape[0] > 0:
        expect(False, name, "a vocabulary of at least one token", tuple(shape))
    if logits.stride(-1) != 1 and shape[-1] > 1:
        expect(False, name, "a contiguous last dimension (stride 1)", f"strides {logits.stride()}")
    return shape[0]


def check_draft_logits(draft, target, nodes, packed, mapped):
    check_logits(draft, "draft_logits", target.dim())
    if draft.dtype != target.dtype:
        expect(False, "draft_logits", f"{target.dtype} like target_logits", draft.dtype)
    if draft.device != target.device:
        expect(False, "draft_logits", f"a tensor on {target.device}", draft.device)
    rows, of_target = draft.shape, target.shape
    if packed:
        good = rows[0] >= of_target[0] or rows[0] >= nodes
        expect(good, "draft_logits", f"at least {nodes} rows (or {of_target[0]} like the target)", tuple(rows))
    elif rows[0] != of_target[0]:
        expect(False, "draft_logits", f"{of_target[0]} requests", tuple(rows))
    elif not mapped and rows[1] < nodes:
        expect(False, "draft_logits", f"at least {nodes} rows a request", tuple(rows))


def per_node(values, name, batch, nodes, packed, device, extra=0):
    """A per-node argument as an int tensor [N + extra] or [B, N + extra] (packed: one dimension), or None."""
    if values is None:
        return None
    if not isinstance(values, torch.Tensor):
        try:
            values = on_device(values, device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: expected a tensor or list of ints, got {values!r} ({error})") from error
    expect(values.dtype in INTS, name, "int64 or int32", values.dtype)
    expect(values.device == device, name, f"a tensor on {device}", values.device)
    if packed:
        expect(values.dim() == 1 and values.shape[0] >= nodes, name, f"shape [>= {nodes}]", tuple(values.shape))
    else:
        size = nodes + extra
        good = tuple(values.shape) in ((size,), (batch, size))
        expect(good, name, f"shape [{size}] or [{batch}, {size}]", tuple(values.shape))
    return values


def check_parents(parents, card):
    """On the CPU the tree can be read: reject siblings under a chain scheme; return the tree's depth."""
    trees = {tuple(tree) for tree in (parents[None] if parents.dim() == 1 else parents).tolist()}
    shapes = [shape_of(tree) for tree in trees]
    if not card.trees:
        siblings = any(several for _, several in shapes)
        expect(not siblings, "parents", f"a chain (scheme {card.name!r} takes one child a node)", parents.tolist())
    return max((depth for depth, _ in shapes), default=0)


@lru_cache(maxsize=256)  # static trees recur every round
def shape_of(parents):
    """(depth, whether any node has two children) of a tree; a node whose parent does not precede it is ignored."""
    depth, several, seen = [], False, set()
    for i, parent in enumerate(parents):
        depth.append(1 + (depth[parent] if 0 <= parent < i else 0))
        if -1 <= parent < i:
            several |= parent in seen
            seen.add(parent)
    return max(depth, default=0), several


def check_options(options, card):
    expect(isinstance(options, Mapping), "options", "a mapping of names to numbers", options)
    known = ", ".join(card.options) or "none"
    for name, value in options.items():
        expect(name in card.options, "options", f"settings of scheme {card.name!r}: {known}", repr(name))
        least, most = card.options[name][1]
        good = isinstance(value, (int, float)) and least <= value <= most
        expect(good, f"options[{name!r}]", f"a number in [{least}, {most}]", value)


def check_stats(stats, draft):
    expect(isinstance(stats, tuple) and len(stats) == 3, "draft_stats", "a RowStats", type(stats).__name__)
    count = draft.numel() // max(1, draft.shape[-1])
    for field, value in zip(STATS, stats):
        good = isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.numel() == count
        expect(good, f"draft_stats.{field}", f"float32 with {count} values, one a draft row", value)
        expect(value.device == draft.device, f"draft_stats.{field}", f"a tensor on {draft.device}", value.device)
    return [value.reshape(-1) for value in stats]


def int_or_tensor(value, name, count, device):
    """(int, None) or (0, int64 [count])"""
    if isinstance(value, torch.Tensor):
        if value.dtype != torch.int64 or value.device != device or value.shape != (count,):  # most callers skip this
            expect(value.dtype in INTS, name, "an int or an int64 tensor", value.dtype)
            expect(value.device == device, name, f"a tensor on {device}", value.device)
            good = value.dim() == 0 or tuple(value.shape) == (count,)
            expect(good, name, f"an int or shape [{count}]", tuple(value.shape))
            value = value.to(torch.int64).expand(count)
        return 0, value
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        try:
            value = int(value.__index__())
        except AttributeError:
            expect(False, name, "an int or an int64 tensor", value)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        expect(False, name, "an int of 64 bits", value)
    return value, None
