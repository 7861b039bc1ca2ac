"""Models wrapped in a module, models with few positions, and models that do not reveal what they are."""

from types import SimpleNamespace

import pytest
import torch
from model_classes import _LONG, DYNAMIC, VARIANTS, build, noisy
from models import prompts, tiny_llama
from test_generate_edges import gpt

import specsample as ss
from specsample.decoding import ModelDrafter, models
from specsample.decoding.calling import embedded_ids

transformers = pytest.importorskip("transformers")

GREEDY = ss.Sampling(temperature=0.0)
LENGTHS, NEW = [6, 2, 4], 9


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# -- wrappers --------------------------------------------------------------------------------------------------


class Bare(torch.nn.Module):
    """Passes everything on."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, **given):
        return self.inner(**given)


class Configured(Bare):
    """Exposes the config, as training wrappers do; neither dtype nor device."""

    def __init__(self, model):
        super().__init__(model)
        self.config = model.config

    def forward(self, input_ids, attention_mask=None, **given):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, **given)


SERVED = {  # by masks, by paths (windows, slopes), one by one, with limited positions
    "LlamaForCausalLM": (True, True),
    "MistralForCausalLM": (True, False),
    "BartForCausalLM": (False, False),
    "GPT2LMHeadModel": (True, True),
}


@pytest.mark.parametrize("wrapper", [Bare, Configured])
@pytest.mark.parametrize("name", SERVED)
def test_a_module_around_a_model_is_served_as_the_model(name, wrapper):
    model = gpt(15) if name.startswith("GPT2") else build(name)
    wrapped, (ids, mask) = wrapper(model), prompts(LENGTHS, vocab=60, seed=5)
    assert models.abilities(wrapped)[:2] == models.abilities(model)[:2] == SERVED[name]
    settings = {"attention_mask": mask, "max_new_tokens": NEW, "sampling": GREEDY, "eos_token_id": []}
    expected = ss.generate(model, None, ids, **settings)
    for b, n in enumerate(LENGTHS):
        own = {"attention_mask": torch.ones(1, n, dtype=torch.int64), "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(ids[b : b + 1, -n:], max_new_tokens=NEW, **own)[0, n:], expected[b, 6:])
    for shape in ({}, {"paths": 2}, {"tree": [-1, 0, 0, -1, 3]}):
        for target, draft in ((wrapped, noisy(model)), (noisy(model), wrapped)):
            output = ss.generate(target, draft, ids, scheme="race", **shape, **settings)
            assert target is not wrapped or torch.equal(output, expected)
    if name.startswith("GPT2"):
        with pytest.raises(ValueError, match="^max_new_tokens: expected at most 10: the model has 15 positions"):
            ss.generate(wrapped, None, ids, max_new_tokens=11)


@pytest.mark.parametrize("wrapper", [Bare, Configured])
@pytest.mark.parametrize("name", ["MambaForCausalLM", "XLNetLMHeadModel"])
def test_a_module_around_a_model_is_refused_as_the_model(name, wrapper):
    model, one = wrapper(build(name)), torch.ones(1, 3, dtype=torch.int64)
    for target, draft, argument in ((model, None, "model"), (tiny_llama(0), model, "draft")):
        with pytest.raises(ValueError, match=f"^{argument}: expected a causal language model over .* got {wrapper.__name__}, "):
            ss.generate(target, draft, one, max_new_tokens=3)


def test_a_drafter_of_ones_own_around_a_model_is_asked_too():
    mamba, one = build("MambaForCausalLM"), torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="^draft: expected a causal language model over .* got MambaForCausalLM, "):
        ss.generate(tiny_llama(0), ModelDrafter(mamba), one, max_new_tokens=3)


def test_ids_that_a_config_of_several_parts_tells():
    """Behind a wrapper there is no embedding table to query."""
    parts = transformers.LlavaConfig(text_config={"vocab_size": 33}, vision_config={"model_type": "clip_vision_model"})
    assert embedded_ids(SimpleNamespace(config=parts)) == 33
    assert embedded_ids(SimpleNamespace(config=SimpleNamespace(vocab_size=34))) == 34
    assert embedded_ids(SimpleNamespace()) is None


@pytest.mark.parametrize("eos", [-1, [-1]])
def test_a_config_may_say_that_nothing_ends_a_text(eos):
    model, one = tiny_llama(0), torch.ones(1, 3, dtype=torch.int64)
    model.generation_config.eos_token_id = eos
    assert torch.equal(
        ss.generate(model, None, one, max_new_tokens=5), ss.generate(model, None, one, max_new_tokens=5, eos_token_id=[])
    )
    model.generation_config.eos_token_id = "none"
    with pytest.raises(ValueError, match="^eos_token_id: expected .* got .*none"):
        ss.generate(model, None, one, max_new_tokens=5)


@pytest.mark.parametrize("which", ["model", "draft"])
def test_a_function_whose_cache_forgets_is_refused(which):
    """It cannot be queried; its first cache shows that windows were cut."""
    mistral, one = build("MistralForCausalLM"), torch.ones(1, 3, dtype=torch.int64)

    def function(**given):
        return mistral(**given)

    target, draft = (function, None) if which == "model" else (tiny_llama(0, vocab=61), function)
    with pytest.raises(ValueError, match="^past_key_values: expected a cache that keeps every token .* got layers with a window"):
        ss.generate(target, draft, one, max_new_tokens=12)


# -- few positions, early ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [2, 3, 4, 5, 6, 8, 9])
def test_few_positions_are_no_reason_to_refuse(positions):
    """Fewer than a trial of a model with many would read."""
    target, small, ids = tiny_llama(0, vocab=61), gpt(positions, 1), torch.tensor([[5, 6]])
    for shape in ({}, {"paths": 2}, {"tree": 4}):
        for seed in range(2):
            settings = {"max_new_tokens": 12, "seed": seed, "return_stats": True}
            output, stats = ss.generate(target, small, ids, scheme="race", **shape, **settings)
            assert torch.equal(output, ss.generate(target, None, ids, max_new_tokens=12, seed=seed))
            assert stats.out_of_positions > 0
        for draft in (None, gpt(positions, 1), gpt(positions, 2)):
            settings = {"max_new_tokens": positions - 1, "sampling": GREEDY, "scheme": "race", **(shape if draft else {})}
            output = ss.generate(small, draft, ids, **settings)
            expected = small.generate(ids, max_new_tokens=positions - 1, do_sample=False, pad_token_id=0)
            assert torch.equal(output, expected)


@pytest.mark.parametrize("end", [3, 4, 5, 8, 9, 10])
def test_frequencies_that_change_within_a_trial(end, monkeypatch):
    """If a model reads short texts differently from long ones, a trial must not mistake that for a fault."""
    config = {"original_max_position_embeddings": end}
    config["rope_parameters"] = _LONG | config | {"factor": 8.0}
    ids = torch.tensor([[5, 6, 7]])[:, :2]
    monkeypatch.setitem(VARIANTS, "Phi3ForCausalLM, early", config)
    monkeypatch.setitem(VARIANTS, "LlamaForCausalLM, early", DYNAMIC | {"max_position_embeddings": end})
    for name, new in (("Phi3ForCausalLM, early", 12), ("LlamaForCausalLM, early", end - 2)):
        model = build(name)
        output = ss.generate(model, noisy(model), ids, max_new_tokens=new, sampling=GREEDY, eos_token_id=[])
        assert torch.equal(output, build(name).generate(ids, max_new_tokens=new, do_sample=False))
