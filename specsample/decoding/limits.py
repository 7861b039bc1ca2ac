"""How many positions a model can read: learned or tabulated positions are limited, rotary ones and linear biases are not.

A config's `max_position_embeddings` does not answer this: for rotary models it is the training length, which a text may
exceed. So the model itself is probed with texts of one and of two equal tokens: a table whose index moves from c to c + 1 is a
table of positions, and its number of rows is the limit.
"""

import inspect
import weakref

import torch
from torch.overrides import TorchFunctionMode

from ..errors import expect
from .calling import config_of, weight_of

_limits = weakref.WeakKeyDictionary()  # model -> the result of `position_limit`


def position_limit(model):
    """-> how many positions (0, 1, …) `model` can read, None if unlimited or unknown. Costs two forward calls on one or two tokens,
    once per model; none for rotary models and for models that are not from transformers."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    config = config_of(model)
    if config is None:
        return None
    if model not in _limits:
        config = config.get_text_config()
        rotary = bool(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
        limit = None if rotary else _table(model)
        if getattr(config, "model_type", None) == "mpt":  # biases by distance, sliced from a tensor of this length
            limit = config.max_seq_len
        _limits[model] = limit
    return _limits[model]


def check_length(limit, prompt, new):
    """Reject `new` tokens after the longest prompt if the target cannot read them. (The last one is never read.)"""
    if limit is not None:
        expect(prompt <= limit, "input_ids", f"prompts of at most {limit} tokens, the positions that the model has", prompt)
        most = limit + 1 - prompt
        expected = f"at most {most}: the model has {limit} positions, and the longest prompt takes {prompt}"
        expect(new <= most, "max_new_tokens", expected, new)


@torch.no_grad()
def _table(model):
    """The length of the shortest table of positions, or None."""
    accepted = inspect.signature(model.forward).parameters
    reads = []
    for count in (1, 2):
        ids = torch.zeros(1, count, dtype=torch.int64, device=weight_of(model).device)
        given = {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(count, device=ids.device)[None]}
        try:
            with _Lookups() as lookups:
                model(input_ids=ids, use_cache=False, **{name: x for name, x in given.items() if name in accepted})
        except Exception:  # a model that cannot be probed reports its error when it is used
            return None
        reads.append(lookups.last)
    one, two = reads
    ends = [table[1] - one[table] for table in one if two.get(table) == one[table] + 1]
    growing = any(hasattr(module, "make_weights") for module in model.modules())  # sinusoids, extended on demand
    return None if growing else min(ends, default=None)


class _Lookups(TorchFunctionMode):
    """last: (function, length of the table) -> the highest index looked up in it"""

    def __init__(self):
        self.last = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        table = index = None
        if name == "embedding":
            first, second = args[:2]  # of torch.nn.functional (ids, table), or of torch (table, ids)
            index, dim = (second, 0) if first.is_floating_point() else (first, 0)
            table = first if first.is_floating_point() else second
        elif name in ("gather", "index_select") and len(args) > 2:
            table, dim, index = args[:3]
        elif name == "__getitem__":
            index, dim = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1], 0
            table = args[0]
        if isinstance(index, torch.Tensor) and index.dtype in (torch.int64, torch.int32) and index.numel():
            if isinstance(table, torch.Tensor) and table.is_floating_point() and table.dim() > 1:
                key = name, table.shape[dim]
                self.last[key] = max(self.last.get(key, -1), int(index.max()))
        return function(*args, **(kwargs or {}))
