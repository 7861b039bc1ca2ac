"""Which models are supported, and how: each class is exact or refused; only trials of the model decide."""

import gc
import inspect
import weakref

import pytest
import torch
from model_classes import NEW, SHAPES, build, noisy, try_model
from models import nearby, prompts, tiny_llama

import specsample as ss
from specsample.decoding import ModelDrafter, Prefixes, RoundInfo, cache, models, one_by_one, tree_cache
from specsample.decoding.trial import Trial

transformers = pytest.importorskip("transformers")

GREEDY = ss.Sampling(temperature=0.0)
# One for each way of counting positions, of masking and of being unusable; `make check-models` tries all.
SLICE = {
    "LlamaForCausalLM": "masks",
    "OPTForCausalLM": "masks",  # positions are passed, though it could count them
    "Gemma3ForCausalLM": "paths",  # windows on some layers
    "MistralForCausalLM": "paths",  # on all
    "Llama4ForCausalLM": "paths",  # chunks
    "GPTNeoForCausalLM": "paths",  # windows by slot
    "MptForCausalLM": "paths",  # slopes by slot
    "BloomForCausalLM": "paths",  # slopes by the mask
    "BartForCausalLM": "alone",  # positions by slot
    "MossTranscribeDiarizeForConditionalGeneration": "alone",  # rotary positions by slot, in the keys
    "Phi3ForCausalLM, longrope": "paths",
    "Lfm2ForCausalLM": "refused",
    "MambaForCausalLM": "refused",
    "JambaForCausalLM": "refused",
    "RwkvForCausalLM": "refused",
    "XLNetLMHeadModel": "refused",
    "OpenAIGPTLMHeadModel": "refused",
    "CpmAntForCausalLM": "refused",
    "LlamaForCausalLM, dynamic rotary, text beyond its limit": "refused",
    "BertLMHeadModel, not a decoder": "refused",  # every token sees all
}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", SLICE)
def test_a_class_is_exact_or_refused(name):
    found = try_model(build(name))
    assert not found.wrong and found.how == SLICE[name] and (found.how != "refused" or found.reason)


# -- what is tried ---------------------------------------------------------------------------------------------
# -- trials ----------------------------------------------------------------------------------------------------
TRIED = {
    "LlamaForCausalLM": (True, True),
    "GPTNeoForCausalLM": (True, False),
    "MptForCausalLM": (True, False),
    "FalconForCausalLM, alibi": (True, False),
    "BartForCausalLM": (False, False),
    "RoFormerForCausalLM": (False, False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TRIED)
def test_the_trial_decides_without_the_config(name, dtype, monkeypatch):
    """In each dtype: the config's statements about windows and slopes are not consulted."""
    monkeypatch.setattr(models, "_by_slot", lambda config: False)
    for seed in range(2):
        assert models.abilities(build(name, seed).to(dtype))[:2] == TRIED[name]


def test_how_far_apart_right_and_wrong_are():
    """In the dtype with the widest tolerance, right results are within a third of it and wrong ones beyond three times it."""
    for name, (batched, masks) in TRIED.items():
        trial = Trial(build(name).to(torch.bfloat16), "cpu", torch.bfloat16)
        trial.fresh()
        offs, off = [], trial.off
        trial.off = lambda *row: offs.append(off(*row)) or offs[-1]
        assert (trial.cached(2) is None) == batched
        padded = max(offs) / trial.spread
        assert padded < trial.tolerance / 3 if batched else padded > 3 * trial.tolerance
        if batched:
            offs.clear()
            assert trial.masked() == masks
            tree = max(offs, default=torch.inf) / trial.spread  # none: it accepts no such mask
            assert tree < trial.tolerance / 3 if masks else tree > 3 * trial.tolerance


def test_a_model_is_tried_once():
    model, calls = tiny_llama(0), []
    model.register_forward_hook(lambda *of_a_call: calls.append(1))
    assert models.abilities(model).masks and len(calls) == 4
    models.abilities(model), models.takes_masks(model)
    assert len(calls) == 4
    assert models.abilities(model.float()).masks and len(calls) == 8  # another dtype is another model to try
    key = weakref.ref(model)
    assert key in models._known.keyrefs()
    del model
    gc.collect()
    assert key() is None and key not in models._known.keyrefs()


def test_made_up_tokens_have_no_meaning_of_their_own():
    model = tiny_llama(0)
    model.config.image_token_id, model.config.eos_token_id = 1, [3, 5]
    trial = Trial(model, model.device, model.dtype)
    assert not {1, 3, 5} & {*trial.prefixes[0], *trial.nodes, *trial.wrong}
    assert len({*trial.prefixes[0], *trial.nodes}) == 15


class Forgetful(torch.nn.Module):
    """A Llama whose cache forgets one token more than requested, or is missing."""

    def __init__(self, how):
        super().__init__()
        self.model, self.how = tiny_llama(0), how
        self.config, self.device, self.dtype = self.model.config, self.model.device, self.model.dtype

    def forward(self, **given):
        out = self.model(**given)
        if self.how == "no cache":
            out.cache = out.past_key_values = None
        elif self.how == "no layers" and out.past_key_values is not None:
            out.past_key_values = {"states": 1}
        elif out.past_key_values is not None and not isinstance(out.past_key_values, Short):
            out.past_key_values.__class__ = Short
        return out


class Short(transformers.DynamicCache):
    def crop(self, tokens):
        super().crop(tokens)
        for layer in self.layers:
            layer.keys = layer.keys.roll(1, 2)


@pytest.mark.parametrize("how, words", [("no cache", "no cache"), ("no layers", "no cache"), ("short", "fresh forward")])
def test_a_cache_is_tried_whatever_the_model_is_called(how, words):
    with pytest.raises(ValueError, match=f"^draft: expected .* got Forgetful, .*{words}"):
        ss.generate(tiny_llama(0), Forgetful(how), torch.ones(1, 3, dtype=torch.int64), max_new_tokens=3)


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "T5ForConditionalGeneration", "MambaForCausalLM"])
def test_what_a_config_says_is_refused_without_a_forward(name, monkeypatch):
    kind = getattr(transformers, name)
    small = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "d_kv": 8, "vocab_size": 40, "hidden_size": 16}
    small |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    small |= {"num_hidden_layers": 1} if "Mamba" in name else {}
    fields = {field for field in small if hasattr(kind.config_class(), field)}
    model = kind(kind.config_class(**{field: small[field] for field in fields}))
    monkeypatch.setattr(kind, "forward", lambda *a, **k: pytest.fail("a forward"))
    monkeypatch.setattr(type(tiny_llama(0)), "forward", lambda *a, **k: pytest.fail("a forward"))
    one = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="^model: expected .* got .*(encoder|state)"):
        ss.generate(model, None, one, max_new_tokens=3)


# -- texts whose length matters --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phi():
    """Long factors from 12 tokens on."""
    return build("Phi3ForCausalLM, longrope")


LENGTHS, LONG = [10, 3, 13, 12, 11], 14


def alone(model, ids, mask, **settings):
    """Each request separately, by transformers: with a cache and without."""
    out = []
    for row, seen in zip(ids, mask):
        own = row[seen > 0][None]
        both = [
            model.generate(own, attention_mask=torch.ones_like(own), do_sample=False, use_cache=cached, **settings)
            for cached in (True, False)
        ]
        assert torch.equal(*both)
        out.append(both[0][0, own.shape[1] :])
    return torch.stack(out)


def test_longrope_is_transformers_own(phi):
    """Prompts before, at and after the switch, in one batch: plain, chains, paths and trees, greedy."""
    ids, mask = prompts(LENGTHS, vocab=60, seed=2)
    expected = alone(phi, ids, mask, max_new_tokens=LONG)
    settings = {"attention_mask": mask, "max_new_tokens": LONG, "sampling": GREEDY, "return_stats": True, "eos_token_id": []}
    draft = noisy(phi)
    for scheme, shape in (("token", {}), ("token", {"depth": 5}), ("optimal", SHAPES["paths"]), ("race", {"tree": 6})):
        output, stats = ss.generate(phi, draft if shape else None, ids, scheme=scheme, **shape, **settings)
        assert torch.equal(output[:, ids.shape[1] :], expected)
        assert not shape or sum(stats.accepted) > 10


class Eager:
    """Proposes more than requested: the true text, across the switch."""

    def __init__(self, truth):
        self.truth = truth

    def propose(self, prefixes, shape, round):
        start = prefixes.lengths.tolist()
        return ss.Proposal(torch.stack([row[n : n + 8] for row, n in zip(self.truth, start)]))

    def commit(self, tokens):
        pass


@pytest.mark.parametrize("shape", [{"depth": 8}, {"depth": 2}])
def test_no_forward_of_the_target_is_on_both_sides_of_the_switch(phi, shape):
    ids = prompts([5])[0]
    truth = torch.cat([ids, alone(phi, ids, torch.ones_like(ids), max_new_tokens=LONG)], 1)
    drafter = Eager(torch.nn.functional.pad(truth, (0, 20)))
    output = ss.generate(phi, drafter, ids, max_new_tokens=LONG, sampling=GREEDY, eos_token_id=[], **shape)
    assert torch.equal(output, truth)


def test_longrope_texts_that_do_not_switch_share_a_batch(phi, monkeypatch):
    """Before the switch throughout, or after it: one forward for all requests."""
    monkeypatch.setattr(one_by_one, "OneByOne", None)
    monkeypatch.setattr(tree_cache, "OneByOne", lambda each: pytest.fail("one by one"))
    for lengths, new in (([2, 6], 5), ([15, 12, 13], 4)):
        ids, mask = prompts(lengths, vocab=60, seed=3)
        output = ss.generate(phi, phi, ids, attention_mask=mask, max_new_tokens=new, sampling=GREEDY, eos_token_id=[])
        assert torch.equal(output[:, max(lengths) :], alone(phi, ids, mask, max_new_tokens=new))


def test_a_longrope_draft_is_a_function_of_its_own_request(phi):
    """Under `token` the accepted drafts enter the text: other requests and padding must not change them."""
    target, (ids, mask) = nearby(tiny_llama(0, vocab=61), 0.0, 0), prompts([10, 3, 13])
    settings = {"max_new_tokens": LONG, "scheme": "block", "depth": 3}
    together = ss.generate(target, phi, ids, attention_mask=mask, seed=7, **settings)[:, ids.shape[1] :]
    for b, n in enumerate([10, 3, 13]):
        own = ss.generate(target, phi, ids[b : b + 1, -n:], seed=7 + b, **settings)
        assert torch.equal(own[0, n:], together[b])


def test_a_longrope_draft_reads_afresh_what_it_read_by_other_frequencies(phi):
    """Its own drafts cross the switch, so it has keys of both kinds; the next round's law is again that of the text."""
    text, drafter = torch.arange(3, 23)[None], ModelDrafter(phi)
    for length in (10, 11, 12, 13):  # one token per round, none of its drafts
        at = torch.tensor([length])
        info = RoundInfo(at, at, (ss.Sampling(),), "token", "iid", torch.ones(1, dtype=torch.bool), None)
        proposal = drafter.propose(Prefixes(text, at), 4, info)
        fresh = phi(input_ids=text[:, :length]).logits[:, -1]
        torch.testing.assert_close(proposal.draft_logits[:, 0], fresh, atol=1e-6, rtol=0)


def test_dynamic_rotary_is_served_up_to_its_limit():
    model = build("LlamaForCausalLM, dynamic rotary, text beyond its limit")  # 12 positions
    ids, mask = prompts([5, 3], vocab=60)
    served = ss.generate(model, noisy(model), ids, attention_mask=mask, max_new_tokens=7, sampling=GREEDY, eos_token_id=[])
    assert torch.equal(served[:, 5:], alone(model, ids, mask, max_new_tokens=7))
    for target, draft, name in ((model, None, "model"), (tiny_llama(0, vocab=61), model, "draft")):
        with pytest.raises(ValueError, match=f"^{name}: expected a text of at most 12 tokens .*got LlamaForCausalLM for up to 13"):
            ss.generate(target, draft, ids, attention_mask=mask, max_new_tokens=8)


# -- positions by slot -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_requests_one_by_one(shape):
    """A model that counts positions by slot, as target and as draft, in a batch of unequal prompts that end at different times:
    each request has the text it has alone."""
    bart, lengths = build("BartForCausalLM"), [5, 2, 7]
    target, (ids, mask) = tiny_llama(0, vocab=61), prompts([5, 2, 7], vocab=60)
    scheme = "token" if shape is SHAPES["chain"] else "recursive"
    settings = {"max_new_tokens": NEW, "scheme": scheme, "eos_token_id": [7, 21, 30, 35], **shape}
    for model, draft in ((bart, noisy(bart)), (target, bart), (bart, target)):
        together = ss.generate(model, draft, ids, attention_mask=mask, seed=5, **settings)[:, 7:]
        for b, n in enumerate(lengths):
            own = ss.generate(model, draft, ids[b : b + 1, -n:], seed=5 + b, **settings)[0, n:]
            assert torch.equal(own, together[b, : len(own)])


def test_a_finished_request_is_not_read_again_one_by_one():
    bart, calls = build("BartForCausalLM"), []
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    plain = ss.generate(bart, None, ids, max_new_tokens=6, sampling=GREEDY, eos_token_id=[])
    bart.register_forward_pre_hook(lambda *of_a_call: calls.append(1))
    at, ends = next((i, token) for i, token in enumerate(plain[0, 3:].tolist()) if token not in plain[1, 3:])
    ss.generate(bart, None, ids, max_new_tokens=6, sampling=GREEDY, eos_token_id=[ends])
    assert len(calls) == at + 1 + 6 and at < 4


def test_forwards_get_positions_only_where_they_take_them():
    for name, given in (("BartForCausalLM", False), ("BloomForCausalLM", False), ("OPTForCausalLM", True)):
        model, seen = build(name), []
        models.abilities(model)
        forward = model.forward
        model.forward = lambda **arguments: seen.append("position_ids" in arguments) or forward(**arguments)
        model.forward.__signature__ = inspect.signature(forward)
        ids = torch.ones(1, 3, dtype=torch.int64)
        cache.CachedModel(model, 1, model.device)(Prefixes(ids, torch.tensor([3])), ids)
        assert seen == [given]
