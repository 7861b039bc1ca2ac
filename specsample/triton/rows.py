"""`sample`, `draft` and `row_stats` in Triton: independent rows of logits, one program per row (and child)."""

import torch
import triton
import triton.language as tl

from .. import limits
from .groups import FAR, race_of, read_tops, relative_to, room_of, score_at, winner_of, winner_of_law
from .kernel import Kernel
from .launch import ALONE, BLOCK, launch, laws_of, per_row, plain, race_tiles, scale_bits, tops_for
from .law import FIELDS, LARGEST, Law, key, load_law, load_logits, number
from .passes import Tokens, is_in
from .streams import CLOCK, DISTINCT, DRAFT, clock_of, renewal, spread, stream
from .tree import law_without

FEW_CHILDREN = 32  # independent children that are held together, one a thread of a warp, if a row has no more; else MAX_NODES
_NO_ID = tl.constexpr(2147483647)


@triton.jit
def law_or_plain(laws, at, scale):
    """The row's law or, if there are no laws (None), the plain law relative to 0."""
    if laws is None:
        one, none = tl.full((), 1.0, tl.float64), tl.full((), -1, tl.int64)
        zero = tl.full((), 0.0, tl.float32)
        return Law(zero, zero - LARGEST, number(scale), one, none)
    else:
        return load_law(laws + at * FIELDS)


@Kernel
def race_kernel(
    logits, laws, out, tops, seeds, positions, depths, nodes, vocab, stride, scale, seed, position, depth, node, k,
    PURPOSE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Writes out int64 [R, k]: child j of row i is the winner of the row's race on stream (position + depth, slot node + j)."""
    at = tl.program_id(0).to(tl.int64)
    i, j = at // k, at % k
    law = law_or_plain(laws, i, scale)
    where = spread(position, positions, i, 0) + spread(depth, depths, i, 0)
    s = stream(spread(seed, seeds, i, 1), where, PURPOSE, spread(node, nodes, i, 0) + j)
    tl.store(out + at, winner_of_law(logits + i * stride, vocab, law, s, laws is not None, tops + at * room_of(vocab), TILES))


@triton.jit
def race_without(row, vocab, law, listed, s, tops, TILES: tl.constexpr):
    """The winner of the race among the tokens that are not listed, relative to their largest logit: int64, −1 if none."""
    winner = tl.full((), -1, tl.int64)
    rest = law_without(row, vocab, law, listed, 32 * TILES)
    if rest.only == -1:
        _score, winner = winner_of(race_of(row, vocab, rest, s, listed, float("inf"), 0), tops)
    return winner


@Kernel
def arrivals_kernel(
    logits, laws, out, tops, seeds, positions, depths, nodes, vocab, stride, seed, position, depth, node, k,
    PURPOSE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Writes out int64 [R, k], initially −1: the first k arrivals of each row's race on stream (position + depth, slot node), in
    order, all from one reading of the row. Those far below the first are found relative to the largest remaining logit."""
    i = tl.program_id(0).to(tl.int64)
    law = load_law(laws + i * FIELDS)
    where = spread(position, positions, i, 0) + spread(depth, depths, i, 0)
    s = stream(spread(seed, seeds, i, 1), where, PURPOSE, spread(node, nodes, i, 0))
    if law.only >= 0:
        tl.store(out + i * k, law.only)
    elif law.only == -1:
        tops += i * room_of(vocab)
        read_tops(logits + i * stride, vocab, tops, TILES)
        score, last = tl.full((), float("inf"), tl.float64), tl.full((), 0, tl.int64)
        j = k * 0
        row = logits + i * stride
        while (j < k) & (last >= 0):
            if (tl.abs(score) <= FAR) | (j == 0):
                score, last = winner_of(race_of(row, vocab, law, s, (), score, last), tops)
            if tl.abs(score) > FAR:
                tl.debug_barrier()
                last = race_without(row, vocab, law, Tokens(out + i * k, j), s, tops, TILES)
            tl.store(out + i * k + j, last)
            j += 1


@Kernel
def independent_kernel(
    logits, laws, out, tops, seeds, positions, nodes, vocab, stride, scale, seed, position, node, k,
    WIDTH: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Writes out int64 [R, k], initially −1, k <= WIDTH: the first k arrivals of each row's race on stream (position, slot node),
    in which a token that has arrived starts another clock. The row is read once. Tokens far below the first never arrive."""
    i = tl.program_id(0).to(tl.int64)
    lanes, here, row = tl.arange(0, WIDTH), out + i * k, logits + i * stride
    law = law_or_plain(laws, i, scale)
    if law.only >= 0:
        tl.store(here + lanes, law.only, mask=lanes < k)
    elif law.only == -1:
        slot = spread(node, nodes, i, 0)
        s = stream(spread(seed, seeds, i, 1), spread(position, positions, i, 0), DRAFT, slot)
        tops += i * room_of(vocab)
        peak = read_tops(row, vocab, tops, TILES)
        own = law
        if laws is None:
            own = relative_to(law, peak)
        # Of the tokens that have arrived, in the lane of the step in which they did: the sum of their clocks, the number of their
        # arrivals, and the score of the next.
        tokens, number = tl.full((WIDTH,), _NO_ID, tl.int32), tl.zeros((WIDTH,), tl.int32)
        clock, next = tl.zeros((WIDTH,), tl.float64), tl.full((WIDTH,), float("-inf"), tl.float64)
        score, new = tl.full((), float("inf"), tl.float64), tl.full((), 0, tl.int64)  # the next that has not arrived before
        search, j = tl.full((), 1, tl.int1), k * 0
        while (j < k) & (peak > float("-inf")):
            if search:
                score, new = winner_of(race_of(row, vocab, own, s, (), score, new), tops)
            best = tl.max(next, 0)
            again = tl.min(tl.where(next == best, tokens, _NO_ID), 0)
            search = (score > best) | ((score == best) & (new < again))
            token = tl.where(search, new, again)
            tl.store(here + j, token)
            lane = tl.where(search, lanes == j, tokens == token)
            so_far, count = tl.sum(tl.where(lane, clock, 0.0), 0), tl.sum(tl.where(lane, number, 0), 0) + 1
            if search:
                so_far = clock_of(s, token)
            so_far += renewal(s, slot, token, count)
            tokens, number = tl.where(lane, token.to(tl.int32), tokens), tl.where(lane, count, number)
            clock, next = tl.where(lane, so_far, clock), tl.where(lane, score_at(row, vocab, own, token, so_far), next)
            j += 1


@Kernel
def topk_kernel(logits, laws, out, vocab, stride, k, width, BLOCK: tl.constexpr):
    """Writes out int64 [R, width], initially −1: the k likeliest kept tokens of each row, lowest id first on ties."""
    i = tl.program_id(0).to(tl.int64)
    law = load_law(laws + i * FIELDS)
    if law.only >= 0:
        tl.store(out + i * width, law.only, mask=k > 0)
    elif law.only == -1:
        row = logits + i * stride
        last = tl.full((), 0x7FFFFFFFFFFFFFFF, tl.int64)
        for j in range(0, k):
            best = tl.full((), -1 << 63, tl.int64)
            for first in range(0, vocab, 4 * BLOCK):
                ids = first + tl.arange(0, 4 * BLOCK)
                z = load_logits(row, ids, vocab)
                top = tl.max(z, 0)
                if (top >= law.cutoff) & ((key(top) << 32) + 0x7FFFFFFF > best):  # otherwise the next token is not in this tile
                    rank = (key(z) << 32) + (0x7FFFFFFF - ids)  # the order of (logit, lower id)
                    best = tl.maximum(best, tl.max(tl.where((z >= law.cutoff) & (rank < last), rank, -1 << 63), 0))
            last = best
            if last > -1 << 63:
                tl.store(out + i * width + j, 0x7FFFFFFF - (last & 0xFFFFFFFF))


@Kernel
def rest_kernel(logits, laws, out, tops, seeds, positions, nodes, vocab, stride, seed, position, node, k, TILES: tl.constexpr):
    """Writes the last column of out int64 [R, k]: a token drawn from the rest of each row, without those in the other columns."""
    i = tl.program_id(0).to(tl.int64)
    law = load_law(laws + i * FIELDS)
    listed = Tokens(out + i * k, k - 1)
    winner = tl.where((law.only >= 0) & (is_in(law.only, listed) == 0), law.only, -1)
    if law.only == -1:
        s = stream(spread(seed, seeds, i, 1), spread(position, positions, i, 0), DRAFT, spread(node, nodes, i, 0) + k - 1)
        row = logits + i * stride
        tops += i * room_of(vocab)
        read_tops(row, vocab, tops, TILES)
        score, winner = winner_of(race_of(row, vocab, law, s, listed, float("inf"), 0), tops)
        if tl.abs(score) > FAR:
            winner = race_without(row, vocab, law, listed, s, tops, TILES)
    tl.store(out + i * k + k - 1, winner)


def sample(logits, sampling, sampling_rows, seed, seeds, position, positions):
    return draft(
        logits, 1, "arrivals", sampling, sampling_rows, seed, seeds, position, positions, 0, None, 0, None
    )[:, 0].contiguous()  # fmt: skip


def draft(logits, k, kind, sampling, sampling_rows, seed, seeds, position, positions, depth, depths, node, nodes):
    count, vocab = logits.shape
    out = torch.full((count, k), -1, dtype=torch.int64, device=logits.device)
    if count == 0 or vocab == 0:
        return out
    (seed, seeds), (position, positions) = per_row(seed, seeds), per_row(position, positions)
    (depth, depths), (node, nodes) = per_row(depth, depths), per_row(node, nodes)
    likeliest = {"topk": k, "top": k - 1}.get(kind, 0)
    ordered = kind == "distinct" or kind == "arrivals" and k > 1
    laws = None
    if likeliest or ordered or kind == "top" or not plain(sampling, sampling_rows):
        laws = laws_of(logits, sampling, sampling_rows, normalised=False)
    # Independent draws use the round's streams; arrivals and lists use the clocks of the child's position. Slot: node, or list.
    purpose = {"iid": DRAFT, "distinct": DISTINCT, "top": DRAFT}.get(kind, CLOCK).value
    if purpose == CLOCK.value:
        node, nodes = 0, None
    else:
        depth, depths = 0, None
    common, stride, tiles = (logits, laws, out), logits.stride(0), race_tiles(logits)
    if kind in ("topk", "top"):
        if likeliest:
            launch(topk_kernel, (count,), *common, vocab, stride, likeliest, k, BLOCK=BLOCK)
        if kind == "top":
            numbers = (vocab, stride, seed, position, node, k)
            launch(rest_kernel, (count,), *common, tops_for(logits, count), seeds, positions, nodes, *numbers, TILES=tiles)
        return out
    streams = (seeds, positions, depths, nodes, vocab, stride)
    numbers = (seed, position, depth, node, k)
    if kind == "iid" and k > 1:
        held = {"WIDTH": FEW_CHILDREN} if k <= FEW_CHILDREN else {"WIDTH": limits.MAX_NODES, **ALONE}
        streams, numbers = (seeds, positions, nodes, vocab, stride), (scale_bits(sampling), seed, position, node, k)
        launch(independent_kernel, (count,), *common, tops_for(logits, count), *streams, *numbers, TILES=tiles, **held)
    elif ordered:
        launch(arrivals_kernel, (count,), *common, tops_for(logits, count), *streams, *numbers, PURPOSE=purpose, TILES=tiles)
    else:
        tops, scale = tops_for(logits, count * k), scale_bits(sampling)
        launch(race_kernel, (count * k,), *common, tops, *streams, scale, *numbers, PURPOSE=purpose, TILES=tiles)
    return out


def row_stats(logits, sampling, sampling_rows):
    stats = torch.empty(3, logits.shape[0], dtype=torch.float32, device=logits.device)
    laws_of(logits, sampling, sampling_rows, stats=stats)
    return tuple(row.clone() for row in stats)
