"""Philox4x32-10 and the stream map: every random number of the package, defined once in Python.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    key     = seed (low, high 32 bits)
    counter = (block, position low, position high, purpose << 24 | slot)

    purpose  used for                                        position                 slot
    0 CLOCK     race, plain sampling, bonus, `arrivals`      the token's own          0 (or the clock list)
    1 ACCEPT    acceptance uniforms (word of token 0)        the round's              node index
    2 RESIDUAL  residual races                               the round's              0 (`top`: 0, 1, …)
    3 SELECT    selection among siblings (tokens 0 and 1)    the round's              node index
    4 DRAFT     independent drafting                         the round's              first child's node index (`top`: the drawn child's)
    5 DISTINCT  drafting without replacement                 the round's              first child's node index
    6 RENEWAL   independent drafting: a token's later        the round's              first child's node index + 2¹⁴·n, for the
                arrivals (its word)                                                   token's n-th arrival after the first

A round is one draft-and-verify step; its position is the absolute index of the first token it emits. Draft, acceptance
and residual noise belong to the round, not to the token's position: under `block` a draft token affects the acceptance of
its ancestors, and its position is drafted again in the next round, which must not reuse the same noise.

The two top bits of `block` select one of four sub-streams:

    00  token i           block i // 4                           word i % 4            its word
    10  token i           the same                               the same              its second word, if the first is below 2¹²
    01  group of token i  32·(i // 4096) + i // 8 % 32           i // 1024 % 4         A, of the group's least clock
    11  group of token i  the same                               the same              S: the place of the least clock in the top
                                                                                       five bits, in the others A's second word

*Clocks in groups.* Purposes 0, 2, 4 and 5 race on clocks generated top-down, in groups of 32 tokens. The least clock of a group
is M ~ Exp(1)/32; the place of the token that has it is uniform in 0..31; every other token of the group has the clock M + Exp(1). By
the memoryless property these are 32 independent Exp(1) clocks, and no clock of a group is below its M: a group whose largest weight
over M does not reach the best score cannot contain the winner, and none of its words need be drawn. In a tile of 1024 tokens, group l
comprises tokens 8·l..8·l + 7 of each of the tile's four rows of 256. Groups are always whole: places beyond the vocabulary have no weight.
The second word of A keeps rare tokens exact; a token's second word matters only if a group has several rare ones (tests/test_clocks.py).

*Renewals.* Several independent children of a row come from one race, which goes on after the first arrival: a token that has arrived
starts another clock, so that it arrives at times E/w, (E + E')/w, (E + E' + E'')/w, … The arrivals of one token are then a Poisson process
of rate w, and the tokens of the first k arrivals of all these processes are k independent draws.
"""

import torch

CLOCK, ACCEPT, RESIDUAL, SELECT, DRAFT, DISTINCT, RENEWAL = range(7)
GROUP = 32  # tokens

_MASK = 0xFFFFFFFF
REFINE_BELOW = 1 << 12  # words below this are refined by a second word
REFINE_BLOCK = 1 << 31  # ... at the same counter with this bit of the block set
GROUP_BLOCK = 1 << 30  # this bit selects the words of groups
RENEWAL_BITS = 14  # of a slot: for the node; the others number a token's renewals


def philox(counter, key):
    """Ten rounds of Philox4x32. counter: four int64 tensors, key: two (each holding 32 bits) -> four int64 tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit products wrap in int64, which leaves both 32-bit halves correct.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & _MASK) ^ c1 ^ k0, b & _MASK, ((a >> 32) & _MASK) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _blocks(seed, position, purpose, slot, block):
    """The words of counter blocks int64 [n] or [B, n]; the other arguments select streams, int64 [B] each -> int64 [B, n, 4]"""
    seed, position, slot = seed[:, None], position[:, None], slot[:, None]
    counter = torch.broadcast_tensors(block, position & _MASK, (position >> 32) & _MASK, (purpose << 24) | (slot & 0xFFFFFF))
    return torch.stack(philox(counter, (seed & _MASK, (seed >> 32) & _MASK)), -1)


def words(seed, position, purpose, slot, count, refine=False):
    """Words of tokens 0..count−1. seed, position, slot: int64 [B] -> int64 [B, count] in [0, 2³²)."""
    block = torch.arange((count + 3) // 4, device=seed.device) + (REFINE_BLOCK if refine else 0)
    return _blocks(seed, position, purpose, slot, block).flatten(1)[:, :count]


def group_words(seed, position, purpose, slot, count, second=False):
    """A of groups 0..count−1 (second: S). seed, position, slot: int64 [B] -> int64 [B, count] in [0, 2³²)."""
    lane = torch.arange(min(32, max(count, 1)), device=seed.device)  # a narrow vocabulary has fewer than 32
    block = 32 * torch.arange((count + 127) // 128, device=seed.device)[:, None] + lane
    block = block.flatten() + GROUP_BLOCK + (REFINE_BLOCK if second else 0)
    four_tiles = _blocks(seed, position, purpose, slot, block).unflatten(1, (-1, len(lane)))  # [B, four tiles, lane, tile]
    return four_tiles.transpose(2, 3).flatten(1)[:, :count]


def _uniform(r, s, bits):
    """(r + ½)·2⁻³²; r < 2¹² is refined by a `bits`-bit number s: (r + (s + ½)·2⁻ᵇⁱᵗˢ)·2⁻³². Exact in float64."""
    r, s = r.to(torch.float64), s.to(torch.float64)  # int64 tensors plus a number would be float32
    return (r + torch.where(r < REFINE_BELOW, (s + 0.5) * 2.0**-bits, 0.5)) * 2.0**-32


def uniforms(seed, position, purpose, slot, count=1):
    """Uniforms of tokens 0..count−1 in (0, 1), never 0 or 1: float64 [B, count]"""
    stream = (seed, position, purpose, slot, count)
    return _uniform(words(*stream), words(*stream, refine=True), 32)


def group_of(token):
    return token // 1024 * 32 + token // 8 % 32


def place_of(token):
    return token // 256 % 4 * 8 + token % 8


def least_clocks(seed, position, purpose, slot, count):
    """(M float64, place int64) of groups 0..count−1, [B, count] each."""
    stream = (seed, position, purpose, slot, count)
    s = group_words(*stream, second=True)
    return -torch.log1p(-_uniform(group_words(*stream), s & 0x7FFFFFF, 27)) / GROUP, s >> 27


def clocks(seed, position, purpose, slot, count):
    """Exponential clocks of tokens 0..count−1, in groups (see above), float64 [B, count]: positive, finite, and with small relative
    error at both ends, so that even a token of probability 1e-12 is drawn with its exact probability."""
    token = torch.arange(count, device=seed.device)
    group, groups = group_of(token), count // 1024 * 32 + min(32, (count % 1024 + 7) // 8)
    least, place = least_clocks(seed, position, purpose, slot, groups)
    least, first = least[:, group], place[:, group] == place_of(token)
    return least + torch.where(first, 0.0, -torch.log1p(-uniforms(seed, position, purpose, slot, count)))


def renewals(seed, position, node, token, number):
    """The clock that a token starts after its `number`-th arrival, number ≥ 1; all int64 [B] -> float64 [B]"""
    slot = (node & (1 << RENEWAL_BITS) - 1) | number << RENEWAL_BITS
    r, s = (
        _blocks(seed, position, RENEWAL, slot, refine + token[:, None] // 4).gather(2, token[:, None, None] % 4)[:, 0, 0]
        for refine in (0, REFINE_BLOCK)
    )
    return -torch.log1p(-_uniform(r, s, 32))
