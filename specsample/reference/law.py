"""From logits to the law of a row: temperature, and the filters as one cut-off, in float64."""

import math
from typing import NamedTuple

import torch

from ..limits import MAX_LOGSUMEXP, SLACK


class Params(NamedTuple):
    """The `Sampling` of each row: values float64 [4, n] (temperature, top_k, top_p, min_p); whether top-k or top-p may be on."""

    values: torch.Tensor
    sorts: bool

    @classmethod
    def of(cls, sampling, sampling_rows, count, device):
        if sampling_rows is not None:
            return cls(sampling_rows, True)
        values = torch.tensor(sampling, dtype=torch.float64, device=device)[:, None].expand(4, count)
        return cls(values, sampling[1] > 0 or sampling[2] < 1)

    def rows(self, at):
        return Params(self.values[:, at], self.sorts)


def warp(logits, params):
    """The law of each row.

    logits: [B, V], any float dtype; params: Params of the B rows
    -> (log law float64 [B, V], −inf where filtered, and −inf throughout rows without a finite logit;
        max float64 [B]; logsumexp of the kept tempered logits float64 [B]; logit cut-off float64 [B])
    """
    temperature, top_k, top_p, min_p = (p[:, None] for p in params.values)
    z = logits.to(torch.float64)
    if z.shape[-1] == 0:  # an empty vocabulary implies no rows
        return z, *z.new_zeros(3, z.shape[0])
    z = torch.where(z.isnan(), -math.inf, z)
    top = z.amax(-1, keepdim=True)
    infinite = top == math.inf  # +inf logits share all mass equally
    greedy = ~(temperature > 0)  # includes NaN
    temperature = torch.where(greedy, 1.0, temperature).clamp(min=1e-30)
    tempered = torch.where(infinite, torch.where(z == math.inf, 0.0, -math.inf), (z - top) / temperature)
    tempered = torch.where(z == -math.inf, -math.inf, tempered)  # also removes NaN (−inf − −inf) where no logit is finite

    cut = _top_k_top_p_cut(tempered, top_k, top_p) if params.sorts else torch.full_like(top, -math.inf)
    cut = torch.maximum(cut, torch.where(min_p > 0, min_p.clamp(max=1.0).log() - SLACK, -math.inf))
    kept = torch.where(tempered >= cut, tempered, -math.inf)

    ids = torch.arange(z.shape[-1], device=z.device)
    winner = torch.where(z == top, ids, z.shape[-1]).amin(-1, keepdim=True)  # argmax, lowest id on ties
    only = torch.where(ids == winner, 0.0, -math.inf).to(torch.float64)
    broken = top == -math.inf
    kept = torch.where(broken, -math.inf, torch.where(greedy, only, kept))

    mass = kept.logsumexp(-1, keepdim=True)
    law = torch.where(kept > -math.inf, kept - mass, -math.inf)
    absolute = torch.where(greedy & ~broken, 0.0, torch.where(infinite, top, top / temperature + mass))
    cutoff = torch.where(greedy | infinite, top, _to_logit(cut, tempered, z, top, temperature))
    return law, top[:, 0], absolute[:, 0], cutoff[:, 0]


def _top_k_top_p_cut(tempered, top_k, top_p):
    """The smallest tempered logit [B, 1] that top-k followed by top-p keeps; −inf if both are off."""
    vocab = tempered.shape[-1]
    order = tempered.sort(-1, descending=True).values
    by_k = (top_k >= 1) & (top_k < vocab)
    kth = order.gather(-1, torch.where(by_k, top_k, 1.0).to(torch.int64) - 1)
    cut = torch.where(by_k, kth, -math.inf)
    weight = torch.where(order >= cut, order.exp(), 0.0)
    above = weight.cumsum(-1) - weight  # the mass ranked above each token
    inside = above < top_p.clamp(min=0.0) * (1 - SLACK) * weight.sum(-1, keepdim=True)
    last = inside.sum(-1, keepdim=True).clamp(min=1) - 1  # the likeliest token always stays
    return torch.where(top_p < 1, torch.maximum(cut, order.gather(-1, last)), cut)


def _to_logit(cut, tempered, z, top, temperature):
    """The cut-off as a logit: that of the token it falls on, or the min-p bound itself."""
    on_token = torch.where(tempered == cut, z, math.inf).amin(-1, keepdim=True)
    return torch.where(cut == -math.inf, cut, torch.where(on_token < math.inf, on_token, top + cut * temperature))


def given(law, tokens):
    """The law conditioned on the token being one of `tokens`, accurate even if their total probability is too small for any float.

    law: log law [B, V], float64; tokens: bool [B, V]
    -> (log law, −inf throughout if no token remains; their total probability float64 [B])
    """
    rest = torch.where(tokens, law, -math.inf)
    share = rest.logsumexp(-1, keepdim=True)
    return torch.where(rest > -math.inf, rest - share, -math.inf), share[:, 0].exp()


def from_stats(logits, params, stats):
    """The log law of rows from statistics kept from drafting (`RowStats`, float32), without another pass."""
    top, absolute, cutoff = (s.to(torch.float64)[:, None] for s in stats)
    z = logits.to(torch.float64)
    temperature = params.values[0][:, None].clamp(min=1e-30)
    return torch.where((z >= cutoff) & (z > -math.inf), z / temperature - absolute, -math.inf)


def usable(params, stats):
    """Which rows' float32 statistics determine the law to 1e-6: not beyond MAX_LOGSUMEXP, nor for greedy rows and rows without
    a finite logit. The others are recomputed."""
    absolute = stats[1].to(torch.float64)
    return (params.values[0] > 0) & (absolute.abs() <= MAX_LOGSUMEXP)
