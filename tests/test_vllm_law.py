"""The law of vLLM's texts with the adapter, by chi-square over many short texts of a model with 512 tokens: make test-vllm."""

import functools
import math

import pytest
import tiny
import torch
from conftest import CAUGHT, FAILURE_RATE, p_value
from jobs import engine, ids, run

LAWS = {
    "T = 1": {"temperature": 1.0},
    "T = 0.7, top-p": {"temperature": 0.7, "top_p": 0.9},
    "T = 1.1, min-p": {"temperature": 1.1, "min_p": 0.05},
}
SAMPLES = {"V1": 20_000, "V2": 2_000}  # V2 is interpreted: 2000 texts take a minute
PROMPT = [17, 201, 44, 17, 201]
# For n-gram look-up: three quarters of the texts continue with a token that is in it, and three in ten then as it continues there.
RECURRING = [
    263, 431, 70, 107, 503, 320, 243, 74, 403, 338, 13, 75, 242, 467, 354, 265, 151, 298, 241, 354, 493, 265, 298, 427, 93, 427, 93,
    427, 94, 298, 115, 298, 433, 427, 93, 427, 427, 128, 118, 427, 74, 427, 242, 368, 495, 495, 495, 495,
]  # fmt: skip
LENGTH = 3


def law(logits, temperature, top_p=1.0, min_p=0.0):
    """Rows of logits -> vLLM's law, computed by hand: temperature, min-p, then top-p, in float64."""
    z = logits.double() / temperature
    kept = z >= z.amax(-1, keepdim=True) + (math.log(min_p) if min_p else -math.inf)
    z = z.masked_fill(~kept, -torch.inf)
    order = z.softmax(-1).sort(-1, descending=True)
    before = order.values.cumsum(-1) - order.values
    dropped = torch.zeros_like(kept).scatter(-1, order.indices, before >= top_p)
    return z.masked_fill(dropped, -torch.inf).softmax(-1)


def prompt_of(drafter):
    return RECURRING if drafter == "ngram" else PROMPT


@functools.cache
def laws_of(name, drafter):
    """[{(x,): probability}, {(x, y): …}, {(x, y, z): …}] of the first tokens after the prompt, exact; without texts that begin
    with something rarer than 1e-4."""
    model, setting, laws, begun = tiny.target(), LAWS[name], [], {(): 1.0}
    for _ in range(LENGTH):
        texts = [[*prompt_of(drafter), *text] for text in begun]
        with torch.inference_mode():
            rows = torch.cat([model(torch.tensor(texts[i : i + 256])).logits[:, -1] for i in range(0, len(texts), 256)])
        rows = law(rows, **setting).tolist()
        laws.append({(*text, x): p * q for (text, p), row in zip(begun.items(), rows) for x, q in enumerate(row) if q > 0})
        begun = {text: p for text, p in laws[-1].items() if p > 1e-4}
    return laws


def p_of(texts, name, length, drafter="student"):
    """p of the first `length` tokens of the texts; outcomes expected fewer than eight times share one cell."""
    cells = laws_of(name, drafter)[length - 1]
    index = {cell: i for i, cell in enumerate(cell for cell, p in cells.items() if p * len(texts) >= 8)}
    common = [cells[cell] for cell in index]
    outcomes = torch.tensor([index.get(tuple(text[:length]), len(index)) for text in texts])
    assert len(index) > (2 if length == 1 else 5)
    return p_value(outcomes, torch.tensor([*common, 1 - sum(common)], dtype=torch.float64))


def samples(drafter, scheme, names=tuple(LAWS), runner="V1", count=None, **more):
    """{law: texts} for requests without seeds; vLLM's counters"""
    params = {"max_tokens": LENGTH, "ignore_eos": True, "detokenize": False}
    calls = [{"prompts": [prompt_of(drafter)] * (count or SAMPLES[runner]), "params": {**LAWS[name], **params}} for name in names]
    result = run(engine(drafter, max_num_seqs=256, seed=5), calls, scheme, runner=runner, **more)
    return {name: ids(call) for name, call in zip(names, result["calls"])}, result["counters"]


DRAFTED = [("token", "student"), ("block", "student"), ("race", "student"), ("token", "ngram"), ("block", "greedy")]


@pytest.mark.parametrize("runner, names", [("V1", tuple(LAWS)), ("V2", ("T = 0.7, top-p",))])
@pytest.mark.parametrize("scheme, drafter", DRAFTED)
def test_the_law_is_the_targets(scheme, drafter, runner, names):
    texts, counters = samples(drafter, scheme, names, runner)
    assert counters["vllm:spec_decode_num_accepted_tokens"] > 0.2 * SAMPLES[runner] * len(names)
    for name in names:
        assert len({tuple(text) for text in texts[name]}) > 100
        found = {length: p_of(texts[name], name, length, drafter) for length in range(1, LENGTH + 1)}
        print(f"{runner} {scheme}, {drafter}, {name}: p = {found}")
        assert min(found.values()) > FAILURE_RATE, (name, found)


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_drafts_taken_for_those_of_another_law_are_seen(runner):
    """The control of the test above, one for each runner."""
    texts, _ = samples("student", "token", ("T = 0.7, top-p",), runner, spoil=True)
    assert p_of(texts["T = 0.7, top-p"], "T = 0.7, top-p", 2) < CAUGHT


def test_vllms_own_v2_keeps_the_law():
    """The control of the controls: vLLM's kernels, unbroken under this runner, pass. (They are slower to interpret than to replace.)"""
    name = "T = 0.7, top-p"
    texts, _ = samples("student", None, (name,), "V2", count=1000)
    assert p_of(texts[name], name, LENGTH) > FAILURE_RATE


def test_vllm_as_it_is_does_not_keep_the_law():
    """Its kernel that expands temperature and top-p to the rows is broken on the CPU. Once repaired, it passes."""
    name = "T = 0.7, top-p"
    texts, _ = samples("student", None, (name,))
    assert p_of(texts[name], name, LENGTH) < CAUGHT
    texts, _ = samples("student", None, (name,), repair=True)
    assert p_of(texts[name], name, LENGTH) > FAILURE_RATE
