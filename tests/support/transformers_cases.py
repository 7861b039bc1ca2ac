"""Shared by the tests of the transformers adapter: models, inputs, and tokens drawn with it."""

import pytest
import torch
from models import nearby, prompts, tiny_llama

import specsample as ss

transformers = pytest.importorskip("transformers")


from transformers.generation import candidate_generator  # noqa: E402, F401 (for those who import it from here)
from transformers.generation import utils as generation  # noqa: E402, F401

from specsample.integrations import transformers as adapter  # noqa: E402

FIVE = int(transformers.__version__.split(".")[0]) >= 5
LENGTHS, NEW, EOS, PAD = [6, 3, 6], 12, 5, 7
OURS = {"custom_generate": adapter.generate}
LAW = {"do_sample": True, "top_k": 0}  # the model's own law: top_k is 50 by default
tf = transformers


@pytest.fixture(scope="module")
def small():
    """A target and a draft over six tokens, for tests of distributions."""
    target = tiny_llama(3, vocab=6, dtype=torch.float32, sharpness=4.0)
    return target, nearby(target, 0.8, 4)


def inputs(lengths=LENGTHS, vocab=60):
    ids, mask = prompts(lengths, vocab)
    return {"input_ids": torch.where(mask > 0, ids, PAD), "attention_mask": mask, "pad_token_id": PAD}


def same_texts(a, b):
    """Whether texts are equal up to padding at the end."""
    width = max(a.shape[1], b.shape[1])
    a, b = (torch.nn.functional.pad(x, (0, width - x.shape[1]), value=PAD) for x in (a, b))
    return torch.equal(a, b)


@torch.no_grad()
def two_tokens(model, prompt, **filters):
    """The law of the first two tokens after prompt int64 [1, W]: float64 [V·V]"""
    law = ss.Sampling(**filters)
    first = ss.log_probs(model(prompt).logits[:, -1].float(), sampling=law, backend="reference").exp()[0]
    texts = torch.cat([prompt.expand(len(first), -1), torch.arange(len(first))[:, None]], 1)
    second = ss.log_probs(model(texts).logits[:, -1].float(), sampling=law, backend="reference").exp()
    return (first[:, None] * second).flatten()


def drawn(model, prompt, **given):
    """The first two tokens of 10 000 texts, each pair as one number."""
    given |= {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 3, "num_return_sequences": 2500}
    texts = torch.cat([model.generate(prompt, **given, seed=2500 * i) for i in range(4)])[:, prompt.shape[1] :]
    return texts[:, 0] * 6 + texts[:, 1]
