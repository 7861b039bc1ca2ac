"""What the requests of a batch ask for, as `ss.verify` and `ss.sample` take it. Shared by vLLM's two model runners."""

import ctypes
import functools
import hashlib
import math

import torch

from ...sampling import Sampling

GREEDY = 1e-5  # vLLM's bound: temperatures below it are greedy


@functools.lru_cache(maxsize=65536)
def seed_of(request, engine_seed):
    """The seed of a request that has none: a hash of the engine's seed and of the request's id, int64.

    vLLM appends eight random characters to the ids it is given ("7" becomes "7-1f0c9a3e"); they are left out, so a run with the
    same engine seed and the same ids gives the same text.
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
    """A list as a tensor on the device, without waiting for it."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def sampling_of(temperature, top_k, top_p, min_p, device):
    """Lists with one value a request -> Sampling. A field is a number where all agree: no tensor for it, and nothing to upload.

    Numbers go through float32, in which vLLM's other runner keeps them: the law of a request must not depend on its batch.
    """
    fields = []
    for values in (temperature, top_k, top_p, min_p):
        values = [ctypes.c_float(value).value for value in values]
        fields.append(values[0] if values.count(values[0]) == len(values) else upload(values, torch.float64, device))
    return Sampling(*fields)


def with_min_p_first(logits, temperature, min_p):
    """Rows without the tokens that min_p drops: vLLM applies it before top-k and top-p, whose mass it thereby changes.

    logits [R, V]; temperature, min_p: numbers or [R]. Greedy rows keep their largest logits, rows of min_p 0 all.
    """
    if isinstance(min_p, torch.Tensor):
        bound = temperature * min_p.log()
    else:
        bound = temperature * (math.log(min_p) if min_p > 0 else -math.inf)
    if isinstance(bound, torch.Tensor):
        bound = bound.to(logits.dtype)[:, None]
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + bound, -torch.inf)


def within_grammar(tokens, laws, deciding):
    """Drafts [n] and their laws' logits [n, V'] as vLLM leaves them under a grammar. deciding [n, V]: the target's row that decides
    each draft, with the grammar's mask in it.

    vLLM cuts a chain at the first token its grammar refuses: by its value. What is left was drawn from the draft's law without
    the refused tokens, so that is the law to verify; drafts that were not cut are dropped here. Any set of tokens that hangs on
    the prefix alone may be refused so, hence rows of other requests need no exception.
    """
    width = min(laws.shape[-1], deciding.shape[-1])
    refused = deciding[:, :width] == -torch.inf
    laws = torch.cat([laws[:, :width].masked_fill(refused, -torch.inf), laws[:, width:]], 1)
    own = refused.gather(1, tokens.long().clamp(0, width - 1)[:, None])[:, 0]
    return tokens.masked_fill(own, -1), laws


def with_first_token(tokens):
    """Tokens [B, D + 1] in which a row without a finite logit emits id 0, as vLLM's argmax does: each request goes on."""
    tokens[:, 0].clamp_(min=0)
    return tokens


def of_rows(value, length, device):
    """A number or a tensor of the requests as float32 [length]"""
    if isinstance(value, torch.Tensor):
        return value.to(torch.float32)
    return torch.full((length,), value, dtype=torch.float32, device=device)
