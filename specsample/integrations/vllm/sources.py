"""Digests of the functions of vLLM that the adapter replaces, imitates or relies on, for each version it was written against.

`python -m specsample.integrations.vllm.sources FOLDER` prints the digests of the vLLM in FOLDER (site-packages, or an unpacked
wheel), without importing it: the column to add for a new version, once these functions have been read.
"""

import ast
import functools
import hashlib
import sys
from pathlib import Path

VERSIONS = ("0.32.0", "0.33.0")

# file, function or class: digest in each version
TABLE = """
sampling_params.py SamplingParams._validate_spec_decode c71eb2ada7 c71eb2ada7
v1/worker/gpu_model_runner.py GPUModelRunner._sample 06abeb280b 06abeb280b
v1/worker/gpu_model_runner.py GPUModelRunner._get_spec_decode_draft_probs 21caceeb19 21caceeb19
v1/worker/gpu_model_runner.py GPUModelRunner.propose_draft_token_ids e3b08a3c61 f608ef280c
v1/worker/gpu_model_runner.py GPUModelRunner.sample_tokens a67885e781 a67885e781
v1/worker/gpu_model_runner.py GPUModelRunner._copy_draft_token_ids_to_cpu 55c0ebb0e1 55c0ebb0e1
v1/worker/gpu_input_batch.py InputBatch.refresh_metadata b47bae2a81 b47bae2a81
v1/worker/gpu_input_batch.py InputBatch._make_sampling_metadata 4850c13117 4850c13117
v1/worker/gpu_input_batch.py InputBatch.update_async_output_token_ids 5608ea2cbf 5608ea2cbf
v1/worker/gpu_input_batch.py InputBatch.update_async_spec_token_ids 2758b7110c 2758b7110c
v1/sample/metadata.py SamplingMetadata d7ab1b2855 d7ab1b2855
v1/spec_decode/metadata.py SpecDecodeMetadata 1c095ba096 1c095ba096
v1/sample/sampler.py Sampler 5057789a84 78f1c52ba1
v1/sample/rejection_sampler.py RejectionSampler 57aae91550 656ca2e0f3
v1/sample/thinking_budget_state.py ThinkingBudgetStateHolder.update_state 12d5243c1f 12d5243c1f
v1/sample/thinking_budget_state.py ThinkingBudgetStateHolder.apply_to_logits 2d7ec619c0 2d7ec619c0
v1/sample/logits_processor/builtin.py MinPLogitsProcessor b659bf2dad b659bf2dad
v1/sample/logits_processor/builtin.py LogitBiasLogitsProcessor 1724dcbf71 1724dcbf71
v1/sample/logits_processor/builtin.py MinTokensLogitsProcessor 05dd7107dc 05dd7107dc
v1/spec_decode/llm_base_proposer.py SpecDecodeBaseProposer._sample_from_logits 14479c3776 14479c3776
v1/spec_decode/llm_base_proposer.py SpecDecodeBaseProposer._sample_draft_tokens e84fd9018a e84fd9018a
v1/spec_decode/llm_base_proposer.py SpecDecodeBaseProposer.propose bb216f291c bb216f291c
v1/spec_decode/llm_base_proposer.py compute_probs_and_sample_next_token df77fe0ad2 df77fe0ad2
v1/worker/gpu/sample/sampler.py Sampler cce9e27aff 6f8ce72785
v1/worker/gpu/sample/states.py SamplingStates 0ad06c3423 1565c26b39
v1/worker/gpu/sample/gumbel.py gumbel_sample 9c3774b974 9c3774b974
v1/worker/gpu/sample/gumbel.py gumbel_block_argmax 814416d053 84fbaee1a2
v1/worker/gpu/spec_decode/rejection_sampler.py RejectionSampler 8096622ca8 3dc725b0e3
v1/worker/gpu/spec_decode/rejection_sampler_utils.py rejection_sample 5b873b147d 88df90015d
v1/worker/gpu/spec_decode/speculator.py DraftModelSpeculator.__init__ 9c89b3dfc9 d63c71e0ff
v1/worker/gpu/spec_decode/speculator.py DraftModelSpeculator.draft_logits_spec 2c9168f4f1 2c9168f4f1
v1/worker/gpu/spec_decode/speculator.py DraftModelSpeculator.sample_draft fd8cc8ad75 f19bea23d3
"""


def entries():
    """[(file, function, (digest of each version))]"""
    for line in TABLE.split("\n"):
        if line:
            file, function, *digests = line.split()
            yield file, function, tuple(digests)


@functools.lru_cache(maxsize=64)
def _parsed(path):
    text = Path(path).read_text()
    return ast.parse(text), text.splitlines()


def digest(package, file, function):
    """Digest of the function's source without white space, independent of the version of Python; "-" if there is none."""
    path = Path(package) / file
    if not path.exists():
        return "-"
    node, lines = _parsed(str(path))
    for name in function.split("."):
        node = next((n for n in node.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name), None)
        if node is None:
            return "-"
    text = "".join("".join(lines[node.lineno - 1 : node.end_lineno]).split())
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def unknown(package, version):
    """What differs in `package` from that version as it was read: ["file: function"]"""
    column = VERSIONS.index(version)
    return [f"{file}: {name}" for file, name, known in entries() if digest(package, file, name) != known[column]]


if __name__ == "__main__":
    for file, name, _ in entries():
        print(file, name, digest(Path(sys.argv[1]) / "vllm", file, name))
