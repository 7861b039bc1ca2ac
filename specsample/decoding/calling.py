"""How a causal language model is called."""

import inspect
from typing import NamedTuple


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
        return getattr(getattr(model, "config", None), "vocab_size", None)


def of_transformers(model):
    """Whether the model is one of transformers', with a config that says what it is. Others are taken at their word."""
    return hasattr(getattr(model, "config", None), "get_text_config")


def new_cache(model):
    """An empty cache for a model of transformers: full attention layers, since windowed ones forget what a rejected
    draft pushed out. Other models bring their own."""
    if of_transformers(model):
        from transformers import DynamicCache

        return DynamicCache()
    return None
