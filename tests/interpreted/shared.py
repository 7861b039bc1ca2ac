"""Shared by the cases for the Triton kernels under Triton's interpreter. Every case runs with each tensor's extent guarded
(tests/support/triton_memory.py)."""

import pytest
import torch
from conftest import same_as_reference
from triton_memory import guarded

import specsample as ss

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SAMPLINGS = (
    ss.Sampling(),
    ss.Sampling(0.7, top_k=5),
    ss.Sampling(top_p=0.9),
    ss.Sampling(1.3, 50, 0.95, 0.02),
    ss.Sampling(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0, 3, 7]), torch.tensor([0.9, 0.8, 1.0]), min_p=0.05),
)


@pytest.fixture(autouse=True)
def extents():
    with guarded():
        yield


def odd_rows(width, like):
    """Rows with nothing finite, with one finite logit, with +inf, with NaN among others, and with a tie."""
    rows = like.clone()
    rows[0] = -torch.inf
    rows[1] = torch.nan
    rows[1, width // 2] = 1.0
    rows[2, :: max(1, width // 3)] = torch.inf
    rows[3, ::2] = torch.nan
    rows[4] = 0.0
    return rows


def same(args, logprobs=None):
    return same_as_reference(args, "triton", logprobs)


def few_bins(args):
    """The interpreter is slow on every tile of bins."""
    return args | ({"options": {"bins": 64}} if "bins" in ss.schemes()[args["scheme"]].options else {})
