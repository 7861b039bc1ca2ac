"""A subset of the random calls of tests/support/fuzz.py; `make fuzz` runs 100 000 of them."""

import contextlib

import cuda_on_cpu
import fuzz
import on_gpu
import pytest
from conftest import require

BACKENDS = ("cpu", *on_gpu.NAMES, cuda_on_cpu.NAME)
# For the emulator, in each part: threads of a crew, seed of their order, blocks per team, whether all rows are read ahead.
LAUNCHES = [(64,), (64, 1, 2, True), (32, 2, 4, False), (32, 3, 8, True)]


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_calls(backend, part):
    """No crash, no id outside [−1, V), and the reference's tokens."""
    require("cpu")  # the calls draft on it
    backend = require(backend)
    compared = 0
    calls = 75 if backend == cuda_on_cpu.NAME else 150
    emulated = cuda_on_cpu.launches(*LAUNCHES[part]) if backend == cuda_on_cpu.NAME else contextlib.nullcontext()
    with emulated:
        for index in range(calls * part, calls * (part + 1)):
            name, requests, differing = fuzz.run(seed=1, index=index, compare=True, backend=backend)
            assert differing == 0, (
                f"call {index} ({name}): python tests/support/fuzz.py --seed 1 --first {index} --calls 1 --compare 1"
            )
            compared += requests
    assert compared > calls / 2
