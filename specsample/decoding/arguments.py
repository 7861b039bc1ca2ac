"""Checks of generate's arguments, all made before the first forward call."""

from types import SimpleNamespace

import torch

from ..arguments import INTS, check_options, int_or_tensor
from ..backends import BACKENDS, missing
from ..errors import expect
from ..limits import MAX_LAWS, MAX_NODES, MAX_SIBLINGS
from ..sampling import pack
from ..schemes import SCHEMES
from .calling import embedded_ids
from .drafters import NgramDrafter, as_drafter, draft_models
from .limits import check_length, position_limit
from .models import check_models
from .processors import Processors, of_requests
from .settings import vocabulary
from .trees import Tree


def check(
    model, draft, input_ids, attention_mask, max_new_tokens, depth, paths, tree, scheme, options, sampling,
    draft_sampling, seed, eos_token_id, streamer, backend, logits_processor, stopping_criteria,
):  # fmt: skip
    """-> namespace: drafter; tree (`Tree`, int or None = a chain) and its depth; draft_samplings, a tuple with one sampling or one
    per path; mask bool [B, W]; seed int64 [B]; eos, a set of ids; pad int; card; process (`Processors` or None); criteria, a
    list per request. ValueError for invalid arguments."""
    expect(callable(model), "model", "a causal language model", type(model).__name__)
    expect(isinstance(input_ids, torch.Tensor), "input_ids", "a tensor", type(input_ids).__name__)
    good = input_ids.dim() == 2 and input_ids.shape[0] > 0 and input_ids.shape[1] > 0
    expect(good, "input_ids", "shape [B, prompt width]", tuple(input_ids.shape))
    expect(input_ids.dtype in INTS, "input_ids", "int64", input_ids.dtype)
    batch, device = input_ids.shape[0], input_ids.device
    weight = next(model.parameters(), None) if hasattr(model, "parameters") else None
    if weight is not None:
        expect(weight.device == device, "input_ids", f"a tensor on {weight.device} like the model", device)
    mask = _mask(attention_mask, input_ids)
    embedded = embedded_ids(model)
    lowest = int(torch.where(mask, input_ids, 0).min())
    expect(lowest >= 0, "input_ids", "ids >= 0", lowest)
    if embedded is not None:
        highest = int(torch.where(mask, input_ids, 0).max())
        expect(highest < embedded, "input_ids", f"ids below the vocabulary size {embedded}", highest)

    _count(max_new_tokens, "max_new_tokens", 1, None)
    _count(depth, "depth", 1, MAX_NODES)
    expect(isinstance(scheme, str) and scheme in SCHEMES, "scheme", f"one of {', '.join(SCHEMES)}", repr(scheme))
    card = SCHEMES[scheme]
    drafter = as_drafter(draft)
    tree, depth, laws = _shape(draft, depth, paths, tree, draft_sampling, card)
    if isinstance(draft, NgramDrafter) and tree is not None:
        found = card.adaptive_trees and (isinstance(tree, int) or tree.paths is not None)
        expected = "a model, or a drafter that proposes trees (look-up has paths, or a number of nodes, under 'race')"
        expect(found, "draft", expected, "NgramDrafter")
    lawless = isinstance(draft, NgramDrafter) and not card.one_hot
    expect(not lawless, "draft", f"a drafter with a distribution to draw from (scheme {scheme!r} needs it)", "NgramDrafter")
    if options:
        check_options(options, card)
    pack(sampling, (batch,), device, "sampling")
    for law in laws:
        pack(law, (batch,), device, "draft_sampling")
    number, seeds = int_or_tensor(seed, "seed", batch, device)
    seeds = number + torch.arange(batch, device=device) if seeds is None else seeds.contiguous()
    if backend is not None:
        expect(backend in BACKENDS, "backend", f"one of {', '.join(BACKENDS)}", repr(backend))
        why = missing(backend)
        expect(why is None, "backend", "one that is available", f"{backend!r}: {why}")
    check_streamer(streamer, "streamer", batch)
    eos, pad = _ends(model, eos_token_id)
    processors = of_requests(logits_processor, "logits_processor", batch)
    criteria = of_requests(stopping_criteria, "stopping_criteria", batch)
    check_models(model, draft_models(drafter), int(mask.sum(1).max()) + max_new_tokens)
    check_length(position_limit(model), int(mask.sum(1).max()), max_new_tokens)
    return SimpleNamespace(
        drafter=drafter, tree=tree, depth=depth, mask=mask, seed=seeds,
        draft_samplings=tuple(laws) or (sampling,),
        eos=frozenset(eos),
        pad=pad, card=card, criteria=criteria,
        process=Processors(processors, vocabulary(model)) if any(processors) else None,
    )  # fmt: skip


def check_streamer(streamer, name, batch):
    if streamer is not None:
        good = callable(getattr(streamer, "put", None)) and callable(getattr(streamer, "end", None))
        expect(good, name, "an object with put and end", type(streamer).__name__)
        expect(batch == 1, name, "None for a batch of requests", f"a streamer and {batch} requests")


def _shape(draft, depth, paths, tree, draft_sampling, card):
    """-> (`Tree`, node budget, or None for a chain; its depth; list of the draft samplings passed: none, one, or one per path)"""
    _count(paths, "paths", 1, MAX_NODES)
    # A plain tuple of four numbers is a Sampling too.
    several = isinstance(draft_sampling, list) or type(draft_sampling) is tuple and isinstance((*draft_sampling, 0)[0], tuple)
    laws = list(draft_sampling) if several else [] if draft_sampling is None else [draft_sampling]
    expect(laws or draft_sampling is None, "draft_sampling", "a Sampling, or one a path", repr(draft_sampling))
    for name, values in (("draft", draft), ("draft_sampling", laws)):
        if not isinstance(values, (list, tuple)) or len(values) < 2:
            continue
        allowed = ", ".join(_with("several_laws"))
        got = f"{len(values)} under {card.name!r}"
        expect(card.several_laws, name, f"one for all paths (one a path under {allowed})", got)
        expect(len(values) <= MAX_LAWS or not card.uses_draft_logits, name, f"at most {MAX_LAWS}, one a path", got)
        expect(tree is None, "tree", f"None, since {name} has one a path", repr(tree))
        expect(paths in (1, len(values)), name, f"one for all paths, or {paths}", len(values))
        paths = len(values)
    if tree is None:
        expect(paths == 1 or card.trees, "paths", f"1 (scheme {card.name!r} verifies chains)", paths)
        few = paths <= MAX_SIBLINGS or not card.uses_draft_logits
        expect(few, "paths", f"at most {MAX_SIBLINGS} under {card.name!r}", paths)
        expect(paths * depth <= MAX_NODES, "paths", f"paths·depth <= {MAX_NODES} nodes", f"{paths}·{depth}")
        return (None if paths == 1 else Tree.of_paths(paths, depth)), depth, laws
    expect(paths == 1, "paths", "1, since a tree is given", paths)
    if isinstance(tree, int) and not isinstance(tree, bool):
        under = ", ".join(_with("adaptive_trees"))
        exact = f"a list of parents (a tree that its tokens shape is exact under {under} only, not {card.name!r})"
        expect(card.adaptive_trees, "tree", exact, tree)
        _count(tree, "tree", 1, MAX_NODES)
        return tree, depth, laws
    given, expected = tree, "None, a number of nodes, or a list of parents: ints from −1 to their own index − 1"
    tree = tree.tolist() if isinstance(tree, torch.Tensor) else tree
    good = isinstance(tree, (list, tuple)) and 0 < len(tree) <= MAX_NODES
    good = good and all(type(parent) is int and -1 <= parent < node for node, parent in enumerate(tree))
    expect(good, "tree", f"{expected}; at most {MAX_NODES} nodes", repr(given))
    tree = Tree(tree)
    expect(card.trees or tree.is_chain, "tree", f"a chain (scheme {card.name!r} takes one child a node)", repr(given))
    return (None if tree.is_chain else tree), tree.depth, laws


def _with(field):
    return [repr(name) for name, card in SCHEMES.items() if getattr(card, field)]


def _count(value, name, low, high):
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    expect(good, name, f"an int >= {low}" if high is None else f"an int in [{low}, {high}]", repr(value))


def _mask(attention_mask, input_ids):
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    expect(isinstance(attention_mask, torch.Tensor), "attention_mask", "a tensor", type(attention_mask).__name__)
    shape = tuple(input_ids.shape)
    expect(tuple(attention_mask.shape) == shape, "attention_mask", f"shape {shape}", tuple(attention_mask.shape))
    expect(attention_mask.device == input_ids.device, "attention_mask", f"on {input_ids.device}", attention_mask.device)
    expect(bool(((attention_mask == 0) | (attention_mask == 1)).all()), "attention_mask", "zeros and ones", "others")
    mask = attention_mask.to(torch.bool)
    expect(bool(mask.any(1).all()), "attention_mask", "at least one token a request", "a request without tokens")
    return mask


def _ends(model, eos_token_id):
    """(list of ids that end a request, id to pad with)"""
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None) if eos_token_id is None else eos_token_id
    if isinstance(eos, torch.Tensor):
        eos = eos.tolist()
    eos = [] if eos is None else list(eos) if isinstance(eos, (list, tuple)) else [eos]
    if eos_token_id is None:  # in a config, a negative id means that there is none
        eos = [e for e in eos if not isinstance(e, int) or e >= 0]
    good = all(isinstance(e, int) and not isinstance(e, bool) and e >= 0 for e in eos)
    expect(good, "eos_token_id", "an id, a list of ids, or None", repr(eos_token_id if eos_token_id is not None else eos))
    pad = getattr(config, "pad_token_id", None)
    return eos, pad if pad is not None else eos[0] if eos else 0
