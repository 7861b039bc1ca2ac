"""vLLM itself with the adapter, on the CPU, with both of its model runners: make test-vllm (a separate virtual environment)."""

import re

import jobs
import pytest
from jobs import CALLS, GRAMMAR, MIXED, SUPPORTED, K, engine, ids, mixed, prompts, run, texts

RUNNERS = ("V1", "V2")


@pytest.fixture(scope="module")
def vllms_greedy():
    """vLLM's own greedy text, without drafts and without the adapter."""
    return ids(run(engine(), [CALLS["greedy"]])["calls"][0])


@pytest.mark.parametrize("runner", RUNNERS)
def test_it_says_what_it_replaced(runner):
    assert re.search(
        rf"specsample \(scheme race, vLLM [\d.]+\) replaces .* of runner {runner}\n", texts(None, "race", runner)["log"]
    )


def test_nothing_is_replaced_without_being_asked():
    assert "specsample (scheme" not in run(engine(), [CALLS["greedy"]])["log"]


@pytest.mark.parametrize("drafter", [None, "ngram", "student", "greedy"])
@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("runner", RUNNERS)
def test_greedy_text_is_vllms(vllms_greedy, runner, scheme, drafter):
    assert ids(texts(drafter, scheme, runner)["greedy"]) == vllms_greedy


VARIANTS = {
    "ngram": {"drafter": "ngram"},
    "student": {"drafter": "student"},
    "greedy": {"drafter": "greedy"},
    "eagle": {"drafter": "eagle"},
    "one at a time": {"drafter": "student", "max_num_seqs": 1},
    "prompts in chunks": {"drafter": "student", "max_num_batched_tokens": 16, "max_num_seqs": 4, "enable_chunked_prefill": True},
    "preempted": {"drafter": "student", "num_gpu_blocks_override": 8, "block_size": 32, "max_model_len": 192},
    "no async scheduling": {"drafter": "student", "async_scheduling": False},
    "async scheduling": {"drafter": "student", "async_scheduling": True},
    "two processes": {"drafter": "student", "tensor_parallel_size": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("runner", RUNNERS)
def test_race_text_is_the_same_with_any_drafter(runner, variant):
    if runner == "V2" and variant == "two processes":
        pytest.skip("vLLM's worker processes do not have the interpreter of V2's kernels")
    plain, other = texts(None, "race", runner), texts(scheme="race", runner=runner, **VARIANTS[variant])
    for call in CALLS:
        assert ids(other[call]) == ids(plain[call]), call
    counters = other["counters"]
    assert counters["vllm:spec_decode_num_accepted_tokens"] > (20 if variant in ("ngram", "eagle") else 100), counters
    if variant == "preempted":
        assert counters["vllm:num_preemptions"] > 0


def test_race_text_is_the_same_under_both_runners():
    assert texts(None, "race")["calls"] == texts(None, "race", "V2")["calls"]


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_target_as_its_own_drafter_is_always_accepted(runner):
    """The streams, positions and laws of the drafts are those that the verifier assumes: an error in any of them shows here."""
    params = [{"seed": 9, "temperature": 0.8}, {"seed": 10, "temperature": 1.0}]
    if runner == "V1":  # V2 applies only the temperature to drafts
        params[1] |= {"top_p": 0.9, "top_k": 30}
    params = [{**own, "max_tokens": 1 + 6 * (K + 1), "ignore_eos": True} for own in params]
    for scheme in SUPPORTED:
        counted = run(engine("itself"), [{"prompts": prompts(2), "params": params}], scheme, runner=runner)["counters"]
        assert counted["vllm:spec_decode_num_draft_tokens"] > 30
        assert counted["vllm:spec_decode_num_accepted_tokens"] >= 0.97 * counted["vllm:spec_decode_num_draft_tokens"], counted


@pytest.mark.parametrize("scheme, drafter", [("race", None), ("race", "student"), ("token", "student"), ("block", "ngram")])
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_grammar_binds_the_text(runner, scheme, drafter):
    written = [each["text"] for each in texts(drafter, scheme, runner)["grammar"]]
    assert all(re.fullmatch(GRAMMAR, text) for text in written), written


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_logprobs_are_those_without_drafts(runner, mode):
    call = [{"prompts": prompts(len(MIXED)), "params": [{**own, "logprobs": 3} for own in mixed()]}]
    plain = run(engine(logprobs_mode=mode), call, "race", runner=runner)["calls"][0]
    other = run(engine("student", logprobs_mode=mode), call, "race", runner=runner)["calls"][0]
    assert ids(plain) == ids(other)
    pairs = list(zip(plain, other))
    # Greedy requests have vLLM's own text, and so its log-probabilities too.
    vllms = run(engine(logprobs_mode=mode), call)["calls"][0]
    pairs += [(plain[i], vllms[i]) for i in (1, 7)]
    for a, b in pairs:
        assert len(a["logprobs"]) == len(a["ids"]) > 0
        for at_a, at_b in zip(a["logprobs"], b["logprobs"]):
            assert set(at_a) == set(at_b)
            for token in at_a:
                (x, rank), (y, other_rank) = at_a[token], at_b[token]
                assert rank == other_rank and (x == y or abs(x - y) < 1e-3), (token, x, y)


def test_a_server_with_concurrent_and_cancelled_requests(tmp_path):
    """Mixed requests, all at once, some cancelled while streaming: each text is the one that the request gets alone."""
    from concurrent.futures import ThreadPoolExecutor

    from server import Server

    with Server(jobs.models()[0], engine("student")["speculative_config"], "race", tmp_path / "server.log") as server:
        bodies = []
        for i, own in enumerate(mixed()):
            own = {name: value for name, value in own.items() if name != "bad_words"}
            if "logit_bias" in own:
                own["logit_bias"] = {str(token): value for token, value in own["logit_bias"].items()}
            bodies.append({"prompt": prompts(len(MIXED))[i], **own})
        alone = [server.complete(body) for body in bodies]
        with ThreadPoolExecutor(24) as pool:
            cancelled = [pool.submit(server.cancel, {**body, "max_tokens": 150}) for body in bodies[:8]]
            together = list(pool.map(server.complete, bodies * 2))
            heard = [each.result() for each in cancelled]
        assert all(0 < count < 150 for count in heard), heard
        assert together == alone * 2
        assert server.complete(bodies[0]) == alone[0]
        with pytest.raises(Exception, match="400"):
            server.complete({**bodies[0], "temperature": -1.0})
    assert "specsample (scheme race" in (tmp_path / "server.log").read_text()
