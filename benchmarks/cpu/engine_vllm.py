"""vLLM (with its broken CPU kernel repaired) against the adapter, interleaved in one run, in the environment of make test-vllm.

    .vllm/bin/python -m benchmarks.cpu.engine_vllm            the rejection step, B = 4, K = 3, V = 49 152, float32
    .vllm/bin/python -m benchmarks.cpu.engine_vllm --engine   tokens per second, and the rejection step, in whole engines on the
                                                              tests' two-layer models, with the same B, K and V

"adapter" is what translating costs: the time of a step less that of its own call of `ss.verify`, measured within the step, so that
the caches are as verifying leaves them. Its shortest time is what a busy machine lengthens least. On a CPU.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

from benchmarks import ROOT

sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "engines")]
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

B, K, V = 4, 3, 49_152
TOKENS = 64


def step(rounds):
    import torch
    import vllm_fakes as fakes
    import vllm_run
    from vllm.platforms import current_platform

    import specsample as ss
    from benchmarks import harness
    from specsample.integrations.vllm import v1, v2

    torch.set_num_threads(1)
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    vllm_run.repair()
    verifying, translating = [], {}  # seconds: of each call of `verify`, and of the rest of each step

    def verify(*args, **kwargs):
        begin = time.perf_counter()
        verdict = ss.verify(*args, **kwargs)
        verifying.append(time.perf_counter() - begin)
        return verdict

    v1.api = v2.api = types.SimpleNamespace(**{**vars(v1.api), "verify": verify})
    logits = torch.randn(B * (K + 1), V) * 3
    target = logits.view(B, K + 1, V)[:, :K].reshape(B * K, V)
    laws = target + torch.randn(B * K, V)

    def case(label, temperature, top_p):
        greedy = temperature == 0
        probabilities = (laws / (temperature or 1)).softmax(-1)
        drafts = (laws.argmax(-1) if greedy else probabilities.multinomial(1)).view(B, K).tolist()
        spec = SpecDecodeMetadata.make_dummy(drafts, torch.device("cpu"))
        rows = torch.arange(B * (K + 1)).view(B, K + 1)
        spec.target_logits_indices, spec.bonus_logits_indices = rows[:, :K].reshape(-1), rows[:, K].clone()
        metadata = SamplingMetadata(
            temperature=None if greedy else torch.full((B,), temperature), all_greedy=greedy, all_random=not greedy,
            top_p=None if top_p == 1 else torch.full((B,), top_p), top_k=None, generators={}, max_num_logprobs=None,
            no_penalties=True, prompt_token_ids=None, frequency_penalties=torch.zeros(B), presence_penalties=torch.zeros(B),
            repetition_penalties=torch.ones(B), output_token_ids=[], allowed_token_ids_mask=None, bad_words_token_ids={},
            logitsprocs=LogitsProcessors(),
        )  # fmt: skip
        sampler = RejectionSampler(Sampler())

        def vllms(given):
            return lambda: sampler(spec, given, logits.clone(), metadata)

        asked = [fakes.params(seed=b, temperature=temperature, top_p=top_p) for b in range(B)]

        def first_runner(scheme, with_law):
            runner = fakes.runner([f"{b}" for b in range(B)], asked, [[]] * B)
            own = fakes.with_drafts(runner, drafts, laws.view(B, K, V) if with_law else None)
            return functools.partial(v1.sample, runner, v1.State(runner, scheme), logits, own, fakes.Output)

        def second_runner(scheme, with_law):
            rejection = types.SimpleNamespace(sampler=fakes.sampler_v2(asked, V), num_speculative_steps=K)
            own = fakes.rows_v2(list(range(B)), drafts, [4] * B)
            return functools.partial(v2.verify, rejection, None, scheme, logits, laws.view(B, K, V) if with_law else None, **own)

        def translated(name, step):
            def call():
                begin, inside = time.perf_counter(), len(verifying)
                step()
                took = time.perf_counter() - begin
                translating.setdefault(name, []).append(took - sum(verifying[inside:]))

            return call

        calls = {"vLLM": vllms(None)}
        if not greedy:
            calls["vLLM, draft law"] = vllms(probabilities)
        calls["copy of the rows"] = logits.clone  # vLLM's step writes into its rows, so each call gets fresh ones
        for scheme, with_law in (("token", False), ("token", True), ("block", True), ("race", False)):
            for runner, make in (("V1", first_runner), ("V2", second_runner)):
                name = f"{scheme}{', draft law' if with_law else ''}, {runner}"
                calls[name] = translated(name, make(scheme, with_law))
        translating.clear()
        timings = harness.time_together(calls, 0.0, least=rounds, most=rounds)
        times = {name: timing.median * 1e3 for name, timing in timings.items()}
        print(f"\n{label}: median of {rounds}, ms")
        for name, took in times.items():
            if name == "copy of the rows":
                continue
            extra = ""
            if name.startswith("vLLM"):
                took -= times["copy of the rows"]
            else:
                against = times["vLLM, draft law" if "law" in name and not greedy else "vLLM"] - times["copy of the rows"]
                own = [1e6 * each for each in translating[name]]
                extra = f"   adapter {statistics.median(own):4.0f} µs, shortest {min(own):4.0f}   vLLM / this {against / took:6.1f}"
            print(f"  {name:22} {took:8.3f}{extra}")

    case("T = 0.8", 0.8, 1.0)
    case("T = 0.8, top-p 0.95", 0.8, 0.95)
    case("greedy", 0.0, 1.0)


CASES = {
    "greedy": {"temperature": 0.0},
    "T = 0.8": {"temperature": 0.8},
    "T = 0.8, top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
}
SCHEMES = ("vLLM", "token", "block", "race")


def engines(rounds):
    """Each engine writes B texts twice, and the second time counts."""
    import tiny

    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}" for name in ("target", "student")]
        for path, model in zip(paths, (tiny.target(V), tiny.student(vocab=V))):
            model.save_pretrained(path)
        draft = {"method": "draft_model", "model": paths[1], "num_speculative_tokens": K, "draft_sample_method": "probabilistic"}
        llm = {
            "model": paths[0], "skip_tokenizer_init": True, "dtype": "float32", "enforce_eager": True, "max_model_len": 256,
            "max_num_seqs": B, "seed": 0, "speculative_config": draft, "disable_log_stats": False,
        }  # fmt: skip
        prompts = [[7 * i + j for j in range(20)] for i in range(B)]
        jobs = []
        for label, own in CASES.items():
            params = {**own, "max_tokens": TOKENS, "ignore_eos": True, "detokenize": False}
            for turn in range(rounds):
                for scheme in SCHEMES:
                    job = {"llm": llm, "calls": [{"prompts": prompts, "params": params}] * 2, "timed": True}
                    job |= {"scheme": None, "repair": True} if scheme == "vLLM" else {"scheme": scheme}
                    jobs.append((label, scheme, {**job, "out": f"{folder}/{label} {scheme} {turn}.json"}))
        script, env = str(ROOT / "tests" / "engines" / "vllm_run.py"), {**os.environ, "PYTHONPATH": str(ROOT)}
        lines = "".join(json.dumps(job) + "\n" for _, _, job in jobs)
        subprocess.run([sys.executable, script], input=lines, text=True, env=env, check=True)
        results = [(label, scheme, json.loads(Path(job["out"]).read_text())) for label, scheme, job in jobs]
    print(f"B = {B}, K = {K}, V = {V}, two layers; medians of {rounds} engines each")
    for label in CASES:
        print(label)
        for scheme in SCHEMES:
            own = [result for *which, result in results if which == [label, scheme]]
            rate = statistics.median(B * TOKENS / result["seconds"][-1] for result in own)
            step = statistics.median(statistics.median(result["steps"]) for result in own)
            counted = own[0]["counters"]
            share = counted["vllm:spec_decode_num_accepted_tokens"] / counted["vllm:spec_decode_num_draft_tokens"]
            print(
                f"  {scheme:6} {rate:6.0f} tokens a second, {1e3 * step:7.2f} ms a rejection step, {share:.0%} of the drafts accepted"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="store_true")
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()
    engines(args.rounds or 3) if args.engine else step(args.rounds or 30)
