"""The tests that run only in `make test-all`, not in `make test`: marks for whole files and single tests, in one place.

build        compiles or packs: the extension, kernels for GPUs, sanitized builds
emulated     CUDA kernels on the CPU, Triton's interpreter
statistical  distributions from many draws
slow         takes more than about ten seconds per test, or checks what few changes can break
"""

import cuda_on_cpu
import pytest

FILES = {
    "build": (
        "test_build",
        "test_wheel",
        "test_cuda_compile",
        "test_machine_code",
        "test_triton_compile",
        "test_sanitizers",
        "test_one_library",
        "test_ptx_machine",
        "test_ptx_mistakes",
    ),
    "emulated": ("test_cuda_on_cpu", "test_teams", "test_triton", "test_ptx", "test_contraction"),
    "statistical": ("test_chi_square", "test_rounds", "test_tree_rounds"),
    "slow": (
        "test_gpu_run",
        "test_gpu_benchmarks",
        "test_benchmarks",
        "test_papers",
        "test_fuzz",
        "test_cache_layout",
        "test_wrapped_models",
        "test_transformers_patch",
        "test_transformers_settings",
    ),
}
TESTS = {  # file::function, or with its first parameter: file::function[cpu
    "build": (
        "test_documents::test_the_site_builds_without_warnings",
        "test_op_arguments::test_the_same_is_said_on_every_device",
    ),
    "statistical": (
        # Laws of 200 000 draws from the CPU's kernels, whose integers equal the reference's; the reference's own tests stay.
        "test_peer_bugs::test_bug_5_filters_of_the_draft[cpu",
        "test_peer_bugs::test_bug_5_dtype_of_the_draft[cpu",
        "test_peer_bugs::test_bug_5_the_draft_takes_the_targets_settings_by_default[cpu",
        "test_processors::test_the_law_is_the_processed_one",
        "test_transformers::test_law",
        "test_vllm_v1::test_drafts_cut_by_a_grammar_keep_the_law",
        "test_weighted::test_joint_law_over_two_rounds",
    ),
    "slow": (
        "test_acceptance::test_saved_logits_equal_the_models",
        "test_cli::test_expected_calls_are_what_decoding_takes",
        "test_generate_edges::test_draft_rows_without_a_finite_logit",
        "test_kept::test_compiled_calls_keep_nothing",
        "test_models::test_requests_one_by_one",
        "test_multi_draft::test_bad_data",
        "test_multi_draft::test_same_integers",
        "test_torch_integration::test_compile_reference",
        "test_torch_integration::test_compile_with_inductor",
        "test_tree_generate::test_greedy_with_drafts_of_another_vocabulary_or_dtype",
        "test_weighted::test_same_integers",
    ),
}


def mark(items):
    files = {stem: name for name, stems in FILES.items() for stem in stems}
    tests = {test: name for name, named in TESTS.items() for test in named}
    for item in items:
        name, _, parameters = item.name.partition("[")
        some = f"{item.path.stem}::{name}[{parameters.split('-')[0].rstrip(']')}"
        marks = {files.get(item.path.stem), tests.get(f"{item.path.stem}::{name}"), tests.get(some)}
        if cuda_on_cpu.NAME in getattr(getattr(item, "callspec", None), "params", {}).values():
            marks.add("emulated")
        for kind in marks - {None}:
            item.add_marker(getattr(pytest.mark, kind))
