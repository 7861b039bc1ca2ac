"""Our verification in the assisted generation of transformers: the function alone, and under the patch."""

import contextlib
import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, p_value
from transformers_cases import (
    FIVE,
    NEW,
    adapter,
    candidate_generator,
    generation,
    inputs,
    small,  # noqa: F401 (a fixture)
    tf,
    transformers,
    two_tokens,
)

# -- _speculative_sampling ---------------------------------------------------------------------------------------------

FIFTH = {"nothing": (), "weight": (None,), "certain": (1.0,), "bool": (False,), "tensor": (torch.tensor([False]),)}


def rows(*tokens, width=10, high=10.0, low=-10.0):
    """Rows that are each nearly certain of one token: float32 [1, n, width]"""
    return torch.full((1, len(tokens), width), low).scatter(2, torch.tensor(tokens)[None, :, None], high)


@pytest.mark.parametrize("fifth", FIFTH)
def test_rejected_in_the_third_place(fifth):
    """transformers' own cases: the target is certain of drafts 1 and 4, 5 is impossible; the token after them has its law."""
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
    # In transformers 4 the fifth argument says that the drafts end the text: no token follows, and the last draft takes its place.
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
    """If target and draft agree, nothing is rejected; the draft may have fewer ids, and another dtype."""
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
    """The likeliest token of a row, with that row reported as its law: transformers' own function then gives a law other than the
    target's; without a report ours gives the target's."""
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
    """Two tokens from each of `count` texts, after skipping `skip`, as one number each; seeded by torch."""
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
    """The law of assisted generation, with the assistant's stops at unlikely tokens; torch's seed determines the texts."""
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
    first = transformers.LogitsProcessorList([tf.ForcedBOSTokenLogitsProcessor(3)])  # if the prompt is one token
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
    """They report the row whose likeliest token they took; under the patch they report none, and a weight is refused there."""
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
