"""The small draft model ("student") that goes with SmolLM2-135M-Instruct.

The student is a Llama of a few layers and of the target's width.  Its file holds those layers and the last norm only:
the embeddings, in and out, are the target's own, shared in memory.  Its head is the first `head` rows of them, so its
logits are [..., head] with head < the target's vocabulary.  The ids of a BPE vocabulary are about in order of
frequency, so the rows left out carry little probability, and not reading them makes the student's call much cheaper.
The ids beyond the head have draft weight 0, which the acceptance rule treats like any other draft law.
"""

import copy
import json

import torch
from safetensors import safe_open
from torch import nn
from transformers import LlamaForCausalLM


def new_student(target, layers, head):
    """A student with `layers` fresh layers, sharing the embeddings of `target`, predicting the ids below `head`."""
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
    student.config.vocab_size = student.vocab_size = head  # the width of the logits; the inputs may be any target id
    return student.eval()


def own_parameters(student):
    """The parameters that the student does not share with the target, by name."""
    shared = ("model.embed_tokens.", "lm_head.")
    return {name: value for name, value in student.named_parameters() if not name.startswith(shared)}


def load_student(path, target, head=None):
    """The student saved at `path`, on the device and in the dtype of `target`, sharing the embeddings of `target`.

    `head` narrows or widens the vocabulary that it predicts; by default it is the one that the student was trained for.
    """
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["student"])
        weights = {name: file.get_tensor(name) for name in file.keys()}
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
