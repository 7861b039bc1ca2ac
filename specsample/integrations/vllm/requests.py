"""The settings of a batch's requests in the form that `ss.verify` and `ss.sample` take. Shared by vLLM's two model runners."""

import ctypes
import functools
import hashlib
import math

import torch

from ...sampling import Sampling

GREEDY = 1e-5  # vLLM treats temperatures below this as greedy


@functools.lru_cache(maxsize=65536)
def seed_of(request, engine_seed):
    """A seed for a request without one: a hash of the engine's seed and the request's id, int64.

    vLLM appends eight random characters to each id ("7" becomes "7-1f0c9a3e"). They are ignored, so that a run with the same
    engine seed and ids reproduces its texts.
    """
    name, dash, tail = request.rpartition("-")
    if dash and len(tail) == 8 and all(c in "0123456789abcdef" for c in tail):
        request = name
    digest = hashlib.blake2b(f"{engine_seed}/{request}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def signed(seed):
    """Any Python integer as the int64 with the same low 64 bits."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def upload(values, dtype, device):
    """Copy a list to a tensor on the device, without waiting for it."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def sampling_of(temperature, top_k, top_p, min_p, device):
    """Lists with one value per request -> Sampling. A field on which all requests agree stays a number, so nothing is uploaded.

    Values are rounded to float32, as vLLM's V2 runner stores them: a request's law must not depend on its batch.
    """
    fields = []
    for values in (temperature, top_k, top_p, min_p):
        values = [ctypes.c_float(value).value for value in values]
        fields.append(values[0] if values.count(values[0]) == len(values) else upload(values, torch.float64, device))
    return Sampling(*fields)


def with_min_p_first(logits, temperature, min_p):
    """The rows with min_p applied. vLLM applies it before top-k and top-p, which changes the mass that these see.

    logits [R, V]; temperature, min_p: numbers or [R]. Greedy rows keep only their largest logits, rows with min_p 0 everything.
    """
    if isinstance(min_p, torch.Tensor):
        bound = temperature * min_p.log()
    else:
        bound = temperature * (math.log(min_p) if min_p > 0 else -math.inf)
    if isinstance(bound, torch.Tensor):
        bound = bound.to(logits.dtype)[:, None]
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + bound, -torch.inf)


def within_grammar(tokens, laws, deciding):
    """Drafts [n], and the logits of their laws [n, V'], restricted to what a grammar allows. deciding [n, V]: the target's row that
    decides each draft, with the grammar's mask applied.

    vLLM cuts a chain at the first token that its grammar rejects. Whether a draft survives thus depends on its value, and the law
    of a survivor is that of the draft without the rejected tokens: that is the law to verify. A rejected draft that vLLM left in is
    dropped here. This is correct for any set of tokens that depends on the prefix alone, so other requests need no special case.
    """
    width = min(laws.shape[-1], deciding.shape[-1])
    refused = deciding[:, :width] == -torch.inf
    laws = torch.cat([laws[:, :width].masked_fill(refused, -torch.inf), laws[:, width:]], 1)
    own = refused.gather(1, tokens.long().clamp(0, width - 1)[:, None])[:, 0]
    return tokens.masked_fill(own, -1), laws


def with_first_token(tokens):
    """Tokens [B, D + 1]; a request whose row has no finite logit emits id 0, as vLLM's argmax would, so that it continues."""
    tokens[:, 0].clamp_(min=0)
    return tokens


def of_rows(value, length, device):
    """A number, or a tensor of one value per row, as float32 [length]"""
    if isinstance(value, torch.Tensor):
        return value.to(torch.float32)
    return torch.full((length,), value, dtype=torch.float32, device=device)
