"""The vLLM adapter without vLLM, for the V1 model runner: what it does with the objects it gets. (With vLLM: make test-vllm.)"""

from types import SimpleNamespace

import pytest
import torch
import vllm_fakes as fakes
from conftest import CAUGHT, FAILURE_RATE, numbers, p_value, probabilities
from vllm_fakes import MIXED, PROMPT, SUPPORTED, TEXTS, V, law_of, names_of, step

import specsample as ss
from specsample.integrations.vllm import requests, v1

# --- V1 ----------------------------------------------------------------------------------------------------------------------


def test_a_plain_step_samples_at_the_requests_positions():
    asked = [fakes.params(**own) for own in MIXED]
    logits = numbers(4, V, seed=1, scale=3)
    out, state = step(fakes.runner(names_of(4), asked, TEXTS), "token", logits)
    position = torch.tensor([PROMPT + len(text) for text in TEXTS])
    seeds = torch.tensor([own["seed"] for own in MIXED])
    expected = ss.sample(logits, sampling=law_of(asked), seed=seeds, position=position, backend="reference")
    assert out.sampled_token_ids.dtype == torch.int32 and out.sampled_token_ids[:, 0].tolist() == expected.tolist()
    assert state.next.tolist() == (position + 1).tolist() and out.logprobs_tensors is None


@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("with_law", [False, True])
def test_a_round_is_verify_of_its_rows(scheme, with_law):
    asked = [fakes.params(**own) for own in MIXED]
    lengths, K = (3, 0, 2, 3), 3
    target, laws = numbers(4, K + 1, V, seed=2, scale=3), numbers(4, K, V, seed=3, scale=3)
    seeds = torch.tensor([own["seed"] for own in MIXED])
    position = torch.tensor([PROMPT + len(text) for text in TEXTS])
    kind = ss.schemes()[scheme].draft_kind
    columns = [
        ss.draft(laws[:, i], kind=kind, sampling=law_of(asked), seed=seeds, position=position, depth=i, node=i)[:, 0]
        for i in range(K)
    ]
    drafts = [row[:n] for row, n in zip(torch.stack(columns, 1).tolist(), lengths)]
    runner = fakes.runner(names_of(4), asked, TEXTS)
    metadata = fakes.with_drafts(runner, drafts, laws if with_law else None)
    packed = torch.cat([target[b, : n + 1] for b, n in enumerate(lengths)])
    out, state = step(runner, scheme, packed, metadata)
    for b, n in enumerate(lengths):
        alone = ss.verify(
            target[b : b + 1, : n + 1], torch.tensor([drafts[b]], dtype=torch.int64).reshape(1, n),
            laws[b : b + 1, :n] if with_law and scheme != "race" else None, scheme=scheme, sampling=law_of(asked, [b]),
            seed=seeds[b : b + 1], position=position[b : b + 1], max_depth=K, backend="reference",
        )  # fmt: skip
        assert out.sampled_token_ids[b].tolist() == alone.tokens[0].tolist(), b
        assert int(state.next[b]) == int(position[b]) + int(alone.num_accepted[0]) + 1


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_rounds_of_other_lengths_follow_each_other(scheme):
    """What is kept from round to round is that of these numbers of drafts, and the next round begins where this one ended."""
    asked, state = [fakes.params(**own) for own in MIXED], None
    for turn, lengths in enumerate([(3, 3, 3, 3), (3, 0, 2, 3), (3, 0, 2, 3), (3, 3, 3, 3), (2, 1)]):
        count = len(lengths)
        logits = numbers(sum(lengths) + count, V, seed=90 + turn, scale=3)
        outcomes = []
        for given in (state, None):
            runner = fakes.runner(names_of(count), asked[:count], TEXTS[:count])
            metadata = fakes.with_drafts(runner, [[5 + b, 6, 7][:n] for b, n in enumerate(lengths)])
            outcomes.append(step(runner, scheme, logits, metadata, given))
        (kept, state), (fresh, new) = outcomes
        assert kept.sampled_token_ids.tolist() == fresh.sampled_token_ids.tolist()
        emitted = (kept.sampled_token_ids >= 0).sum(1)
        first = torch.tensor([PROMPT + len(text) for text in TEXTS[:count]])
        assert state.next.tolist() == new.next.tolist() == (first + emitted).tolist()


def test_a_request_does_not_depend_on_its_batch():
    asked, logits = [fakes.params(**own) for own in MIXED], numbers(4, V, seed=1, scale=3)
    names = names_of(4)
    together, _ = step(fakes.runner(names, asked, TEXTS), "race", logits)
    for b in range(4):
        alone, _ = step(fakes.runner(names[b : b + 1], asked[b : b + 1], TEXTS[b : b + 1]), "race", logits[b : b + 1])
        assert alone.sampled_token_ids.tolist() == together.sampled_token_ids[b : b + 1].tolist()


def test_settings_are_read_anew_when_the_batch_changes():
    asked = [fakes.params(**own) for own in MIXED]
    runner = fakes.runner(names_of(4), asked, TEXTS)
    state = v1.State(runner, "token")
    first = v1.asked_for(runner, state)
    assert v1.asked_for(runner, state) is first
    runner.input_batch.req_ids.reverse()
    assert v1.asked_for(runner, state).seeds.tolist() == first.seeds.flip(0).tolist()
    runner.input_batch.sampling_metadata = fakes.Metadata([], [])
    assert v1.asked_for(runner, state) is not first


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_drafts_are_drawn_for_the_next_round(scheme):
    asked, K = [fakes.params(**own) for own in MIXED], 3
    runner = fakes.runner(names_of(4), asked, TEXTS)
    _, state = step(runner, scheme, numbers(4, V, seed=1, scale=3))
    laws = numbers(4, K, V, seed=4, scale=3)
    drawn = [v1.draft(SimpleNamespace(), state, laws[:, i]) for i in range(K)]
    kind, seeds = ss.schemes()[scheme].draft_kind, torch.tensor([own["seed"] for own in MIXED])
    position = torch.tensor([PROMPT + len(text) + 1 for text in TEXTS])
    for i, (tokens, kept) in enumerate(drawn):
        expected = ss.draft(laws[:, i], kind=kind, sampling=law_of(asked), seed=seeds, position=position, depth=i, node=i)[:, 0]
        assert tokens.tolist() == expected.tolist()
        assert kept is None if scheme == "race" else kept.data_ptr() == laws[:, i].data_ptr()
    # All depths in one call, request by request, as in drafters that run once.
    _, state = step(runner, scheme, numbers(4, V, seed=1, scale=3))
    at_once, _ = v1.draft(SimpleNamespace(), state, laws.flatten(0, 1))
    assert at_once.view(4, K).tolist() == torch.stack([tokens for tokens, _ in drawn], 1).tolist()
    with pytest.raises(RuntimeError, match="5 rows of drafts for 4 requests"):
        v1.draft(SimpleNamespace(), state, laws.flatten(0, 1)[:5])


def test_with_the_target_as_drafter_all_is_accepted():
    """A wrong stream, position or law of the drafts shows here: with equal laws every draft is accepted."""
    asked, K = [fakes.params(**own) for own in MIXED] * 8, 3
    asked = [fakes.params(**{**vars(own), "seed": b}) for b, own in enumerate(asked)]
    names, texts = names_of(32), TEXTS * 8
    for scheme in SUPPORTED:
        runner = fakes.runner(names, asked, texts)
        first, state = step(runner, scheme, numbers(32, V, seed=1, scale=3))
        rows = numbers(32, K + 1, V, seed=4, scale=3)
        drawn = [v1.draft(SimpleNamespace(), state, rows[:, i]) for i in range(K)]
        drafts = torch.stack([tokens for tokens, _ in drawn], 1)
        longer = [[*text, int(token)] for text, token in zip(texts, first.sampled_token_ids)]
        runner = fakes.runner(names, asked, longer)
        metadata = fakes.with_drafts(runner, drafts.tolist(), None if scheme == "race" else rows[:, :K])
        out, _ = step(runner, scheme, rows.flatten(0, 1), metadata, state)
        assert out.sampled_token_ids[:, :K].tolist() == drafts.tolist(), scheme


def test_a_lost_law_costs_the_drafts_not_the_law():
    """A request that sat out a step has lost the law of its drawn drafts, which are dropped. Picked drafts are kept."""
    asked = [fakes.params(seed=b) for b in range(2)]
    laws, target = numbers(2, 2, V, seed=5, scale=2), numbers(6, V, seed=6, scale=2)
    runner = fakes.runner(names_of(2), asked, TEXTS[:2])
    state = v1.State(runner, "token")
    metadata = fakes.with_drafts(runner, [[1, 2], [3, 4]], laws)
    runner._draft_prob_req_ids = [names_of(2)[1], "another"]
    asked_ = v1.asked_for(runner, state)
    tokens, kept = v1.drafted(runner, state, asked_, target, metadata)
    assert tokens.tolist() == [-1, -1, 3, 4] and torch.equal(kept[2:], laws[0])
    runner._draft_probs = None
    assert v1.drafted(runner, state, asked_, target, metadata)[0].tolist() == [1, 2, 3, 4]
    state.drawn.add(names_of(2)[0])
    assert v1.drafted(runner, state, asked_, target, metadata)[0].tolist() == [-1, -1, 3, 4]
    step(runner, "token", target, metadata, state)
    assert not state.drawn


PROCESSED = {
    "bias": ({"logit_bias": {3: 2.0, 5: -100.0}}, {}),
    "min_tokens": ({"min_tokens": 4, "all_stop_token_ids": {6, 7}}, {}),
    "penalty": ({}, {"no_penalties": False, "frequency_penalties": torch.tensor([0.5, 1.5, 0.0, 2.0])}),
    "bad words": ({}, {"bad_words_token_ids": {0: [[4, 8], [9]], 3: [[20, 21]]}}),
    "allowed": ({}, {"allowed_token_ids_mask": torch.arange(V).expand(4, V) % 3 == torch.arange(4)[:, None] % 3}),
}


@pytest.mark.parametrize("name", [*PROCESSED, "all"])
def test_a_row_of_a_round_has_the_law_of_its_prefix(name):
    """Row i of a round, processed, equals bit for bit the row of a plain step whose text includes the first i drafts."""
    own, metadata = {}, {}
    for each in PROCESSED if name == "all" else [name]:
        own, metadata = {**own, **PROCESSED[each][0]}, {**metadata, **PROCESSED[each][1]}
    asked = [fakes.params(**{**MIXED[b], **(own if b != 1 else {})}) for b in range(4)]
    lengths = (3, 0, 2, 3)
    drafts = [[20, 21, 4][:n] for n in lengths]
    logits = [numbers(n + 1, V, seed=7 + b, scale=2) for b, n in enumerate(lengths)]
    runner = fakes.runner(names_of(4), asked, TEXTS, **metadata)
    spec = fakes.with_drafts(runner, drafts)
    state = v1.State(runner, "token")
    position = torch.tensor([PROMPT + len(text) for text in TEXTS])
    law = v1.processed(runner, v1.asked_for(runner, state), torch.cat(logits), list(lengths), position, spec)
    assert law.dtype == torch.float32 and not torch.equal(law, torch.cat(logits))
    law = law.split([n + 1 for n in lengths])
    for depth in range(4):
        texts = [[*text, *own[:depth]] for text, own in zip(TEXTS, drafts)]
        plain = fakes.runner(names_of(4), asked, texts, **metadata)
        rows = torch.stack([z[min(depth, n)] for z, n in zip(logits, lengths)])
        position = torch.tensor([PROMPT + len(text) for text in texts])
        expected = v1.processed(plain, v1.asked_for(plain, v1.State(plain, "token")), rows, [0] * 4, position, None)
        for b, n in enumerate(lengths):
            if depth <= n:
                assert torch.equal(law[b][depth], expected[b]), (b, depth)


def test_untouched_rows_are_not_copied():
    asked = [fakes.params(**own) for own in MIXED]
    runner = fakes.runner(names_of(4), asked, TEXTS)
    logits = numbers(4, V, seed=1)
    found = v1.asked_for(runner, v1.State(runner, "token"))
    assert v1.processed(runner, found, logits, [0] * 4, runner.seq_lens.long(), None) is logits


def test_min_tokens_gives_way_to_a_grammar_that_leaves_nothing_else():
    stops = {"min_tokens": 4, "all_stop_token_ids": {6, 7}, "structured_outputs": object()}
    asked = [fakes.params(**stops), fakes.params(**{**stops, "structured_outputs": None})]
    logits = torch.full((2, V), -torch.inf)
    logits[:, 6] = 1.0
    runner = fakes.runner(names_of(2), asked, [[1], [1]])
    law = v1.processed(runner, v1.asked_for(runner, v1.State(runner, "token")), logits, [0, 0], torch.tensor([6, 6]), None)
    assert law[0].argmax() == 6 and law[0, 6] == 1.0 and (law[1] == -torch.inf).all()


@pytest.mark.parametrize("values", [(0.7, 0.3), (torch.tensor([0.7, 1.0, 0.0]).double(), torch.tensor([0.3, 0.0, 0.3]).double())])
def test_min_p_comes_first(values):
    """vLLM applies min_p before top-k and top-p: a different law from transformers' order if both cut."""
    temperature, least = values
    logits = numbers(3, V, seed=8, scale=2)
    law = (logits / torch.as_tensor(temperature).reshape(-1, 1).clamp(min=1e-9)).softmax(-1)
    dropped = law < torch.as_tensor(least).reshape(-1, 1) * law.amax(-1, keepdim=True)
    dropped[torch.as_tensor(temperature).expand(3) == 0] = False
    result = requests.with_min_p_first(logits, temperature, least)
    hot = torch.as_tensor(temperature).expand(3) > 0
    assert torch.equal((result == -torch.inf)[hot], dropped[hot]) and torch.equal(result.argmax(-1), logits.argmax(-1))


def test_min_p_and_top_p_have_vllms_law():
    law = torch.tensor([0.5, 0.3, 0.2] + [0.0] * (V - 3))
    asked = [fakes.params(seed=1, min_p=0.5, top_p=0.6)]  # .5 and .3 stay, as .625 and .375: top-p keeps the first
    runner = fakes.runner(names_of(1), asked, [[]])
    found = v1.asked_for(runner, v1.State(runner, "token"))
    rows, sampling = v1.with_invariant(found, law.log()[None], [0])
    assert probabilities(rows, sampling)[0, 0] == 1.0
    assert probabilities(law.log()[None], found.drafting)[0, 1] > 0  # the control: in transformers' order the second stays


def test_processors_of_the_user_act_after_the_temperature():
    seen = []

    class Custom:
        def apply(self, logits):
            seen.append(logits.clone())
            return logits + torch.arange(V)

    asked = [fakes.params(seed=1, temperature=0.5), fakes.params(seed=2, temperature=0.0)]
    own = SimpleNamespace(non_argmax_invariant=[], argmax_invariant=[Custom()])
    runner = fakes.runner(names_of(2), asked, [[], []], logitsprocs=own)
    logits = numbers(2, V, seed=9)
    law, sampling = v1.with_invariant(v1.asked_for(runner, v1.State(runner, "token")), logits, [0, 0])
    assert torch.equal(seen[0], torch.stack([logits[0] / 0.5, logits[1]])) and sampling.temperature.tolist() == [1.0, 0.0]
    assert torch.equal(law, seen[0] + torch.arange(V))


@pytest.mark.parametrize("mended", [True, False])
@pytest.mark.parametrize("scheme", ["token", "block"])
def test_drafts_cut_by_a_grammar_keep_the_law(scheme, mended, monkeypatch):
    """vLLM cuts drafts that a grammar rejects: the rest no longer have the law they were drawn from, which the control uses."""
    count, width = 60_000, 8
    target, draft = numbers(1, 2, width, seed=21, scale=1.0), numbers(1, 1, width, seed=22, scale=1.0)
    target[:, :, ::3] = -torch.inf  # the grammar
    names = [f"{b}" for b in range(count)]
    asked = [fakes.params(seed=b, structured_outputs=object()) for b in range(count)]
    runner = fakes.runner(names, asked, [[1]] * count)
    laws = draft.expand(count, 1, width)
    seeds, position = torch.arange(count), torch.full((count,), PROMPT + 1)
    tokens = ss.draft(laws[:, 0].contiguous(), seed=seeds, position=position)[:, 0]
    tokens[tokens % 3 == 0] = -1
    metadata = fakes.with_drafts(runner, tokens[:, None].tolist(), laws)
    if not mended:
        monkeypatch.setattr(v1, "within_grammar", lambda tokens, laws, deciding: (tokens, laws))
    out, _ = step(runner, scheme, target.expand(count, 2, width).flatten(0, 1), metadata)
    p = p_value(out.sampled_token_ids[:, 0].long(), probabilities(target[0, :1])[0])
    assert p > FAILURE_RATE if mended else p < CAUGHT


def test_logprobs_are_those_of_the_emitted_tokens():
    asked = [fakes.params(seed=1, temperature=0.5, top_k=5), fakes.params(seed=2, temperature=0.0)]
    logits = numbers(5, V, seed=31, scale=2)
    for mode in ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"):
        runner = fakes.runner(names_of(2), asked, [[], []], max_num_logprobs=0)
        runner.sampler.logprobs_mode = mode
        metadata = fakes.with_drafts(runner, [[int(logits[0].argmax())], [int(logits[2].argmax()), 1]])
        out, _ = step(runner, "token", logits, metadata)
        got = out.logprobs_tensors.view(2, 3)
        for b, first in enumerate((0, 2)):
            for i, token in enumerate(out.sampled_token_ids[b].tolist()):
                row = logits[first + i].double() if token >= 0 else None
                if row is None:
                    continue
                if mode.startswith("processed") and b == 0:
                    row = (row / 0.5).masked_fill(row < row.topk(5).values[-1], -torch.inf)
                value = row if mode.endswith("logits") else row.log_softmax(-1)
                assert abs(float(got[b, i]) - float(value[token])) < 1e-5, (mode, b, i)


def test_logprobs_of_named_tokens():
    asked = [fakes.params(seed=1), fakes.params(seed=2)]
    logits = numbers(4, V, seed=31, scale=2)
    runner = fakes.runner(names_of(2), asked, [[], []], logprob_token_ids={1: [4, 5]})
    metadata = fakes.with_drafts(runner, [[3], [3]])
    out, _ = step(runner, "token", logits, metadata)
    assert sorted(out.logprobs_tensors) == [2, 3]  # both places of request 1
    assert torch.equal(out.logprobs_tensors[3], logits[3].log_softmax(-1)[[4, 5]])


def test_a_row_without_a_finite_logit_emits_an_id():
    asked = [fakes.params(seed=1)]
    rows = torch.full((2, V), torch.nan)
    out, _ = step(fakes.runner(names_of(1), asked, [[]]), "token", rows[:1])
    assert out.sampled_token_ids.tolist() == [[0]]
    runner = fakes.runner(names_of(1), asked, [[]])
    out, _ = step(runner, "token", rows, fakes.with_drafts(runner, [[3]]))
    assert out.sampled_token_ids.tolist() == [[0, -1]]


def test_dtypes_meet_in_the_wider():
    asked = [fakes.params(seed=1)]
    law = numbers(1, 1, V, seed=41, scale=2)
    target = numbers(2, V, seed=42, scale=2).bfloat16()
    runner = fakes.runner(names_of(1), asked, [[]])
    out, _ = step(runner, "token", target, fakes.with_drafts(runner, [[3]], law))
    alone = ss.verify(target.float()[None], torch.tensor([[3]]), law, seed=torch.tensor([1]), position=PROMPT, backend="reference")
    assert out.sampled_token_ids.tolist() == alone.tokens.tolist()


# --- seeds -------------------------------------------------------------------------------------------------------------------


def test_seeds_of_requests_without_one():
    assert requests.seed_of("7-1f0c9a3e", 0) == requests.seed_of("7-deadbeef", 0) == requests.seed_of("7", 0)
    seeds = {requests.seed_of(f"{i}", s) for i in range(100) for s in range(3)}
    assert len(seeds) == 300 and all(-(1 << 63) <= s < 1 << 63 for s in seeds)
    assert requests.seed_of("chat-name", 0) != requests.seed_of("chat", 0)
    assert [requests.signed(s) for s in (-1, 1 << 63, (1 << 64) + 5)] == [-1, -(1 << 63), 5]


def test_settings_that_agree_are_numbers():
    sampling = requests.sampling_of([0.8, 0.8], [0, 5], [1.0, 1.0], [0.0, 0.0], torch.device("cpu"))
    assert sampling.temperature == torch.tensor(0.8).double().item() and sampling.top_k.tolist() == [0, 5] and sampling.top_p == 1.0
