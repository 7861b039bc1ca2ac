"""One vLLM engine in a process of its own: reads a job (JSON) from stdin, writes what came out (JSON) to the file named.

job: llm       arguments of vllm.LLM
     repair    true: vLLM's own rejection sampler, with its broken kernel of the CPU repaired
     calls     list of {prompts: [[ids]], params: [{SamplingParams}] or one for all}; may_fail: true for "error" in its place
-> {"calls": [[{"ids", "text", "logprobs"}] of each call, or {"error": ...}], "counters": {...}, "seconds": [...]}
"""

import json
import os
import sys
import time

os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def params_of(given, constraints):
    from vllm import SamplingParams
    from vllm.sampling_params import RepetitionDetectionParams

    given = dict(given)
    if "logit_bias" in given:
        given["logit_bias"] = {int(token): value for token, value in given["logit_bias"].items()}
    if "structured_outputs" in given:
        given["structured_outputs"] = constraints(**given["structured_outputs"])
    if "repetition_detection" in given:
        given["repetition_detection"] = RepetitionDetectionParams(**given["repetition_detection"])
    return SamplingParams(**given)


def repair():
    """vLLM 0.32 and 0.33 on a CPU spread temperature, top-k and top-p over the rows into a copy that is dropped."""
    import torch
    from vllm.v1.sample import rejection_sampler

    def expand_batch_to_tokens(x, cu, count, replace_from=0, replace_to=0):
        each = torch.diff(cu, prepend=cu.new_zeros(1)).long()
        return x.masked_fill(x == replace_from, replace_to).repeat_interleave(each, output_size=count)

    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def main(job, out):
    from vllm import LLM
    from vllm.sampling_params import StructuredOutputsParams

    if job.get("repair"):
        repair()
    llm = LLM(**job["llm"])
    result = {"calls": [], "seconds": []}
    for call in job["calls"]:
        count = len(call["prompts"])
        own = call["params"] if isinstance(call["params"], list) else [call["params"]] * count
        start = time.perf_counter()
        try:
            params = [params_of(each, StructuredOutputsParams) for each in own]
            outputs = llm.generate([{"prompt_token_ids": ids} for ids in call["prompts"]], params, use_tqdm=False)
            kept = [plain(each.outputs[0]) for each in outputs]
        except Exception as error:
            if not call.get("may_fail"):
                raise
            kept = {"error": f"{type(error).__name__}: {error}"}
        result["seconds"].append(time.perf_counter() - start)
        result["calls"].append(kept)
    counted = [m for m in llm.get_metrics() if "spec_decode" in m.name or "preempt" in m.name]
    result["counters"] = {m.name: getattr(m, "value", None) for m in counted}
    with open(out, "w") as file:
        json.dump(result, file)


def plain(output):
    kept = {"ids": list(output.token_ids), "text": output.text}
    if output.logprobs is not None:
        kept["logprobs"] = [{token: [p.logprob, p.rank] for token, p in place.items()} for place in output.logprobs]
    return kept


if __name__ == "__main__":
    main(json.load(sys.stdin), sys.argv[1])
