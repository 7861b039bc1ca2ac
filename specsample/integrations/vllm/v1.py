"""vLLM's V1 model runner (CPU, older GPUs): its sampler, rejection sampler and draft sampler, implemented with specsample.

Rows of logits are request-major, the bonus row last: [total, V] with total = Σ (drafts of the request + 1), which is the packed
layout of `ss.verify`. The position of a round is that of the first token it emits, seq_lens − drafts.

Nothing here waits for the device: no boolean indexing, no `.item()` or `.tolist()` on its tensors (a test searches for them).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import torch

from ... import api
from ...arguments import in_wider_dtype
from ...sampling import Sampling
from ...schemes import SCHEMES
from .requests import GREEDY, of_rows, sampling_of, seed_of, signed, upload, with_first_token, with_min_p_first, within_grammar


class Asked(NamedTuple):
    """What the requests of a batch ask for. Rebuilt when the batch changes, without waiting for the device.

    metadata     vLLM's SamplingMetadata, a new object whenever the batch changes
    ids          the requests' ids, in the order of the rows
    params       their SamplingParams
    seeds        int64 [B]
    sampling     of the target; drafting: of the drafts. The same object unless min_p must come before top-k and top-p
    biases       (request, {token: bias}) for requests with a logit_bias
    minimal      (request, min_tokens, its stop tokens, whether it also has a grammar) for requests with min_tokens
    grammars     whether any request has a grammar, by which vLLM cuts drafts
    vllms        whether vLLM's own processors change any row; custom: those of the user that act before the temperature, warping:
                 those that act after it
    """

    metadata: Any
    ids: list
    params: list
    seeds: torch.Tensor
    sampling: Sampling
    drafting: Sampling
    biases: list
    minimal: list
    grammars: bool
    vllms: bool
    custom: list
    warping: list


OURS = ("MinTokensLogitsProcessor", "LogitBiasLogitsProcessor", "MinPLogitsProcessor")


class State:
    """The adapter's state for a runner, kept from step to step."""

    def __init__(self, runner, scheme):
        self.card = SCHEMES[scheme]
        self.engine_seed = runner.model_config.seed or 0
        self.asked = None
        self.counts = self.layout = None  # of the last round with drafts (layout_of)
        self.depth = 0  # the number of drafts so far of the round being drafted now
        self.drawn = set()  # ids of requests whose last drafts were drawn, not picked

    def ended(self, position, accepted):
        """A round that began at `position` is over."""
        self.__dict__.pop("next", None)
        self.round, self.depth = (position, accepted), 0

    @functools.cached_property
    def next(self):
        """int64 [B]: the position of the round being drafted now; computed when the first draft is drawn, if any is"""
        position, accepted = self.round
        return position + accepted + 1


def asked_for(runner, state):
    batch = runner.input_batch
    metadata, asked = batch.sampling_metadata, state.asked
    if asked is not None and asked.metadata is metadata and asked.ids == batch.req_ids:
        return asked
    # Nothing draws from vLLM's generators any more. On a CPU, where they have no offset, rewinding one would bring down the engine.
    batch.generators.clear()
    ids, device = list(batch.req_ids), runner.device
    params = [runner.requests[name].sampling_params for name in ids]
    seeds = [seed_of(name, state.engine_seed) if p.seed is None else signed(p.seed) for name, p in zip(ids, params)]
    temperature = [0.0 if p.temperature < GREEDY else p.temperature for p in params]
    filters = [[p.top_k for p in params], [p.top_p for p in params], [p.min_p for p in params]]
    filters[0] = [k if k > 0 else 0 for k in filters[0]]
    sampling = drafting = sampling_of(temperature, *filters, device)
    if any(p.min_p > 0 and (k > 0 or p.top_p < 1) for p, k in zip(params, filters[0])):
        sampling = sampling._replace(min_p=0.0)
    minimal = [
        (b, p.min_tokens, sorted(p.all_stop_token_ids), p.structured_outputs is not None)
        for b, p in enumerate(params)
        if p.min_tokens > 0 and p.all_stop_token_ids
    ]
    processors = metadata.logitsprocs
    custom, warping = (
        [p for p in kind if type(p).__name__ not in OURS] for kind in (processors.non_argmax_invariant, processors.argmax_invariant)
    )
    vllms = not metadata.no_penalties or metadata.bad_words_token_ids or metadata.allowed_token_ids_mask is not None or custom
    state.asked = Asked(
        metadata, ids, params, upload(seeds, torch.int64, device), sampling, drafting,
        [(b, p.logit_bias) for b, p in enumerate(params) if p.logit_bias], minimal,
        any(p.structured_outputs is not None for p in params), bool(vllms), custom, warping,
    )  # fmt: skip
    return state.asked


def layout_of(state, metadata):
    """-> cu_rows int32 [B + 1], and minus the number of drafts, int64 [B]: kept for as long as the numbers of drafts are the same."""
    counts = metadata.num_draft_tokens
    if state.counts != counts:
        rows = torch.nn.functional.pad(metadata.cu_num_sampled_tokens, (1, 0))
        state.counts, state.layout = list(counts), (rows, 1 + (rows[:-1] - rows[1:]).to(torch.int64))
    return state.layout


@torch.inference_mode()
def sample(runner, state, logits, metadata, output):
    """The step after the target's forward call. metadata: SpecDecodeMetadata, or None if no request has drafts; output: the class
    SamplerOutput."""
    batch = runner.input_batch
    batch.update_async_output_token_ids()
    if metadata is not None and runner.use_async_scheduling and runner._draft_token_req_ids is not None:
        batch.update_async_spec_token_ids(runner._get_draft_token_ids_cpu()[0])
    asked = asked_for(runner, state)
    position = runner.seq_lens[: len(asked.ids)]
    if metadata is None:
        rows, counts, position = None, [0] * len(asked.ids), position.to(torch.int64)
    else:
        counts, (rows, fewer) = metadata.num_draft_tokens, layout_of(state, metadata)
        position = position + fewer
    law = processed(runner, asked, logits, counts, position, metadata)
    law, sampling = with_invariant(asked, law, counts)
    if metadata is None:
        tokens = api.sample(law, sampling=sampling, seed=asked.seeds, position=position)[:, None]
        state.ended(position, 0)
    else:
        drafts, laws = drafted(runner, state, asked, logits, metadata)
        if laws is not None:
            law, laws = in_wider_dtype(law, laws)
        verdict = api.verify(
            law, drafts, laws, scheme=state.card.name, sampling=sampling, seed=asked.seeds, position=position, cu_rows=rows,
            draft_sampling=None if sampling is asked.drafting else asked.drafting, max_depth=metadata.max_spec_len,
        )  # fmt: skip
        tokens = verdict.tokens
        state.ended(position, verdict.num_accepted)
    state.drawn.difference_update(asked.ids)
    tokens = with_first_token(tokens)
    return output(
        sampled_token_ids=tokens.to(torch.int32),
        logprobs_tensors=logprobs(runner, asked, logits, law, sampling, tokens, rows, counts),
    )


# --- the law of the rows ------------------------------------------------------------------------------------------------------


def owners(counts):
    """-> the request of each row, and its offset from the request's first row"""
    return [b for b, n in enumerate(counts) for _ in range(n + 1)], [i for n in counts for i in range(n + 1)]


def processed(runner, asked, logits, counts, position, metadata):
    """Rows after bias, penalties, bad words, allowed ids, min_tokens and thinking budget: a float32 copy, or `logits` itself.

    vLLM's own function for plain decoding does this, with each row as a separate request. So a row of a round has, bit for bit,
    the law of the same prefix without drafts. (vLLM's function for rounds masks the bonus row's stop tokens by the committed
    length alone.)
    """
    plain, holder = asked.metadata, asked.metadata.thinking_budget_state_holder
    thinking = holder is not None and holder.has_tracked_requests()
    minimal = [each for each in asked.minimal if _unfinished(runner, asked.ids[each[0]], each[1])]
    if not (asked.vllms or asked.biases or minimal or thinking):
        return logits
    law = logits.to(torch.float32, copy=True)
    owner, place = owners(counts)
    _add_bias(law, asked.biases, owner)
    _forbid_stops(law, minimal, runner, asked.ids, owner, place, position)
    if asked.vllms:
        law = runner.sampler.apply_logits_processors(law, _of_rows(plain, owner, place, asked.custom, law.device), False)
    if thinking:
        law = _think(holder, plain, law, metadata)
    return law


def _unfinished(runner, name, least):
    """Whether a request may still be short of its min_tokens. Its list may contain drafts that are not yet verified."""
    return len(runner.requests[name].output_token_ids) - 2 * (runner.num_spec_tokens + 1) < least


def _add_bias(law, biases, owner):
    entries = [(row, token, value) for b, bias in biases for row, o in enumerate(owner) if o == b for token, value in bias.items()]
    if entries:
        rows, tokens, values = zip(*entries)
        index = upload(rows, torch.int64, law.device), upload(tokens, torch.int64, law.device)
        law.index_put_(index, upload(values, torch.float32, law.device), accumulate=True)


def _forbid_stops(law, minimal, runner, ids, owner, place, position):
    """−inf for stop tokens in rows before the request's min_tokens, except where a grammar leaves nothing else."""
    entries = [
        (row, token, b, place[row] - runner.requests[ids[b]].num_prompt_tokens - least, grammar)
        for b, least, stops, grammar in minimal for row, o in enumerate(owner) if o == b for token in stops
    ]  # fmt: skip
    if not entries:
        return
    row, token, request, offset, grammar = (upload(column, torch.int64, law.device) for column in zip(*entries))
    old = law[row, token]
    early = position[request] + offset < 0  # position + place − prompt < min_tokens
    law[row, token] = old.masked_fill(early, -torch.inf)
    if any(entry[4] for entry in entries):
        dead = (law == -torch.inf).all(-1)[row] & (grammar > 0)
        law[row, token] = torch.where(dead, old, law[row, token])


def _of_rows(plain, owner, place, custom, device):
    """vLLM's SamplingMetadata of a batch in which each row is a separate request."""
    texts = plain.output_token_ids
    if texts and len(owner) > len(texts):
        drafts = plain.spec_token_ids
        texts = [[*texts[b], *drafts[b][:i]] if i else texts[b] for b, i in zip(owner, place)]
    if len(owner) == owner[-1] + 1:  # one row per request already
        index = None
    else:
        index = upload(owner, torch.int64, device)
    rows = lambda tensor: tensor if tensor is None or index is None else tensor[index]
    words = plain.bad_words_token_ids
    return dataclasses.replace(
        plain,
        output_token_ids=texts,
        bad_words_token_ids={row: words[b] for row, b in enumerate(owner) if b in words},
        allowed_token_ids_mask=rows(plain.allowed_token_ids_mask),
        prompt_token_ids=rows(plain.prompt_token_ids),
        frequency_penalties=rows(plain.frequency_penalties),
        presence_penalties=rows(plain.presence_penalties),
        repetition_penalties=rows(plain.repetition_penalties),
        logitsprocs=_Custom(custom),
        spec_token_ids=None,
        thinking_budget_state_holder=None,
    )


class _Custom(NamedTuple):
    non_argmax_invariant: list


def _think(holder, plain, law, metadata):
    """vLLM's thinking budget, which is tracked per request: bonus rows first, then rows of drafts, as in vLLM."""
    holder.update_state(plain.output_token_ids, plain.spec_token_ids, repeat_indices=None)
    if metadata is None:
        return holder.apply_to_logits(law, False, plain.spec_token_ids)
    for index, bonus in ((metadata.bonus_logits_indices, True), (metadata.target_logits_indices, False)):
        law[index] = holder.apply_to_logits(law[index], bonus, plain.spec_token_ids)
    return law


def with_invariant(asked, law, counts):
    """-> the rows and the Sampling to read them with, after what vLLM applies between temperature and top-k: min_p, if top-k or
    top-p follows it, and the user's own processors (in plain decoding only: vLLM rejects them with speculation)."""
    sampling = asked.sampling
    if sampling is not asked.drafting:
        temperature, min_p = (_of_row(field, counts) for field in (sampling.temperature, asked.drafting.min_p))
        law = with_min_p_first(law, temperature, min_p)
    if asked.warping:
        temperature = of_rows(sampling.temperature, len(law), law.device)
        law = law.to(torch.float32) / temperature.masked_fill(temperature == 0, 1.0)[:, None]
        for processor in asked.warping:
            law = processor.apply(law)
        sampling = sampling._replace(temperature=(temperature > 0).to(torch.float32))
    return law, sampling


def _of_row(field, counts):
    if not isinstance(field, torch.Tensor) or not any(counts):
        return field
    return field[upload(owners(counts)[0], torch.int64, field.device)]


# --- drafts -------------------------------------------------------------------------------------------------------------------


def drafted(runner, state, asked, logits, metadata):
    """-> draft tokens [n], and the logits they were drawn from [n, V], or None for drafts that were not drawn (n-gram, greedy)"""
    tokens = metadata.draft_token_ids
    if not state.card.uses_draft_logits:
        return tokens, None
    counts, kept, names = metadata.num_draft_tokens, runner._draft_probs, runner._draft_prob_req_ids
    if kept is None or names is None:
        lost = [name in state.drawn for name in asked.ids]
        return _without(tokens, lost, counts), None
    if names == asked.ids and all(n == kept.shape[1] for n in counts):
        laws = kept.flatten(0, 1)
        lost = None
    else:  # a request that sat out a step has lost the law of its drafts; dropping them preserves the law of the text
        place = {name: b for b, name in enumerate(names)}
        lost = [name not in place for name in asked.ids]
        index = [place.get(name, 0) * kept.shape[1] + i for name, n in zip(asked.ids, counts) for i in range(n)]
        laws = kept.flatten(0, 1)[upload(index, torch.int64, kept.device)]
        tokens = _without(tokens, lost, counts)
    if asked.grammars:
        tokens, laws = within_grammar(tokens, laws, logits[metadata.target_logits_indices])
    return tokens, laws


def _without(tokens, lost, counts):
    if not any(lost):
        return tokens
    gone = upload([flag for flag, n in zip(lost, counts) for _ in range(n)], torch.bool, tokens.device)
    return tokens.masked_fill(gone, -1)


@torch.inference_mode()
def draft(proposer, state, logits):
    """Draft tokens from rows [B, V], or [B·K, V] from a drafter that computes all depths at once -> (tokens, what vLLM calls
    their probabilities; it returns whatever it was given, here raw logits)"""
    asked, batch = state.asked, len(state.asked.ids)
    seeds, position, sampling, depth = asked.seeds, state.next, asked.drafting, state.depth
    if logits.shape[0] != batch:
        times = logits.shape[0] // batch
        if logits.shape[0] != times * batch:
            raise RuntimeError(f"specsample: {logits.shape[0]} rows of drafts for {batch} requests")
        repeat = lambda x: x.repeat_interleave(times) if isinstance(x, torch.Tensor) else x
        seeds, position, sampling = repeat(seeds), repeat(position), Sampling(*map(repeat, sampling))
        depth = torch.arange(times, device=logits.device).repeat(batch)
        state.depth += times
    else:
        state.depth += 1
    kind = state.card.draft_kind
    tokens = api.draft(logits, kind=kind, sampling=sampling, seed=seeds, position=position, depth=depth, node=depth)[:, 0]
    if not state.card.uses_draft_logits:
        return tokens, None
    state.drawn.update(asked.ids)
    return tokens, logits


# --- log-probabilities --------------------------------------------------------------------------------------------------------


def logprobs(runner, asked, raw, law, sampling, tokens, rows, counts):
    """vLLM's LogprobsTensors of the emitted tokens [B, D + 1], flattened. vLLM itself omits the entries at rejected places."""
    plain, sampler = asked.metadata, runner.sampler
    count, wanted = plain.max_num_logprobs, plain.logprob_token_ids
    if count is None and not wanted:
        return None
    places = tokens.shape[1]
    values = of_law(law, sampling, counts) if sampler.logprobs_mode.startswith("processed") else raw
    if rows is not None:
        index = rows[:-1, None] + torch.arange(places, device=rows.device)
        values = values[index.clamp(max=len(raw) - 1).flatten()]
    values = values.to(torch.float32) if sampler.logprobs_mode.endswith("logits") else sampler.compute_logprobs(values)
    emitted = tokens.clamp(min=0).flatten()
    if wanted:
        spread = {b * places + i: wanted[b] for b in wanted for i in range(places)}
        return sampler.gather_specific_token_logprobs(values, spread, emitted)
    return sampler.gather_logprobs(values, count, emitted)


def of_law(law, sampling, counts):
    """The rows as vLLM's processed logits: divided by the temperature (greedy: 1), −inf where a filter drops the token."""
    fields = [_of_row(field, counts) for field in sampling]
    temperature = of_rows(fields[0], len(law), law.device)
    temperature = temperature.masked_fill(temperature == 0, 1.0)
    cutoff = api.row_stats(law, sampling=Sampling(temperature, *fields[1:])).cutoff
    return (law.to(torch.float32) / temperature[:, None]).masked_fill(law < cutoff[:, None], -torch.inf)
