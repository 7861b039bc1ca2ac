"""specsample inside transformers' `generate`: as a `custom_generate`, or replacing its `_speculative_sampling`. docs/transformers.md

    model.generate(**inputs, custom_generate=specsample.integrations.transformers.generate, draft=small_model)
    specsample.integrations.transformers.patch(); model.generate(**inputs, assistant_model=small_model, do_sample=True)

transformers prepares processors, criteria and prompts; this module only converts them to arguments of specsample's own loop.
"""

import sys
from contextlib import contextmanager

import torch
import transformers
from transformers.generation import candidate_generator
from transformers.generation import utils as generation

from ..api import verify
from ..arguments import in_wider_dtype
from ..decoding.arguments import check, check_streamer
from ..decoding.loop import run
from ..decoding.settings import METHOD, is_set
from ..errors import expect
from .transformers_lists import by_request, ends, without_filters
from .transformers_scores import Scores

# Settings of a GenerationConfig that are rejected unless None, transformers' default, or this value; and what to use instead.
REFUSED = {name: (neutral, "") for name, neutral in METHOD.items()} | {
    "use_cache": (True, "the loop keeps a cache"),
    "cache_implementation": ("dynamic", "the loop keeps its own cache"),
    "cache_config": ((), "the loop keeps its own cache"),
    "max_cache_len": (None, "the loop keeps its own cache"),
    "prefill_chunk_size": (None, ""),
    "low_memory": (False, ""),
    "return_legacy_cache": (False, "no cache is returned"),
    "output_attentions": (False, ""),
    "output_hidden_states": (False, ""),
    "compile_config": (None, "pass a compiled model"),
    "continuous_batching_config": (None, ""),
    "is_assistant": (False, ""),
    "num_assistant_tokens": (None, "pass depth="),
    "num_assistant_tokens_schedule": (None, "depth= is constant"),
    "assistant_confidence_threshold": (None, "pass depth="),
    "prompt_lookup_num_tokens": (None, "pass draft=specsample.NgramDrafter() and depth="),
    "max_matching_ngram_size": (None, "pass draft=specsample.NgramDrafter(n)"),
    "assistant_early_exit": (None, "pass draft="),
    "assistant_lookbehind": (None, "draft and model share a tokenizer"),
    "target_lookbehind": (None, "draft and model share a tokenizer"),
    "assistant_ensemble_weight": (None, "it would change the law"),
    "speculation_type": (None, "pass draft= and scheme="),
    "use_mtp": (False, "pass draft="),
}
# Arguments that transformers also passes on; the loop derives them itself.
MADE_ANEW = ("use_cache", "logits_to_keep", "num_logits_to_keep", "cache_position", "return_dict")
CACHES = ("cache", "past_key_values", "cache_params")
# Arguments that `model.generate` never passes to a custom_generate callable, and what to pass instead.
NEVER_ARRIVE = {"streamer": "pass stream_to=", "assistant_model": "pass draft=", "synced_gpus": "not served"}


def generate(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    *,
    draft=None,
    scheme="token",
    seed=None,
    depth=4,
    paths=1,
    tree=None,
    options=None,
    draft_sampling=None,
    stream_to=None,
    stats=None,
    backend=None,
    **model_kwargs,
):
    """`specsample.generate` as the `custom_generate` of a decoder-only model, honouring the settings of its GenerationConfig.

    transformers prepares and passes the first five arguments: input_ids is int64 [B·num_return_sequences, W], padded on the left.

    draft       a causal LM with the same tokenizer, a drafter, or None, as in `specsample.generate`; likewise scheme, depth, paths,
                tree, options, draft_sampling and backend
    seed        int s, short for s, s + 1, … (one per request), or int64 [B·num_return_sequences]; None = drawn from torch's CPU
                generator, so that `torch.manual_seed` decides
    stream_to   a streamer, for a single request; transformers never passes its own `streamer=` to a custom_generate
    stats       a `specsample.Stats` to which the counts of this call are added
    -> int64 [B·num_return_sequences, W + new], or with return_dict_in_generate a GenerateDecoderOnlyOutput: sequences, scores and
       logits if requested (rows of a request that has ended give the padding token probability 1), and no cache

    Errors: ValueError naming the setting that is not supported, before the first forward call.
    """
    _refuse(model, generation_config, sys._getframe(1))
    _check_inputs(input_ids, model_kwargs)
    batch, width = input_ids.shape
    check_streamer(stream_to, "stream_to", batch)
    mask = model_kwargs.get("attention_mask")
    processors, sampling, filters = without_filters(logits_processor)
    if not generation_config.do_sample:
        sampling = sampling._replace(temperature=0.0)
    longest, eos, criteria = ends(stopping_criteria)
    expect(longest is not None, "max_length", "a length at which texts end", None)
    new = max(1, longest - width)
    processors, criteria = by_request(processors, criteria, input_ids, mask)
    seed = _torch_seed() if seed is None else seed

    given = check(
        model, draft, input_ids, mask, new, depth, paths, tree, scheme, options, sampling, draft_sampling, seed, eos, stream_to,
        backend, processors, criteria,
    )  # fmt: skip
    pad = generation_config._pad_token_tensor
    given.pad = given.pad if pad is None else int(pad)
    asked, scores, logits = (
        getattr(generation_config, name) for name in ("return_dict_in_generate", "output_scores", "output_logits")
    )
    record = Scores(batch, filters) if asked and (scores or logits) else None
    output, counts = run(model, draft, input_ids, given, new, scheme, options, sampling, stream_to, backend, record)
    if stats is not None:
        stats.add(counts)
    if not asked:
        return output
    rows = {"scores": record.scores(given.pad)} if scores else {}
    rows |= {"logits": record.logits(given.pad)} if logits else {}
    return generation.GenerateDecoderOnlyOutput(sequences=output, **rows)


def _refuse(model, config, caller):
    expect(not model.config.is_encoder_decoder, "model", "a decoder-only model", type(model).__name__)
    fresh = transformers.GenerationConfig()
    defaults = getattr(fresh, "_get_default_generation_params", dict)()
    for name, (neutral, instead) in REFUSED.items():
        value = getattr(config, name, None)
        default = defaults.get(name, getattr(fresh, name, None))
        if is_set(value, neutral) and value != default:
            expected = default if neutral is None else neutral
            expect(False, name, f"{expected!r}" + (instead and f" ({instead})"), repr(value))
    watermark = type(getattr(config, "watermarking_config", None)).__name__
    stateless = watermark != "SynthIDTextWatermarkingConfig"
    expect(stateless, "watermarking_config", "None or a WatermarkingConfig, which keeps no state", watermark)
    # They are visible only in the caller's frame. A streamer that is never fed would leave its reader waiting for ever.
    given = caller.f_locals if "custom_generate" in caller.f_locals else {}
    for name, instead in NEVER_ARRIVE.items():
        value = given.get(name)
        expect(not is_set(value, False), name, f"None, since no custom_generate receives it ({instead})", type(value).__name__)


def _check_inputs(input_ids, given):
    """Reject any other model input: only text is decoded."""
    mask = given.get("attention_mask")
    if mask is not None:
        left = mask.shape == input_ids.shape and bool((mask[:, 1:] >= mask[:, :-1]).all())
        expect(left, "attention_mask", "padding at the left only", f"{tuple(mask.shape)} with other zeros")
    for name, value in given.items():
        if value is None or name == "attention_mask" or name in MADE_ANEW:
            continue
        if name in CACHES:
            fresh = not getattr(value, "_is_user_defined", False) and getattr(value, "get_seq_length", int)() == 0
            expect(fresh, name, "None (the loop keeps its own cache)", f"a {type(value).__name__} with a past or to be filled")
        elif name == "position_ids":
            real = torch.ones_like(input_ids) if mask is None else mask.long()
            usual = ((value == real.cumsum(1) - 1) | (real == 0)).all() if value.shape[-1] == real.shape[1] else False
            expect(bool(usual), name, "those that count a request's tokens from 0", "others")
        else:
            expect(False, name, "None (input_ids and attention_mask are all that is read)", type(value).__name__)


# -- transformers' own assisted generation -----------------------------------------------------------------------------

# Candidate generators that take the likeliest token of each row but report the whole row as the distribution it was drawn from.
DRAFT_GREEDILY = ("SinglePositionMultiTokenCandidateGenerator",)


def speculative_sampling(candidate_input_ids, candidate_logits, candidate_length, new_logits, assistant_ensemble_weight=None):
    """`transformers.generation.utils._speculative_sampling` implemented by `specsample.verify`: scheme `token`, for one request.

    candidate_input_ids        int64 [1, T], of which the last candidate_length are drafts
    candidate_logits           [1, L, V'], the processed rows the drafts were drawn from; None = drafts of unknown distribution
    new_logits                 [1, L + 1, V], the target's processed rows
    assistant_ensemble_weight  None or 1: any other weight would change the target's distribution. transformers 4 passes a bool, or a
                               bool tensor [1], here: whether the drafts end the text, so that nothing follows if all are accepted
    -> valid tokens int64 [1, n + 1], n int64 []: the number of accepted drafts, one fewer if all are accepted and end the text

    The random numbers come from a seed drawn from torch's CPU generator. Errors: ValueError for any other weight, and for a
    row of new_logits without a finite logit.
    """
    weight = assistant_ensemble_weight
    older = isinstance(weight, bool) or isinstance(weight, torch.Tensor) and weight.dtype == torch.bool
    exact = older or weight is None or weight == 1
    expect(exact, "assistant_ensemble_weight", "None, since any other would change the law", weight)
    start = candidate_input_ids.shape[1] - candidate_length
    if candidate_logits is not None:
        new_logits, candidate_logits = in_wider_dtype(new_logits, candidate_logits)
    drafts = candidate_input_ids[:, start:]
    verdict = verify(new_logits, drafts, candidate_logits, seed=_torch_seed(), position=start)
    matches = verdict.num_accepted.sum()  # int64 []
    accepted = matches.item()
    if older and accepted == candidate_length and bool(weight):
        accepted, matches = accepted - 1, matches - 1
    expect(verdict.tokens.tolist()[0][accepted] >= 0, "new_logits", "a finite logit in each row that decides", "none")
    return verdict.tokens[:, : accepted + 1], matches


def _torch_seed():
    """A seed from torch's CPU generator"""
    return int(torch.randint(1 << 62, ()))


def patch():
    """Replace transformers' `_speculative_sampling` by the one above, so that `generate(..., assistant_model=, do_sample=True)` samples
    exactly from the target. Generators known to draft greedily no longer report a distribution that they do not draw from.
    -> a function that undoes it; `patched` is the same as a context manager."""
    kinds = [getattr(candidate_generator, name) for name in DRAFT_GREEDILY if hasattr(candidate_generator, name)]
    before = [(generation, "_speculative_sampling", generation._speculative_sampling)]
    before += [(kind, "get_candidates", kind.get_candidates) for kind in kinds]
    generation._speculative_sampling = speculative_sampling
    for kind in kinds:
        kind.get_candidates = _without_law(kind.get_candidates)

    def undo():
        for owner, name, value in before:
            setattr(owner, name, value)

    return undo


@contextmanager
def patched():
    """`with patched(): ...`"""
    undo = patch()
    try:
        yield
    finally:
        undo()


def _without_law(get_candidates):
    def get(self, *args, **given):
        ids, logits = get_candidates(self, *args, **given)
        # Without logits, transformers samples the target's tokens and keeps the drafts that match: exact for any drafts. With an
        # ensemble weight set, the logits stay, so that `speculative_sampling` rejects it.
        return ids, logits if getattr(self.generation_config, "assistant_ensemble_weight", None) is not None else None

    return get
