"""Bugs that speculative samplers have shipped, one test each, most with a negative control that shows the test's power.

Laws are tested by chi-square over many requests at once (failure rate and threshold for the controls: conftest.py).
"""

import pytest
import torch
from conftest import (
    CAUGHT,
    CHAIN_SCHEMES,
    FAILURE_RATE,
    case,
    identical,
    numbers,
    p_value,
    packed,
    probabilities,
    select,
    stacked,
    widened,
)

import specsample as ss
from specsample.reference import rng
from specsample.reference.rows import race, winner

TRIALS = 200_000
TRIALS_OF = {"reference": 20_000}  # it is slow; fewer trials find the same bugs, with less margin
LOSSY = [name for name, card in ss.schemes().items() if card.uses_draft_logits]  # those that compare two laws


def every(law, rows=1, trials=TRIALS, dtype=torch.float32):
    """One law's logits [V] for all requests and rows, [trials, rows, V]; trials: a number, or a backend that determines it"""
    trials = TRIALS_OF.get(trials, TRIALS) if isinstance(trials, str) else trials
    return torch.as_tensor(law, dtype=dtype).expand(trials, rows, -1)


def logits_of(*probabilities_):
    return torch.tensor(probabilities_, dtype=torch.float64).log().float()


# -- 1 -------------------------------------------------------------------------------------------------------------

NARROW = 16
TARGET_16, DRAFT_16 = numbers(NARROW, seed=1, scale=1.0), numbers(NARROW, seed=2, scale=1.0)


@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_bug_1_draft_noise_is_not_reused(backend, scheme):
    """Bug 1 (vLLM #47386, #54282): the noise that drew the draft also decided its acceptance or the residual."""
    kind, at = ss.schemes()[scheme].draft_kind, {"seed": 0, "position": 40, "backend": backend}
    tokens = ss.draft(every(DRAFT_16, 1, backend)[:, 0], kind=kind, **at)
    verdict = ss.verify(every(TARGET_16, 2, backend), tokens, every(DRAFT_16, 1, backend), scheme=scheme, **at)
    assert p_value(verdict.tokens[:, 0], probabilities(TARGET_16[None])) > FAILURE_RATE
    bonus = verdict.tokens[:, 1][verdict.num_accepted == 1]
    assert p_value(bonus, probabilities(TARGET_16[None])) > FAILURE_RATE


@pytest.mark.parametrize("reused", ["nothing", "acceptance", "group's, acceptance", "residual", "group's, residual"])
def test_bug_1_control(reused, monkeypatch):
    """The same test on a sampler that reuses the draft's clocks, or only the words of their groups: caught; without reuse: not."""
    target, draft = (probabilities(x[None]) for x in (TARGET_16, DRAFT_16))
    seed, position, slot = torch.arange(TRIALS), torch.full((TRIALS,), 40), torch.zeros(TRIALS, dtype=torch.int64)
    clocks = rng.clocks(seed, position, rng.DRAFT, slot, NARROW)
    least = rng.least_clocks(seed, position, rng.DRAFT, slot, NARROW // 8)[0]
    drafted = winner(draft.log() - clocks.log())
    # Uniforms derived from the drafted token's clock, and from its group's least clock.
    own = -torch.expm1(-clocks.gather(1, drafted[:, None])[:, 0])
    group = -torch.expm1(-rng.GROUP * least.gather(1, rng.group_of(drafted)[:, None])[:, 0])
    fresh = rng.uniforms(seed, position, rng.ACCEPT, slot)[:, 0]
    u = {"acceptance": own, "group's, acceptance": group}.get(reused, fresh)
    accepted = u * draft[0, drafted] < target[0, drafted]
    residual = (target - draft).clamp(min=0).log().expand(TRIALS, -1)
    if reused == "group's, residual":
        words = rng.group_words
        monkeypatch.setattr(rng, "group_words", lambda s, p, _, *rest, **second: words(s, p, rng.DRAFT, *rest, **second))
    other = race(residual, seed, position, rng.RESIDUAL, slot)
    if reused == "residual":
        other = winner(residual - clocks.log())
    p = p_value(torch.where(accepted, drafted, other), target)
    assert p > FAILURE_RATE if reused == "nothing" else p < CAUGHT


# -- 4 -------------------------------------------------------------------------------------------------------------

TARGET_3, DRAFT_3 = (0.5, 0.3, 0.2), (0.1, 0.3, 0.6)


def two_tokens(first, second, other):
    """Joint outcome of two tokens; if a round ended after the first, the second is sampled from the target."""
    return first * 3 + torch.where(second >= 0, second, other)


def joint_law():
    law = torch.tensor(TARGET_3, dtype=torch.float64)
    return law[:, None] * law


@pytest.mark.parametrize("scheme", CHAIN_SCHEMES)
def test_bug_4_whole_rounds_have_the_targets_law(backend, scheme):
    """Bug 4 (vllm-ascend #7807, #13730): block verification kept the token-wise test inside, or its u was always 0."""
    target, draft = logits_of(*TARGET_3), logits_of(*DRAFT_3)
    kind, at = ss.schemes()[scheme].draft_kind, {"seed": 0, "position": 40, "backend": backend}
    tokens = [ss.draft(every(draft, 1, backend)[:, 0], kind=kind, depth=i, node=i, **at) for i in range(2)]
    verdict = ss.verify(every(target, 3, backend), torch.cat(tokens, 1), every(draft, 2, backend), scheme=scheme, **at)
    other = ss.sample(every(target, 1, backend)[:, 0], seed=0, position=41, backend=backend)
    assert p_value(two_tokens(verdict.tokens[:, 0], verdict.tokens[:, 1], other), joint_law()) > FAILURE_RATE


@pytest.mark.parametrize("mistake", ["none", "token-wise test inside", "u is 0"])
def test_bug_4_control(mistake):
    """Block verification of two drafts, reimplemented, right and wrong."""
    generator = torch.Generator().manual_seed(0)

    def draw(weights):
        return torch.multinomial(weights, 1, replacement=True, generator=generator)[:, 0]

    target, draft = (torch.tensor(x, dtype=torch.float64).expand(TRIALS, -1) for x in (TARGET_3, DRAFT_3))
    x = torch.stack([draw(draft), draw(draft)], 1)
    u = torch.rand(TRIALS, 2, dtype=torch.float64, generator=generator) * (mistake != "u is 0")
    ratio = target.gather(1, x) / draft.gather(1, x)
    one = ratio[:, 0].clamp(max=1)
    two = (one * ratio[:, 1]).clamp(max=1)
    rest = (one[:, None] * target - draft).clamp(min=0)
    mass = rest.sum(1)
    passes = torch.stack([u[:, 0] * (mass + 1 - one) < mass, u[:, 1] < two], 1)
    if mistake == "token-wise test inside":
        passes &= (u < ratio).cummin(1).values
    length = torch.where(passes[:, 1], 2, torch.where(passes[:, 0], 1, 0))
    instead = draw((target - draft).clamp(min=0))
    after = draw(torch.where(mass[:, None] > 0, rest, target))
    first = torch.where(length == 0, instead, x[:, 0])
    second = torch.where(length == 2, x[:, 1], torch.where(length == 1, after, -1))
    p = p_value(two_tokens(first, second, draw(target)), joint_law())
    assert p > FAILURE_RATE if mistake == "none" else p < CAUGHT


# -- 5 -------------------------------------------------------------------------------------------------------------

WARPED = ss.Sampling(0.7, 6, 0.9)
FAR_FROM_ZERO = 180.0  # shifts logits to where bfloat16 has a spacing of 1


def first_token_p(backend, scheme, drafted_from, tested_with, drawn_with, test_as, sampling=ss.Sampling()):
    """p-value of the first token, drafted from one law and verified as if from another."""
    target = TARGET_16.to(tested_with.dtype)
    kind, at = ss.schemes()[scheme].draft_kind, {"seed": 0, "position": 40, "backend": backend}
    rows = every(drafted_from, 1, backend, dtype=drafted_from.dtype)[:, 0]
    tokens = ss.draft(rows, kind=kind, sampling=drawn_with, **at)
    verdict = ss.verify(
        every(target, 2, backend, dtype=target.dtype), tokens, every(tested_with, 1, backend, dtype=target.dtype),
        scheme=scheme, sampling=sampling, draft_sampling=test_as, **at,
    )  # fmt: skip
    return p_value(verdict.tokens[:, 0], probabilities(target[None], sampling))


@pytest.mark.parametrize("scheme", LOSSY)
@pytest.mark.parametrize("sampling", [ss.Sampling(), ss.Sampling(1.2, 12)], ids=["plain target", "filtered target"])
def test_bug_5_filters_of_the_draft(backend, scheme, sampling):
    """Bug 5 (transformers #47932): the test used a draft law other than the filtered one that was sampled from."""
    laws = (DRAFT_16, DRAFT_16, WARPED)
    assert first_token_p(backend, scheme, *laws, WARPED, sampling) > FAILURE_RATE
    assert first_token_p(backend, scheme, *laws, ss.Sampling(), sampling) < CAUGHT
    bfloat = (DRAFT_16.bfloat16(), DRAFT_16.bfloat16(), WARPED)
    assert first_token_p(backend, scheme, *bfloat, WARPED, sampling) > FAILURE_RATE


@pytest.mark.parametrize("scheme", LOSSY)
def test_bug_5_dtype_of_the_draft(backend, scheme):
    """Bug 5 (DeepSpec #31): drafted from bfloat16 logits, accepted with the float32 ones they were rounded from."""
    exact = DRAFT_16 + FAR_FROM_ZERO
    rounded = exact.bfloat16()
    plain = (ss.Sampling(), ss.Sampling())
    assert first_token_p(backend, scheme, rounded, rounded.float(), *plain) > FAILURE_RATE
    assert first_token_p(backend, scheme, rounded, exact, *plain) < CAUGHT


@pytest.mark.parametrize("scheme", LOSSY)
def test_bug_5_the_draft_takes_the_targets_settings_by_default(backend, scheme):
    laws = (DRAFT_16, DRAFT_16, WARPED)
    assert first_token_p(backend, scheme, *laws, None, WARPED) > FAILURE_RATE


# -- 7 -------------------------------------------------------------------------------------------------------------


def test_bug_7_placeholders(backend, scheme):
    """Bug 7 (vLLM #50939, FlashInfer): the −1 of a missing draft was used as an index into its row."""
    args = case(30, 3, 25, scheme=scheme, seed=7)
    guard = torch.full((30, 3, 25 + 2), float("inf"))  # what an index of −1 would read
    guard[..., 1:-1] = args["draft_logits"]
    for length in range(4):
        tokens = torch.where(torch.arange(3) < length, args["draft_tokens"], -1)
        got = ss.verify(**args | {"draft_tokens": tokens, "draft_logits": guard[..., 1:-1]}, backend=backend)
        shorter = {
            "target_logits": args["target_logits"][:, : length + 1],
            "draft_tokens": args["draft_tokens"][:, :length],
            "draft_logits": args["draft_logits"][:, :length],
        }
        identical(got, widened(ss.verify(**args | shorter, backend=backend), 3))
    tokens = args["draft_tokens"].clone()
    tokens[:, 0] = -1  # at the start: everything after it is ignored
    verdict = ss.verify(**args | {"draft_tokens": tokens}, backend=backend)
    assert (verdict.num_accepted == 0).all() and (verdict.tokens[:, 0] >= 0).all()


def test_bug_7_no_drafts_in_the_middle_of_a_batch(backend, scheme):
    """Bug 7: a request with zero drafts shifted the rows of those after it."""
    cases = [case(1, n, 25, scheme=scheme, seed=70 + n) for n in (3, 0, 2, 0, 1)]
    expected = stacked([widened(ss.verify(**c, backend=backend), 3) for c in cases])
    identical(ss.verify(**packed(cases), backend=backend), expected)


# -- 8 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft_logit", [3.0, 0.0, -20.0, -80.0], ids=lambda x: f"draft logit {x}")
@pytest.mark.parametrize("how", ["−inf", "top-k", "underflow", "greedy"])
def test_bug_8_probability_zero_is_never_accepted(backend, scheme, how, draft_logit):
    """Bug 8: with u in [0, 1) and t >= u·d, u = 0 accepted a token of target probability 0."""
    trials, token = 1000 if backend == "reference" else 20_000, 2
    target, draft = numbers(8, seed=8), numbers(8, seed=9)
    target[token] = {"−inf": -torch.inf, "underflow": -3e4}.get(how, target.min() - 1)
    draft[token] = draft_logit
    sampling = {"top-k": ss.Sampling(top_k=7), "greedy": ss.Sampling(0.0)}.get(how, ss.Sampling())
    tokens = torch.full((trials, 1), token)
    at = {"seed": 0, "position": 3, "backend": backend, "scheme": scheme}
    verdict = ss.verify(
        every(target, 2, trials), tokens, every(draft, 1, trials), sampling=sampling, draft_sampling=ss.Sampling(), **at
    )
    assert (verdict.num_accepted == 0).all() and (verdict.tokens[:, 0] != token).all()
    verdict = ss.verify(every(target, 2, trials), tokens, sampling=sampling, **at)  # a deterministic draft
    assert (verdict.num_accepted == 0).all() and (verdict.tokens[:, 0] != token).all()


# -- 9 -------------------------------------------------------------------------------------------------------------


def test_bug_9_every_request_has_its_own_seed(backend, scheme):
    """Bug 9 (FlashInfer #2345): only the first request's seed was used."""
    requests = 50
    target = numbers(1, 3, 60, seed=10).repeat(requests, 1, 1)
    draft = numbers(1, 2, 60, seed=11).repeat(requests, 1, 1)
    target[..., 5], draft[..., 5] = -3.0, 5.0  # hardly ever accepted
    tokens = torch.tensor([[5, 6]]).expand(requests, 2)
    at = {"position": 9, "scheme": scheme, "backend": backend}
    each = ss.verify(target, tokens, draft, seed=torch.arange(requests), **at)
    assert len(each.tokens[:, 0].unique()) >= 10  # a single seed would give one token
    one = ss.verify(target, tokens, draft, seed=torch.full((requests,), 7), **at)
    assert (one.tokens == one.tokens[0]).all() and torch.equal(one.tokens[0], each.tokens[7])


def test_bug_9_a_stream_does_not_belong_to_a_slot(backend, scheme):
    """Bug 9 (FlashInfer, TensorRT-LLM): permuting, splitting or padding a batch changed the tokens of its requests."""
    args = case(10, 3, 60, scheme=scheme, seed=12)
    whole = ss.verify(**args, backend=backend)
    order = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 0]
    identical(ss.verify(**select(args, order), backend=backend), whole._replace(**{
        name: getattr(whole, name)[order] for name in ("tokens", "num_accepted", "nodes")
    }))  # fmt: skip


def test_bug_9_no_two_unseeded_requests_share_a_stream(backend):
    """Bug 9 (vLLM #19487): requests without a seed shared a stream. An int seed gives each request a different one."""
    rows = numbers(1, 5000, seed=13, scale=0.1).expand(40, 5000)
    assert len(ss.sample(rows, seed=0, position=0, backend=backend).unique()) > 35


# -- 10 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sampling", [ss.Sampling(), ss.Sampling(0.7, 20, 0.9, 0.01), ss.Sampling(0.0)], ids=str)
def test_bug_10_equal_laws_accept_every_draft(backend, scheme, sampling, dtype):
    args = case(300, 3, 50, dtype, scheme, seed=14, noise=0.0, sampling=sampling)
    assert torch.equal(args["target_logits"][:, :3], args["draft_logits"])
    verdict = ss.verify(**args, backend=backend)
    assert (verdict.num_accepted == 3).all() and torch.equal(verdict.tokens[:, :3], args["draft_tokens"])


@pytest.mark.parametrize("scheme", LOSSY)
def test_bug_10_a_forced_rejection_without_residual_mass(backend, scheme):
    """Bug 10 (transformers): equal laws and a rejected token left nothing to normalise. The result is then the target's law."""
    trials = 20_000
    law = numbers(9, seed=15)
    law[4] = -torch.inf  # the drafted token has probability 0 under both
    at = {"seed": 0, "position": 3, "backend": backend, "scheme": scheme}
    verdict = ss.verify(every(law, 2, trials), torch.full((trials, 1), 4), every(law, 1, trials), **at)
    assert (verdict.num_accepted == 0).all()
    assert p_value(verdict.tokens[:, 0], probabilities(law[None])) > FAILURE_RATE


@pytest.mark.parametrize("scheme", LOSSY)
def test_bug_10_one_hot_target_and_draft(backend, scheme):
    """All mass on one token, and another one drafted: the residual has no mass either."""
    law = torch.full((9,), -torch.inf)
    law[3] = 0.0
    at = {"seed": 0, "position": 3, "backend": backend, "scheme": scheme}
    for logits in (law, torch.where(law == 0, 0.0, -1e4)):
        verdict = ss.verify(every(logits, 2, 50), torch.full((50, 1), 4), every(logits, 1, 50), **at)
        assert (verdict.num_accepted == 0).all() and (verdict.tokens[:, 0] == 3).all()


# -- 12 ------------------------------------------------------------------------------------------------------------


def test_bug_12_offsets_past_2_31(backend, scheme):
    """Bug 12: 32-bit offsets. The last request of a batch whose logits end beyond 2³¹ elements, against the same request alone."""
    vocab, rows = 2**27, 3
    try:
        buffer = torch.empty(2**31 + 2**20, dtype=torch.bfloat16)  # only the pages that are written take memory
    except RuntimeError as error:
        pytest.skip(f"not enough memory: {error}")
    args = case(2, rows - 1, 150, torch.bfloat16, scheme, seed=16)
    batch = buffer.as_strided((2, rows, 150), (2**31, vocab // 2**10, 1))
    batch.copy_(args["target_logits"])
    expected = stacked([ss.verify(**select(args, [b]), backend=backend) for b in range(2)])
    identical(ss.verify(**args | {"target_logits": batch}, backend=backend), expected)
