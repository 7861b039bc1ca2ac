"""Philox4x32-10 and the stream map: every random number of the package, in Python, once.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    key     = seed (low, high 32 bits)
    counter = (token block i // 4, position low, position high, purpose << 24 | slot); word i % 4 belongs to token i

    purpose  used for                                        position                 slot
    0 CLOCK     race, plain sampling, bonus, `arrivals`      the token's own          0 (or the clock list)
    1 ACCEPT    acceptance uniforms (block 0, word 0)        the round's              node index
    2 RESIDUAL  residual race, one a round                   the round's              0
    3 SELECT    selection among siblings                     the round's              node index
    4 DRAFT     independent drafting                         the round's              the child's node index
    5 DISTINCT  drafting without replacement                 the round's              first child's node index

A round is one draft-and-verify step; its position is the absolute index of the first token it emits. Draft, acceptance
and residual noise belong to the round, not to the token's position: under `block` a draft token decides about its
ancestors, and its position is drafted again in the next round, which must not meet the same noise.
"""

import torch

CLOCK, ACCEPT, RESIDUAL, SELECT, DRAFT, DISTINCT = range(6)

_MASK = 0xFFFFFFFF
_REFINE_BELOW = 1 << 12  # words below this take 32 more bits from a second word
_REFINE_BLOCK = 1 << 31  # ... which is the same counter with this bit of the token block set


def philox(counter, key):
    """Ten rounds of Philox4x32. counter: four int64 tensors, key: two (each holding 32 bits) -> four int64 tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit products wrap in int64, which leaves both 32-bit halves right.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & _MASK) ^ c1 ^ k0, b & _MASK, ((a >> 32) & _MASK) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def words(seed, position, purpose, slot, count, refine=False):
    """Words of tokens 0..count−1. seed, position, slot: int64 [B] -> int64 [B, count] in [0, 2³²)."""
    block = torch.arange((count + 3) // 4, device=seed.device) + (_REFINE_BLOCK if refine else 0)
    seed, position, slot = seed[:, None], position[:, None], slot[:, None]
    counter = torch.broadcast_tensors(
        block[None], position & _MASK, (position >> 32) & _MASK, (purpose << 24) | (slot & 0xFFFFFF)
    )
    return torch.stack(philox(counter, (seed & _MASK, (seed >> 32) & _MASK)), -1).flatten(1)[:, :count]


def uniforms(seed, position, purpose, slot, count=1):
    """Uniforms in (0, 1), float64 [B, count]: u = (r + ½)·2⁻³², where r < 2¹² is refined by a second word s:
    u = (r + (s + ½)·2⁻³²)·2⁻³². Exact in float64, never 0 or 1."""
    r = words(seed, position, purpose, slot, count)
    s = words(seed, position, purpose, slot, count, refine=True)
    r, s = r.to(torch.float64), s.to(torch.float64)  # int64 tensors plus a number would be float32
    fraction = torch.where(r < _REFINE_BELOW, (s + 0.5) * 2.0**-32, 0.5)
    return (r + fraction) * 2.0**-32


def clocks(seed, position, purpose, slot, count):
    """Exponential clocks E = −log1p(−u) of tokens 0..count−1, float64 [B, count]: positive, finite, relatively
    accurate at both ends, so that a token of probability 1e-12 keeps its law."""
    return -torch.log1p(-uniforms(seed, position, purpose, slot, count))
