"""How a causal language model is called."""

import inspect
from typing import NamedTuple

import torch


class Call(NamedTuple):
    """How the model's forward is called.

    cache      name of its argument for the cache, and of the output's
    positions  whether it is given position_ids. Some models count positions themselves, from the mask or by slots of the cache
    keep       name of its argument for the number of logits wanted, or None
    takes_cache  whether it has an argument for a cache
    """

    cache: str
    positions: bool
    keep: str | None
    takes_cache: bool


def call_of(model):
    """-> `Call`"""
    arguments = inspect.signature(getattr(model, "forward", model)).parameters
    anything = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    # A model of transformers swallows what it does not know; wrappers hand it on, and others say so.
    own = any(base.__module__.startswith("transformers.") for base in type(model).__mro__)
    return Call(
        "cache" if "cache" in arguments else "past_key_values",
        "position_ids" in arguments or not own,
        next((name for name in ("logits_to_keep", "num_logits_to_keep") if name in arguments), None),
        bool({"cache", "past_key_values"} & set(arguments)) or anything and not own,
    )


def embedded_ids(model):
    """How many ids the model can read, None when it does not tell."""
    try:
        return model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        config = config_of(model)
        config = getattr(model, "config", None) if config is None else config.get_text_config()
        return getattr(config, "vocab_size", None)


def config_of(model):
    """The config that says what a model of transformers is: its own, or of the model that a module wraps; None of others."""
    inner = model.modules() if isinstance(model, torch.nn.Module) else [model]  # itself first
    configs = (getattr(module, "config", None) for module in inner)
    return next((config for config in configs if hasattr(config, "get_text_config")), None)


def weight_of(model):
    """One of the model's weights, for its dtype and device: a wrapper need not tell them."""
    return next(weight for weight in model.parameters() if weight.is_floating_point())


def of_transformers(model):
    """Whether the model is one of transformers', with a config that says what it is, or a module around one. Others are taken
    at their word."""
    return config_of(model) is not None


def new_cache(model):
    """An empty cache for a model of transformers: full attention layers, since windowed ones forget what a rejected
    draft pushed out. Other models bring their own."""
    if of_transformers(model):
        from transformers import DynamicCache

        return DynamicCache()
    return None
