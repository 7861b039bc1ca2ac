"""The cases in which vLLM tests its own rejection samplers, given to the adapter with a real bonus row (theirs is mocked).

docs/vllm.md has the table: which hold, and which do not apply and why.
"""

import pytest
import torch
import vllm_fakes as fakes
from conftest import FAILURE_RATE, numbers, p_value

import specsample as ss
from specsample.integrations.vllm import v1

V, OTHER = 100, 15
SUPPORTED = ("token", "block", "race")


def rows(outputs, other=None):
    """Rows whose largest logit is at each of `outputs` (lists of ids), the second largest at `other`."""
    ids = torch.tensor([token for own in outputs for token in own])
    logits = torch.full((len(ids), V), -100.0)
    if other is not None:
        logits[:, other] = 99.0
    return logits.scatter(1, ids[:, None], 100.0)


def emitted(scheme, drafts, outputs, texts=None, other=None, asked=None, laws=None, logits=None, **metadata):
    names = [f"{b}" for b in range(len(drafts))]
    asked = asked or [fakes.params(temperature=0.0)] * len(drafts)
    runner = fakes.runner(names, asked, texts or [[]] * len(drafts), **metadata)
    spec = fakes.with_drafts(runner, drafts, laws)
    logits = rows(outputs, other) if logits is None else logits
    return v1.sample(runner, v1.State(runner, scheme), logits, spec, fakes.Output).sampled_token_ids.tolist()


GREEDY = [
    ([[1, 2, 3]], [[1, 2, 3, 4]], [[1, 2, 3, 4]]),
    ([[1, 2, 3]], [[1, 5, 3, 4]], [[1, 5, -1, -1]]),
    ([[1, 2], [3]], [[1, 2, 5], [3, 4]], [[1, 2, 5], [3, 4, -1]]),
    ([[1]], [[1, 2]], [[1, 2]]),
    ([[]], [[5]], [[5]]),
    ([[1, 2, 3], [4, 5, 6]], [[1, 2, 7, 6], [4, 8, 6, 9]], [[1, 2, 7, -1], [4, 8, -1, -1]]),
    ([[1]], [[2, 3]], [[2, -1]]),
    ([[1, 2], [], [3, 4]], [[1, 5, 6], [9], [3, 4, 7]], [[1, 5, -1], [9, -1, -1], [3, 4, 7]]),
    ([[1, -1, 3]], [[1, 2, 3, 4]], [[1, 2, -1, -1]]),  # a placeholder ends the chain
    ([[-1, -1], [1, 2]], [[1, 2, 3], [1, 2, 3]], [[1, -1, -1], [1, 2, 3]]),
]


@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("drafts, outputs, expected", GREEDY)
def test_greedy(scheme, drafts, outputs, expected):
    assert emitted(scheme, drafts, outputs) == expected


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_frequency_penalties_count_the_drafts_before(scheme):
    found = emitted(
        scheme, [[1, 1, 1], [], [1, 1, 1]], [[1, 1, 1, 1], [7], [1, 1, 1, 1]], [[2], [3], [4]], OTHER,
        no_penalties=False, frequency_penalties=torch.tensor([1.5, 1.5, 0.7]),
    )  # fmt: skip
    assert found == [[1, OTHER, -1, -1], [7, -1, -1, -1], [1, 1, OTHER, -1]]


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_bad_words_of_some_requests(scheme):
    found = emitted(
        scheme, [[1, 2, 3], [1, 15, 3], [1, 2, 3]], [[1, 2, 3, 4], [1, 15, 3, 4], [1, 2, 3, 4]], [[2], [3], [4]], OTHER,
        bad_words_token_ids={0: [[2]], 2: [[1, 2]]},
    )  # fmt: skip
    assert found == [[1, OTHER, -1, -1], [1, 15, 3, 4], [1, OTHER, -1, -1]]


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_allowed_ids_bind_the_bonus_row_too(scheme):
    forbidden = torch.zeros(3, V, dtype=torch.bool)
    forbidden[0, 0:5] = forbidden[1, 1:6] = forbidden[2, 5] = True
    found = emitted(
        scheme, [[1, 2, 10], [10, 6, 3], [7, 10, 12]], [[1, 2, 10, 5], [10, 6, 10, 5], [7, 10, 12, 5]], [[], [], []], OTHER,
        allowed_token_ids_mask=forbidden,
    )  # fmt: skip
    assert found == [[OTHER, -1, -1, -1], [10, 6, 10, -1], [7, 10, 12, OTHER]]


@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("count", [1, 4, 8])
def test_seeded_requests_repeat_themselves(scheme, count):
    drafts = torch.randint(0, V, (count, 3), generator=torch.Generator().manual_seed(1)).tolist()
    logits = numbers(count * 4, V, seed=2)
    asked = [fakes.params(seed=b if b % 2 else None) for b in range(count)]
    first = emitted(scheme, drafts, None, asked=asked, logits=logits)
    assert all(emitted(scheme, drafts, None, asked=asked, logits=logits) == first for _ in range(5))


FILTERS = [{"top_k": 1}, {"top_k": 5}, {"top_k": 99}, {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.99}, {"min_p": 0.3}]


@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("own", FILTERS)
def test_filters_bind_every_row(scheme, own):
    count, K = 100, 3
    logits, laws = numbers(count * (K + 1), V, seed=3), numbers(count, K, V, seed=4)
    law = logits.softmax(-1)
    if "top_k" in own:
        kept = logits >= logits.topk(own["top_k"]).values[:, -1:]
    elif "top_p" in own:
        order = law.sort(-1, descending=True)
        before = order.values.cumsum(-1) - order.values
        kept = torch.zeros_like(law, dtype=torch.bool).scatter(1, order.indices, before < own["top_p"])
    else:
        kept = law >= own["min_p"] * law.amax(-1, keepdim=True)
    drafts = laws.flatten(0, 1).softmax(-1).multinomial(1, generator=torch.Generator().manual_seed(5)).view(count, K)
    asked = [fakes.params(seed=b, **own) for b in range(count)]
    found = emitted(scheme, drafts.tolist(), None, asked=asked, laws=laws, logits=logits)
    places = [(b * (K + 1) + i, token) for b, text in enumerate(found) for i, token in enumerate(text) if token >= 0]
    assert len(places) >= count and all(kept[place] for place in places)


@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("with_law", [True, False])
def test_every_place_has_the_targets_law(scheme, with_law):
    """One target row and one draft row for all places, so that every emitted token has the same law."""
    count, K, width = 30_000, 2, 16
    target = numbers(1, width, seed=6)
    draft = -target if with_law else target  # opposite preferences: most drafts are rejected
    laws = draft.expand(count, K, width).contiguous()
    asked = [fakes.params(seed=b) for b in range(count)]
    if with_law:
        kind = ss.schemes()[scheme].draft_kind
        columns = [ss.draft(laws[:, i], kind=kind, seed=torch.arange(count), position=5, depth=i, node=i)[:, 0] for i in range(K)]
        drafts = torch.stack(columns, 1)
    else:
        drafts = torch.full((count, K), int(target.argmax()))
    found = emitted(
        scheme, drafts.tolist(), None, asked=asked, laws=laws if with_law else None, logits=target.expand(count * (K + 1), width)
    )
    found = torch.tensor(found)
    law = target[0].double().softmax(-1)
    assert p_value(found[:, 0], law) > FAILURE_RATE
    # A later place is examined only if it was reached, which must not depend on the token there.
    for place in (1, 2) if scheme != "block" else ():
        reached = found[found[:, place] >= 0, place]
        assert len(reached) > 100 and p_value(reached, law) > FAILURE_RATE


@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("vocab", [100, 8193, 10_000, 151_936])
def test_ids_stay_inside_the_vocabulary(scheme, vocab):
    logits = numbers(8, vocab, seed=7)
    end = vocab // 8192 * 8192 or 1
    logits[:, end:] = -torch.inf  # nothing in the last tile of a kernel that reads 8192 at a time
    drafts = [[0, vocab - 1, 3], [vocab - 1, vocab - 1, 0]]
    asked = [fakes.params(seed=b) for b in range(2)]
    found = emitted(scheme, drafts, None, asked=asked, logits=logits)
    assert all(-1 <= token < end for text in found for token in text) and all(text[0] >= 0 for text in found)


@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_nan_give_an_id(scheme, temperature):
    asked = [fakes.params(seed=b, temperature=temperature) for b in range(4)]
    found = emitted(scheme, [[3]] * 4, None, asked=asked, logits=torch.full((8, 20_000), torch.nan))
    assert found == [[0, -1]] * 4


@pytest.mark.parametrize("scheme", ["token", "block"])
def test_nothing_is_accepted_behind_a_placeholder(scheme):
    """With equal laws a draft is always accepted: only the placeholder stops it."""
    count, width = 500, 64
    law = numbers(1, width, seed=8)
    laws = law.expand(count, 3, width).contiguous()
    drafts = torch.randint(0, width, (count, 3), generator=torch.Generator().manual_seed(9))
    drafts[:, 1] = -1
    asked = [fakes.params(seed=b) for b in range(count)]
    found = torch.tensor(emitted(scheme, drafts.tolist(), None, asked=asked, laws=laws, logits=law.expand(count * 4, width)))
    assert torch.equal(found[:, 0], drafts[:, 0].int()) and (found[:, 1] >= 0).all() and (found[:, 2:] == -1).all()
