"""What a causal language model can do, found out before decoding begins: whether it can be served at all, whether requests of
unequal length may share a batch, whether it reads a tree through an attention mask.

Some of it a model's config says. The rest is tried (trial.py), once a model: four forwards over a few made-up tokens compare what
decoding relies on (a cache of keys and values, cropped and read on from; padding at the left; a tree behind a 4-D mask) with the
same texts read afresh. A trial says what a model does, whatever it is called; but windows and slopes may be too wide or too
gentle for a short text to show them, so what a config says of these counts too.
"""

import weakref
from typing import NamedTuple

import torch

from ..errors import expect
from .calling import call_of, config_of, of_transformers, weight_of
from .limits import position_limit
from .trial import LEAST, Trial, first_line

ATTENTION = ("sdpa", "eager")  # of transformers' implementations, those that add a 4-D mask to the scores as it is
SERVED = "a causal language model over a cache of keys and values"


class Abilities(NamedTuple):
    """batched: padding at the left changes nothing, so requests of unequal length may share a batch; otherwise each is read by
             itself (one_by_one.py)
    masks    it obeys 4-D masks, so a tree is one forward; otherwise each path is a row of a batch
    switch   int: the model reads longer texts than this by other rotary frequencies than shorter ones, their first tokens
             included (longrope); None = it does not
    longest  int: its frequencies change with every token beyond this many (dynamic rotary), so there it has no law that a cache
             could keep; None = no such limit
    """

    batched: bool = True
    masks: bool = False
    switch: int | None = None
    longest: int | None = None


_known = weakref.WeakKeyDictionary()  # model -> {state that the findings hold for: `Abilities`, or why it cannot be served}


def abilities(model, name="model"):
    """-> `Abilities`. ValueError, naming the argument `name`, where the model cannot be served."""
    if not of_transformers(model):
        expect(not getattr(model, "_is_stateful", False), name, SERVED, "a recurrent state")
        return Abilities()
    model = getattr(model, "_orig_mod", model)  # of torch.compile, which these few shapes are not worth
    weight = weight_of(model)
    state = (weight.dtype, weight.device, model.training, getattr(_text_config(model), "_attn_implementation", None))
    found = _known.setdefault(model, {})
    if state not in found:
        found[state] = _foreign(model) or _tried(model, weight)
    expect(isinstance(found[state], Abilities), name, SERVED, f"{type(model).__name__}, {found[state]}")
    return found[state]


def check_models(model, drafts, longest):
    """ValueError where the target or one of the draft models cannot be served, or not in texts of up to `longest` tokens."""
    for name, one in [("model", model), *(("draft", one) for one in drafts)]:
        limit = abilities(one, name).longest
        told = f"a text of at most {limit} tokens (beyond, its dynamic rotary frequencies change with each), or another model"
        expect(limit is None or longest <= limit, name, told, f"{type(one).__name__} for up to {longest}")


def takes_masks(model):
    """Whether trees go through a 4-D mask."""
    return abilities(model).masks


@torch.no_grad()
def _tried(model, weight):
    """-> `Abilities`, or why the model cannot be served, str. weight: one of the model's"""
    config = _text_config(model)
    limits = switch, longest = _rotary(config)
    # Not past the end of its positions, or to where its frequencies change: of that a trial would find nothing but this.
    room = min((most for most in (position_limit(model), longest) if most is not None), default=torch.inf)
    room = room if switch is None or switch < LEAST else min(room, switch)
    if room < LEAST:
        return Abilities(False, False, *limits)
    trial = Trial(model, weight.device, weight.dtype, room)
    try:
        trial.fresh()
    except Exception as error:  # whatever a model says about an input that it does not expect
        return f"which cannot be read by token ids alone: {first_line(error)}"
    together = trial.cached(2)
    if together is None:
        told = getattr(config, "_attn_implementation", None) in ATTENTION and trial.call.positions and not _by_slot(config)
        return Abilities(True, told and trial.masked(), *limits)
    alone = trial.cached(1)
    if alone is None:
        return Abilities(False, False, *limits)
    return alone + " (it is in training mode)" * model.training


# -- what a config says ----------------------------------------------------------------------------------------


def _text_config(model):
    return config_of(model).get_text_config(decoder=True)


def _foreign(model):
    """Why a model is of a kind that decoding cannot serve, or None: what its class and its config say."""
    config = _text_config(model)
    if getattr(config_of(model), "is_encoder_decoder", False):
        return "an encoder-decoder: its texts follow an encoder's input, which decoding does not have"
    others = [kind for kind in _layer_types(config) if not _is_attention(kind)]
    if others:
        return f"with layers that keep another state ({', '.join(others)}), which cannot be rewound"
    if getattr(model, "_is_stateful", False):
        return "with a recurrent state, which cannot be rewound"
    if not call_of(model).takes_cache:
        return "which takes no cache"
    return None


def _layer_types(config):
    return sorted(set(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()))


def _is_attention(kind):
    return "attention" in kind and not kind.startswith("linear")


def _by_slot(config):
    """Whether attention reaches by slots of the cache, not by positions: windows, chunks, slopes. A tree's siblings lie in
    different slots at the same position."""
    for name in ("sliding_window", "attention_chunk_size", "sliding_window_size", "attention_window_size", "alibi"):
        if getattr(config, name, None):
            return True
    inner = getattr(config, "attn_config", None)
    if getattr(inner, "alibi", False):
        return True
    kinds = set(_layer_types(config)) | set(map(str, getattr(config, "attention_layers", None) or ()))
    return bool(kinds - {"full_attention", "attention", "global"})


def _rotary(config):
    """(switch, longest) of `Abilities`"""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    switch, longest = [], []
    for of_layers in nested or [parameters]:
        kind = of_layers.get("rope_type", of_layers.get("type")) or ""
        end = of_layers.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        if kind == "longrope":
            switch.append(end or config.max_position_embeddings)
        elif "dynamic" in kind:
            longest.append(config.max_position_embeddings)
    return min(switch, default=None), min(longest, default=None)
