"""Edge cases of decoding: proposals without drafts, the end of the positions, large limits, rows without a finite logit."""

import pytest
import torch
from conftest import ALL_SCHEMES
from models import Streamer, TableModel, tiny_llama

import specsample as ss
from specsample.decoding.limits import position_limit

GREEDY = ss.Sampling(temperature=0.0)
V = 9
IDS, MASK = torch.tensor([[1, 2, 3, 4], [0, 0, 5, 6]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
SHAPES = {"chain": {}, "paths": {"paths": 2}, "bushy": {"tree": [-1, 0, 0, -1]}, "budget": {"tree": 5}}


def table(seed=0, vocab=V):
    return torch.rand(vocab, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05


def run(model, draft, new=7, **settings):
    return ss.generate(model, draft, IDS, attention_mask=MASK, max_new_tokens=new, seed=4, **settings)


# -- rounds without drafts -------------------------------------------------------------------------------------

EMPTY = {
    "nothing": lambda: None,
    "None": lambda: ss.Proposal(None),
    "list": lambda: ss.Proposal([]),
    "lists": lambda: ss.Proposal([[], []], [[], []]),
    "tensor of an empty list": lambda: ss.Proposal(torch.tensor([]), []),
    "tensor of empty lists": lambda: ss.Proposal(torch.tensor([[], []]), torch.tensor([[], []])),
    "int32": lambda: ss.Proposal(torch.zeros(2, 0, dtype=torch.int32), None, torch.zeros(2, 0, V)),
    "missing": lambda: ss.Proposal(torch.full((2, 3), -1), [-1, 0, 1], torch.zeros(2, 3, V, dtype=torch.float64)),
}


class Now:
    """Proposes `make()` in the first round and every second one after it, and [1, 2] with uniform rows in the others."""

    def __init__(self, make):
        self.make, self.round = make, 0

    def propose(self, prefixes, shape, round):
        self.round += 1
        if self.round % 2:
            return self.make()
        return ss.Proposal(torch.tensor([[1, 2], [2, -1]]), [-1, 0], torch.zeros(2, 2, V, dtype=torch.float64))

    def commit(self, tokens):
        pass


@pytest.mark.parametrize("form", EMPTY)
def test_proposals_without_drafts(form):
    """The text continues as in plain sampling; under schemes other than `race` at temperature 0."""
    model = TableModel(table(), strict=False)
    assert torch.equal(run(model, Now(EMPTY[form]), scheme="race"), run(model, None))
    for scheme in ("token", "block", "optimal", "recursive"):
        assert torch.equal(run(model, Now(EMPTY[form]), scheme=scheme, sampling=GREEDY), run(model, None, sampling=GREEDY))


@pytest.mark.parametrize("shape", [{}, {"paths": 3}, {"tree": 6}], ids=["chain", "paths", "budget"])
@pytest.mark.parametrize("ids", [[[1, 2, 3, 4], [0, 0, 5, 6]], [[1, 2, 1, 2], [0, 0, 5, 6]], [[1, 1, 1, 1], [0, 0, 5, 5]]])
def test_ngrams_without_a_match(ids, shape):
    """In no request, in one, in both; and in later rounds as it happens."""
    model, settings = TableModel(table(vocab=40), strict=False), {"attention_mask": MASK, "max_new_tokens": 12, "seed": 1}
    plain = ss.generate(model, None, torch.tensor(ids), **settings)
    assert torch.equal(ss.generate(model, ss.NgramDrafter(), torch.tensor(ids), scheme="race", **shape, **settings), plain)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("broken", ["all", "some"])
def test_draft_rows_without_a_finite_logit(broken, shape):
    """Such a row has no children: if all are so, the text is that of plain sampling, under every scheme."""
    law = table(1)
    law[slice(None) if broken == "all" else slice(0, 5)] = torch.nan
    model, draft = TableModel(table(), strict=False), TableModel(law, strict=False)
    for name in ALL_SCHEMES:
        card = ss.schemes()[name]
        if shape != "chain" and not card.trees or shape == "budget" and name != "race":
            continue
        sampling = ss.Sampling() if broken == "all" or name == "race" else GREEDY
        plain = run(model, None, sampling=sampling)
        assert torch.equal(run(model, draft, scheme=name, sampling=sampling, **SHAPES[shape]), plain), name
    if shape == "paths":
        several = [draft, TableModel(table(2), strict=False)]
        assert torch.equal(run(model, several, scheme="race"), run(model, None))


# -- the end of the positions ----------------------------------------------------------------------------------


def gpt(positions, seed=0, layers=1):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=61, n_embd=32, n_layer=layers, n_head=4, n_positions=positions, bos_token_id=None, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config).double().eval()
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.data = torch.randn_like(weight) * (1.5 / weight.shape[-1] ** 0.5)
    return model


class OnlyFirst:
    """Drafts the first request's greedy text, so that it ends long before the second."""

    def __init__(self, truth, fork):
        self.truth, self.fork = truth, fork

    def propose(self, prefixes, shape, round):
        at = len(prefixes[0])
        text = self.truth[0, at : at + shape].tolist()
        tokens = torch.tensor([text + [-1] * (shape - len(text)), [-1] * shape])
        if self.fork:
            return ss.Proposal(torch.cat([tokens, tokens.clamp(max=0)], 1), [*range(-1, shape - 1), *range(-1, shape - 1)])
        return ss.Proposal(tokens)

    def commit(self, tokens):
        pass


def test_finished_requests_are_not_read_beyond_their_end():
    """A text that needs the last position: while other requests continue, it must not be read further."""
    model = gpt(16)
    ids, mask = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [0] * 7 + [9]]), torch.tensor([[1] * 8, [0] * 7 + [1]])
    settings = {"attention_mask": mask, "max_new_tokens": 9, "sampling": GREEDY}
    plain = ss.generate(model, None, ids, **settings)
    for b, n in ((0, 8), (1, 1)):
        alone = model.generate(ids[b : b + 1, -n:], max_new_tokens=9, do_sample=False, pad_token_id=0)
        assert torch.equal(plain[b, 8:], alone[0, n:])
    for drafter in (OnlyFirst(plain, False), OnlyFirst(plain, True), model):
        assert torch.equal(ss.generate(model, drafter, ids, scheme="race", **settings), plain)
    for shape in ({"scheme": "block", "depth": 6}, {"scheme": "race", "paths": 3}, {"scheme": "race", "tree": 7}):
        assert torch.equal(ss.generate(model, model, ids, **shape, **settings), plain)


@pytest.mark.parametrize("shape", SHAPES)
def test_drafts_end_where_the_drafts_positions_do(shape):
    """For a text that passes them, and one that begins beyond them, next to one that stays within."""
    target, draft = gpt(64), gpt(16)
    ids, mask = torch.arange(60).view(3, 20), torch.tensor([[0] * 10 + [1] * 10, [1] * 20, [0] * 18 + [1] * 2])
    settings = {"attention_mask": mask, "max_new_tokens": 12, "seed": 2, "return_stats": True}
    plain, none = ss.generate(target, None, ids, **settings)
    output, stats = ss.generate(target, draft, ids, scheme="race", **SHAPES[shape], **settings)
    assert torch.equal(output, plain)
    assert stats.out_of_positions > 12 > none.out_of_positions == 0 and "past the draft" in str(stats)
    if shape == "chain":  # the law of a request's drafts does not depend on the other requests
        for scheme in ("token", "block"):
            together, _ = ss.generate(target, draft, ids, scheme=scheme, **settings)
            for b, n in enumerate((10, 20, 2)):
                one = {"max_new_tokens": 12, "seed": 2 + b, "scheme": scheme, "return_stats": True}
                alone, stats = ss.generate(target, draft, ids[b : b + 1, -n:], **one)
                assert torch.equal(together[b, 20:], alone[0, n:])
                assert (stats.out_of_positions > 0) == (b < 2)
                assert (stats.reached == []) == (b == 1)
    if shape == "paths":
        output, stats = ss.generate(target, [draft, target], ids, scheme="race", **settings)
        assert torch.equal(output, plain) and stats.out_of_positions > 0


def test_a_text_longer_than_the_targets_positions_is_refused():
    model, ids = gpt(16), torch.arange(1, 7)[None]
    assert ss.generate(model, None, ids, max_new_tokens=11).shape == (1, 17)
    for draft in (None, model):
        with pytest.raises(ValueError, match="^max_new_tokens: expected at most 11: the model has 16 positions.* got 12$"):
            ss.generate(model, draft, ids, max_new_tokens=12)
    with pytest.raises(ValueError, match="^input_ids: expected prompts of at most 16 tokens.* got 17$"):
        ss.generate(model, None, torch.arange(17)[None], max_new_tokens=1)


def test_rotary_models_have_no_end():
    model = tiny_llama(0)
    model.config.max_position_embeddings = 8
    ids = torch.arange(1, 7)[None]
    expected = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert torch.equal(ss.generate(model, model, ids, max_new_tokens=20, sampling=GREEDY), expected)


SMALL = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
OLD = {"vocab_size": 61, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20}
BART = {"vocab_size": 61, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 20}
POSITIONS = {
    "GPT2LMHeadModel": (OLD, 20),
    "GPT2LMHeadModel ": ({**OLD, "vocab_size": 20}, 20),  # as many ids as positions
    "GPTNeoForCausalLM": (
        {"vocab_size": 61, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 20}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 4},
        20,
    ),
    "GPTBigCodeForCausalLM": (OLD, 20),
    "OPTForCausalLM": (
        {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 20}
        | {"max_position_embeddings": 20, "word_embed_proj_dim": 16},
        20,
    ),
    "BioGptForCausalLM": ({**SMALL, "max_position_embeddings": 20}, 20),
    "CTRLLMHeadModel": ({**OLD, "dff": 20}, 20),
    "GPTJForCausalLM": ({**OLD, "rotary_dim": 4}, 20),
    "CodeGenForCausalLM": ({**OLD, "n_head": 4, "rotary_dim": 2}, 20),
    "BartForCausalLM": ({**BART, "max_position_embeddings": 20}, 20),
    "BertLMHeadModel": ({**SMALL, "max_position_embeddings": 20, "is_decoder": True}, 20),
    "MptForCausalLM": ({"vocab_size": 61, "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 20}, 20),
    "XGLMForCausalLM": (
        {"vocab_size": 61, "d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 20, "max_position_embeddings": 20},
        None,
    ),
    "BloomForCausalLM": ({"vocab_size": 61, "hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
    "LlamaForCausalLM": ({**SMALL, "max_position_embeddings": 20}, None),
    "GPTNeoXForCausalLM": ({**SMALL, "max_position_embeddings": 20}, None),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_position_limits(name):
    """The limit found is that of transformers: it reads this many positions, and fails at one more."""
    transformers = pytest.importorskip("transformers")
    config, limit = POSITIONS[name]
    build = getattr(transformers, name.strip())
    model = build(build.config_class(**config)).eval()
    assert position_limit(model) == limit
    model.generation_config.update(eos_token_id=None, forced_eos_token_id=None, pad_token_id=0)
    ids, settings = torch.arange(1, 16)[None], {"do_sample": False}
    assert model.generate(ids, max_new_tokens=6, **settings).shape[1] == 21
    if limit is None:
        assert model.generate(ids, max_new_tokens=30, **settings).shape[1] == 45
    else:
        with pytest.raises((IndexError, RuntimeError)):
            model.generate(ids, max_new_tokens=7, **settings)


# -- long texts, broken rows -----------------------------------------------------------------------------------


def test_a_large_limit_costs_nothing():
    circle = torch.eye(150).roll(1, 1)
    for draft in (None, TableModel(circle)):
        output = ss.generate(
            TableModel(circle), draft, torch.tensor([[3, 4], [90, 91]]), max_new_tokens=10**11, eos_token_id=[140, 149]
        )
        assert output[0].tolist() == list(range(3, 141)) and output[1, :51].tolist() == list(range(90, 141))


@pytest.mark.parametrize("draft", [None, "table"])
@pytest.mark.parametrize("start, said", [(2, []), (0, [1, 2])])
def test_a_streamer_gets_tokens_only(draft, start, said):
    """At a row without a finite logit nothing is emitted, and nothing streamed."""
    broken = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [float("nan")] * 3])
    streamer = Streamer()
    drafter = None if draft is None else TableModel(torch.ones(3, 3, dtype=torch.float64))
    ids = torch.tensor([[start]])
    output = ss.generate(TableModel(broken, strict=False), drafter, ids, max_new_tokens=5, streamer=streamer, seed=3)
    assert output.tolist() == [[start, *said]] and streamer.ended == 1
    assert all(tokens.dtype == torch.int64 and tokens.numel() > 0 for tokens in streamer.got)
    assert [int(t) for tokens in streamer.got[1:] for t in tokens] == said


# -- models that keep no cache -----------------------------------------------------------------------------------


class Forgetful(TableModel):
    def forward(self, *args, **more):
        out = super().forward(*args, **more)
        out.past_key_values = None
        return out


@pytest.mark.parametrize("who", ["target", "draft"])
def test_a_model_that_returns_no_cache_is_named(who):
    models = [Forgetful(table()) if who == name else TableModel(table(1)) for name in ("target", "draft")]
    with pytest.raises(ValueError, match="past_key_values: expected a cache in what Forgetful returns, got None"):
        run(*models)
