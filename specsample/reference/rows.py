"""Sampling, drafting and statistics for independent rows of logits."""

import math

import torch

from . import rng
from .law import Params, warp


def spread(number, values, count, device, step=0):
    """An argument that is an int or a tensor, as int64 [count]; an int s becomes s, s + step, s + 2·step, …"""
    if values is not None:
        return values.to(torch.int64).expand(count)
    return number + step * torch.arange(count, device=device)


def winner(score):
    """argmax of float64 scores [B, V], lowest id on ties; −1 where nothing has a finite score. -> int64 [B]"""
    if score.shape[-1] == 0:
        return score.new_full(score.shape[:1], -1, dtype=torch.int64)
    ids = torch.arange(score.shape[-1], device=score.device)
    best = score.amax(-1, keepdim=True)
    first = torch.where(score == best, ids, score.shape[-1]).amin(-1)
    return torch.where(best[:, 0] > -math.inf, first, -1)


def race(log_weights, seed, position, purpose, slot):
    """argmin E_i / w_i: a draw from w / Σw (the exponential race). log_weights [B, V] -> int64 [B]"""
    return arrivals(log_weights, rng.clocks(seed, position, purpose, slot, log_weights.shape[-1]), 1)[:, 0]


def arrivals(log_weights, clock, k):
    """The first k arrivals, at times E_i / w_i, in order: k draws without replacement. Each is computed relative to the largest remaining
    weight; otherwise clocks would be rounded away next to much smaller weights. [B, V] -> int64 [B, k], −1 once nothing is left"""
    found, ids = [], torch.arange(log_weights.shape[-1], device=log_weights.device)
    for _ in range(k if log_weights.shape[-1] else 0):
        top = log_weights.amax(-1, keepdim=True)
        found.append(winner(torch.where(log_weights > -math.inf, log_weights - top, -math.inf) - clock.log()))
        log_weights = torch.where(ids == found[-1][:, None], -math.inf, log_weights)
    return torch.stack(found, -1) if found else torch.full((len(log_weights), k), -1, device=log_weights.device)


def independent(log_weights, clock, k, renewal):
    """k independent draws: the first k arrivals of a race in which a token that has arrived starts another clock, the n-th time
    renewal(token [B], n [B]) (rng.py: *Renewals*). [B, V] -> int64 [B, k], −1 where no token has a weight"""
    found = []
    for j in range(k):
        found.append(arrivals(log_weights, clock, 1)[:, 0])
        if j + 1 < k and log_weights.shape[-1]:
            token = found[-1].clamp(min=0)
            number = sum((earlier == found[-1]).long() for earlier in found)
            clock = clock.scatter_add(1, token[:, None], renewal(token, number)[:, None])
    return torch.stack(found, -1)


def sample(logits, sampling, sampling_rows, seed, seeds, position, positions):
    count, device = logits.shape[0], logits.device
    seed = spread(seed, seeds, count, device, step=1)
    position = spread(position, positions, count, device)
    law = warp(logits, Params.of(sampling, sampling_rows, count, device))[0]
    return race(law, seed, position, rng.CLOCK, torch.zeros_like(seed))


def draft(logits, k, kind, sampling, sampling_rows, seed, seeds, position, positions, depth, depths, node, nodes):
    count, device = logits.shape[0], logits.device
    seed = spread(seed, seeds, count, device, step=1)
    position = spread(position, positions, count, device)
    depth, node = spread(depth, depths, count, device), spread(node, nodes, count, device)
    law = warp(logits, Params.of(sampling, sampling_rows, count, device))[0]
    slot = torch.zeros_like(seed)
    if kind == "iid":
        clock = rng.clocks(seed, position, rng.DRAFT, node, law.shape[-1])
        return independent(law, clock, k, lambda token, number: rng.renewals(seed, position, node, token, number))
    if kind == "lists":
        return torch.stack([race(law, seed, position + depth, rng.CLOCK, slot + j) for j in range(k)], -1)
    if kind == "top":
        top = _largest(law, k - 1)
        chosen = torch.zeros(count, law.shape[-1] + 1, dtype=torch.bool, device=device)  # the last column takes the -1s
        chosen.scatter_(1, torch.where(top >= 0, top, law.shape[-1]), True)
        rest = torch.where(chosen[:, :-1], -math.inf, law)
        return torch.cat([top, race(rest, seed, position, rng.DRAFT, node + k - 1)[:, None]], -1)
    if kind == "arrivals":
        return arrivals(law, rng.clocks(seed, position + depth, rng.CLOCK, slot, law.shape[-1]), k)
    if kind == "distinct":
        return arrivals(law, rng.clocks(seed, position, rng.DISTINCT, node, law.shape[-1]), k)
    assert kind == "topk", kind
    return _largest(law, k)


def _largest(score, k):
    """The ids of the k largest scores in order, lowest id first on ties; −1 where the score is −inf. -> int64 [B, k]"""
    value, order = torch.sort(score, dim=-1, descending=True, stable=True)
    found = torch.where(value > -math.inf, order, -1)[:, :k]
    return torch.nn.functional.pad(found, (0, k - found.shape[-1]), value=-1)


def row_stats(logits, sampling, sampling_rows):
    stats = warp(logits, Params.of(sampling, sampling_rows, logits.shape[0], logits.device))[1:]
    return tuple(s.to(torch.float32) for s in stats)


def log_probs(logits, sampling, sampling_rows):
    """The log law of each row, float64 [B, V], −inf where filtered."""
    return warp(logits, Params.of(sampling, sampling_rows, logits.shape[0], logits.device))[0]
