"""A target, its draft model and their tokenizer: the demo's pair, or any other by name or path."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..decoding import Prefixes
from ..decoding.cache import CachedModel
from ..errors import expect


class Pair(NamedTuple):
    """A pair of models on the CPU."""

    target: Any
    draft: Any
    tokenizer: Any
    name: str
    encode: Callable  # a question -> its prompt, int64 [1, W]


def load_pair(target=None, draft=None, dtype=torch.float32):
    """-> Pair

    target, draft: hub names or paths of transformers causal LMs that share a tokenizer; if both are None, the demo's pair,
    SmolLM2-135M-Instruct and the student in the source tree. dtype: of both models. ValueError if only one is given
    or the two do not tokenize a text identically, ImportError naming a missing package.
    """
    expect((target is None) == (draft is None), "target and draft", "both or neither", "one of them")
    if target is None:
        return _demo_pair(dtype)
    need("transformers", "tqdm")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, other = (_load(AutoTokenizer, *of) for of in ((target, "target"), (draft, "draft")))
    same = "The quick brown fox, 1234 + 5678 = ?\n\tna\u00efve \u4e2d\u6587"
    expect(tokenizer(same).input_ids == other(same).input_ids, "draft", f"a model with the tokens of {target}", draft)
    models = [_load(AutoModelForCausalLM, *of, dtype=dtype).eval() for of in ((target, "target"), (draft, "draft"))]

    def encode(question):
        if getattr(tokenizer, "chat_template", None):
            question = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
            )
            return tokenizer(question, return_tensors="pt", add_special_tokens=False).input_ids
        return tokenizer(question, return_tensors="pt").input_ids

    return Pair(*models, tokenizer, f"{target} and {draft}", encode)


def _load(kind, name, argument, **settings):
    """kind.from_pretrained(name), or a one-line ValueError."""
    path = Path(name)
    if path.is_absolute() or name.startswith("."):
        expected = "a folder with a model of transformers, or a name on a hub"
        expect(path.is_dir(), argument, expected, f"{name}, which is no folder")
    try:
        return kind.from_pretrained(name, **settings)
    except (OSError, ValueError) as error:  # no such model, no network, or not this kind of file
        what = " ".join(str(error).split())
        raise ValueError(f"{argument}: cannot load {name}: {what[:300]}") from error


def _demo_pair(dtype):
    from . import demo

    missing = [name for name in demo.NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"the demo's models need {', '.join(missing)}: {demo.INSTALL}")
    from tqdm import tqdm

    parts = demo.load(tqdm)
    expect(parts.student is not None, "draft", "a model", f"none: {parts.why_no_student}")
    name = "SmolLM2-135M-Instruct and its 3-layer student"
    models = parts.target.to(dtype), parts.student.to(dtype)
    return Pair(*models, parts.tokenizer, name, lambda text: demo.encode(parts.tokenizer, text))


def need(*packages):
    """Raise ImportError with the command that installs the missing packages."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'missing {", ".join(missing)}: pip install "specsample[demo,theory]"')


@torch.no_grad()
def logits_of(model, tokens, chunk=64):
    """Logits after each of tokens int64 [T], at most `chunk` rows at a time: yields [n, V]"""
    read, tokens = CachedModel(model, 1, tokens.device), tokens[None]
    for begin in range(0, tokens.shape[1], chunk):
        yield read(Prefixes(tokens, torch.tensor([begin + 1])), tokens[:, begin + 1 : begin + chunk])[0]
