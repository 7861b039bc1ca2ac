"""The vLLM adapter without vLLM, for the V2 model runner."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vllm_fakes as fakes
from conftest import CAUGHT, FAILURE_RATE, numbers, p_value, probabilities
from vllm_fakes import MIXED, SUPPORTED, V, law_of

import specsample as ss
from specsample.integrations.vllm import requests, v2

# --- V2 ----------------------------------------------------------------------------------------------------------------------


def case_v2(scheme, lengths, slots, K=3):
    asked = [fakes.params(**{**own, "min_p": 0.0}) for own in (*MIXED, {"seed": 77})]
    positions = [10 + b for b in range(len(slots))]
    target = [numbers(n + 1, V, seed=50 + b, scale=3) for b, n in enumerate(lengths)]
    cache = numbers(len(asked), K, V, seed=60, scale=3)
    kind, drafts = ss.schemes()[scheme].draft_kind, []
    for slot, position, n in zip(slots, positions, lengths):
        hot = ss.Sampling(asked[slot].temperature)
        drafts.append([
            int(ss.draft(cache[slot, i : i + 1], kind=kind, sampling=hot, seed=torch.tensor([asked[slot].seed]),
                         position=position + 1, depth=i, node=i)) for i in range(n)
        ])  # fmt: skip
    return asked, target, cache, drafts, positions


@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("lengths, slots", [((3, 0, 2), (4, 1, 0)), ((3, 3), (2, 3)), ((3, 3), (0, 3)), ((1,), (4,))])
def test_v2_round_is_verify_of_its_rows(scheme, lengths, slots):
    asked, target, cache, drafts, positions = case_v2(scheme, lengths, slots)
    rejection = SimpleNamespace(sampler=fakes.sampler_v2(asked, V), num_speculative_steps=3)
    _, tokens, counts = v2.verify(rejection, None, scheme, torch.cat(target), cache, **fakes.rows_v2(slots, drafts, positions))
    for b, (slot, n) in enumerate(zip(slots, lengths)):
        alone = ss.verify(
            target[b][None], torch.tensor([drafts[b]], dtype=torch.int64).reshape(1, n),
            None if scheme == "race" else cache[slot : slot + 1, :n], scheme=scheme, sampling=law_of(asked, [slot]),
            draft_sampling=ss.Sampling(law_of(asked, [slot]).temperature), seed=torch.tensor([asked[slot].seed]),
            position=positions[b] + 1, max_depth=3, backend="reference",
        )  # fmt: skip
        assert tokens[b].tolist() == alone.tokens[0].tolist() and int(counts[b]) == int(alone.num_accepted[0]) + 1
    assert counts.dtype == torch.int32 and tokens.shape == (len(slots), 4)


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_v2_drafts_are_drawn_and_kept(scheme):
    asked = [fakes.params(**own) for own in MIXED]
    sampler, K = fakes.sampler_v2(asked, V), 3
    cache = torch.full((5, K, V), torch.nan)
    slots, pos = torch.tensor([2, 0, -1, -1]), torch.tensor([20, 30, 0, 0])
    logits = numbers(4, V, seed=71, scale=3)
    states = sampler.sampling_states
    tokens = v2.draw(
        scheme, logits, slots, states.temperature.gpu, states.seeds.gpu, pos, True, True, logits_cache=cache,
        logits_cache_col=torch.tensor(1),
    )  # fmt: skip
    kind = ss.schemes()[scheme].draft_kind
    expected = ss.draft(
        logits[:2], kind=kind, sampling=ss.Sampling(law_of(asked, [2, 0]).temperature), seed=torch.tensor([13, 11]),
        position=torch.tensor([20, 30]), depth=1, node=1,
    )  # fmt: skip
    assert tokens[:2].tolist() == expected[:, 0].tolist()
    kept = torch.zeros(5, K, dtype=torch.bool)
    if scheme != "race":
        assert torch.equal(cache[2, 1], logits[0]) and torch.equal(cache[0, 1], logits[1])
        kept[2, 1] = kept[0, 1] = kept[4, 1] = True  # slot 4 is the spare one
    assert torch.equal(cache.isnan().all(-1), ~kept)


def test_v2_sampler_is_sample_at_the_next_index():
    asked = [fakes.params(**own) for own in MIXED]
    sampler, slots = fakes.sampler_v2(asked, V), (3, 0, 1)
    rows = fakes.rows_v2(slots, [[], [], []], [8, 9, 10])
    logits = numbers(3, V, seed=72, scale=3)
    own = {"pos": rows["pos"], "input_ids": rows["draft_sampled"], "expanded_local_pos": rows["expanded_local_pos"]}
    same = ("expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "seq_lens_upper_bound_np")
    tokens, _ = v2.sample(sampler, None, logits, **own, **{name: rows[name] for name in same})
    seeds = torch.tensor([asked[s].seed for s in slots])
    expected = ss.sample(logits, sampling=law_of(asked, slots), seed=seeds, position=torch.tensor([9, 10, 11]), backend="reference")
    assert tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("mended", [True, False])
def test_v2_drafts_cut_by_a_grammar_keep_the_law(mended, monkeypatch):
    count, width = 60_000, 8
    target, draft = numbers(1, 2, width, seed=21, scale=1.0), numbers(1, 1, width, seed=22, scale=1.0)
    target[:, :, ::3] = -torch.inf
    asked = [fakes.params(seed=b) for b in range(count)]
    slots, seeds = range(count), torch.arange(count)
    tokens = ss.draft(draft[:, 0].expand(count, width).contiguous(), seed=seeds, position=torch.full((count,), 11))
    rows = fakes.rows_v2(list(slots), tokens.tolist(), [10] * count)
    cut = rows["draft_sampled"].clone()
    cut[1::2][cut[1::2] % 3 == 0] = -1
    rows["verify_draft_sampled"] = cut
    if not mended:
        monkeypatch.setattr(v2, "within_grammar", lambda tokens, laws, deciding: (tokens, laws))
    rejection = SimpleNamespace(sampler=fakes.sampler_v2(asked, width), num_speculative_steps=1)
    logits = target.expand(count, 2, width).flatten(0, 1)
    _, out, _ = v2.verify(rejection, None, "token", logits, draft.expand(count, 1, width).contiguous(), **rows)
    p = p_value(out[:, 0], probabilities(target[0, :1])[0])
    assert p > FAILURE_RATE if mended else p < CAUGHT


def test_v2_requests_are_added_with_a_seed():
    asked = [fakes.params(), fakes.params(seed=-9), fakes.params(seed=3, min_tokens=2)]
    sampler = fakes.sampler_v2(asked, V)
    sampler.req_states.index_to_req_id = {0: "9-00112233", 1: "a", 2: "b"}
    for slot, own in enumerate(asked):
        v2.add_request(sampler, slot, own)
    assert sampler.sampling_states.seeds.np.tolist() == [requests.seed_of("9", 0), -9, 3]
    assert sampler.specsample_processed.tolist() == [False, False, True]


def test_v2_settings_are_read_anew():
    """What is kept of a batch is that of these slots, until a request is added; then a slot may hold another request."""
    asked = [fakes.params(**own) for own in MIXED]
    sampler = fakes.sampler_v2(asked, V)
    ask = lambda *slots: v2.asked_for(sampler, torch.tensor(slots), np.array(slots, dtype=np.int32))  # noqa: E731
    first = ask(1, 2)
    assert ask(1, 2) is first and first.first == 1 and first.seeds.tolist() == [12, 13]
    assert ask(2, 1).seeds.tolist() == [13, 12] and ask(2, 1).first is None and ask(1, 3).first is None
    assert ask(3).sampling.min_p == pytest.approx(0.05) and not ask(3).min_p_first and not ask(0).processed
    new = fakes.params(seed=99, min_tokens=3)
    sampler.sampling_states.seeds.np[2] = sampler.sampling_states.seeds.gpu[2] = 99  # as vLLM's own add_request
    before = ask(1, 2)
    v2.add_request(sampler, 2, new)
    assert ask(1, 2).seeds.tolist() == [12, 99] and ask(1, 2).processed and not before.processed


@pytest.mark.parametrize("batch, steps", [(1, 1), (1, 4), (3, 1), (5, 3)])
def test_v2_rows_of_full_rounds(batch, steps):
    local = torch.arange(steps + 1).repeat(batch)
    rows = v2.full_rows(batch, steps, torch.device("cpu"))
    assert rows.tolist() == v2.rows_of_nodes(local, batch * steps).tolist() == local.nonzero()[:, 0].tolist()


def test_v2_slots_have_a_spare():
    speculator = SimpleNamespace(draft_logits=torch.zeros(4, 3, V), vllm_config=None, draft_logits_spec=lambda c: (None, -1.0))
    v2.with_spare_slot(speculator)
    assert speculator.draft_logits.shape == (5, 3, V) and (speculator.draft_logits == -1).all()
