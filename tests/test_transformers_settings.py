"""The adapter for transformers and every setting of its generation config: honoured, or refused by name."""

import copy

import pytest
import torch
from models import prompts
from transformers_cases import (
    EOS,
    FIVE,
    OURS,
    PAD,
    adapter,
    transformers,
)

# -- every setting -----------------------------------------------------------------------------------------------------

# Settings that change the greedy text or the scores, honoured: the results are those of transformers.
HONOURED = {
    "max_length": 9, "max_new_tokens": 4, "min_length": 9, "min_new_tokens": 4, "max_time": 1e3, "repetition_penalty": 1.8,
    "encoder_repetition_penalty": 3.0, "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 1, "bad_words_ids": [[43], [50]],
    "renormalize_logits": True, "forced_bos_token_id": 3, "forced_eos_token_id": 2, "remove_invalid_values": True,
    "exponential_decay_length_penalty": (1, 2.0), "suppress_tokens": list(range(10, 50)), "begin_suppress_tokens": list(range(30)),
    "sequence_bias": [[[3], 9.0]], "watermarking_config": transformers.WatermarkingConfig(bias=4.0), "pad_token_id": 9,
    "bos_token_id": 2, "eos_token_id": [EOS, 11, 17], "use_cache": True, "return_dict_in_generate": True, "output_scores": True,
    "output_logits": True, "cache_implementation": "dynamic",
}  # fmt: skip
# The law of sampling: the scores are those of transformers.
LAWS = {
    "do_sample": True, "temperature": 0.6, "top_k": 3, "top_p": 0.7, "min_p": 0.2, "top_h": 0.4, "typical_p": 0.5,
    "epsilon_cutoff": 0.05, "eta_cutoff": 0.1, "num_return_sequences": 2,
}  # fmt: skip
# Without effect in transformers too, for one beam of a decoder-only model that is not compiled; or not settings at all.
NO_EFFECT = {
    "early_stopping": True, "length_penalty": 2.0, "decoder_start_token_id": 3, "disable_compile": True,
    "transformers_version": "5.0",
}  # fmt: skip
# Refused by the adapter, or by transformers before it.
REFUSED = {
    "num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5, "penalty_alpha": 0.6, "guidance_scale": 1.5,
    "dola_layers": "low", "force_words_ids": [[3]], "constraints": [object()], "token_healing": True, "use_cache": False,
    "cache_implementation": "static", "cache_config": {"backend": "quanto"}, "max_cache_len": 50, "prefill_chunk_size": 2,
    "low_memory": True, "return_legacy_cache": True,
    "output_attentions": True, "output_hidden_states": True, "is_assistant": True, "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 0.1, "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 3, "assistant_early_exit": 1, "assistant_lookbehind": 3, "target_lookbehind": 3,
    "assistant_ensemble_weight": 0.5, "speculation_type": "dflash", "use_mtp": True, "stop_strings": ["x"],
    "compile_config": getattr(transformers, "CompileConfig", dict)(), "continuous_batching_config": object(),
}  # fmt: skip
FIELDS = [name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")]


def test_every_setting_is_sorted():
    """Any setting added by a new transformers must be honoured or refused."""
    assert set(FIELDS) - {*HONOURED, *LAWS, *NO_EFFECT, *REFUSED} == set()
    assert set(adapter.REFUSED) <= set(REFUSED)


def said(model, name, value, **given):
    """Keywords that set a field, if transformers accepts it that way; otherwise a configuration that has it."""
    config = copy.deepcopy(model.generation_config)
    setattr(config, name, value)
    for other, x in given.items():
        if other != name:
            setattr(config, other, x)
    return {"generation_config": config}


def texts_and_scores(output):
    if isinstance(output, torch.Tensor):
        return output, ()
    return output.sequences, (*(output.scores or ()), *(output.logits or ()))


@pytest.mark.parametrize("name", [name for name in FIELDS if name in HONOURED or name in NO_EFFECT])
def test_settings_that_are_honoured(target, draft, name):
    ids, mask = prompts([6, 6])
    value = HONOURED.get(name, NO_EFFECT.get(name))
    base = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "eos_token_id": EOS, "return_dict_in_generate": True}
    if name == "max_length":
        base["max_new_tokens"] = None
    settings = said(target, name, value, **base)
    expected, rows = texts_and_scores(target.generate(ids, attention_mask=mask, **settings))
    for drafter in ({}, {"draft": draft}):
        got, same = texts_and_scores(target.generate(ids, attention_mask=mask, **settings, **OURS, **drafter))
        assert torch.equal(got, expected) and len(rows) == len(same)
        going = (expected[:, 6:] == EOS).cumsum(1) == 0
        for i, (a, b) in enumerate(zip(rows, same)):
            on = torch.ones(2, dtype=torch.bool) if i == 0 else going[:, i - 1]
            assert torch.allclose(a[on], b[on], atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FIELDS if name in LAWS])
def test_laws_that_are_honoured(target, draft, name):
    ids, mask = prompts([6, 6])
    base = {"do_sample": True, "pad_token_id": PAD, "top_k": 0, "max_new_tokens": 1}
    base |= {"return_dict_in_generate": True, "output_scores": True}
    settings = said(target, name, LAWS[name], **base)
    expected = target.generate(ids, attention_mask=mask, **settings)
    got = target.generate(ids, attention_mask=mask, **settings, **OURS, draft=draft, seed=0)
    assert got.sequences.shape == expected.sequences.shape
    assert torch.allclose(got.scores[0], expected.scores[0], atol=1e-4)
    if name not in ("do_sample", "num_return_sequences"):
        plain = target.generate(ids, attention_mask=mask, **said(target, "do_sample", True, **base))
        assert not torch.allclose(plain.scores[0], expected.scores[0], atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FIELDS if name in REFUSED])
def test_settings_that_are_refused(target, name):
    calls = []
    hook = target.register_forward_hook(lambda *_: calls.append(1))
    ids, mask = prompts([6])
    target.generate(ids, attention_mask=mask, max_new_tokens=1, pad_token_id=PAD, **OURS)  # triggers the trial, made once per model
    calls.clear()
    given = said(target, name, REFUSED[name], max_new_tokens=4, pad_token_id=PAD)
    try:
        with pytest.raises((ValueError, ImportError), match=name.replace("_", "[_ ]")) as error:
            target.generate(ids, attention_mask=mask, **given, **OURS)
    finally:
        hook.remove()
    assert not calls
    assert name in BEFORE or str(error.value).startswith(f"{name}: ")


# transformers itself refuses these without a tokenizer, which it does not pass on, or without what they need.
BEFORE = ("stop_strings", "token_healing", "cache_config", "use_mtp")


def test_what_else_is_refused(target, draft):
    ids, mask = prompts([6, 3])
    given = {"attention_mask": mask, "max_new_tokens": 4, "pad_token_id": PAD, **OURS}
    holes = mask.clone()
    holes[0, 3] = 0
    right = prompts([6, 3], left=False)[1]
    config = transformers.SynthIDTextWatermarkingConfig(keys=[10, 20], ngram_len=5)
    guidance = transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, target)
    cache = transformers.DynamicCache()
    target(ids, past_key_values=cache) if not FIVE else target(ids, cache=cache)
    cases = [
        ("attention_mask", {"attention_mask": holes}), ("attention_mask", {"attention_mask": right}),
        ("position_ids", {"position_ids": torch.arange(6).expand(2, 6) + 3}),
        ("watermarking_config", {"watermarking_config": config, "do_sample": True}),
        ("logits_processor", {"logits_processor": transformers.LogitsProcessorList([guidance])}),
        ("assistant_model", {"assistant_model": draft}), ("synced_gpus", {"synced_gpus": True}),
        ("cache", {"cache" if FIVE else "past_key_values": cache}),
        ("scheme", {"scheme": "best"}), ("draft", {"draft": 3}), ("depth", {"depth": 0}), ("seed", {"seed": 0.5}),
        ("seed", {"seed": torch.arange(3)}), ("paths", {"paths": 2}), ("backend", {"backend": "none"}),
    ]  # fmt: skip
    for name, more in cases:
        with pytest.raises(ValueError, match=f"^(past_key_values|{name}): .*got"):
            target.generate(ids, **given | more)
    usual = (mask.cumsum(1) - 1).clamp(min=0)
    assert target.generate(ids, **given, position_ids=usual).shape == (2, 10)


def test_other_inputs_are_refused():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids, mask = prompts([6])
    given = {"attention_mask": mask, "max_new_tokens": 4, "pad_token_id": PAD, **OURS}
    for name, value in (("token_type_ids", torch.ones_like(ids)), ("inputs_embeds", torch.zeros(1, 6, 32))):
        with pytest.raises(ValueError, match=f"^{name}: .*got"):
            model.generate(ids, **given, **{name: value})
    config = transformers.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ValueError, match="^model: .*decoder-only.*T5"):
        transformers.T5ForConditionalGeneration(config).generate(ids, max_new_tokens=4, **OURS)
