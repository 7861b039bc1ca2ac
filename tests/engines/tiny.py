"""Tiny random Llamas with a tokenizer, as folders that vLLM can load: `make(folder)`.

target   two layers, 512 tokens, with laws that are neither flat nor certain
student  the target with noise on its weights: it agrees often
eagle    a one-layer head on the target's hidden states, for vLLM's method "eagle": it agrees now and then
The prompts of the tests are ids; the tokenizer (one word per id) is needed for the server and for grammars.
"""

import json
from pathlib import Path

import torch

VOCAB, EOS = 512, 511
SHARPNESS = 20.0  # of the output head: about a dozen tokens share most of a law's mass
CHARACTERS = [chr(c) for c in range(33, 127)]


def config(layers=2, vocab=VOCAB):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2,
        head_dim=32, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=510, eos_token_id=EOS, pad_token_id=EOS,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip


def target(vocab=VOCAB):
    from transformers import LlamaForCausalLM

    torch.manual_seed(7)
    model = LlamaForCausalLM(config(vocab=vocab)).float().eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                weights.normal_(0, weights.shape[1] ** -0.5)
        model.lm_head.weight.mul_(SHARPNESS / 8)
    return model


def student(noise=0.08, vocab=VOCAB):
    model = target(vocab)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                spread = weights.std()
                weights.add_(noise * spread * torch.randn(weights.shape, generator=generator))
    return model


def tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = CHARACTERS + [f"<{i}>" for i in range(len(CHARACTERS), 510)] + ["<s>", "</s>"]
    words[len(CHARACTERS)] = " "
    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>"))
    built.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    built.decoder = decoders.Fuse()
    built.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    own["chat_template"] = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(own))


def eagle(folder):
    """Write the head: it passes on little but the last hidden state, so its law is close to that of the previous token."""
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    torch.manual_seed(13)
    weights = LlamaForCausalLM(config(1)).float().state_dict()
    own = {
        name.removeprefix("model."): value for name, value in weights.items() if "layers." in name and "input_layernorm" not in name
    }
    own["fc.weight"] = torch.cat([0.05 * torch.randn(64, 64), torch.eye(64)], 1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(own, folder / "model.safetensors", {"format": "pt"})
    config(1).save_pretrained(folder)


def make(folder):
    """Write the models; -> their paths"""
    paths = []
    for name, model in (("target", target()), ("student", student())):
        path = Path(folder) / name
        path.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(path)
        tokenizer(path)
        paths.append(str(path))
    eagle(Path(folder) / "eagle")
    return [*paths, str(Path(folder) / "eagle")]
