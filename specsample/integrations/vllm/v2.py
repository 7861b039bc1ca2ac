"""vLLM's V2 model runner (the default on GPUs): its sampler, rejection sampler and draft sampler, implemented with specsample.

A request has a slot, which holds its settings and the logits of its drafts on the device. Rows of logits are request-major, the
bonus row last, which is the packed layout of `ss.verify`; the row of a token at index p has position p, so the token it decides
has index p + 1. Drafting is captured in a CUDA graph, so nothing here waits for the device: slots are looked up on it.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch

from ... import api
from ...arguments import in_wider_dtype
from ...sampling import Sampling
from ...schemes import SCHEMES
from .requests import seed_of, with_first_token, with_min_p_first, within_grammar


def field(column, slots, host_slots):
    """A setting of the requests in `slots`: a number if all agree (known on the host), else a tensor."""
    values = column.np[host_slots]
    return float(values[0]) if (values == values[0]).all() else column.gpu[slots]


def settings(states, slots, host_slots):
    top_k = field(states.top_k, slots, host_slots)
    top_k = 0 if isinstance(top_k, float) and top_k == states.vocab_size else top_k
    temperature, top_p, min_p = (field(c, slots, host_slots) for c in (states.temperature, states.top_p, states.min_p))
    return Sampling(temperature, top_k, top_p, min_p)


class Asked(NamedTuple):
    """What the requests of a batch ask for: kept until the batch changes or a request is added.

    sampling     of the target; the drafts' is its temperature alone
    seeds        int64 [B]
    processed    whether vLLM's logits processors change any row
    min_p_first  whether min_p must come before top-k and top-p
    first        the slot of the first request, if the others' follow it one by one; else None
    """

    sampling: Sampling
    seeds: torch.Tensor
    processed: bool
    min_p_first: bool
    first: int | None


def asked_for(sampler, slots, host_slots):
    kept, key = sampler.specsample_asked, host_slots.tobytes()
    if kept is not None and kept[0] == key:
        return kept[1]
    states, first = sampler.sampling_states, int(host_slots[0])
    side_by_side = np.array_equal(host_slots, np.arange(first, first + len(host_slots)))
    filtered = np.any(states.top_k.np[host_slots] != states.vocab_size) or np.any(states.top_p.np[host_slots] < 1)
    asked = Asked(
        settings(states, slots, host_slots), states.seeds.gpu[slots], bool(np.any(sampler.specsample_processed[host_slots])),
        bool(filtered and np.any(states.min_p.np[host_slots] > 0)), first if side_by_side else None,
    )  # fmt: skip
    sampler.specsample_asked = key, asked
    return asked


def law_of(sampler, asked, logits, expanded, slots, host_slots, pos, input_ids, local, longest, make_context):
    """-> the rows [n, V] after vLLM's logits processors, the Sampling of the requests, and what vLLM calls processed logits (None:
    not requested). The rows are `logits` itself if nothing changes them."""
    states = sampler.sampling_states
    if sampler.return_sampling_mask or sampler.logprobs_mode.startswith("processed"):
        # The whole law is wanted, so vLLM applies everything.
        law = sampler.apply_sampling_params(logits, expanded, slots, host_slots, pos, input_ids, local, longest)
        temperature = asked.sampling.temperature
        hot = float(temperature > 0) if isinstance(temperature, float) else (temperature > 0).to(torch.float32)
        return law, Sampling(hot), law
    law, sampling = logits, asked.sampling
    if asked.processed:
        law = logits.to(torch.float32, copy=True)
        context = make_context(
            expanded_idx_mapping=expanded, idx_mapping=slots, idx_mapping_np=host_slots, expanded_local_pos=local,
            input_ids=input_ids, pos=pos, seq_lens_upper_bound_np=longest,
        )  # fmt: skip
        for processor in sampler.logits_processors:
            law = processor.apply(law, context)
        sampler.thinking_budget_state.apply(law, context)
    if asked.min_p_first:
        law = with_min_p_first(law, states.temperature.gpu[expanded], states.min_p.gpu[expanded])
        sampling = sampling._replace(min_p=0.0)
    return law, sampling, None


@torch.inference_mode()
def sample(
    sampler, make_context, logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, input_ids, expanded_local_pos,
    seq_lens_upper_bound_np, return_logprobs=False,
):  # fmt: skip
    """Sampler.sample: one row per request -> (tokens int64 [B], the logits from which log-probabilities are computed)"""
    asked = asked_for(sampler, idx_mapping, idx_mapping_np)
    law, sampling, kept = law_of(
        sampler, asked, logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, input_ids, expanded_local_pos,
        seq_lens_upper_bound_np, make_context,
    )  # fmt: skip
    tokens = api.sample(law, sampling=sampling, seed=asked.seeds, position=pos.to(torch.int64) + 1)
    return with_first_token(tokens[:, None])[:, 0], law if kept is None else kept


@torch.inference_mode()
def verify(
    rejection, make_context, scheme, logits, draft_logits, draft_sampled, pos, cu_num_logits, idx_mapping, idx_mapping_np,
    expanded_idx_mapping, expanded_local_pos, seq_lens_upper_bound_np, verify_draft_sampled,
):  # fmt: skip
    """RejectionSampler._verify -> (processed logits, tokens int64 [B, steps + 1], their number int32 [B])"""
    sampler, card, steps = rejection.sampler, SCHEMES[scheme], rejection.num_speculative_steps
    asked = asked_for(sampler, idx_mapping, idx_mapping_np)
    law, sampling, kept = law_of(
        sampler, asked, logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, draft_sampled, expanded_local_pos,
        seq_lens_upper_bound_np, make_context,
    )  # fmt: skip
    batch, count = len(idx_mapping_np), len(logits)
    full = count == batch * (steps + 1)  # each request has all its drafts
    if full:
        rows = full_rows(batch, steps, logits.device)
        start = pos[:: steps + 1]
    else:
        rows = rows_of_nodes(expanded_local_pos, count - batch)
        start = pos[cu_num_logits[:-1].long()]
    tokens = verify_draft_sampled[rows]
    laws = drafting = None
    if draft_logits is not None and card.uses_draft_logits:
        first_slot = asked.first if full else None
        laws = laws_of(draft_logits, rows, expanded_idx_mapping, expanded_local_pos, first_slot, batch)
        drafting = Sampling(asked.sampling.temperature)
        if verify_draft_sampled is not draft_sampled:
            tokens, laws = within_grammar(tokens, laws, logits[rows - 1])  # a node is decided by the row before its own
        law, laws = in_wider_dtype(law, laws)
    verdict = api.verify(
        law, tokens, laws, scheme=scheme, sampling=sampling, draft_sampling=drafting, seed=asked.seeds,
        position=start.to(torch.int64) + 1, cu_rows=cu_num_logits.to(torch.int32), max_depth=steps,
    )  # fmt: skip
    return law if kept is None else kept, with_first_token(verdict.tokens), verdict.num_accepted + 1


@functools.lru_cache(maxsize=512)
def full_rows(batch, steps, device):
    """`rows_of_nodes` of requests with `steps` drafts each"""
    with torch.inference_mode(False):
        node = torch.arange(batch * steps, device=device)
        return node + node // steps + 1


def rows_of_nodes(local, nodes):
    """int64 [nodes]: the row whose input each draft token is.

    local: a row's place in its request [n]. Draft rows are those with place > 0: row r of request b is node r − b − 1.
    """
    count = local.shape[0]
    row = torch.arange(count, device=local.device)
    first = local == 0
    node = torch.where(first, count, row - first.cumsum(0))  # place `count` collects the rows that are not drafts
    return torch.zeros(count + 1, dtype=torch.int64, device=local.device).scatter_(0, node, row)[:nodes]


def laws_of(draft_logits, rows, expanded, local, first, batch):
    """The logits of the drafts, one row per node: a view if the requests have all their drafts, in slots from `first` on; else a
    copy."""
    if first is not None:
        return draft_logits[first : first + batch].flatten(0, 1)
    return draft_logits[expanded[rows].long(), local[rows].long() - 1]


@torch.inference_mode()
def draw(
    scheme, logits, expanded_idx_mapping, temperature, seed, pos, apply_temperature, is_drafting, logits_cache=None,
    logits_cache_col=None, use_fp64=False, logits_cache_source=None,
):  # fmt: skip
    """`gumbel_sample` as the drafters call it: draw one token per row, and store the row in logits_cache[slot, col].

    Rows that pad a CUDA graph have slot −1: they read and write the slot after the last, which `with_spare_slot` added.
    """
    card, slots = SCHEMES[scheme], expanded_idx_mapping.long()
    rows = (logits if logits_cache_source is None else logits_cache_source).to(logits_cache.dtype)
    col = logits_cache_col.long().expand(len(rows))
    if card.uses_draft_logits:
        logits_cache[..., : rows.shape[-1]].index_put_((slots, col), rows)
    return api.draft(
        rows, kind=card.draft_kind, sampling=Sampling(temperature[slots]), seed=seed[slots],
        position=pos.to(torch.int64) + 1 - col, depth=col, node=col,
    )[:, 0]  # fmt: skip


def with_spare_slot(speculator):
    """Add a slot for the drafts' logits, so that slot −1 belongs to no request."""
    kept = speculator.draft_logits
    if kept is not None:
        fill = speculator.draft_logits_spec(speculator.vllm_config)[1]
        speculator.draft_logits = None  # freed before the new one is allocated
        speculator.draft_logits = torch.full((kept.shape[0] + 1, *kept.shape[1:]), fill, dtype=kept.dtype, device=kept.device)


def add_request(sampler, slot, params):
    """Runs after vLLM's Sampler.add_request: sets a seed for a request without one, and whether its rows need vLLM's processors."""
    states = sampler.sampling_states
    if params.seed is None:
        states.seeds.np[slot] = seed_of(sampler.req_states.index_to_req_id[slot], sampler.specsample_seed)
    sampler.specsample_asked = None
    sampler.specsample_processed[slot] = bool(
        params.logit_bias or params.allowed_token_ids or params.bad_words or params.min_tokens
        or params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
        or params.thinking_token_budget is not None or len(sampler.logits_processors) > VLLMS_OWN
    )  # fmt: skip


VLLMS_OWN = 3  # vLLM's own logits processors: bias, penalties, bad words


def init(sampler, vllm_config, max_num_reqs):
    """Runs after Sampler.__init__."""
    sampler.specsample_seed = vllm_config.model_config.seed or 0
    sampler.specsample_processed = np.zeros(max_num_reqs, dtype=bool)
    sampler.specsample_asked = None
    sampler.use_flashinfer = sampler.use_xpu_sampler = False


def method(function, *fixed):
    """`function(self, *fixed, …)` as a method"""
    return lambda self, *args, **kwargs: function(self, *fixed, *args, **kwargs)
