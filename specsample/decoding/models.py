"""What a causal language model supports, determined before decoding begins: whether it can be decoded at all, whether requests of
unequal length may share a batch, whether it can read a tree through an attention mask.

A model's config answers part of this. The rest is tested (trial.py), once per model: four forward calls on a few made-up tokens
compare what decoding relies on (a key-value cache, cropped and continued; left padding; a tree behind a 4-D mask) with the
same texts read without a cache. A trial shows what a model does, whatever it is called; but windows may be too wide and slopes too
gentle for a short text to reveal, so the config counts for these too.
"""

import weakref
from typing import NamedTuple

import torch

from ..errors import expect
from .calling import call_of, config_of, of_transformers, weight_of
from .limits import position_limit
from .trial import LEAST, Trial, first_line

ATTENTION = ("sdpa", "eager")  # the transformers implementations that add a 4-D mask to the scores unchanged
SERVED = "a causal language model over a cache of keys and values"


class Abilities(NamedTuple):
    """batched: left padding changes nothing, so requests of unequal length may share a batch; otherwise each is read
             separately (one_by_one.py)
    masks    it honours 4-D masks, so a tree takes one forward call; otherwise each path is a row of a batch
    switch   int: texts longer than this use other rotary frequencies than shorter ones, from their first token on
             (longrope); None = no such length
    longest  int: beyond this many tokens its frequencies change with every token (dynamic rotary), so that no cache
             stays valid; None = no such limit
    """

    batched: bool = True
    masks: bool = False
    switch: int | None = None
    longest: int | None = None


_known = weakref.WeakKeyDictionary()  # model -> {state for which the result holds: `Abilities`, or why it cannot be decoded}


def abilities(model, name="model"):
    """-> `Abilities`. ValueError, naming the argument `name`, if the model cannot be decoded."""
    if not of_transformers(model):
        expect(not getattr(model, "_is_stateful", False), name, SERVED, "a recurrent state")
        return Abilities()
    model = getattr(model, "_orig_mod", model)  # the model inside torch.compile: these few shapes are not worth compiling
    weight = weight_of(model)
    state = (weight.dtype, weight.device, model.training, getattr(_text_config(model), "_attn_implementation", None))
    found = _known.setdefault(model, {})
    if state not in found:
        found[state] = _foreign(model) or _tried(model, weight)
    expect(isinstance(found[state], Abilities), name, SERVED, f"{type(model).__name__}, {found[state]}")
    return found[state]


def check_models(model, drafts, longest):
    """ValueError if the target or a draft model cannot be decoded, or not for texts of up to `longest` tokens."""
    for name, one in [("model", model), *(("draft", one) for one in drafts)]:
        limit = abilities(one, name).longest
        told = f"a text of at most {limit} tokens (beyond, its dynamic rotary frequencies change with each), or another model"
        expect(limit is None or longest <= limit, name, told, f"{type(one).__name__} for up to {longest}")


def takes_masks(model):
    """Whether trees are read through a 4-D mask."""
    return abilities(model).masks


@torch.no_grad()
def _tried(model, weight):
    """-> `Abilities`, or str: why the model cannot be decoded. weight: one of the model's weights"""
    config = _text_config(model)
    limits = switch, longest = _rotary(config)
    # Stay within its positions and below the length at which its frequencies change: past those, the trial would only find that.
    room = min((most for most in (position_limit(model), longest) if most is not None), default=torch.inf)
    room = room if switch is None or switch < LEAST else min(room, switch)
    if room < LEAST:
        return Abilities(False, False, *limits)
    trial = Trial(model, weight.device, weight.dtype, room)
    try:
        trial.fresh()
    except Exception as error:  # a model may raise anything for an input it does not expect
        return f"which cannot be read by token ids alone: {first_line(error)}"
    together = trial.cached(2)
    if together is None:
        told = getattr(config, "_attn_implementation", None) in ATTENTION and trial.call.positions and not _by_slot(config)
        return Abilities(True, told and trial.masked(), *limits)
    alone = trial.cached(1)
    if alone is None:
        return Abilities(False, False, *limits)
    return alone + " (it is in training mode)" * model.training


# -- what a config tells ----------------------------------------------------------------------------------------


def _text_config(model):
    return config_of(model).get_text_config(decoder=True)


def _foreign(model):
    """Why a model is of a kind that cannot be decoded, or None: judged by its class and its config."""
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
    """Whether attention depends on cache slots rather than positions: windows, chunks, slopes. A tree's siblings occupy
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
