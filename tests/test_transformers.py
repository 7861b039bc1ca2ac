"""The adapter for transformers: its `generate` through our loop. Runs under transformers 5 and 4.57 (make test-transformers-4)."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, p_value
from models import Streamer, nearby, prompts
from transformers_cases import (
    EOS,
    FIVE,
    LAW,
    LENGTHS,
    NEW,
    OURS,
    PAD,
    adapter,
    drawn,
    inputs,
    same_texts,
    small,  # noqa: F401 (a fixture)
    tf,
    transformers,
    two_tokens,
)

import specsample as ss

# -- texts -------------------------------------------------------------------------------------------------------------

DRAFTERS = {
    "plain": {}, "chain": {"draft": "model", "scheme": "block"},
    "paths": {"draft": "model", "scheme": "optimal", "paths": 2, "depth": 3},
    "n-gram": {"draft": ss.NgramDrafter(2)}, "tree": {"draft": "model", "scheme": "race", "tree": 6},
}  # fmt: skip


def drafting(name, draft):
    settings = DRAFTERS[name]
    return {**settings, "draft": draft} if settings.get("draft") == "model" else settings


# Settings of processors and stopping criteria in a call of generate, for prompts padded to six tokens.
SETTINGS = {
    "nothing": {},
    "eos": {"eos_token_id": [EOS, 11, 17, 23]},
    "max_length": {"max_length": 11, "max_new_tokens": None},
    "repetition": {"repetition_penalty": 1.8},
    "encoder repetition": {"encoder_repetition_penalty": 3.0},
    "encoder n-grams": {"encoder_no_repeat_ngram_size": 1},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[9], [50, 43], *[[t] for t in range(20, 40)]]},
    "bias": {"sequence_bias": [[[EOS], 50.0], [[3, 4], 5.0]], "min_length": 11, "eos_token_id": EOS},
    "min new": {"sequence_bias": [[[EOS], 50.0]], "min_new_tokens": 4, "eos_token_id": EOS},
    "suppress": {"suppress_tokens": list(range(10, 50)), "begin_suppress_tokens": [3, 4]},
    "forced": {"forced_eos_token_id": 2, "eos_token_id": 2, "forced_bos_token_id": 3},
    "decay": {"exponential_decay_length_penalty": (2, 1.9), "eos_token_id": EOS},
    "watermark": {"watermarking_config": transformers.WatermarkingConfig(bias=4.0)},
    "invalid": {"remove_invalid_values": True, "renormalize_logits": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_is_transformers_greedy(target, draft, name):
    given = {**inputs(), "max_new_tokens": NEW, "do_sample": False, **SETTINGS[name]}
    expected = target.generate(**given)
    for drafter in DRAFTERS if name in ("nothing", "bias") else ("chain", "tree"):
        assert same_texts(target.generate(**OURS, **given, **drafting(drafter, draft)), expected), drafter
    if name not in ("nothing", "invalid"):  # the setting does change the text
        assert not same_texts(target.generate(**inputs(), max_new_tokens=NEW, do_sample=False), expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_race_has_the_same_text_with_and_without_drafts(target, draft, name):
    law = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95, "min_p": 0.01}
    given = {**OURS, **inputs(), **law, "max_new_tokens": NEW, "seed": 3, "scheme": "race", **SETTINGS[name]}
    plain = target.generate(**given)
    drafters = [{"draft": draft, "tree": 6}, {"draft": ss.NgramDrafter()}]
    if name == "nothing":
        drafters += [{"draft": draft}, {"draft": draft, "paths": 2}]
        assert not same_texts(target.generate(**given | {"seed": 10}), plain)
    for drafter in drafters:
        assert same_texts(target.generate(**given, **drafter), plain), drafter


def test_race_is_the_loop_itself(target, draft):
    """Seeds, positions and filters are those of specsample.generate."""
    ids, mask = prompts(LENGTHS)
    law = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01}
    for scheme in ("race", "block"):
        given = {"attention_mask": mask, "max_new_tokens": NEW, "seed": 3, "scheme": scheme}
        here = target.generate(ids, **OURS, **given, **law, pad_token_id=PAD, draft=draft)
        assert torch.equal(here, ss.generate(target, draft, ids, **given, sampling=ss.Sampling(0.8, 20, 0.9, 0.01)))


def test_several_texts_of_a_prompt(target, draft):
    given = {**OURS, **inputs(), **LAW, "max_new_tokens": NEW, "scheme": "race"}
    several = target.generate(**given, num_return_sequences=2, seed=4, draft=draft)
    each = {name: x.repeat_interleave(2, 0) for name, x in inputs().items() if name != "pad_token_id"}
    assert torch.equal(several, target.generate(**given | each, seed=torch.arange(4, 10)))
    assert not torch.equal(several[0], several[1])


def test_prefix_functions_are_told_the_prompt(target, draft):
    """For each text, whatever rows it is in, and for the padded text, as in transformers. (In transformers 4 a text that is one
    of several has its own number.)"""
    for lengths, copies in ((LENGTHS, 1), (LENGTHS, 2), ([6], 1), ([4, 4], 2)):
        asked = set()

        def allowed(prompt, ids, asked=asked):
            asked.add((prompt, *ids[: max(lengths)].tolist()))
            return list(range(8 * prompt, 8 * prompt + 8))

        given = {**inputs(lengths), **LAW, "max_new_tokens": 6, "prefix_allowed_tokens_fn": allowed}
        texts = target.generate(**OURS, **given, num_return_sequences=copies, draft=draft, scheme="race", paths=2, depth=2)
        of_text = [b if FIVE else copies * b + i for b in range(len(lengths)) for i in range(copies)]
        padded = given["input_ids"].repeat_interleave(copies, 0).tolist()
        assert asked == {(number, *row) for number, row in zip(of_text, padded)}
        assert (texts[:, max(lengths) :] // 8 == torch.tensor(of_text)[:, None]).all()


class Until(transformers.StoppingCriteria):
    """Ends a text after a token, and records the lengths at which it was asked."""

    def __init__(self, token):
        self.token, self.lengths = token, []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        return input_ids[:, -1] == self.token


def test_stopping_criteria(target, draft):
    given = {**inputs(), "max_new_tokens": NEW, "do_sample": False, "eos_token_id": EOS}
    free = target.generate(**given)
    token = int(free[1, 6 + 3])
    criteria = transformers.StoppingCriteriaList([Until(token)])
    expected = target.generate(**given, stopping_criteria=criteria)
    assert not same_texts(free, expected)
    for drafter in DRAFTERS:
        until = Until(token)
        output = target.generate(**OURS, **given, stopping_criteria=[until], **drafting(drafter, draft))
        assert same_texts(output, expected), drafter
        assert min(until.lengths) == 7  # the padded prompt and one token
    # The caller's own replace those of the configuration.
    mine = [transformers.EosTokenCriteria([token]), transformers.MaxLengthCriteria(10)]
    output = target.generate(**OURS, **given, stopping_criteria=transformers.StoppingCriteriaList(mine), draft=draft)
    assert same_texts(output, target.generate(**given, stopping_criteria=transformers.StoppingCriteriaList(mine)))
    assert output.shape[1] <= 10
    assert target.generate(**OURS, **given, max_time=0.0, draft=draft, depth=3).shape[1] == 7


def test_processors_of_the_caller(target, draft):
    """They run before the configuration's filters; the last ones in the list may be filters themselves."""

    def low(ids, scores):
        return scores.masked_fill(torch.arange(60) > 30, -torch.inf)

    for own in ([low], [tf.TopKLogitsWarper(3), low], [tf.TemperatureLogitsWarper(0.5)], [tf.TopPLogitsWarper(0.9, -1e4)]):
        given = {**inputs(), "max_new_tokens": 1, **LAW, "temperature": 0.9, "top_p": 0.95}
        wanted = {"return_dict_in_generate": True, "output_scores": True}
        expected = target.generate(**given, **wanted, logits_processor=own).scores[0]
        got = target.generate(**OURS, **given, **wanted, logits_processor=own, draft=draft).scores[0]
        assert torch.allclose(got, expected, atol=1e-4)
        assert low not in own or (expected[:, 31:] == -torch.inf).all()


def test_filters_are_taken_off_the_end():
    low = tf.SuppressTokensLogitsProcessor([1])
    temperature, k, p = tf.TemperatureLogitsWarper(0.5), tf.TopKLogitsWarper(4), tf.TopPLogitsWarper(0.9)
    least, normal = tf.MinPLogitsWarper(0.1), tf.LogitNormalization()
    every = ss.Sampling(0.5, 4, 0.9, 0.1)
    cases = [
        ([low, temperature, k, p, least, normal], 1, every),
        ([temperature, low, k], 2, ss.Sampling(top_k=4)),
        ([p, k], 1, ss.Sampling(top_k=4)),  # not in our order
        ([temperature, k, tf.TypicalLogitsWarper(0.5)], 3, ss.Sampling()),
        ([temperature, tf.TopPLogitsWarper(0.9, min_tokens_to_keep=2), least], 2, ss.Sampling(min_p=0.1)),
        ([tf.TopKLogitsWarper(1, min_tokens_to_keep=3)], 0, ss.Sampling(top_k=3)),
        ([], 0, ss.Sampling()),
    ]
    for processors, count, sampling in cases:
        left, law, taken = adapter.without_filters(tf.LogitsProcessorList(processors))
        assert (left, law, taken) == (processors[:count], sampling, processors[count:])


def test_streamer(target, draft):
    given = {**inputs([6]), **LAW, "max_new_tokens": NEW, "seed": 1, "draft": draft}
    streamer = Streamer()
    output = target.generate(**OURS, **given, stream_to=streamer)
    assert torch.equal(torch.cat([x.flatten() for x in streamer.got]), output[0]) and streamer.ended == 1
    assert streamer.got[0].tolist() == given["input_ids"].tolist()
    with pytest.raises(ValueError, match="^streamer: .*stream_to="):
        target.generate(**OURS, **given, streamer=Streamer())
    with pytest.raises(ValueError, match="^stream_to: .*3 requests"):
        target.generate(**OURS, **given | inputs(), stream_to=Streamer())
    with pytest.raises(ValueError, match="^stream_to: .*got int"):
        target.generate(**OURS, **given, stream_to=3)


def test_text_streamer(target):
    tokenizer = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)) + " ")
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True)
    output = target.generate(**OURS, **inputs([6]), **LAW, max_new_tokens=NEW, draft=ss.NgramDrafter(), stream_to=streamer)
    assert " ".join("".join(streamer).split()) == " ".join(map(str, output[0, 6:].tolist()))


def test_stats(target):
    stats = ss.Stats()
    for _ in range(2):
        target.generate(**OURS, **inputs([6]), do_sample=False, max_new_tokens=NEW, draft=target, depth=3, stats=stats)
    assert stats.emitted == 2 * NEW and stats.target_calls == 2 * 3 and stats.acceptance == [1.0] * 3


@pytest.mark.parametrize("drafter", [*DRAFTERS, "itself"])
def test_scores(target, draft, drafter):
    """Those of transformers for the same texts, before and after processors and filters; point masses on padding after the end."""
    # The target's own paths, whose equal beginnings share rows.
    how = {"draft": target, "scheme": "recursive", "paths": 4, "depth": 3} if drafter == "itself" else drafting(drafter, draft)
    law = {"do_sample": True, "temperature": 0.8, "top_k": 12, "repetition_penalty": 1.4}
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    given = {**inputs(), **law, **wanted, "max_new_tokens": NEW, "eos_token_id": list(range(0, 60, 6))}
    output = target.generate(**OURS, **given, seed=2, **how)
    texts = output.sequences[:, 6:]
    assert len(output.scores) == len(output.logits) == texts.shape[1]
    ended = torch.zeros(3, dtype=torch.bool)
    for i, (scores, logits) in enumerate(zip(output.scores, output.logits)):
        step = given | {"input_ids": output.sequences[:, : 6 + i], "max_new_tokens": 1, "eos_token_id": None}
        step["attention_mask"] = torch.nn.functional.pad(given["attention_mask"], (0, i), value=1)
        expected = target.generate(**step)
        assert scores.dtype == logits.dtype == torch.float32
        assert torch.allclose(logits[~ended], expected.logits[0][~ended], atol=1e-4)
        assert torch.allclose(scores[~ended], expected.scores[0][~ended], atol=1e-4)
        assert (scores.softmax(-1)[ended, PAD] == 1).all()
        assert (scores.gather(1, texts[:, i : i + 1]) > -torch.inf).all()
        ended |= texts[:, i] % 6 == 0
    assert ended.any()
    sums = target.compute_transition_scores(output.sequences, output.scores, normalize_logits=True).sum(1)
    assert (sums < 0).all() and sums.isfinite().all()
    alone = target.generate(**OURS, **given | {"output_logits": False}, seed=2, **how)
    assert alone.logits is None and torch.equal(torch.stack(alone.scores), torch.stack(output.scores))
    assert torch.equal(alone.sequences, output.sequences)
    assert alone.attentions is None and getattr(alone, "cache" if FIVE else "past_key_values") is None


def test_seeds(target, draft):
    given = {**OURS, **inputs(), **LAW, "max_new_tokens": NEW, "draft": draft}
    torch.manual_seed(1)
    first, second = target.generate(**given), target.generate(**given)
    torch.manual_seed(1)
    assert torch.equal(first, target.generate(**given)) and not torch.equal(first, second)
    state = torch.random.get_rng_state()
    explicit = target.generate(**given, seed=9)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing else is drawn from it
    alone = {name: x[2:3] if isinstance(x, torch.Tensor) else x for name, x in inputs().items()}
    assert torch.equal(target.generate(**given | alone, seed=11)[0], explicit[2])  # one per request: s, s + 1, …


def test_generation_config_objects(target, draft):
    """An object, or the model's own, has the same effect as keywords."""
    law = {"do_sample": True, "temperature": 0.8, "top_k": 20, "max_new_tokens": NEW, "pad_token_id": PAD, "eos_token_id": [5, 11]}
    given = {name: x for name, x in inputs().items() if name != "pad_token_id"} | {"seed": 3, "draft": draft}
    expected = target.generate(**OURS, **given, **law)
    assert torch.equal(target.generate(**OURS, **given, generation_config=transformers.GenerationConfig(**law)), expected)
    mine = copy.deepcopy(target)
    mine.generation_config = transformers.GenerationConfig(**law)
    assert torch.equal(mine.generate(**OURS, **given), expected)


def test_gpt2():
    """Learned positions, and a different class."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    model.lm_head.weight.data *= 12
    given = {**inputs(), "max_new_tokens": NEW, "do_sample": False}
    assert same_texts(model.generate(**OURS, **given, draft=nearby(model, 0.5, 1)), model.generate(**given))
    with pytest.raises(ValueError, match="^max_new_tokens: .*64 positions"):
        model.generate(**OURS, **given | {"max_new_tokens": 80})


# -- laws --------------------------------------------------------------------------------------------------------------


class Liar(ss.decoding.ModelDrafter):
    """Reports a law other than the one it has drawn from."""

    def propose(self, prefixes, shape, round):
        proposal = super().propose(prefixes, shape, round)
        return proposal._replace(draft_logits=None if proposal.draft_logits is None else 2 * proposal.draft_logits)


@pytest.mark.parametrize("scheme, shape", [("token", {}), ("block", {}), ("race", {}), ("optimal_block", {"paths": 2, "depth": 2})])
def test_law(small, scheme, shape):
    target, draft = small
    prompt, filters = torch.tensor([[1, 4, 2]]), {"temperature": 0.8, "top_k": 5, "top_p": 0.95}
    law = two_tokens(target, prompt, **filters)
    given = {**OURS, "do_sample": True, **filters, "scheme": scheme, **shape}
    assert p_value(drawn(target, prompt, **given, draft=draft), law) > FAILURE_RATE
    if scheme == "token":
        assert p_value(drawn(target, prompt, **given, draft=Liar(draft)), law) < CAUGHT
