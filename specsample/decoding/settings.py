"""The settings of a model's GenerationConfig that `generate` does not honour, in one warning per call."""

import warnings

from .calling import config_of

# Settings that change the distribution: their neutral values besides None, and the equivalent processor of transformers.
LAW = {
    "repetition_penalty": (1.0, "RepetitionPenaltyLogitsProcessor"),
    "no_repeat_ngram_size": (0, "NoRepeatNGramLogitsProcessor"),
    "bad_words_ids": ((), "NoBadWordsLogitsProcessor"),
    "sequence_bias": ((), "SequenceBiasLogitsProcessor"),
    "suppress_tokens": ((), "SuppressTokensLogitsProcessor"),
    "begin_suppress_tokens": ((), "SuppressTokensAtBeginLogitsProcessor"),
    "forced_bos_token_id": (None, "ForcedBOSTokenLogitsProcessor"),
    "forced_eos_token_id": (None, "ForcedEOSTokenLogitsProcessor"),
    "min_length": (0, "MinLengthLogitsProcessor"),
    "min_new_tokens": (0, "MinNewTokensLengthLogitsProcessor"),
    "exponential_decay_length_penalty": (None, "ExponentialDecayLengthPenalty"),
    "remove_invalid_values": (False, "InfNanRemoveLogitsProcessor"),
    "typical_p": (1.0, "TypicalLogitsWarper"),
    "epsilon_cutoff": (0.0, "EpsilonLogitsWarper"),
    "eta_cutoff": (0.0, "EtaLogitsWarper"),
    "top_h": (None, "TopHLogitsWarper"),
    "watermarking_config": (None, "WatermarkLogitsProcessor"),
    "encoder_repetition_penalty": (1.0, "EncoderRepetitionPenaltyLogitsProcessor"),
    "encoder_no_repeat_ngram_size": (0, "EncoderNoRepeatNGramLogitsProcessor"),
}
NEED_EOS = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")
# Settings that end the text, and the equivalent criterion.
END = {"stop_strings": ((), "StopStringCriteria"), "max_time": (None, "MaxTimeCriteria")}
# Settings that select a method other than sampling or greedy search, or change the prompt.
METHOD = {
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0, "guidance_scale": 1.0,
    "dola_layers": None, "force_words_ids": (), "constraints": (), "token_healing": False,
}  # fmt: skip


def is_set(value, neutral):
    """Whether a setting has an effect: neither None, nor empty, nor its neutral value."""
    if isinstance(value, (list, tuple, dict)):
        return len(value) > 0
    return value is not None and value != neutral


def unhonoured(config, processors, criteria, eos):
    """-> list of phrases naming the settings of a GenerationConfig that change the distribution or the end but are not honoured.

    processors, criteria: whether the caller passed them, and so has taken charge of such settings; eos: whether texts can end
    """

    out = []
    for table, given, argument in ((LAW, processors, "logits_processor"), (END, criteria, "stopping_criteria")):
        for name, (neutral, how) in table.items():
            if not given and is_set(getattr(config, name, None), neutral) and (eos or name not in NEED_EOS):
                out.append(f"{name}={getattr(config, name)!r} (pass {argument}=[transformers.{how}(…)])")
    others = [name for name, neutral in METHOD.items() if is_set(getattr(config, name, None), neutral)]
    return out + [f"{name}={getattr(config, name)!r} (not supported)" for name in others]


def warn_of_settings(model, processors, criteria, eos):
    """One warning that names them all. A warning, not an error: ordinary models ship such settings (Qwen 2.5 a repetition
    penalty of 1.05), and a caller who wants the model's own distribution must be able to proceed."""
    found = unhonoured(getattr(model, "generation_config", None), processors, criteria, eos)
    if found:
        note = "generate does not apply these settings of model.generation_config: "
        end = "; logits_processor=[] and stopping_criteria=[] say that they are not wanted"
        warnings.warn(note + ", ".join(found) + end, UserWarning, stacklevel=4)  # generate, torch.no_grad, the caller


def vocabulary(model):
    """The vocabulary size of the model's logits according to its config; None if it does not say."""
    config = config_of(model)
    return None if config is None else getattr(config.get_text_config(), "vocab_size", None)
