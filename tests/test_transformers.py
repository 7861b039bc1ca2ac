"""The adapter of transformers: its `generate` through our loop, and our verification in its assisted generation.

Runs under transformers 5 and 4.57 (make test-transformers-4).
"""

import contextlib
import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, p_value
from models import Streamer, nearby, prompts, tiny_llama

import specsample as ss

transformers = pytest.importorskip("transformers")

from transformers.generation import candidate_generator  # noqa: E402
from transformers.generation import utils as generation  # noqa: E402

from specsample.integrations import transformers as adapter  # noqa: E402

FIVE = int(transformers.__version__.split(".")[0]) >= 5
LENGTHS, NEW, EOS, PAD = [6, 3, 6], 12, 5, 7
OURS = {"custom_generate": adapter.generate}
LAW = {"do_sample": True, "top_k": 0}  # the model's own law: top_k is 50 by default
tf = transformers


@pytest.fixture(scope="module")
def small():
    """A target and a draft over six tokens, for laws."""
    target = tiny_llama(3, vocab=6, dtype=torch.float32, sharpness=4.0)
    return target, nearby(target, 0.8, 4)


def inputs(lengths=LENGTHS, vocab=60):
    ids, mask = prompts(lengths, vocab)
    return {"input_ids": torch.where(mask > 0, ids, PAD), "attention_mask": mask, "pad_token_id": PAD}


def same_texts(a, b):
    """Equal but for the width that padding fills."""
    width = max(a.shape[1], b.shape[1])
    a, b = (torch.nn.functional.pad(x, (0, width - x.shape[1]), value=PAD) for x in (a, b))
    return torch.equal(a, b)


# -- texts -------------------------------------------------------------------------------------------------------------

DRAFTERS = {
    "plain": {}, "chain": {"draft": "model", "scheme": "block"},
    "paths": {"draft": "model", "scheme": "optimal", "paths": 2, "depth": 3},
    "n-gram": {"draft": ss.NgramDrafter(2)}, "tree": {"draft": "model", "scheme": "race", "tree": 6},
}  # fmt: skip


def drafting(name, draft):
    settings = DRAFTERS[name]
    return {**settings, "draft": draft} if settings.get("draft") == "model" else settings


# What a call of generate may say of processors and ends, for prompts padded to six tokens.
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
    """Of each text, whatever rows it comes in, and the padded text, as transformers has it. (In transformers 4 a text that is one
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
    """Ends a text after a token, and keeps the lengths at which it was asked."""

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
        assert min(until.lengths) == 7  # the padded prompt and a token
    # The caller's own take the place of those of the configuration.
    mine = [transformers.EosTokenCriteria([token]), transformers.MaxLengthCriteria(10)]
    output = target.generate(**OURS, **given, stopping_criteria=transformers.StoppingCriteriaList(mine), draft=draft)
    assert same_texts(output, target.generate(**given, stopping_criteria=transformers.StoppingCriteriaList(mine)))
    assert output.shape[1] <= 10
    assert target.generate(**OURS, **given, max_time=0.0, draft=draft, depth=3).shape[1] == 7


def test_processors_of_the_caller(target, draft):
    """They act before the filters of the configuration; those that end the list are filters themselves, or are not."""

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
    """Those of transformers for the same texts, before and after processors and filters; certain padding after the end."""
    # Paths of the target's own, whose equal beginnings share rows.
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
    assert torch.equal(target.generate(**given | alone, seed=11)[0], explicit[2])  # a request each: s, s + 1, …


def test_generation_config_objects(target, draft):
    """An object, or the model's own, says the same as keywords."""
    law = {"do_sample": True, "temperature": 0.8, "top_k": 20, "max_new_tokens": NEW, "pad_token_id": PAD, "eos_token_id": [5, 11]}
    given = {name: x for name, x in inputs().items() if name != "pad_token_id"} | {"seed": 3, "draft": draft}
    expected = target.generate(**OURS, **given, **law)
    assert torch.equal(target.generate(**OURS, **given, generation_config=transformers.GenerationConfig(**law)), expected)
    mine = copy.deepcopy(target)
    mine.generation_config = transformers.GenerationConfig(**law)
    assert torch.equal(mine.generate(**OURS, **given), expected)


def test_gpt2():
    """Learned positions, and another class."""
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


@torch.no_grad()
def two_tokens(model, prompt, **filters):
    """The law of the first two tokens after prompt int64 [1, W]: float64 [V·V]"""
    law = ss.Sampling(**filters)
    first = ss.log_probs(model(prompt).logits[:, -1].float(), sampling=law, backend="reference").exp()[0]
    texts = torch.cat([prompt.expand(len(first), -1), torch.arange(len(first))[:, None]], 1)
    second = ss.log_probs(model(texts).logits[:, -1].float(), sampling=law, backend="reference").exp()
    return (first[:, None] * second).flatten()


def drawn(model, prompt, **given):
    """The first two tokens of 10 000 texts, as one number each."""
    given |= {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 3, "num_return_sequences": 2500}
    texts = torch.cat([model.generate(prompt, **given, seed=2500 * i) for i in range(4)])[:, prompt.shape[1] :]
    return texts[:, 0] * 6 + texts[:, 1]


class Liar(ss.decoding.ModelDrafter):
    """Reports a law that it has not drawn from."""

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


# -- _speculative_sampling ---------------------------------------------------------------------------------------------

FIFTH = {"nothing": (), "weight": (None,), "certain": (1.0,), "bool": (False,), "tensor": (torch.tensor([False]),)}


def rows(*tokens, width=10, high=10.0, low=-10.0):
    """Rows that are nearly certain of a token each: float32 [1, n, width]"""
    return torch.full((1, len(tokens), width), low).scatter(2, torch.tensor(tokens)[None, :, None], high)


@pytest.mark.parametrize("fifth", FIFTH)
def test_rejected_in_the_third_place(fifth):
    """transformers' own cases: drafts 1 and 4 are what the target is certain of, 5 is impossible; what follows has its law."""
    ids, candidates = torch.tensor([[8, 0, 3, 1, 4, 5]]), rows(1, 4, 5)
    new = rows(1, 4, 0, 0, low=-torch.inf)
    new[0, 2:] = -torch.inf
    new[0, 2, [1, 3, 7, 8]] = torch.tensor([2.0, 1.0, -0.01, 2.0])  # the row after it decides nothing
    last = []
    torch.manual_seed(0)
    for _ in range(2000):
        valid, count = adapter.speculative_sampling(ids, candidates, 3, new, *FIFTH[fifth])
        assert int(count) == 2 and valid.shape == (1, 3) and valid[0, :2].tolist() == [1, 4]
        last.append(int(valid[0, 2]))
    assert p_value(torch.tensor(last), new[0, 2].softmax(-1)) > FAILURE_RATE
    certain = rows(1, 4, 8, 3, low=-torch.inf)
    valid, count = adapter.speculative_sampling(ids, candidates, 3, certain, *FIFTH[fifth])
    assert valid.tolist() == [[1, 4, 8]] and int(count) == 2
    assert count.dtype == torch.int64 and count.dim() == 0


@pytest.mark.parametrize("fifth", FIFTH)
def test_all_accepted(fifth):
    ids, candidates, new = torch.tensor([[8, 1, 4, 5]]), rows(1, 4, 5), rows(1, 4, 5, 9, low=-torch.inf)
    valid, count = adapter.speculative_sampling(ids, candidates, 3, new, *FIFTH[fifth])
    assert valid.tolist() == [[1, 4, 5, 9]] and int(count) == 3
    # In transformers 4 the fifth argument says that the drafts end the text: no token follows, and the last draft stands for it.
    new[:, 3] = -torch.inf
    for done in (True, torch.tensor([True])):
        valid, count = adapter.speculative_sampling(ids, candidates, 3, new, done)
        assert valid.tolist() == [[1, 4, 5]] and int(count) == 2
    valid, count = adapter.speculative_sampling(ids, candidates, 3, rows(1, 4, 2, 9, low=-torch.inf), True)
    assert valid.tolist() == [[1, 4, 2]] and int(count) == 2


def test_what_speculative_sampling_refuses():
    ids, candidates, new = torch.tensor([[8, 1, 4, 5]]), rows(1, 4, 5), rows(1, 4, 5, 9)
    for weight in (0.5, 0.0, 0, torch.tensor(0.5)):
        with pytest.raises(ValueError, match="^assistant_ensemble_weight: .*law"):
            adapter.speculative_sampling(ids, candidates, 3, new, assistant_ensemble_weight=weight)
    with pytest.raises(ValueError, match="^new_logits: .*finite"):
        adapter.speculative_sampling(ids, candidates, 3, torch.full_like(new, torch.nan))
    with pytest.raises(ValueError, match="^new_logits: .*finite"):
        new[:, 3] = -torch.inf
        adapter.speculative_sampling(ids, candidates, 3, new + torch.where(new > 0, 40.0, 0.0), False)


def test_equal_laws_narrow_drafts_and_half_precision():
    """Where target and draft agree nothing is rejected; the draft may have fewer ids, and another dtype."""
    logits = torch.randn(1, 3, 10, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for _ in range(50):
        drafts = torch.multinomial(logits[0, :2].softmax(-1), 1).T
        valid, count = adapter.speculative_sampling(drafts, logits[:, :2], 2, logits)
        assert int(count) == 2 and valid[:, :2].tolist() == drafts.tolist()
    narrow = logits[:, :2, :7].bfloat16()
    firsts = []
    for _ in range(4000):
        drafts = torch.multinomial(narrow[0].float().softmax(-1), 1).T
        firsts.append(int(adapter.speculative_sampling(drafts, narrow, 2, logits)[0][0, 0]))
    assert p_value(torch.tensor(firsts), logits[0, 0].softmax(-1)) > FAILURE_RATE


@pytest.mark.parametrize("which", ["ours", "ours without a law", "theirs"])
def test_greedy_drafts(which):
    """The likeliest token, with the row it is the likeliest of reported as its law: transformers' own function then has another law
    than the target's; without a report ours has the target's."""
    target, candidates = torch.tensor([[[1.0, 0.5, 0.0]] * 2]), torch.tensor([[[0.3, 0.8, 0.0]]])
    drafts, firsts = candidates.argmax(-1), []
    last = (None,) if FIVE else (False,)
    torch.manual_seed(0)
    for _ in range(4000):
        if which == "theirs":
            valid = generation._speculative_sampling(drafts, candidates, 1, target, *last)[0]
        else:
            valid = adapter.speculative_sampling(drafts, candidates if which == "ours" else None, 1, target, *last)[0]
        firsts.append(int(valid[0, 0]))
    p = p_value(torch.tensor(firsts), target[0, 0].softmax(-1))
    assert p > FAILURE_RATE if which == "ours without a law" else p < CAUGHT


# -- assisted generation under the patch -------------------------------------------------------------------------------


def assisted(target, prompt, count, skip=0, **given):
    """Two tokens of each of `count` texts, the first ones but for `skip`, as one number each; seeded by torch."""
    torch.manual_seed(0)
    given = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 3, "pad_token_id": 0, **given}
    start = prompt.shape[1] + skip
    texts = torch.cat([target.generate(prompt, **given)[:, start : start + 2] for _ in range(count)])
    return texts[:, 0] * 6 + texts[:, 1]


@pytest.fixture
def patched():
    with adapter.patched():
        yield


def test_patch_is_put_in_and_taken_out():
    before = generation._speculative_sampling
    undo = adapter.patch()
    assert generation._speculative_sampling is adapter.speculative_sampling
    undo()
    assert generation._speculative_sampling is before
    with pytest.raises(KeyError), adapter.patched():
        assert generation._speculative_sampling is adapter.speculative_sampling
        raise KeyError
    assert generation._speculative_sampling is before
    names = list(inspect.signature(before).parameters)
    assert names[:4] == list(inspect.signature(adapter.speculative_sampling).parameters)[:4]
    assert not FIVE or names == list(inspect.signature(adapter.speculative_sampling).parameters)


@pytest.mark.parametrize("filters", [{"top_k": 0}, {"temperature": 0.7, "top_k": 4}])
def test_assistant(small, patched, filters):
    """The law of assisted generation, with the assistant's stops at unlikely tokens; the texts are torch's seed's."""
    target, draft = small
    draft.generation_config.num_assistant_tokens = 3
    prompt = torch.tensor([[1, 4, 2]])
    got = assisted(target, prompt, 300, assistant_model=draft, do_sample=True, **filters)
    assert p_value(got, two_tokens(target, prompt, **filters)) > FAILURE_RATE
    assert torch.equal(got[:20], assisted(target, prompt, 20, assistant_model=draft, do_sample=True, **filters))


@pytest.mark.parametrize("how", [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}])
def test_other_ways_to_draft(small, patched, how):
    target = copy.deepcopy(small[0])
    target.generation_config.num_assistant_tokens = 3
    prompt = torch.tensor([[1, 4, 2, 1, 4]])
    never = {"eos_token_id": 6}  # look-up of transformers 4 needs one
    got = assisted(target, prompt, 250, do_sample=True, top_k=0, **how, **never)
    assert p_value(got, two_tokens(target, prompt)) > FAILURE_RATE


@pytest.mark.skipif(not hasattr(candidate_generator, adapter.DRAFT_GREEDILY[0]), reason="this transformers has no such generator")
@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_an_assistant_that_drafts_greedily(who):
    """Gemma 4's, on a target of its kind: the law of the second and third token (drafts begin with the second)."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 6, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"], "eos_token_id": None,
        "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "pad_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    target = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**sizes)).eval()
    text = transformers.Gemma4TextConfig(**sizes, num_kv_shared_layers=2)
    config = transformers.Gemma4AssistantConfig(text_config=text, backbone_hidden_size=32)
    assistant = transformers.Gemma4AssistantForCausalLM(config).eval()
    assistant.generation_config.num_assistant_tokens = 2
    first = transformers.LogitsProcessorList([tf.ForcedBOSTokenLogitsProcessor(3)])  # where the prompt is one token
    given = {"assistant_model": assistant, "do_sample": True, "top_k": 0, "logits_processor": first}
    with adapter.patched() if who == "ours" else contextlib.nullcontext():
        got = assisted(target, torch.tensor([[1]]), 300, **given, skip=1)
    p = p_value(got, two_tokens(target, torch.tensor([[1, 3]])))
    assert p > FAILURE_RATE if who == "ours" else p < CAUGHT


def test_greedy_assistance_is_as_before(target, draft, patched):
    given = {**inputs([6]), "max_new_tokens": NEW, "do_sample": False}
    assert torch.equal(target.generate(**given, assistant_model=draft), target.generate(**given))


@pytest.mark.skipif(not hasattr(candidate_generator, adapter.DRAFT_GREEDILY[0]), reason="this transformers has no such generator")
@pytest.mark.parametrize("do_sample", [True, False])
def test_generators_that_draft_greedily_report_no_law(do_sample):
    """They report the row that they took the likeliest token of; under the patch they do not, and a weight is refused there."""
    generator = object.__new__(getattr(candidate_generator, adapter.DRAFT_GREEDILY[0]))
    logits = torch.tensor([[[0.0, 2.0, 1.0]]])

    class Assistant:
        device = "cpu"

        def __call__(self, **_):
            return SimpleNamespace(logits=logits, last_hidden_state=torch.zeros(1, 1, 2))

    generator.assistant_model, generator.target_model_input_embeddings = Assistant(), torch.nn.Embedding(3, 2)
    generator.num_assistant_tokens, generator.main_model_max_length, generator.is_main_model_prefill = 2, 20, True
    generator.generation_config = transformers.GenerationConfig(do_sample=do_sample)
    outputs = SimpleNamespace(hidden_states=[torch.zeros(1, 3, 2)], shared_kv_states={})

    def candidates():
        return generator.get_candidates(
            torch.tensor([[0, 2, 0]]), model_kwargs={}, model_outputs=outputs, is_first_iteration=False, n_last_matches=0
        )

    ids, reported = candidates()
    assert ids.tolist() == [[0, 2, 0, 1, 1]] and torch.equal(reported, logits.expand(1, 2, 3))
    with adapter.patched():
        ids, reported = candidates()
        assert ids.tolist() == [[0, 2, 0, 1, 1]] and reported is None
        generator.generation_config.assistant_ensemble_weight = 0.5
        assert candidates()[1] is not None


@pytest.mark.skipif(not FIVE, reason="transformers 4 has no such weight")
def test_a_weight_is_refused_in_generate(small, patched):
    target, draft = small
    with pytest.raises(ValueError, match="^assistant_ensemble_weight: "):
        assisted(target, torch.tensor([[1, 4, 2]]), 1, assistant_model=draft, do_sample=True, assistant_ensemble_weight=0.5)


# -- every setting -----------------------------------------------------------------------------------------------------

# Settings that change the greedy text or the scores, honoured: the same as transformers' own.
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
# Without effect in transformers too, for one beam of a decoder-only model that is not compiled; or no settings at all.
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
    """What a new transformers brings must be honoured or refused."""
    assert set(FIELDS) - {*HONOURED, *LAWS, *NO_EFFECT, *REFUSED} == set()
    assert set(adapter.REFUSED) <= set(REFUSED)


def said(model, name, value, **given):
    """Keywords that set a field, where transformers takes it so; else a configuration that has it."""
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
    target.generate(ids, attention_mask=mask, max_new_tokens=1, pad_token_id=PAD, **OURS)  # what is tried once a model
    calls.clear()
    given = said(target, name, REFUSED[name], max_new_tokens=4, pad_token_id=PAD)
    try:
        with pytest.raises((ValueError, ImportError), match=name.replace("_", "[_ ]")) as error:
            target.generate(ids, attention_mask=mask, **given, **OURS)
    finally:
        hook.remove()
    assert not calls
    assert name in BEFORE or str(error.value).startswith(f"{name}: ")


# transformers itself refuses these without a tokenizer, which it does not hand on, or without what they need.
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
