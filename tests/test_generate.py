"""The decoding loop: greedy equals transformers, `race` equals plain sampling, requests do not affect each other."""

import pytest
import torch
from conftest import CHAIN_SCHEMES
from models import Streamer, TableModel, nearby, prompts, tiny_llama

import specsample as ss

pytest.importorskip("transformers")

NEW = 14
GREEDY = ss.Sampling(temperature=0.0)
LENGTHS = [5, 2, 9, 1]


@pytest.fixture(scope="module")
def drafts(target):
    """Every kind of drafter: name -> fresh drafter"""
    return {
        "none": lambda: None,
        "model": lambda model=nearby(target, 0.6, 1): model,
        "itself": lambda: target,
        "unrelated": lambda model=tiny_llama(7): model,
        "narrower": lambda model=tiny_llama(8, vocab=41): model,
        "wider": lambda model=tiny_llama(9, vocab=83): model,
        "float32": lambda model=nearby(target, 0.6, 1).float(): model,
        "ngram": lambda: ss.NgramDrafter(),
        "nothing": lambda: Nothing(),
    }


DRAFTS = ["none", "model", "itself", "unrelated", "narrower", "wider", "float32", "ngram", "nothing"]


class Nothing:
    """Zero-length proposals: no columns in one round, missing nodes in the next, then a missing node in the middle."""

    def __init__(self):
        self.rounds = 0

    def propose(self, prefixes, shape, round):
        self.rounds += 1
        tokens = torch.full((len(prefixes), [0, shape, 3][self.rounds % 3]), -1)
        if self.rounds % 3 == 2:
            tokens[:, 0], tokens[:, 2] = 3, 4
        return ss.Proposal(tokens)

    def commit(self, tokens):
        pass


def plain(model, ids, mask=None, **settings):
    return ss.generate(model, None, ids, attention_mask=mask, max_new_tokens=NEW, **settings)


@pytest.fixture(scope="module")
def greedy(target):
    """The tokens that transformers generates after the prompts."""
    ids, mask = prompts(LENGTHS, left=True)
    return target.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)[:, ids.shape[1] :]


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("scheme", ss.schemes())
def test_greedy_is_transformers_greedy(target, drafts, greedy, scheme, draft, left):
    ids, mask = prompts(LENGTHS, left=left)
    if draft in ("ngram", "nothing") and not ss.schemes()[scheme].one_hot:  # drafters without a law
        with pytest.raises(ValueError, match="draft: expected a drafter with" if draft == "ngram" else "draft_logits: expected"):
            ss.generate(target, drafts[draft](), ids, attention_mask=mask, max_new_tokens=NEW, scheme=scheme)
        return
    output = ss.generate(target, drafts[draft](), ids, attention_mask=mask, max_new_tokens=NEW, scheme=scheme, sampling=GREEDY)
    assert output.dtype == torch.int64 and (output[:, : ids.shape[1]] == ids).all()
    assert (output[:, ids.shape[1] :] == greedy).all()


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_greedy_alone_at_every_depth(target, drafts, depth):
    ids, _ = prompts([6])
    expected = target.generate(ids, max_new_tokens=NEW, do_sample=False)
    output, stats = ss.generate(target, drafts["model"](), ids, max_new_tokens=NEW, depth=depth, sampling=GREEDY, return_stats=True)
    assert (output == expected).all()
    assert len(stats.reached) <= depth


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("depth", [1, 4])
def test_race_is_plain_sampling(target, drafts, draft, depth):
    ids, mask = prompts(LENGTHS)
    seed = torch.tensor([11, 11, -5, 2**40])
    settings = {"sampling": ss.Sampling(temperature=0.9, top_k=30), "seed": seed}
    expected = plain(target, ids, mask, **settings)
    output = ss.generate(
        target, drafts[draft](), ids, attention_mask=mask, max_new_tokens=NEW, depth=depth, scheme="race", **settings
    )
    assert (output == expected).all()
    # Alone, without padding, a request has the same tokens.
    for b, n in enumerate(LENGTHS):
        settings["seed"] = seed[b : b + 1]
        assert (plain(target, ids[b : b + 1, -n:], **settings)[0, n:] == expected[b, ids.shape[1] :]).all()


def test_plain_sampling_is_sample_at_each_position(target):
    ids, _ = prompts([4])
    output = plain(target, ids, seed=3)
    for position in range(4, 4 + NEW):
        logits = target(output[:, :position]).logits[:, -1]
        assert ss.sample(logits, seed=3, position=position) == output[0, position]


@pytest.mark.parametrize("draft", ["model", "narrower", "ngram", "nothing"])
@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_companions_do_not_matter(target, drafts, scheme, draft):
    """Different prompts, seeds, temperatures; they end at different times through eos."""
    ids, mask = prompts(LENGTHS)
    temperature = torch.tensor([1.0, 0.7, 0.0, 1.5])
    settings = {"max_new_tokens": NEW, "scheme": scheme, "eos_token_id": [7, 21, 30, 35], "depth": 3}
    together = ss.generate(
        target, drafts[draft](), ids, attention_mask=mask, seed=20, sampling=ss.Sampling(temperature), **settings
    )
    new = together[:, ids.shape[1] :]
    for b, n in enumerate(LENGTHS):
        alone = ss.generate(
            target, drafts[draft](), ids[b : b + 1, -n:], seed=20 + b,
            sampling=ss.Sampling(float(temperature[b])), **settings,
        )[0, n:]  # fmt: skip
        assert (new[b, : len(alone)] == alone).all()
        assert (new[b, len(alone) :] == 7).all()  # padded with the first eos id


def test_eos_ends_a_request_and_pads(target):
    ids, mask = prompts(LENGTHS)
    free = plain(target, ids, mask, sampling=GREEDY)[:, ids.shape[1] :]
    eos = int(free[0, 5])
    output = plain(target, ids, mask, sampling=GREEDY, eos_token_id=eos)[:, ids.shape[1] :]
    for row, unbounded in zip(output, free):
        end = (unbounded == eos).nonzero()
        end = int(end[0]) + 1 if len(end) else NEW
        assert (row[:end] == unbounded[:end]).all()
        assert (row[end:] == eos).all()


def test_eos_of_the_generation_config_and_its_pad():
    target = tiny_llama(0)
    ids, mask = prompts([3, 4])
    free = plain(target, ids, mask, sampling=GREEDY)[:, 4:]
    target.generation_config.eos_token_id = [int(free[0, 2])]
    target.generation_config.pad_token_id = 59
    output = plain(target, ids, mask, sampling=GREEDY)[:, 4:]
    assert (output[0, 3:] == 59).all()


def test_eos_in_the_midst_of_accepted_drafts(target):
    ids, _ = prompts([4])
    free = plain(target, ids, sampling=GREEDY)[0, 4:]
    first = [int((free == t).nonzero()[0]) for t in free]
    end = next(i for i in range(2, NEW) if first[i] == i)
    output = ss.generate(target, target, ids, max_new_tokens=NEW, depth=5, sampling=GREEDY, eos_token_id=int(free[end]))
    assert (output[0, 4:] == free[: end + 1]).all()


@pytest.mark.parametrize("new", range(1, 8))
@pytest.mark.parametrize("scheme", ss.schemes())
def test_max_new_tokens_is_exact(target, drafts, scheme, new):
    ids, mask = prompts([3, 1])
    output, stats = ss.generate(
        target, drafts["itself"](), ids, attention_mask=mask, max_new_tokens=new, scheme=scheme, return_stats=True
    )
    assert output.shape == (2, 3 + new) and stats.emitted == 2 * new
    assert stats.target_calls == -(-new // 5)  # everything is accepted: 4 drafts and the bonus


def test_stats(target, drafts):
    ids, mask = prompts(LENGTHS)
    _, stats = ss.generate(target, drafts["model"](), ids, attention_mask=mask, max_new_tokens=NEW, return_stats=True, seed=5)
    assert stats.emitted == NEW * len(LENGTHS)
    assert stats.emitted == sum(stats.accepted) + stats.rounds  # nothing was cut
    assert all(a <= r for a, r in zip(stats.accepted, stats.reached))
    assert all(r <= a for r, a in zip(stats.reached[1:], stats.accepted))
    assert stats.block_efficiency == stats.emitted / stats.rounds
    assert stats.rounds <= stats.target_calls * len(LENGTHS)
    assert set(stats.seconds) == {"prefill", "draft", "target", "verify", "other"}
    table = str(stats)
    assert "block efficiency" in table and "acceptance" in table and "prefill" in table
    assert str(ss.Stats())


def test_acceptance_of_known_laws():
    """Σ min(t, d) = .6 at every depth; with 4000 requests the rate is within five standard deviations."""
    model, draft = TableModel([[0.5, 0.3, 0.2]] * 3), TableModel([[0.1, 0.3, 0.6]] * 3)
    _, stats = ss.generate(model, draft, torch.zeros(4000, 1, dtype=torch.int64), max_new_tokens=4, depth=2, return_stats=True)
    assert stats.emitted == 16_000
    for accepted, reached in zip(stats.accepted, stats.reached):
        assert abs(accepted / reached - 0.6) < 5 * (0.24 / reached) ** 0.5


def test_calls_and_widths_of_the_models():
    """The target sees the prompt and the drafts at once, then one token and the drafts; the draft catches up."""
    certain = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    model, draft = TableModel(certain), TableModel(certain)
    output = ss.generate(model, draft, torch.zeros(1, 4, dtype=torch.int64), max_new_tokens=8, depth=3)
    assert output[0, 4:].tolist() == [1, 2, 0, 1, 2, 0, 1, 2]
    assert model.widths == [4 + 3, 1 + 3]
    assert draft.widths == [4, 1, 1, 2, 1, 1]


def test_a_target_without_finite_logits_ends_the_request():
    table = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [float("nan")] * 3])
    output = ss.generate(TableModel(table), None, torch.tensor([[0], [1]]), max_new_tokens=5, eos_token_id=0)
    assert output.tolist() == [[0, 1, 2], [1, 2, 0]]
    output = ss.generate(TableModel(table), TableModel(torch.eye(3)), torch.tensor([[0]]), max_new_tokens=5)
    assert output.tolist() == [[0, 1, 2]]


class RoundStreamer(Streamer):
    def put_round(self, tokens, num_accepted):
        self.got.append((tokens, num_accepted))


def test_streamer(target, drafts):
    ids, _ = prompts([5])
    streamer = Streamer()
    output = ss.generate(target, drafts["model"](), ids, max_new_tokens=NEW, streamer=streamer)
    assert streamer.ended == 1 and (streamer.got[0] == ids).all()
    assert torch.equal(torch.cat(streamer.got[1:]), output[0, 5:])
    assert len(streamer.got) - 1 < NEW

    streamer = RoundStreamer()
    _, stats = ss.generate(target, drafts["model"](), ids, max_new_tokens=NEW, streamer=streamer, return_stats=True)
    assert torch.equal(torch.cat([tokens for tokens, _ in streamer.got[1:]]), output[0, 5:])
    assert sum(accepted for _, accepted in streamer.got[1:]) == sum(stats.accepted)


GOOD = {"max_new_tokens": 3}
BAD = [
    ("model", {"model": 3}),
    ("draft", {"draft": 3}),
    ("draft", {"draft": [None, None]}),
    ("input_ids", {"input_ids": [[1, 2]]}),
    ("input_ids", {"input_ids": torch.zeros(3, dtype=torch.int64)}),
    ("input_ids", {"input_ids": torch.zeros(1, 0, dtype=torch.int64)}),
    ("input_ids", {"input_ids": torch.zeros(1, 2)}),
    ("input_ids", {"input_ids": torch.tensor([[-1]])}),
    ("attention_mask", {"attention_mask": torch.ones(1, 3)}),
    ("attention_mask", {"attention_mask": torch.zeros(1, 2)}),
    ("attention_mask", {"attention_mask": torch.full((1, 2), 2)}),
    ("max_new_tokens", {"max_new_tokens": 0}),
    ("max_new_tokens", {"max_new_tokens": 2.0}),
    ("depth", {"depth": 0}),
    ("depth", {"depth": True}),
    ("paths", {"paths": 2}),
    ("tree", {"tree": [-1, -1]}),
    ("scheme", {"scheme": "nonsense"}),
    ("options", {"options": {"bins": 3}}),
    ("sampling", {"sampling": 0.5}),
    ("sampling.temperature", {"sampling": ss.Sampling(temperature=-1.0)}),
    ("sampling.top_p", {"sampling": ss.Sampling(top_p=torch.ones(3))}),
    ("draft_sampling.top_k", {"draft_sampling": ss.Sampling(top_k=-1)}),
    ("seed", {"seed": 0.5}),
    ("seed", {"seed": torch.zeros(2, dtype=torch.int64)}),
    ("eos_token_id", {"eos_token_id": "x"}),
    ("eos_token_id", {"eos_token_id": [-2]}),
    ("streamer", {"streamer": object()}),
    ("backend", {"backend": "abacus"}),
]


@pytest.mark.parametrize("name, change", BAD, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BAD)])
def test_errors_come_before_the_first_forward(name, change):
    model = TableModel(torch.eye(3))
    arguments = {"model": model, "draft": None, "input_ids": torch.zeros(1, 2, dtype=torch.int64), **GOOD, **change}
    with pytest.raises(ValueError, match=f"^{name.replace('.', '[.]')}: .*got"):
        ss.generate(arguments.pop("model"), arguments.pop("draft"), arguments.pop("input_ids"), **arguments)
    assert model.calls == 0


def test_a_streamer_serves_one_request():
    with pytest.raises(ValueError, match="^streamer: "):
        ss.generate(TableModel(torch.eye(3)), None, torch.zeros(2, 2, dtype=torch.int64), max_new_tokens=3, streamer=Streamer())


def test_prompt_ids_beyond_the_vocabulary(target):
    with pytest.raises(ValueError, match="^input_ids: .*60"):
        ss.generate(target, None, torch.tensor([[60]]), max_new_tokens=3)
