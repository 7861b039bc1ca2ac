"""The small draft model ("student") that goes with SmolLM2-135M-Instruct.

The student is a Llama with a few layers and the target's width.  Its file holds only those layers and the last norm: the
input and output embeddings are the target's own, shared in memory.  Its head is their first `head` rows, so its logits
are [..., head] with head < the target's vocabulary.  The ids of a BPE vocabulary are roughly ordered by frequency, so the
omitted rows carry little probability, and not reading them makes the student's call much cheaper.
The ids beyond the head have draft weight 0, which the acceptance rule handles like any other draft law.

The shipped file has its matrices in 4 bits per weight (distill/quantise.py): every GROUP weights of a row share a float16
scale, and a weight is its scale times one of -8..7, two to a byte, the even column in the low half.
"""

import copy
import json

import torch
from safetensors import safe_open
from torch import nn
from transformers import LlamaForCausalLM

GROUP = 32  # weights that share a scale


def new_student(target, layers, head):
    """A student with `layers` fresh layers that shares the embeddings of `target` and predicts the ids below `head`."""
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = layers
    config.tie_word_embeddings = False
    config.pad_token_id = None
    config.vocab_size = 1  # the student's own embeddings are dropped below, so make them small
    student = LlamaForCausalLM(config).to(target.device, target.dtype)
    embedding = target.get_input_embeddings()
    student.model.embed_tokens = embedding
    rows = embedding.weight.detach()[:head]  # a view: no second copy of the matrix
    student.lm_head = nn.Linear(rows.shape[1], head, bias=False, device="meta")
    student.lm_head.weight = nn.Parameter(rows, requires_grad=False)
    student.config.vocab_size = student.vocab_size = head  # the width of the logits; inputs may be any target id
    return student.eval()


def own_parameters(student):
    """The parameters that the student does not share with the target, by name."""
    shared = ("model.embed_tokens.", "lm_head.")
    return {name: value for name, value in student.named_parameters() if not name.startswith(shared)}


def best_scales(weights):
    """For groups float32 [rows, GROUP], the one of several scales with the least squared error for each: float16 [rows]"""
    largest = weights.gather(1, weights.abs().argmax(1, keepdim=True))  # signed, so that it can be -8 scales
    scales = (largest / torch.linspace(-9, -6, 25)).half()
    levels = levels_of(weights[:, None], scales.float()[..., None])
    error = (levels * scales.float()[..., None] - weights[:, None]).square().sum(-1)
    return scales.gather(1, error.argmin(1, keepdim=True))[:, 0]


def levels_of(weights, scale):
    """-8..7, the nearest multiples of a scale, float32; 0 if the scale is 0"""
    return (weights / scale.where(scale != 0, 1)).round().clamp(-8, 7) * (scale != 0)


def scaled(levels, scales):
    """The matrix, float32, from levels float32 [rows, columns] and scales float16 [rows, columns / GROUP]"""
    return (levels.unflatten(1, (-1, GROUP)) * scales.float()[..., None]).flatten(1)


def packed(levels):
    """Levels -8..7 [rows, columns] -> uint8 [rows, columns / 2]"""
    levels = (levels + 8).to(torch.uint8)
    return levels[:, ::2] | levels[:, 1::2] << 4


def unpacked(levels, scales):
    """The matrix, float32, from packed levels and scales float16 [rows, columns / GROUP]"""
    return scaled(torch.stack([levels & 15, levels >> 4], -1).flatten(1).float() - 8, scales)


def saved_parameters(student, quantised=None):
    """The contents of the student's file: bfloat16, or for matrices in `quantised` ({name: (packed levels, scales)}) those two"""
    tensors = {name: value.detach().to(torch.bfloat16) for name, value in own_parameters(student).items()}
    for name, (levels, scales) in (quantised or {}).items():
        tensors[name], tensors[f"{name}.scales"] = levels, scales
    return {name: value.contiguous() for name, value in tensors.items()}


def load_student(path, target, head=None):
    """The student saved at `path`, on the device and in the dtype of `target`, sharing its embeddings.

    `head` narrows or widens the vocabulary that it predicts; the default is the one that the student was trained for.
    """
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["student"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    scales = {name.removesuffix(".scales"): tensors.pop(name) for name in list(tensors) if name.endswith(".scales")}
    weights = {name: unpacked(value, scales[name]) if name in scales else value for name, value in tensors.items()}
    if facts["hidden_size"] != target.config.hidden_size:
        raise ValueError(f"{path} is for hidden size {facts['hidden_size']}, not {target.config.hidden_size}")
    student = new_student(target, facts["layers"], head or facts["head"])
    own = own_parameters(student)
    if own.keys() != weights.keys():
        raise ValueError(f"{path} does not hold the weights of a student: {sorted(own.keys() ^ weights.keys())[:3]}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])
    student.requires_grad_(False)
    return student
