"""Trees of actually drawn tokens for the tests of multi-draft schemes."""

import torch
from conftest import numbers

import specsample as ss


def STAR(k):
    """k children of the root."""
    return [-1] * k


def paths(k, depth):
    """k chains, one after another."""
    return [-1 if i % depth == 0 else i - 1 for i in range(k * depth)]


def drafted_tree(
    B, k, depth, V, scheme, *, noise=1.0, seed=0, dtype=torch.float32, sampling=None, draft_vocab=None, trials=None
):  # fmt: skip
    """Arguments of `verify` for k paths whose laws depend on the depth only, so that every depth has one target and one draft row.

    trials: one pair of laws, verified this many times with different seeds (B = 1)
    """
    target = numbers(B, depth + 1, V, seed=3 * seed + V, scale=1.5)
    width = draft_vocab or V
    draft = numbers(B, depth, width, seed=3 * seed + V + 1, scale=noise)
    shared = min(V, width)
    draft[..., :shared] += target[:, :depth, :shared]
    target, draft = target.to(dtype), draft.to(dtype)
    if trials:
        B, target, draft = trials, target.expand(trials, -1, -1), draft.expand(trials, -1, -1)
    seeds = torch.arange(B) + 1_000_003 * (seed + 1)
    return drawn_tree(target, draft, k, scheme, seeds, "reference" if B <= 64 else "cpu", sampling)


def drawn_tree(target, draft, k, scheme, seeds, backend, sampling=None, draft_sampling=None):
    """The same for given rows: target [B, depth + 1, V], draft [B, depth, W], one of each per depth; seeds int64 [B]; backend: used
    for drafting"""
    depth, kind = draft.shape[1], ss.schemes()[scheme].draft_kind
    parents, level = paths(k, depth), [i % depth for i in range(k * depth)]
    at = {"sampling": draft_sampling or sampling or ss.Sampling(), "seed": seeds, "position": 50, "backend": backend}
    tokens = torch.zeros(len(draft), k * depth, dtype=torch.int64)
    tokens[:, ::depth] = ss.draft(draft[:, 0], k, kind=kind, depth=0, node=0, **at)
    for i, d in enumerate(level):
        if kind == "lists" and d:
            tokens[:, i] = ss.draft(draft[:, d], k, kind="lists", depth=d, **at)[:, i // depth]
        elif kind == "arrivals" and d:
            tokens[:, i] = ss.draft(draft[:, d], kind="arrivals", depth=d, **at)[:, 0]
        elif d:  # one child: every kind equals `iid`, except for its stream
            tokens[:, i] = ss.draft(draft[:, d], kind="iid", depth=d, node=i, **at)[:, 0]
    out = {"target_logits": target, "draft_tokens": tokens, "draft_logits": draft, "parents": parents}
    out |= {"rows": [0] + [d + 1 for d in level], "draft_rows": level, "scheme": scheme, "seed": seeds, "position": 50}
    given = {"sampling": sampling, "draft_sampling": draft_sampling}
    return out | {name: value for name, value in given.items() if value is not None}


def mixed_tree(B, k, depth, V, scheme="weighted", *, draft_rows=None, **settings):
    """`drafted_tree` with a separate draft for each path: path i has draft rows i·depth .. i·depth + depth − 1.

    draft_rows: for each path, whose draft it uses (default: its own)
    """
    args = drafted_tree(B, k, depth, V, scheme, **settings)
    source = draft_rows or list(range(k))
    draft, trials = args["draft_logits"], settings.get("trials")
    noise = numbers(1 if trials else B, k * depth, draft.shape[-1], seed=settings.get("seed", 0) + 77)
    scale = torch.linspace(0.3, 1.5, k).repeat_interleave(depth)[:, None]  # from good to bad
    draft = (draft.repeat(1, k, 1).float() + scale * noise).to(draft.dtype)
    args["draft_logits"] = draft
    args["draft_rows"] = [source[i // depth] * depth + i % depth for i in range(k * depth)]
    at = {name: args[name] for name in ("sampling", "seed", "position") if name in args}
    tokens = [
        ss.draft(draft[:, row], node=i, depth=i % depth, backend="reference" if B <= 64 and not trials else "cpu", **at)
        for i, row in enumerate(args["draft_rows"])
    ]
    return args | {"draft_tokens": torch.cat(tokens, 1)}
