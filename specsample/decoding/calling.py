"""How to call a causal language model."""

import inspect
from typing import NamedTuple

import torch


class Call(NamedTuple):
    """How the model's forward is called.

    cache      name of the cache argument, and of the output's attribute
    positions  whether to pass position_ids. Some models count positions themselves, from the mask or from cache slots
    keep       name of the argument for the number of logits to return, or None
    takes_cache  whether it has a cache argument
    """

    cache: str
    positions: bool
    keep: str | None
    takes_cache: bool


def call_of(model):
    """-> `Call`"""
    arguments = inspect.signature(getattr(model, "forward", model)).parameters
    anything = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    # A transformers model silently ignores keyword arguments it does not know; wrappers forward them, and other models raise.
    own = any(base.__module__.startswith("transformers.") for base in type(model).__mro__)
    return Call(
        "cache" if "cache" in arguments else "past_key_values",
        "position_ids" in arguments or not own,
        next((name for name in ("logits_to_keep", "num_logits_to_keep") if name in arguments), None),
        bool({"cache", "past_key_values"} & set(arguments)) or anything and not own,
    )


def embedded_ids(model):
    """How many ids the model can embed, None if unknown."""
    try:
        return model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        config = config_of(model)
        config = getattr(model, "config", None) if config is None else config.get_text_config()
        return getattr(config, "vocab_size", None)


def config_of(model):
    """The config of a transformers model, or of the one that a module wraps; None for other models."""
    inner = model.modules() if isinstance(model, torch.nn.Module) else [model]  # itself first
    configs = (getattr(module, "config", None) for module in inner)
    return next((config for config in configs if hasattr(config, "get_text_config")), None)


def weight_of(model):
    """One of the model's weights, for its dtype and device, which a wrapper may not expose itself."""
    return next(weight for weight in model.parameters() if weight.is_floating_point())


def of_transformers(model):
    """Whether the model is a transformers model, or a module that wraps one, with a config to inspect. Other models are trusted to
    follow the call signature."""
    return config_of(model) is not None


def new_cache(model):
    """An empty cache for a transformers model, with full-attention layers, since windowed layers lose the tokens that a rejected
    draft pushed out. None for other models, which create their own."""
    if of_transformers(model):
        from transformers import DynamicCache

        return DynamicCache()
    return None
