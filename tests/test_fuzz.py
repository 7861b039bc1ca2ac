"""A slice of the random calls of tests/fuzz.py; `make fuzz` runs 100 000 of them."""

import fuzz
import pytest
from conftest import require


@pytest.mark.parametrize("part", range(4))
def test_random_calls(part):
    """No crash, no id outside [−1, V), and the reference's tokens."""
    require("cpu")
    compared = 0
    for index in range(150 * part, 150 * (part + 1)):
        name, requests, differing = fuzz.run(seed=1, index=index, compare=True)
        assert differing == 0, f"call {index} ({name}): python tests/fuzz.py --seed 1 --first {index} --calls 1 --compare 1"
        compared += requests
    assert compared > 100
