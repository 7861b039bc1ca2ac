"""generate's logits_processor and stopping_criteria: the verified law is the processed one, whatever drafts."""

import warnings

import pytest
import torch
from conftest import ALL_SCHEMES, CAUGHT, FAILURE_RATE, p_value
from models import TableModel, prompts, tiny_llama

import specsample as ss
from specsample.decoding import settings as unhonoured

transformers = pytest.importorskip("transformers")

GREEDY = ss.Sampling(temperature=0.0)
LENGTHS, NEW, EOS = [6, 3], 12, 5
SHAPES = {"chain": {}, "paths": {"paths": 2, "depth": 3}, "bushy": {"tree": [-1, 0, 0, -1, 3]}, "budget": {"tree": 6}}


def grammar(request, ids):
    """After an even token an odd one, from a range that depends on the request; after an odd one any multiple of 4, or 7."""
    last = int(ids[-1])
    return [7, *range(0, 60, 4)] if last % 2 else list(range(11 + 20 * request, 31 + 20 * request, 2))


def sets(b, n):
    """Lists of transformers' processors for request b, with a prompt of n tokens."""
    tf, end = transformers, torch.tensor([EOS])
    return {
        "repetition": [tf.RepetitionPenaltyLogitsProcessor(1.8)],
        "no repeat": [tf.NoRepeatNGramLogitsProcessor(2)],
        "bad words": [tf.NoBadWordsLogitsProcessor([[9], [50, 43], *[[t] for t in range(20, 40)]], torch.tensor([EOS]))],
        "bias": [tf.SequenceBiasLogitsProcessor([[[EOS], 50.0], [[3, 4], 5.0]]), tf.MinLengthLogitsProcessor(n + 5, end)],
        "min new": [tf.SequenceBiasLogitsProcessor([[[EOS], 50.0]]), tf.MinNewTokensLengthLogitsProcessor(n, 4, end)],
        "suppress": [tf.SuppressTokensLogitsProcessor(list(range(10, 50))), tf.SuppressTokensAtBeginLogitsProcessor([3, 4], n)],
        "grammar": [tf.PrefixConstrainedLogitsProcessor(lambda _, ids: grammar(b, ids), 1)],
        "typical": [tf.TypicalLogitsWarper(0.5), tf.EtaLogitsWarper(0.1)],
    }  # fmt: skip


@pytest.mark.parametrize("name", sets(0, 1))
def test_greedy_is_transformers_greedy(target, draft, name):
    ids, mask = prompts(LENGTHS)
    lists = [sets(b, n)[name] for b, n in enumerate(LENGTHS)]
    settings = {"attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": EOS, "logits_processor": lists}
    expected, free = [], 0
    for b, n in enumerate(LENGTHS):
        rest = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": EOS}
        rest["attention_mask"] = torch.ones(1, n, dtype=torch.int64)
        text = target.generate(ids[b : b + 1, -n:], logits_processor=transformers.LogitsProcessorList(lists[b]), **rest)[0, n:]
        expected.append(text.tolist() + [EOS] * (NEW - len(text)))
        other = target.generate(ids[b : b + 1, -n:], **rest)[0, n:].tolist()
        free += other + [EOS] * (NEW - len(other)) != expected[-1]
    assert free or name == "typical"  # the processors do change the text; typical filtering keeps the likeliest token
    runs = [(None, "token", {}), (draft, "block", {}), (draft, "optimal", SHAPES["paths"]), (draft, "race", SHAPES["budget"])]
    for drafter, scheme, shape in [*runs, (ss.NgramDrafter(1), "race", {"paths": 2})]:
        output = ss.generate(target, drafter, ids, scheme=scheme, sampling=GREEDY, **shape, **settings)[:, ids.shape[1] :]
        output = torch.nn.functional.pad(output, (0, NEW - output.shape[1]), value=EOS)
        assert output.tolist() == expected, scheme


class Witness:
    """Forbids tokens by the last token and the length, and records the texts it was asked about."""

    def __init__(self):
        self.seen = []

    @staticmethod
    def forbidden(text):
        return {(3 * text[-1] + k) % 60 for k in range(25)} | {len(text) % 60}

    def __call__(self, input_ids, scores):
        assert input_ids.dtype == torch.int64 and len(input_ids) == len(scores) and scores.dtype in (torch.float32, torch.float64)
        out = scores.clone()
        for row, text in zip(out, input_ids.tolist()):
            self.seen.append(tuple(text))
            row[list(self.forbidden(text))] = -torch.inf
        scores.fill_(torch.nan)  # it is given a copy of its own
        return out


@pytest.mark.parametrize("shape", SHAPES)
def test_race_is_plain_sampling_and_only_allowed_texts_are_asked_about(target, draft, shape):
    ids, mask = prompts(LENGTHS)
    said = [row[m > 0].tolist() for row, m in zip(ids, mask)]
    settings = {"attention_mask": mask, "max_new_tokens": NEW, "seed": 3}
    plain = ss.generate(target, None, ids, logits_processor=[Witness()], **settings)
    narrow, wide = tiny_llama(8, vocab=41), tiny_llama(9, vocab=83)
    for drafter in (draft, narrow, wide, [draft, narrow]) if shape == "chain" else (draft,):
        witness = Witness()
        output = ss.generate(target, drafter, ids, scheme="race", logits_processor=[witness], **SHAPES[shape], **settings)
        assert torch.equal(output, plain)
        for text in witness.seen:
            (prompt,) = [s for s in said if list(text[: len(s)]) == s]
            for i in range(len(prompt), len(text)):
                assert text[i] < 60 and text[i] not in Witness.forbidden(text[:i])
        assert {len(text) for text in witness.seen} >= {*range(6, 6 + NEW)}
    for row, prompt in zip(output.tolist(), said):
        for i in range(ids.shape[1], len(row)):
            assert row[i] not in Witness.forbidden(prompt + row[ids.shape[1] : i])


class Drafted:
    """A custom drafter that proposes forbidden tokens as well as permitted ones."""

    def propose(self, prefixes, shape, round):
        return ss.Proposal(torch.tensor([[1, 2, 3, 99, 4]] * len(prefixes)), [-1, 0, -1, 2, 3])

    def commit(self, tokens):
        pass


def test_own_drafts_that_are_forbidden(target):
    ids, mask = prompts(LENGTHS)
    settings = {"attention_mask": mask, "max_new_tokens": NEW, "seed": 3}
    witness = Witness()
    plain = ss.generate(target, None, ids, logits_processor=[witness], **settings)
    for drafter in (Drafted(), ss.NgramDrafter()):
        assert torch.equal(ss.generate(target, drafter, ids, scheme="race", logits_processor=[witness], **settings), plain)
    said = [tuple(row[m > 0].tolist()) for row, m in zip(ids, mask)]
    for text in witness.seen:
        (n,) = [len(s) for s in said if text[: len(s)] == s]
        assert all(text[i] not in Witness.forbidden(text[:i]) for i in range(n, len(text)))


# -- the law ---------------------------------------------------------------------------------------------------

T = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
D = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.1, 0.4], [0.1, 0.5, 0.3, 0.1], [0.2, 0.3, 0.3, 0.2]], dtype=torch.float64)


def penalty(input_ids, scores):
    """Depends on the whole text: −1 for a token each time it occurred, and token 3 is forbidden after token 2."""
    counts = torch.nn.functional.one_hot(input_ids, scores.shape[1]).sum(1)
    scores = scores - counts
    scores[input_ids[:, -1] == 2, 3] = -torch.inf
    return scores


def joint_law(new, process):
    """Probabilities of all texts of `new` tokens after [0], [4^new]"""
    law = {(0,): 1.0}
    for _ in range(new):
        grown = {}
        for text, mass in law.items():
            ids, row = torch.tensor([text]), T[text[-1]].log()[None]
            probabilities = (penalty(ids, row) if process else row).softmax(-1)[0]
            grown |= {(*text, token): mass * float(x) for token, x in enumerate(probabilities)}
        law = grown
    return torch.tensor(list(law.values()), dtype=torch.float64)


@pytest.mark.parametrize("scheme", ALL_SCHEMES)
def test_the_law_is_the_processed_one(scheme):
    """Joint law of three tokens, several rounds; without the processor it is different."""
    trees, new, count = ss.schemes()[scheme].trees, 3, 400 if scheme == "weighted" else 1500  # its rows are slow on the CPU
    shape = {"paths": 2, "depth": 2} if trees else {"depth": 2}
    ids = torch.zeros(count, 1, dtype=torch.int64)
    model, draft = TableModel(T, strict=False), TableModel(D, strict=False)
    output = ss.generate(model, draft, ids, max_new_tokens=new, scheme=scheme, seed=11, logits_processor=[penalty], **shape)
    cells = (output[:, 1:] * torch.tensor([16, 4, 1])).sum(1)
    assert p_value(cells, joint_law(new, True)) > FAILURE_RATE
    assert p_value(cells, joint_law(new, False)) < CAUGHT


@pytest.mark.parametrize("shape", SHAPES)
def test_drafts_are_processed_too(target, shape):
    """A draft that is the target always agrees with it, under processors as without."""
    ids, mask = prompts(LENGTHS)
    scheme = {"chain": "block", "budget": "race"}.get(shape, "recursive")
    settings = {"attention_mask": mask, "max_new_tokens": 10, "seed": 1, "scheme": scheme, "return_stats": True}
    sampling = GREEDY if shape == "budget" else ss.Sampling()
    _, stats = ss.generate(target, target, ids, logits_processor=[Witness()], sampling=sampling, **SHAPES[shape], **settings)
    assert sum(stats.accepted) == sum(stats.reached) > 0


# -- requests, ends, errors ------------------------------------------------------------------------------------


def test_a_row_number_is_that_of_the_request(target, draft):
    """transformers' constraint as a function of (request, text), one for the whole batch."""
    ids, mask = prompts([4, 4])
    constraint = transformers.PrefixConstrainedLogitsProcessor(grammar, 1)
    expected = target.generate(
        ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0, prefix_allowed_tokens_fn=grammar
    )
    for scheme, shape in (("token", {}), ("race", {"paths": 3})):
        output = ss.generate(
            target, draft, ids, max_new_tokens=8, sampling=GREEDY, scheme=scheme, logits_processor=[constraint], **shape
        )
        assert torch.equal(output, expected)


def test_the_only_request_is_number_0(target, draft):
    """Also if several of its nodes are asked about at once."""
    asked = []
    constraint = transformers.PrefixConstrainedLogitsProcessor(lambda request, ids: asked.append(request) or grammar(0, ids), 1)
    ids = prompts([4])[0]
    ss.generate(target, draft, ids, max_new_tokens=6, scheme="race", paths=3, logits_processor=[constraint])
    assert set(asked) == {0}


def test_nothing_allowed_ends_the_text():
    def none_after_2(input_ids, scores):
        return torch.where((input_ids[:, -1:] == 2), -torch.inf, scores)

    circle = torch.eye(4).roll(1, 1)
    for draft in (None, TableModel(circle)):
        settings = {"max_new_tokens": 9, "logits_processor": [none_after_2], "eos_token_id": 0}
        output = ss.generate(TableModel(circle), draft, torch.tensor([[0], [3]]), **settings)
        assert output.tolist() == [[0, 1, 2], [3, 0, 0]]


class Until:
    """Ends a text at `token`, and records what it was asked about."""

    def __init__(self, token, kind):
        self.token, self.kind, self.seen = token, kind, []

    def __call__(self, input_ids, scores):
        assert scores is None and input_ids.shape[0] == 1
        self.seen.append(input_ids[0].tolist())
        end = input_ids[:, -1] == self.token
        return bool(end) if self.kind == "bool" else end


@pytest.mark.parametrize("kind", ["bool", "tensor"])
@pytest.mark.parametrize("draft", [None, "itself"])
def test_stopping_criteria(draft, kind):
    circle = torch.eye(9).roll(1, 1)
    model = TableModel(circle)
    ids, mask = torch.tensor([[1, 2], [0, 5]]), torch.tensor([[1, 1], [0, 1]])
    settings = {"attention_mask": mask, "max_new_tokens": 9, "eos_token_id": [0]}
    until = Until(7, kind)
    drafter = None if draft is None else TableModel(circle)
    output = ss.generate(model, drafter, ids, stopping_criteria=[until], **settings)
    assert output.tolist() == [[1, 2, 3, 4, 5, 6, 7], [0, 5, 6, 7, 0, 0, 0]]
    # Each emitted token once, in order, nothing beyond the end.
    for prompt, text in (([1, 2], [3, 4, 5, 6, 7]), ([5], [6, 7])):
        assert [s for s in until.seen if s[: len(prompt)] == prompt] == [prompt + text[: i + 1] for i in range(len(text))]
    longest = transformers.StoppingCriteriaList([transformers.MaxLengthCriteria(4)])
    output, stats = ss.generate(model, drafter, ids, stopping_criteria=[longest, [Until(8, kind)]], return_stats=True, **settings)
    assert output.tolist() == [[1, 2, 3, 4, 0], [0, 5, 6, 7, 8]] and stats.emitted == 5


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria"])
@pytest.mark.parametrize("given", [3, penalty, [3], [[penalty]], [[penalty], [3]], [penalty, [penalty]], "ab"])
def test_errors_come_before_the_first_forward(name, given):
    model = TableModel(torch.eye(3))
    with pytest.raises(ValueError, match=f"^{name}: .*got"):
        ss.generate(model, None, torch.zeros(2, 2, dtype=torch.int64), max_new_tokens=3, **{name: given})
    assert model.calls == 0


def test_processors_that_are_refused(target):
    guidance = transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, target)
    bad = ((guidance, "keeps a state"), (lambda ids, scores: scores[:, :3], "shape"), (lambda ids, scores: None, "NoneType"))
    for processor, what in bad:
        with pytest.raises(ValueError, match=f"^logits_processor: .*{what}"):
            ss.generate(target, None, prompts([3])[0], max_new_tokens=3, logits_processor=[processor])


# -- GenerationConfig ------------------------------------------------------------------------------------------

# Settings that change neither the law of a text nor where it ends, or that arguments of generate replace.
HARMLESS = set(
    """max_length max_new_tokens early_stopping do_sample use_cache cache_implementation cache_config temperature top_k top_p min_p
    length_penalty num_return_sequences output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
    pad_token_id bos_token_id eos_token_id decoder_start_token_id is_assistant num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind
    target_lookbehind renormalize_logits compile_config disable_compile continuous_batching_config low_memory prefill_chunk_size
    speculation_method kwargs transformers_version return_legacy_cache use_mtp
    assistant_ensemble_weight speculation_type max_cache_len""".split()
)


def test_every_setting_of_transformers_is_known():
    """A setting added by a new transformers must be classified: honoured, harmless, or named in the warning."""
    fields = {name for name in transformers.GenerationConfig().to_dict() if not name.startswith("_")}
    assert fields - HARMLESS - {*unhonoured.LAW, *unhonoured.END, *unhonoured.METHOD} == set()
    for how, _ in ((how, name) for table in (unhonoured.LAW, unhonoured.END) for name, (_, how) in table.items()):
        assert hasattr(transformers, how), how


VALUES = {
    "repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "bad_words_ids": [[3]], "sequence_bias": [[[3], 1.0]],
    "suppress_tokens": [4], "begin_suppress_tokens": [4], "forced_bos_token_id": 0, "forced_eos_token_id": 2, "min_length": 3,
    "min_new_tokens": 3, "exponential_decay_length_penalty": (3, 1.1), "remove_invalid_values": True, "typical_p": 0.9,
    "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.5, "watermarking_config": object(), "encoder_repetition_penalty": 1.1,
    "encoder_no_repeat_ngram_size": 2, "stop_strings": ["x"], "max_time": 3.0, "num_beams": 2, "num_beam_groups": 2,
    "diversity_penalty": 0.1, "penalty_alpha": 0.6, "guidance_scale": 1.5, "dola_layers": "low", "force_words_ids": [[3]],
    "constraints": [object()], "token_healing": True,
}  # fmt: skip


@pytest.mark.parametrize("name", [*unhonoured.LAW, *unhonoured.END, *unhonoured.METHOD])
def test_settings_that_are_not_honoured_are_named(name):
    model, ids = tiny_llama(0), prompts([3])[0]
    settings = {"max_new_tokens": 1, "eos_token_id": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ss.generate(model, None, ids, **settings)  # the defaults cause no warning
        setattr(model.generation_config, name, VALUES[name])
        told = rf"does not apply these settings of model.generation_config: {name}=.*(pass|not supported)"
        with pytest.warns(UserWarning, match=told) as caught:
            ss.generate(model, None, ids, **settings)
        assert len(caught) == 1 and caught[0].filename == __file__
        given = {"logits_processor": [], "stopping_criteria": []}
        if name not in unhonoured.METHOD:
            ss.generate(model, None, ids, **given, **settings)
            return
    with pytest.warns(UserWarning, match=name):
        ss.generate(model, None, ids, **given, **settings)
