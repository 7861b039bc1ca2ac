"""vLLM itself with the adapter, on the CPU, tiny random models in float32: make test-vllm (a virtual environment of its own).

Each engine is a process: the adapter is switched on by an environment variable, and vLLM keeps a world of global state.
"""

import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CAUGHT, FAILURE_RATE, p_value

HERE = Path(__file__).parent
if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("vllm.v1") is None:
    pytest.skip("vLLM is not installed (make test-vllm has it in an environment of its own)", allow_module_level=True)
sys.path.insert(0, str(HERE / "engines"))
import tiny  # noqa: E402

SUPPORTED = ("token", "block", "race")
K = 3


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("models"))


def engine(models, drafter=None, **given):
    """Arguments of vllm.LLM."""
    target, student = models
    own = {
        "model": target, "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 16, "seed": 0,
        "disable_log_stats": False,
    }  # fmt: skip
    if drafter == "ngram":
        own["speculative_config"] = {"method": "ngram", "num_speculative_tokens": K, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    elif drafter is not None:
        own["speculative_config"] = {
            "method": "draft_model", "model": target if drafter == "itself" else student, "num_speculative_tokens": K,
            "draft_sample_method": "greedy" if drafter == "greedy" else "probabilistic",
        }  # fmt: skip
    speculative = given.pop("speculative", {})
    if speculative:
        own["speculative_config"] = {**own["speculative_config"], **speculative}
    return {**own, **given}


def run(llm, calls, scheme=None, check=True, **environment):
    """-> what vllm_run.py wrote, with "log". scheme: None = vLLM as it is"""
    return _run(json.dumps({"llm": llm, "calls": calls}, sort_keys=True), scheme, check, tuple(sorted(environment.items())))


@functools.cache
def _run(job, scheme, check, environment):
    out = Path(os.environ.get("PYTEST_CURRENT_TEST", "x").split("/")[-1].split(":")[0] + f".{abs(hash(job))}.{scheme}.json")
    out = Path(os.environ.get("TMPDIR", "/tmp")) / out.name
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE / "engines")]), **dict(environment)}
    env.pop("SPECSAMPLE_VLLM", None)
    if scheme is not None:
        env["SPECSAMPLE_VLLM"] = scheme
    command = [sys.executable, str(HERE / "engines" / "vllm_run.py"), str(out)]
    done = subprocess.run(command, input=job, capture_output=True, text=True, env=env, timeout=1800)
    log = done.stdout + done.stderr
    if check and done.returncode != 0:
        raise AssertionError(f"the engine ended with {done.returncode}:\n{log[-6000:]}")
    result = json.loads(out.read_text()) if done.returncode == 0 else {}
    out.unlink(missing_ok=True)
    return {**result, "log": log, "code": done.returncode}


def prompts(count, seed=3):
    """Ids with repeats in them, so that n-gram look-up finds some; of lengths 4 to 40."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        own = torch.randint(0, 500, (4 + 3 * i,), generator=generator).tolist()
        found.append(own + own[: len(own) // 2])
    return found


def ids(result, call=0):
    return [each["ids"] for each in result["calls"][call]]


COMMON = {"max_tokens": 24, "ignore_eos": True}
# One of each kind of setting, and mixtures.
MIXED = [
    {"temperature": 0.8}, {"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.2, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.1}, {"temperature": 1.0, "min_p": 0.02, "top_p": 0.95, "top_k": 50},
    {"temperature": 0.7, "logit_bias": {5: 6.0, 9: -100.0}}, {"temperature": 0.0, "logit_bias": {5: 3.0}},
    {"temperature": 1.0, "repetition_penalty": 1.3}, {"temperature": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    {"temperature": 1.0, "allowed_token_ids": [1, 2, 3, 5, 8, 13, 21, 34, 55]}, {"temperature": 0.8, "bad_words": ["(", "?@"]},
    {"temperature": 1.0, "min_tokens": 12, "stop_token_ids": list(range(256)), "ignore_eos": False},
]  # fmt: skip


def mixed(seeded=True):
    return [{**COMMON, **({"seed": 100 + i} if seeded else {}), **own} for i, own in enumerate(MIXED)]


def test_it_says_what_it_replaced_and_nothing_without_being_asked(models):
    call = [{"prompts": prompts(1), "params": {**COMMON, "temperature": 0.0}}]
    assert "specsample (scheme race, vLLM" in run(engine(models), call, "race")["log"]
    assert "specsample (scheme" not in run(engine(models), call)["log"]


@pytest.mark.parametrize("drafter", [None, "ngram", "student", "greedy"])
@pytest.mark.parametrize("scheme", SUPPORTED)
def test_greedy_text_is_vllms(models, scheme, drafter):
    call = [{"prompts": prompts(6), "params": {**COMMON, "temperature": 0.0}}]
    assert ids(run(engine(models, drafter), call, scheme)) == ids(run(engine(models), call))


VARIANTS = {
    "ngram": {"drafter": "ngram"},
    "student": {"drafter": "student"},
    "greedy": {"drafter": "greedy"},
    "one at a time": {"drafter": "student", "max_num_seqs": 1},
    "prompts in chunks": {"drafter": "student", "max_num_batched_tokens": 16, "max_num_seqs": 4, "enable_chunked_prefill": True},
    "preempted": {"drafter": "student", "num_gpu_blocks_override": 8, "block_size": 32, "max_model_len": 192},
    "no async scheduling": {"drafter": "student", "async_scheduling": False},
    "async scheduling": {"drafter": "student", "async_scheduling": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seeded", [True, False])
def test_race_text_is_the_same_with_any_drafter(models, variant, seeded):
    if not seeded and variant not in ("student", "ngram", "one at a time"):
        pytest.skip("the seed of a request without one does not hang on how it is scheduled")
    call = [{"prompts": prompts(len(MIXED)), "params": mixed(seeded)}]
    plain = run(engine(models), call, "race")
    other = run(engine(models, **VARIANTS[variant]), call, "race")
    assert ids(other) == ids(plain)
    if variant == "student":
        accepted = other["counters"]["vllm:spec_decode_num_accepted_tokens"]
        assert accepted > 20, other["counters"]
    if variant == "preempted":
        assert other["counters"]["vllm:num_preemptions"] > 0


def test_the_target_as_its_own_drafter_is_always_accepted(models):
    """Streams, positions and laws of the drafts are what the verifier takes them for: a slip in any of them shows here."""
    params = [{"seed": 9, "temperature": 0.8}, {"seed": 10, "temperature": 1.0, "top_p": 0.9, "top_k": 30}]
    params = [{**own, "max_tokens": 1 + 6 * (K + 1), "ignore_eos": True} for own in params]
    for scheme in SUPPORTED:
        result = run(engine(models, "itself"), [{"prompts": prompts(2), "params": params}], scheme)
        counted = result["counters"]
        assert counted["vllm:spec_decode_num_draft_tokens"] > 30
        assert counted["vllm:spec_decode_num_accepted_tokens"] >= 0.97 * counted["vllm:spec_decode_num_draft_tokens"], counted


def test_a_grammar_binds_the_text(models):
    params = [{"temperature": 1.0, "seed": 4, "max_tokens": 12, "structured_outputs": {"regex": "[ab]{3}c[de]{3}"}}] * 2
    calls = [{"prompts": prompts(2), "params": params}]
    plain = run(engine(models), calls, "race")
    for drafter in ("student", "ngram"):
        assert ids(run(engine(models, drafter), calls, "race")) == ids(plain)
    texts = [each["text"] for each in plain["calls"][0]]
    import re

    assert all(re.fullmatch("[ab]{3}c[de]{3}", text) for text in texts), texts


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"])
def test_logprobs_are_those_without_drafts(models, mode):
    params = [{**own, "logprobs": 3} for own in mixed()]
    call = [{"prompts": prompts(len(MIXED)), "params": params}]
    plain = run(engine(models, logprobs_mode=mode), call, "race")
    other = run(engine(models, "student", logprobs_mode=mode), call, "race")
    assert ids(plain) == ids(other)
    pairs = list(zip(plain["calls"][0], other["calls"][0]))
    # Greedy requests have vLLM's own text, so its log-probabilities too.
    vllms = run(engine(models, logprobs_mode=mode), call)["calls"][0]
    pairs += [(plain["calls"][0][i], vllms[i]) for i in (1, 7)]
    for a, b in pairs:
        assert len(a["logprobs"]) == len(a["ids"]) > 0
        for at_a, at_b in zip(a["logprobs"], b["logprobs"]):
            assert set(at_a) == set(at_b)
            for token in at_a:
                (x, rank), (y, other_rank) = at_a[token], at_b[token]
                assert rank == other_rank and (x == y or abs(x - y) < 1e-3), (token, x, y)


LAWS = {
    "T = 1": {"temperature": 1.0},
    "T = 0.7, top-p": {"temperature": 0.7, "top_p": 0.9},
    "T = 1.1, min-p": {"temperature": 1.1, "min_p": 0.05},
}
SAMPLES = 20_000


def law(logits, temperature, top_p=1.0, min_p=0.0):
    """Rows of logits -> vLLM's law, by hand: temperature, min-p, then top-p, float64."""
    z = logits.double() / temperature
    kept = z >= z.amax(-1, keepdim=True) + (math.log(min_p) if min_p else -math.inf)
    z = z.masked_fill(~kept, -torch.inf)
    order = z.softmax(-1).sort(-1, descending=True)
    before = order.values.cumsum(-1) - order.values
    dropped = torch.zeros_like(kept).scatter(-1, order.indices, before >= top_p)
    return z.masked_fill(dropped, -torch.inf).softmax(-1)


@functools.cache
def laws_of(name):
    """[{(x,): probability}, {(x, y): …}, {(x, y, z): …}] of the first tokens after PROMPT, exact; without texts that begin with
    something rarer than 1e-4."""
    model, setting, laws, begun = tiny.target(), LAWS[name], [], {(): 1.0}
    for _ in range(3):
        texts = [[*PROMPT, *text] for text in begun]
        with torch.inference_mode():
            rows = torch.cat([model(torch.tensor(texts[i : i + 256])).logits[:, -1] for i in range(0, len(texts), 256)])
        rows = law(rows, **setting).tolist()
        laws.append({(*text, x): p * q for (text, p), row in zip(begun.items(), rows) for x, q in enumerate(row) if q > 0})
        begun = {text: p for text, p in laws[-1].items() if p > 1e-4}
    return laws


PROMPT = [17, 201, 44, 17, 201]


def p_of(texts, name, length):
    """p of the first `length` tokens of the texts, what is expected fewer than eight times in one cell."""
    cells = laws_of(name)[length - 1]
    index = {cell: i for i, cell in enumerate(cell for cell, p in cells.items() if p * len(texts) >= 8)}
    common = [cells[cell] for cell in index]
    outcomes = torch.tensor([index.get(tuple(text[:length]), len(index)) for text in texts])
    assert len(index) > 5
    return p_value(outcomes, torch.tensor([*common, 1 - sum(common)], dtype=torch.float64))


def samples(models, drafter, scheme, names=tuple(LAWS)):
    """{law: SAMPLES texts of 5 tokens}, requests without seeds"""
    calls = [
        {"prompts": [PROMPT] * SAMPLES, "params": {**LAWS[name], "max_tokens": 5, "ignore_eos": True, "detokenize": False}}
        for name in names
    ]
    result = run(engine(models, drafter, max_num_seqs=256, seed=5), calls, scheme)
    return {name: ids(result, i) for i, name in enumerate(names)}, result["counters"]


DRAFTED = [("token", "student"), ("block", "student"), ("race", "student"), ("token", "ngram"), ("block", "greedy")]


@pytest.mark.parametrize("scheme, drafter", DRAFTED)
def test_the_law_is_the_targets(models, scheme, drafter):
    texts, counters = samples(models, drafter, scheme)
    assert counters["vllm:spec_decode_num_accepted_tokens"] > 1000
    for name in LAWS:
        assert len({tuple(text) for text in texts[name]}) > 100
        for length in (1, 2, 3):
            assert p_of(texts[name], name, length) > FAILURE_RATE, (name, length)


def test_vllm_as_it_is_does_not_keep_the_law(models):
    """The control. (Its kernel that spreads temperature and top-p over the rows is broken on the CPU.)"""
    texts, _ = samples(models, "student", None, ("T = 0.7, top-p",))
    assert p_of(texts["T = 0.7, top-p"], "T = 0.7, top-p", 3) < CAUGHT


# A value of each field of SamplingParams that says something. Those that plain decoding refuses here are named below.
FIELDS = {
    "n": 2, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "temperature": 0.7, "watermarking": False,
    "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "stop": ["~"], "stop_token_ids": [5], "ignore_eos": True, "max_tokens": 3,
    "min_tokens": 2, "logprobs": 2, "prompt_logprobs": 1, "prompt_logprob_token_ids": [[1]] * 4, "prompt_logprob_start": 1,
    "logprob_token_ids": [1, 2], "flat_logprobs": True, "detokenize": False, "skip_special_tokens": False,
    "spaces_between_special_tokens": False, "include_stop_str_in_output": True, "output_kind": 2, "stream_interval": 2,
    "skip_clone": True, "structured_outputs": {"regex": "[ab]{9}"}, "logit_bias": {"3": 1.0}, "allowed_token_ids": [1, 2, 3],
    "extra_args": {"mine": 1}, "bad_words": ["!"], "skip_reading_prefix_cache": True, "thinking_token_budget": 5,
    "repetition_detection": {"max_pattern_size": 4, "min_count": 2}, "routed_experts_prompt_start": 0,
    "trace_decode_token_ids": [1, 2],
}  # fmt: skip


def test_each_sampling_parameter_is_accepted_with_speculation_too(models):
    from vllm import SamplingParams

    public = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")} - {"output_text_buffer_length"}
    assert public == set(FIELDS), "give FIELDS a value of each new parameter, and read what it does to the law"
    calls = [
        {"prompts": prompts(1), "params": {"max_tokens": 4, "temperature": 1.0, name: value}, "may_fail": True}
        for name, value in FIELDS.items()
    ]
    refused = {}
    cases = {"plain": (None, None), "vllm": ("ngram", None), "ours": ("ngram", "token"), "race": ("student", "race")}
    for key, (drafter, scheme) in cases.items():
        found = run(engine(models, drafter), calls, scheme)["calls"]
        refused[key] = {name: each["error"] for name, each in zip(FIELDS, found) if isinstance(each, dict)}
    assert {"min_p", "logit_bias"} <= set(refused["vllm"])  # the control
    assert set(refused["ours"]) == set(refused["race"]) == set(refused["plain"]), refused
    assert len(refused["plain"]) < 6, refused["plain"]


def test_a_server_with_concurrent_and_cancelled_requests(models, tmp_path):
    """Mixed requests, all at once, some cancelled while they stream: each text is what the request gets alone."""
    from concurrent.futures import ThreadPoolExecutor

    from server import Server

    spec = engine(models, "student")["speculative_config"]
    with Server(models[0], spec, "race", tmp_path / "server.log") as server:
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
