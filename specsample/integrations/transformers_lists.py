"""transformers' lists of processors and criteria, converted to arguments of specsample's loop.

Two things differ. transformers calls them for a batch, with the padding; our loop calls them for rows of any requests, without it.
And the last processors of a list are usually the filters that `Sampling` applies inside the pass over a row.
"""

import copy

import torch
import transformers

from ..decoding.processors import of_requests
from ..sampling import Sampling

# The filters of `Sampling`, in its order. Normalising a row does not change its distribution.
FILTERS = (
    transformers.TemperatureLogitsWarper, transformers.TopKLogitsWarper, transformers.TopPLogitsWarper,
    transformers.MinPLogitsWarper, transformers.LogitNormalization,
)  # fmt: skip
FIELDS = ("temperature", "top_k", "top_p", "min_p")


def without_filters(processors):
    """-> (the processors before the trailing filters, the `Sampling` equivalent to these filters, the filters)"""
    (processors,) = of_requests(processors, "logits_processor", 1)
    start, rank = len(processors), len(FILTERS)
    while start > 0 and _is_filter(processors[start - 1]) and FILTERS.index(type(processors[start - 1])) < rank:
        start -= 1
        rank = FILTERS.index(type(processors[start]))
    law = {}
    for last in processors[start:]:
        for kind, field in zip(FILTERS, FIELDS):
            if type(last) is kind:
                law[field] = getattr(last, field)
    return processors[:start], Sampling(**law), processors[start:]


def _is_filter(processor):
    if type(processor) not in FILTERS or getattr(processor, "filter_value", -torch.inf) != -torch.inf:
        return False
    # TopKLogitsWarper has already merged min_tokens_to_keep into its k.
    return type(processor) is transformers.TopKLogitsWarper or getattr(processor, "min_tokens_to_keep", 1) == 1


def ends(criteria):
    """-> (longest text with its padding, or None; list of the ids that end a text; the other criteria)"""
    lengths = [one.max_length for one in criteria if type(one) is transformers.MaxLengthCriteria]
    eos = [one.eos_token_id for one in criteria if type(one) is transformers.EosTokenCriteria]
    others = [one for one in criteria if type(one) not in (transformers.MaxLengthCriteria, transformers.EosTokenCriteria)]
    # A negative id is not a token: it never occurs.
    ids = [int(token) for one in eos for token in one.tolist() if token >= 0]
    return min(lengths, default=None), ids, others


def by_request(processors, criteria, input_ids, mask):
    """-> (logits_processor, stopping_criteria) for the loop: unchanged if requests may share them, else a list per request.

    mask: int [B, W] with padding at the left, or None
    """
    batch, width = input_ids.shape
    lengths = [width] * batch if mask is None else (mask != 0).sum(1).tolist()
    own = [[_of_row(one, b, batch) for one in processors] for b in range(batch)]
    padded = min(lengths) < width
    if batch == 1 and not padded:
        return own[0], criteria
    if not padded and all(mine is shared for mine, shared in zip(own[0], processors)):
        return processors, criteria
    padding = [input_ids[b : b + 1, : width - length] for b, length in enumerate(lengths)]
    own = [[Padded(one, before) for one in each] for each, before in zip(own, padding)]
    return own, [[Padded(one, before) for one in criteria] for before in padding]


class Padded:
    """A processor or criterion of one request, called as transformers calls it: with the padding int64 [1, n] in front of the text."""

    def __init__(self, function, padding):
        self.function, self.padding = function, padding

    def __call__(self, input_ids, scores):
        return self.function(torch.cat([self.padding.expand(len(input_ids), -1), input_ids], 1), scores)


def _of_row(processor, b, batch):
    """A copy of the processor for the rows of request b, if it distinguishes the rows of a batch; else the processor itself."""
    own = copy.copy(processor)
    if isinstance(processor, transformers.PrefixConstrainedLogitsProcessor):
        allowed, prompt = processor._prefix_allowed_tokens_fn, b // processor._num_beams  # num_return_sequences
        own._prefix_allowed_tokens_fn, own._num_beams = lambda _, ids: allowed(prompt, ids), 1
    elif isinstance(processor, transformers.RepetitionPenaltyLogitsProcessor):
        if not isinstance(processor.prompt_ignore_length, torch.Tensor):
            return processor
        own.prompt_ignore_length = int(processor.prompt_ignore_length[b])
    elif isinstance(processor, transformers.EncoderRepetitionPenaltyLogitsProcessor):
        own.encoder_input_ids = _of_prompt(processor.encoder_input_ids, b, batch)
        return lambda ids, scores: torch.cat([own(ids[i : i + 1], scores[i : i + 1]) for i in range(len(ids))])
    elif isinstance(processor, transformers.EncoderNoRepeatNGramLogitsProcessor):
        own.generated_ngrams, own.batch_size = _of_prompt(processor.generated_ngrams, b, batch), 1
    else:
        return processor
    return own


def _of_prompt(prompts, b, batch):
    """The entry of request b in a list or tensor with one entry per prompt: B prompts, or fewer that are each sampled several times."""
    prompt = b * len(prompts) // batch
    return prompts[prompt : prompt + 1]
