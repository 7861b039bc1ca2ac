"""Shared by the tests of vLLM: engines on tiny random models in float32, each in a process of its own (vllm_run.py), because an
environment variable switches the adapter on. An engine gets many calls, and its output is kept for other tests.
"""

import atexit
import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("vllm.v1") is None:
    pytest.skip("vLLM is not installed (make test-vllm has it in an environment of its own)", allow_module_level=True)

import tiny

HERE = Path(__file__).parent
SUPPORTED = ("token", "block", "race")
K = 3


@functools.cache
def models():
    """Paths of the models, which exist for as long as the tests run."""
    folder = tempfile.TemporaryDirectory()
    models.folder = folder  # kept: the folder is deleted with its object
    return tiny.make(folder.name)


def engine(drafter=None, **given):
    """Arguments of vllm.LLM. drafter: None, "ngram", a model that samples ("student", "itself", "eagle"), or
    one that picks the likeliest token ("greedy")"""
    target, student, head = models()
    own = {
        "model": target, "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 16, "seed": 0,
        "disable_log_stats": False,
    }  # fmt: skip
    if drafter == "ngram":
        own["speculative_config"] = {"method": "ngram", "num_speculative_tokens": K, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    elif drafter == "eagle":
        own["speculative_config"] = {
            "method": "eagle", "model": head, "num_speculative_tokens": K, "draft_sample_method": "probabilistic",
        }  # fmt: skip
    elif drafter is not None:
        own["speculative_config"] = {
            "method": "draft_model", "model": target if drafter == "itself" else student, "num_speculative_tokens": K,
            "draft_sample_method": "greedy" if drafter == "greedy" else "probabilistic",
        }  # fmt: skip
    return {**own, **given}


def run(llm, calls, scheme=None, **more):
    """-> the output of vllm_run.py, with "log". scheme: None = unmodified vLLM; more: of the job. AssertionError if it fails"""
    return _run(json.dumps({"llm": llm, "calls": calls, "runner": "V1", "scheme": scheme, **more}, sort_keys=True))


class Worker:
    """A process of vllm_run.py, for all jobs with the same runner."""

    def __init__(self):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        command = [sys.executable, str(HERE / "vllm_run.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, text=True, env=env)

    def ask(self, job, out):
        begin = os.fstat(self.log.fileno()).st_size
        self.process.stdin.write(json.dumps({**job, "out": str(out)}) + "\n")
        self.process.stdin.flush()
        while self.process.poll() is None and not out.exists():
            time.sleep(0.1)
        log = os.pread(self.log.fileno(), 1 << 24, begin).decode(errors="replace")
        assert out.exists(), f"the engine ended with {self.process.returncode}:\n{log[-6000:]}"
        return {**json.loads(out.read_text()), "log": log}

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


@functools.cache
def _run(text):
    job = json.loads(text)
    worker = WORKERS.pop(job["runner"], None) or Worker()
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    result = worker.ask(job, Path(models()[0]).parent / f"{name}.json")
    WORKERS[job["runner"]] = worker  # one that failed is not reused
    return result


WORKERS = {}
atexit.register(lambda: [worker.close() for worker in WORKERS.values()])


def prompts(count, seed=3):
    """Ids with repetitions, so that n-gram look-up finds some; 4, 7, 10, … ids and half of them again."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        own = torch.randint(0, 500, (4 + 3 * i,), generator=generator).tolist()
        found.append(own + own[: len(own) // 2])
    return found


def ids(outputs):
    return [each["ids"] for each in outputs]


COMMON = {"max_tokens": 24, "ignore_eos": True}
# Each kind of setting, and combinations.
MIXED = [
    {"temperature": 0.8}, {"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.2, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.1}, {"temperature": 1.0, "min_p": 0.02, "top_p": 0.95, "top_k": 50},
    {"temperature": 0.7, "logit_bias": {5: 6.0, 9: -100.0}}, {"temperature": 0.0, "logit_bias": {5: 3.0}},
    {"temperature": 1.0, "repetition_penalty": 1.3}, {"temperature": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    {"temperature": 1.0, "allowed_token_ids": [1, 2, 3, 5, 8, 13, 21, 34, 55]}, {"temperature": 0.8, "bad_words": ["(", "?@"]},
    {"temperature": 1.0, "min_tokens": 12, "stop_token_ids": list(range(0, 508, 4)), "ignore_eos": False},
]  # fmt: skip


def mixed(seeded=True):
    return [{**COMMON, **({"seed": 100 + i} if seeded else {}), **own} for i, own in enumerate(MIXED)]


GRAMMAR = "[ab]{3}c[de]{3}"
CALLS = {
    "greedy": {"prompts": prompts(6), "params": {**COMMON, "temperature": 0.0}},
    "seeded": {"prompts": prompts(len(MIXED)), "params": mixed()},
    "unseeded": {"prompts": prompts(len(MIXED)), "params": mixed(False)},
    "grammar": {
        "prompts": prompts(2),
        "params": [{"temperature": 1.0, "seed": 4, "max_tokens": 12, "structured_outputs": {"regex": GRAMMAR}}] * 2,
    },
}


def texts(drafter, scheme, runner="V1", **given):
    """One engine given all of CALLS. -> the result of `run`, with "greedy", "seeded", … for its calls"""
    result = run(engine(drafter, **given), list(CALLS.values()), scheme, runner=runner)
    return {**result, **dict(zip(CALLS, result["calls"]))}
