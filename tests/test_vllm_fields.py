"""Each field of SamplingParams in vLLM with the adapter, with and without speculation: make test-vllm."""

import pytest
from jobs import engine, ids, prompts, run
from tiny import CHARACTERS

# A meaningful value for each field. Those that plain decoding rejects here are listed below.
FIELDS = {
    "n": 2, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "temperature": 0.7, "watermarking": False,
    "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "stop": ["~"], "stop_token_ids": [5], "ignore_eos": True, "max_tokens": 3,
    "min_tokens": 2, "logprobs": 2, "prompt_logprobs": 1, "prompt_logprob_token_ids": [[1]] * 5, "prompt_logprob_start": 1,
    "logprob_token_ids": [1, 2], "flat_logprobs": True, "detokenize": False, "skip_special_tokens": False,
    "spaces_between_special_tokens": False, "include_stop_str_in_output": True, "output_kind": 2, "stream_interval": 2,
    "skip_clone": True, "structured_outputs": {"regex": "[ab]{9}"}, "logit_bias": {"3": 1.0}, "allowed_token_ids": [1, 2, 3],
    "extra_args": {"mine": 1}, "bad_words": ["!"], "skip_reading_prefix_cache": True, "thinking_token_budget": 2,
    "repetition_detection": {"max_pattern_size": 4, "min_count": 2}, "routed_experts_prompt_start": 0,
    "trace_decode_token_ids": [1, 2],
}  # fmt: skip
# Rejected without speculation: prompt_logprob_start alone means nothing, and the engine was not told to replay traces.
REFUSED = {"V1": {"prompt_logprob_token_ids", "prompt_logprob_start", "trace_decode_token_ids"}}
REFUSED["V2"] = REFUSED["V1"] - {"prompt_logprob_token_ids"}


THINKING = {"reasoning_start_str": "<", "reasoning_end_str": ">"}


def asked():
    own = {"max_tokens": 8, "temperature": 1.0, "seed": 7}
    # Log-probabilities cause vLLM to compile something when they are first requested.
    return [
        {"prompts": prompts(1), "params": {**own, name: value}, "may_fail": True, "name": name, "limit": 150}
        for name, value in FIELDS.items()
    ]


def outcome(drafter, scheme, runner="V1", **more):
    """-> {field: ids of the text}, {field: why it was rejected}"""
    calls = run(engine(drafter, reasoning_config=THINKING), asked(), scheme, runner=runner, **more)["calls"]
    refused = {name: each["error"] for name, each in zip(FIELDS, calls) if isinstance(each, dict)}
    return {name: ids(each) for name, each in zip(FIELDS, calls) if name not in refused}, refused


def test_the_list_is_whole():
    from vllm import SamplingParams

    public = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")} - {"output_text_buffer_length"}
    assert public == set(FIELDS), "give FIELDS a value of each new parameter, and read what it does to the law"


@pytest.mark.parametrize("drafter, scheme", [("ngram", "token"), ("student", "block"), ("student", "race")])
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_what_plain_decoding_accepts_is_accepted_with_speculation(runner, drafter, scheme):
    plain, refused = outcome(None, scheme, runner)
    assert set(refused) == REFUSED[runner], refused  # an error or a time-out would be among them
    drafted, too = outcome(drafter, scheme, runner)
    assert set(too) == set(refused), too
    if scheme == "race":
        assert drafted == plain


def test_vllm_as_it_is_refuses_more():
    """The control. (On the CPU its top-k ends in an error in the middle of a step: not a rejection, and ignored.)"""
    refused = outcome("ngram", None, repair=True)[1]
    refused = {name for name, why in refused.items() if why.startswith(("VLLMValidationError", "ValueError"))}
    assert refused == REFUSED["V1"] | {"min_p", "logit_bias"}
    assert set(outcome(None, None)[1]) == REFUSED["V1"]


@pytest.mark.parametrize("drafter", [None, "ngram", "student"])
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_a_thinking_budget_ends_the_thoughts(runner, drafter):
    start, end = map(CHARACTERS.index, "<>")
    own = {"max_tokens": 12, "ignore_eos": True, "temperature": 1.0}
    params = [{**own, "seed": i, "thinking_token_budget": 2 + i // 2} for i in range(6)]
    calls = [{"prompts": [[5, 9, start]] * 6, "params": params}]
    written = ids(run(engine(drafter, reasoning_config=THINKING), calls, "race", runner=runner)["calls"][0])
    assert [text.index(end) for text in written] == [2, 2, 3, 3, 4, 4]
    assert written == ids(run(engine(reasoning_config=THINKING), calls, "race", runner=runner)["calls"][0])
