"""vLLM engines, one after another: reads jobs from stdin (JSON, one per line), and writes the output of each (JSON) to the file that
it names, or to the one on the command line. This process only imports vLLM, which takes longer than most jobs. Each job runs in a
fork of it, so nothing that the adapter replaced, and nothing that vLLM keeps, reaches the next. If one fails, so does this process.

job: out       the file
     llm       arguments of vllm.LLM
     scheme    the value of SPECSAMPLE_VLLM; null = unset
     runner    "V2": vLLM's newer model runner, interpreted; taken from the first job
     repair    true: vLLM's own rejection sampler, with its broken CPU kernel repaired
     timed     true: "steps" = the seconds that each of V1's sampling or rejection steps took, in the last call
     spoil     true: drafts are verified as if drawn from a flatter law than they were, for controls
     calls     list of {prompts: [[ids]], params: [{SamplingParams}] or one for all}. limit: seconds it may take (900); may_fail: true
               for "error" in its place; name: its name in the log
-> {"calls": [[{"ids", "text", "logprobs"}] of each call, or {"error": ...}], "counters": {...}, "seconds": [...]}
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import time
import traceback

import interpreted

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
    """vLLM 0.32 and 0.33 on a CPU expand temperature, top-k and top-p to the rows in a copy that is discarded."""
    import torch
    from vllm.v1.sample import rejection_sampler

    def expand_batch_to_tokens(x, cu, count, replace_from=0, replace_to=0):
        each = torch.diff(cu, prepend=cu.new_zeros(1)).long()
        return x.masked_fill(x == replace_from, replace_to).repeat_interleave(each, output_size=count)

    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


@contextlib.contextmanager
def limited(name, seconds):
    """TimeoutError after this many seconds; if Python is stuck in a library, the process ends and prints its stack."""

    def late(*_):
        raise TimeoutError(f"{name} took more than {seconds} s")

    print(f"call: {name}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + 15, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def spoil():
    from specsample.integrations.vllm import v1, v2

    drafted, laws_of = v1.drafted, v2.laws_of

    def flatter(*args):
        tokens, laws = drafted(*args)
        return tokens, None if laws is None else laws / 2

    v1.drafted, v2.laws_of = flatter, lambda *args: laws_of(*args) / 2


def prepare(job):
    """Settings of the process that runs a job."""
    os.environ.pop("SPECSAMPLE_VLLM", None)
    if job.get("scheme"):
        os.environ["SPECSAMPLE_VLLM"] = job["scheme"]
    if job.get("runner") == "V2":
        interpreted.complete()
    if job.get("repair"):
        repair()
    if job.get("spoil"):
        spoil()


def forked(job, out):
    """Run a job in a fork. -> its exit code"""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            prepare(job)
            main(job, out)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def timed():
    """-> a list to which V1's runner adds the seconds of each step"""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    inner, steps = GPUModelRunner._sample, []

    def _sample(*args, **kwargs):
        begin = time.perf_counter()
        output = inner(*args, **kwargs)
        steps.append(time.perf_counter() - begin)
        return output

    GPUModelRunner._sample = _sample
    return steps


def main(job, out):
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.sampling_params import StructuredOutputsParams

    with limited("the engine's start", 300):
        llm = LLM(**job["llm"])
    result = {"calls": [], "seconds": [], "steps": timed() if job.get("timed") else []}
    for call in job["calls"]:
        count = len(call["prompts"])
        own = call["params"] if isinstance(call["params"], list) else [call["params"]] * count
        result["steps"].clear()
        start = time.perf_counter()
        try:
            with limited(call.get("name", "generate"), call.get("limit", 900)):
                params = [params_of(each, StructuredOutputsParams) for each in own]
                outputs = llm.generate([{"prompt_token_ids": ids} for ids in call["prompts"]], params, use_tqdm=False)
            kept = [plain(each.outputs[0]) for each in outputs]
        except Exception as error:
            if not call.get("may_fail"):
                raise
            kept = {"error": f"{type(error).__name__}: {error}"}
            # vLLM keeps a request whose step raised: every later call would wait for it.
            llm.llm_engine.abort_request(list(llm.llm_engine.output_processor.request_states), internal=True)
        result["seconds"].append(time.perf_counter() - start)
        result["calls"].append(kept)
    counted = [m for m in llm.get_metrics() if "spec_decode" in m.name or "preempt" in m.name]
    result["counters"] = {m.name: getattr(m, "value", None) for m in counted}
    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()
    with open(out + ".part", "w") as file:
        json.dump(result, file)
    os.replace(out + ".part", out)


def plain(output):
    kept = {"ids": list(output.token_ids), "text": output.text}
    if output.logprobs is not None:
        kept["logprobs"] = [{token: [p.logprob, p.rank] for token, p in place.items()} for place in output.logprobs]
    return kept


if __name__ == "__main__":
    for number, line in enumerate(sys.stdin):
        job = json.loads(line)
        if number == 0:
            if job.get("runner") == "V2":
                interpreted.enable()
            import vllm.entrypoints.llm  # noqa: F401
        code = forked(job, job.get("out") or sys.argv[1])
        if code:
            sys.exit(code)
