"""Calls for the CUDA kernels on the PTX machine, and their comparison with the reference."""

import torch
from conftest import CHAIN_SCHEMES, case, same_as_reference
from ptx_machine import NAME
from trees import drafted_tree

import specsample as ss
from specsample import backends

NAMES = backends.BACKENDS["cuda"].schemes
KINDS = ("iid", "distinct", "arrivals", "lists", "top", "topk")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FILTERED = ss.Sampling(0.8, 700, 0.95, 0.001)
SAMPLINGS = (ss.Sampling(), FILTERED, ss.Sampling(1.2, top_p=0.9), ss.Sampling(0.0), ss.Sampling(min_p=0.01))


def args_of(scheme, requests, V, **settings):
    if scheme in CHAIN_SCHEMES:
        return case(requests, 4, V, scheme=scheme, **settings)
    return drafted_tree(requests, 3, 2, V, scheme, **settings)


def same(args, logprobs=None):
    return same_as_reference(args, NAME, logprobs)
