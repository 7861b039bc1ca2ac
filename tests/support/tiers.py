"""What `make test` leaves to `make test-all`: marks of whole files and of single tests, in one place.

build        compiles or packs: the extension, kernels for GPUs, sanitized builds
emulated     CUDA kernels on the CPU, Triton's interpreter
statistical  laws by many draws
slow         takes more than about ten seconds a test, or asks what few changes can break
"""

import cuda_on_cpu
import pytest

FILES = {
    "build": (
        "test_build",
        "test_wheel",
        "test_cuda_compile",
        "test_triton_compile",
        "test_sanitizers",
        "test_one_library",
        "test_ptx_machine",
    ),
    "emulated": ("test_cuda_on_cpu", "test_teams", "test_triton", "test_ptx"),
    "statistical": ("test_chi_square", "test_rounds", "test_tree_rounds"),
    "slow": (
        "test_gpu_run",
        "test_gpu_benchmarks",
        "test_benchmarks",
        "test_papers",
        "test_fuzz",
        "test_cache_layout",
        "test_wrapped_models",
    ),
}
TESTS = {  # file::function
    "slow": (
        "test_cli::test_expected_calls_are_what_decoding_takes",
        "test_models::test_requests_one_by_one",
        "test_multi_draft::test_bad_data",
        "test_multi_draft::test_same_integers",
        "test_torch_integration::test_compile_reference",
        "test_torch_integration::test_compile_with_inductor",
    ),
}


def mark(items):
    files = {stem: name for name, stems in FILES.items() for stem in stems}
    tests = {test: name for name, named in TESTS.items() for test in named}
    for item in items:
        marks = {files.get(item.path.stem), tests.get(f"{item.path.stem}::{getattr(item, 'originalname', item.name)}")}
        if cuda_on_cpu.NAME in getattr(getattr(item, "callspec", None), "params", {}).values():
            marks.add("emulated")
        for name in marks - {None}:
            item.add_marker(getattr(pytest.mark, name))
