"""Compile kernels ahead of time: before serving, and before a graph capture, during which no kernel can be loaded."""

import time

import torch


def warmup(
    vocab, *, schemes=("token",), dtype=torch.bfloat16, device="cuda", draft_vocab=None, tree=False, packed=False, one_hot=False,
    sampling=None, logprobs=None, position=None,
):  # fmt: skip
    """Run a small call of each scheme and of its drafting, so that the kernels for such calls are compiled and loaded.

    The kernels do not depend on batch sizes, offsets, seeds (a tensor, one per request), k or the values of positions and settings,
    with two exceptions: `race`, `sample` and independent drafts have their own kernels for plain settings (neither greedy nor
    filtered: the default), and more than 32 independent drafts of a row (rows.FEW_CHILDREN) have one that is not warmed up.
    They depend on:

    vocab, dtype  of the logits; draft_vocab: of the draft logits, None = the same
    tree          with parents, rows and draft_rows, as tensors; otherwise chains
    packed        with cu_rows; otherwise dense
    one_hot       without draft_logits, for the schemes that verify such drafts
    sampling, logprobs   as in `verify`
    position      any int, if calls pass one for all requests; None: they pass a tensor, one per request

    Returns {scheme: seconds it took}. The compiled kernels stay in Triton's cache (TRITON_CACHE_DIR, by default ~/.triton/cache),
    from which another process that warms up loads them. Raises ValueError as `verify` does.
    """
    from .. import Sampling, api

    took = {}
    for scheme in schemes:
        start, card = time.perf_counter(), api.schemes()[scheme]
        args, draft = _call(card, vocab, draft_vocab or vocab, dtype, device, tree and card.trees, packed, one_hot and card.one_hot)
        args |= {} if position is None else {"position": position}
        args |= {"sampling": sampling or Sampling(), "logprobs": logprobs, "scheme": scheme, "backend": "triton"}
        at = {name: args[name] for name in ("seed", "position", "sampling", "backend")}
        api.sample(draft[:1], **at)
        for k in (1, 2):
            api.draft(draft[:1], k, kind=card.draft_kind, **at)
        api.verify(**args)
        if device != "cpu":
            getattr(torch, torch.device(device).type).synchronize()
        took[scheme] = time.perf_counter() - start
    return took


def _call(card, vocab, draft_vocab, dtype, device, tree, packed, one_hot):
    """(arguments of `verify` for one request of two drafts, rows of draft logits)"""
    make = lambda *shape: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    whole = lambda *values: torch.tensor(values, dtype=torch.int64, device=device)  # noqa: E731
    target, draft, tokens = make(3, vocab), make(3, draft_vocab), whole(0, 0)
    args = {"seed": whole(1), "position": whole(1), "max_depth": 2}
    if tree:
        args |= {"parents": whole(-1, -1), "rows": whole(0, 1, 2), "draft_rows": whole(0, 0)}
    if packed:
        args |= {"target_logits": target, "draft_tokens": tokens, "cu_rows": torch.tensor([0, 3], dtype=torch.int32, device=device)}
    else:
        args |= {"target_logits": target[None], "draft_tokens": tokens[None]}
    if card.uses_draft_logits and not one_hot:
        args["draft_logits"] = draft if packed else draft[None, :2]
    return args, draft
