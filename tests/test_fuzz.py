"""A slice of the random calls of tests/fuzz.py; `make fuzz` runs 100 000 of them."""

import cuda_on_cpu
import fuzz
import on_gpu
import pytest
from conftest import require

BACKENDS = ("cpu", *on_gpu.NAMES, cuda_on_cpu.NAME)


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_calls(backend, part):
    """No crash, no id outside [−1, V), and the reference's tokens."""
    require("cpu")  # the calls draft on it
    backend = require(backend)
    compared = 0
    calls = 75 if backend == cuda_on_cpu.NAME else 150
    for index in range(calls * part, calls * (part + 1)):
        name, requests, differing = fuzz.run(seed=1, index=index, compare=True, backend=backend)
        assert differing == 0, f"call {index} ({name}): python tests/fuzz.py --seed 1 --first {index} --calls 1 --compare 1"
        compared += requests
    assert compared > calls / 2
