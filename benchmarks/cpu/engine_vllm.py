"""vLLM (with its broken CPU kernel repaired) against the adapter, interleaved in one run, in the environment of make test-vllm.

    .vllm/bin/python -m benchmarks.cpu.engine_vllm            the rejection step, B = 4, K = 3, V = 49 152, float32
    .vllm/bin/python -m benchmarks.cpu.engine_vllm --engine   tokens per second of whole engines on the tests' tiny models

"adapter" is the step less `ss.verify` on the same rows, what translating costs: the difference of their shortest times, which a busy
machine lengthens least. On a CPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import ROOT

sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "engines")]
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

B, K, V = 4, 3, 49_152


def step(rounds):
    import torch
    import vllm_fakes as fakes
    import vllm_run
    from vllm.platforms import current_platform

    import specsample as ss
    from benchmarks import harness
    from specsample.integrations.vllm import v1

    torch.set_num_threads(1)
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    vllm_run.repair()
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

        def ours(scheme, with_law):
            asked = [fakes.params(seed=b, temperature=temperature, top_p=top_p) for b in range(B)]
            runner = fakes.runner([f"{b}" for b in range(B)], asked, [[]] * B)
            own = fakes.with_drafts(runner, drafts, laws.view(B, K, V) if with_law else None)
            state = v1.State(runner, scheme)
            return lambda: v1.sample(runner, state, logits, own, fakes.Output)

        def verify(scheme, with_law):
            cu = torch.arange(0, B * (K + 1) + 1, K + 1, dtype=torch.int32)
            more = {"scheme": scheme, "sampling": ss.Sampling(temperature, top_p=top_p), "max_depth": K, "cu_rows": cu}
            more |= {"seed": torch.arange(B), "position": torch.full((B,), 5)}
            return lambda: ss.verify(logits, spec.draft_token_ids, laws if with_law else None, **more)

        calls = {"vLLM": vllms(None)}
        if not greedy:
            calls["vLLM, draft law"] = vllms(probabilities)
        calls["copy of the rows"] = logits.clone  # vLLM's step writes into its rows, so each call gets fresh ones
        for scheme, with_law in (("token", False), ("token", True), ("block", True), ("race", False)):
            name = scheme + (", draft law" if with_law else "")
            calls |= {name: ours(scheme, with_law), f"{name}: verify alone": verify(scheme, with_law)}
        timings = harness.time_together(calls, 0.0, least=rounds, most=rounds)
        times = {name: timing.median * 1e3 for name, timing in timings.items()}
        shortest = {name: timing.minimum * 1e3 for name, timing in timings.items()}
        print(f"\n{label}: median of {rounds}, ms")
        for name, took in times.items():
            if name.endswith(": verify alone"):
                continue
            if name.startswith("vLLM"):
                took -= times["copy of the rows"]
            extra = ""
            if f"{name}: verify alone" in times:
                against = times["vLLM, draft law" if "law" in name and not greedy else "vLLM"] - times["copy of the rows"]
                adapter = shortest[name] - shortest[f"{name}: verify alone"]
                extra = f"   adapter {1e3 * adapter:6.0f} µs   vLLM / this {against / took:6.1f}"
            print(f"  {name:24} {took:8.3f}{extra}")

    case("T = 0.8", 0.8, 1.0)
    case("T = 0.8, top-p 0.95", 0.8, 0.95)
    case("greedy", 0.0, 1.0)


def engines(rounds):
    import tiny

    with tempfile.TemporaryDirectory() as folder:
        target, student, _ = tiny.make(folder)
        llm = {"model": target, "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 16, "seed": 0}
        draft = {"method": "draft_model", "model": student, "num_speculative_tokens": K, "draft_sample_method": "probabilistic"}
        prompts = [[7 * i + j for j in range(20)] for i in range(16)]
        for temperature in (0.0, 0.8):
            calls = [{"prompts": prompts, "params": {"temperature": temperature, "max_tokens": 64, "ignore_eos": True}}] * 3
            rates = {}
            for _ in range(rounds):
                for scheme in ("vLLM", "token", "block", "race"):
                    job = {"llm": {**llm, "speculative_config": draft}, "calls": calls, "repair": scheme == "vLLM"}
                    env = {**os.environ, "PYTHONPATH": str(ROOT), "SPECSAMPLE_VLLM": "off" if scheme == "vLLM" else scheme}
                    out = Path(folder) / "out.json"
                    script = str(ROOT / "tests" / "engines" / "vllm_run.py")
                    subprocess.run([sys.executable, script, str(out)], input=json.dumps(job), text=True, env=env, check=True)
                    seconds = json.loads(out.read_text())["seconds"]
                    rates.setdefault(scheme, []).append(16 * 64 / min(seconds[1:]))
            shown = ", ".join(f"{scheme} {statistics.median(each):.0f}" for scheme, each in rates.items())
            print(f"T = {temperature}: tokens a second, median of {rounds} engines: {shown}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="store_true")
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()
    engines(args.rounds or 3) if args.engine else step(args.rounds or 30)
