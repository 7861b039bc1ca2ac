"""`python -m specsample acceptance`: acceptance on a text, from models and from saved logits."""

import json

import numpy as np
import pytest
import torch
from models import nearby, tiny_llama

import specsample as ss
from specsample import theory
from specsample.tools import acceptance, cli, pair

VOCAB, WIDER, KS = 16, 20, (1, 2, 4)
SETTINGS = (
    (ss.Sampling(), None),
    (ss.Sampling(0.7, top_k=9), ss.Sampling(1.3)),
    (ss.Sampling(0.8, top_p=0.8), ss.Sampling(0.8, min_p=0.1)),
    (ss.Sampling(0.0), ss.Sampling(1.0)),
)


def logits(positions=5, seed=0):
    """Target [T, 16] and draft [T, 20]: vocabularies of different widths."""
    generator = torch.Generator().manual_seed(seed)
    target = 2 * torch.randn(positions, VOCAB, generator=generator)
    noise = torch.randn(positions, VOCAB, generator=generator)
    return target, torch.cat([target + noise, torch.randn(positions, WIDER - VOCAB, generator=generator)], 1)


@pytest.mark.parametrize("sampling, draft_sampling", SETTINGS)
def test_the_means_are_those_of_theory(sampling, draft_sampling):
    """Against softmax, the reference's filters and theory's single formulas, for any chunk size."""
    target, draft = logits()
    curves = acceptance.node_acceptance(zip(target.split(2), draft.split(2)), 5, KS, sampling, draft_sampling)
    own = sampling if draft_sampling is None else draft_sampling
    t = ss.log_probs(target, sampling=sampling, backend="reference").double().exp()
    d = ss.log_probs(draft, sampling=own, backend="reference").double().exp()
    t = torch.nn.functional.pad(t, (0, WIDER - VOCAB))
    t, d = (x / x.sum(-1, keepdim=True) for x in (t, d))
    for scheme, (value, error) in curves.items():
        assert value.shape == (5, 3) and (error == 0).all()  # this vocabulary is small enough to enumerate
        for i, k in enumerate(KS):
            if scheme in ("token", "block") and k > 1:
                assert np.isnan(value[:, i]).all()
                continue
            single = theory.acceptance(t, d, k, "optimal" if scheme == "optimum" else scheme)
            tolerance = 0.02 if scheme.startswith("optimal") else 1e-6  # the scheme's bins, coarse for 20 tokens
            assert np.abs(value[:, i] - single).max() < tolerance, (scheme, k)
    if draft_sampling is None:  # negative control: the draft's own temperature matters
        other = acceptance.node_acceptance([(target, draft)], 5, KS, sampling, ss.Sampling(2.0))
        assert np.abs(other["token"].value - curves["token"].value)[:, 0].max() > 0.01


class Tokenizer:
    """One token per character; chats are just the text."""

    def __call__(self, text, return_tensors=None, add_special_tokens=False):
        return type("Encoded", (), {"input_ids": torch.tensor([[ord(c) % 60 for c in text]])})


@pytest.fixture
def models(monkeypatch):
    target = tiny_llama(1, dtype=torch.float32)
    both = pair.Pair(target, nearby(target, 1.0, 2), Tokenizer(), "tiny", None)
    monkeypatch.setattr(acceptance, "load_pair", lambda *names: both)
    return both


def test_saved_logits_equal_the_models(models, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Some text of no importance, in which there are more than sixty-four characters to be read.")
    ids = Tokenizer()(text.read_text()).input_ids[0, :70]
    with torch.no_grad():
        whole = {name: getattr(models, name)(ids[None]).logits[0] for name in ("target", "draft")}
    chunked = torch.cat(list(pair.logits_of(models.target, ids, chunk=16)))
    assert (chunked - whole["target"]).abs().max() < 1e-4
    files = [tmp_path / name for name in ("x.npz", "x.pt", "pair.pt", "x.safetensors")]
    np.savez(files[0], **{name: x.numpy() for name, x in whole.items()})
    torch.save(whole, files[1])
    torch.save((whole["target"], whole["draft"]), files[2])
    from safetensors.torch import save_file

    save_file(whole, files[3])
    settings = ["--positions", "70", "-k", "1", "3", "--temperature", "0.9", "--draft-top-k", "20", "--json"]
    results = []
    for file in files:
        for found, name in zip(acceptance.read_logits(file), ("target", "draft")):
            assert torch.equal(found, whole[name])
    for source in ([str(text)], ["--logits", str(files[0])]):
        assert cli.main(["acceptance", *source, *settings, str(tmp_path / "out.json")]) == 0
        results.append(json.loads((tmp_path / "out.json").read_text()))
        table = capsys.readouterr().out
        assert "70 positions" in table and "target at T = 0.9, draft at T = 0.9, top_k 20" in table
    first = results[0]
    assert first["draft_sampling"] == {"temperature": 0.9, "top_k": 20, "top_p": 1.0, "min_p": 0.0}
    assert set(first["acceptance"]) == {*theory.FORMULAS, "optimum"} and first["k"] == [1, 3]
    for scheme, values in first["acceptance"].items():
        assert results[1]["acceptance"][scheme] == pytest.approx(values, abs=1e-4)
    rows = {line[2:22].strip(): line[22:].split() for line in table.splitlines()}
    assert rows["token"] == [f"{first['acceptance']['token'][0]:.4f}", "-"]
    assert rows["race"][1] == f"{first['acceptance']['race'][1]:.4f}"


def save(path, **arrays):
    np.savez(path, **arrays)
    return ["--logits", str(path)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda p: [], "text: expected a text file, or --logits"),
        (lambda p: [str(p / "none.txt")], "none.txt"),
        (lambda p: ["--logits", str(p / "none.npz")], "--logits: cannot read"),
        (lambda p: [str(p), *save(p / "x.npz", target=np.ones((2, 3)), draft=np.ones((2, 3)))], "no text and no models"),
        (lambda p: save(p / "x.npz", target=np.ones((2, 3))), "--logits: expected arrays named target and draft, got target"),
        (lambda p: save(p / "x.npz", target=np.ones((2, 3)), draft=np.ones((4, 3))), "--logits draft: expected T = 2"),
        (lambda p: save(p / "x.npz", target=np.ones(3), draft=np.ones((4, 3))), "--logits target: expected floats"),
        (lambda p: save(p / "x.npz", target=np.ones((2, 3)), draft=np.full((2, 3), -np.inf)), "draft logits: expected a finite"),
        (lambda p: [*save(p / "x.npz", target=np.ones((2, 3)), draft=np.ones((2, 3))), "--top-p", "2"], "top_p: expected"),
    ],
)
def test_bad_input_is_named(arguments, message, tmp_path, capsys):
    assert cli.main(["acceptance", *arguments(tmp_path)]) == 1
    error = capsys.readouterr().err.split("\r")[-1]  # after the progress bar
    assert error.startswith("specsample acceptance: ") and message in error and error.count("\n") == 1


def test_a_pair_is_named_in_full():
    with pytest.raises(ValueError, match="target and draft: expected both or neither"):
        pair.load_pair(target="somewhere")


def bytes_tokenizer(order):
    """A tokenizer of single bytes, numbered in this order."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[::order]
    fast = Fast(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=fast)


def test_pairs_by_path(tmp_path, capsys):
    """Two models saved on disk, by the command; models that number their tokens differently are refused."""
    target = tiny_llama(1, vocab=256, dtype=torch.float32)
    for name, model, order in (("target", target, 1), ("draft", nearby(target, 1.0, 2), 1), ("other", target, -1)):
        model.save_pretrained(tmp_path / name)
        bytes_tokenizer(order).save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_text("A short text, nothing more.")
    arguments = ["acceptance", str(tmp_path / "text.txt"), "-k", "2", "--positions", "9", "--target", str(tmp_path / "target")]
    assert cli.main([*arguments, "--draft", str(tmp_path / "draft")]) == 0
    assert "9 positions" in capsys.readouterr().out
    found = pair.load_pair(str(tmp_path / "target"), str(tmp_path / "draft"))
    assert found.encode("abc").shape == (1, 3)
    assert cli.main([*arguments, "--draft", str(tmp_path / "other")]) == 1
    assert "draft: expected a model with the tokens of" in capsys.readouterr().err
