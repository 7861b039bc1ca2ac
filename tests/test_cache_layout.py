"""The layout of every cache, in every call: the distance between slots is the distance between their tokens (decoding/cache.py).

Windowed models address a cache by its slots. So their greedy texts must be those of transformers, `race` must be plain sampling,
and a request must have the same tokens in a batch as alone, whatever the drafts' shape and drafter.
"""

import pytest
import torch
from models import nearby, prompts
from windows import WindowModel

import specsample as ss

GREEDY = ss.Sampling(temperature=0.0)
LENGTHS = [5, 2, 9, 1]
NEW = 14
BUSHY = [-1, 0, 0, -1, 3, 1, 1, 3, -1]
SHAPES = {
    "chain": {"depth": 4}, "one": {"depth": 1}, "paths": {"paths": 3, "depth": 3}, "bushy": {"tree": BUSHY}, "budget": {"tree": 7},
}  # fmt: skip
SEEDS = {"chain": 21}  # seeds under which every hard case of the layout occurs


class Sometimes:
    """A custom drafter: a fork, a chain, one token or nothing, by round and by request."""

    def __init__(self, trees):
        self.trees, self.round = trees, 0

    def propose(self, prefixes, shape, round):
        self.round += 1
        tokens, parents = [], []
        for b, prefix in enumerate(prefixes):
            kind, first = (self.round + b) % 4, int(prefix.sum() + b) % 24
            tokens.append([[first, (first + 1) % 24, 3], [first, 3, -1], [first, -1, -1], [-1, -1, -1]][kind])
            parents.append([-1, -1, 0] if self.trees and kind == 0 else [-1, 0, 1])
        return ss.Proposal(torch.tensor(tokens), parents if self.trees else None)

    def commit(self, tokens):
        pass


def alone_and_together(target, make, vocab=24, new=NEW, seed=20, **settings):
    """Assert that each request has the same tokens in a batch as alone. -> the batch's"""
    ids, mask = prompts(LENGTHS, vocab)
    settings = {"max_new_tokens": new, "eos_token_id": [7, 11], **settings}
    together = ss.generate(target, make(), ids, attention_mask=mask, seed=seed, **settings)[:, ids.shape[1] :]
    for b, n in enumerate(LENGTHS):
        alone = ss.generate(target, make(), ids[b : b + 1, -n:], seed=seed + b, **settings)[0, n:]
        assert together[b, : len(alone)].tolist() == alone.tolist()
    return together


@pytest.mark.parametrize("shape", SHAPES)
def test_model_drafts(shape):
    """Target and draft address by slots; both assert the invariant in each call; the drafts' law is that of the request alone."""
    schemes = {"chain": ["token", "block", "race"], "one": ["token"], "budget": ["race"]}.get(shape, ["optimal", "top", "race"])
    for scheme in schemes:
        target, draft = WindowModel(1), WindowModel(1, noise=1.0)
        for eos in ([7, 11], [])[: 1 + (scheme == schemes[0])]:
            settings = {"scheme": scheme, "eos_token_id": eos, "seed": SEEDS.get(shape, 20), **SHAPES[shape]}
            new = alone_and_together(target, lambda: draft, **settings)
            if scheme == "race":
                assert torch.equal(new, alone_and_together(target, lambda: None, eos_token_id=eos, seed=settings["seed"]))
        # The hard cases of the layout did occur.
        assert target.seen["left"] and target.seen["right"] and target.seen["several"]
        assert draft.seen["left"] and draft.seen["several"]


@pytest.mark.parametrize("trees", [False, True])
def test_own_drafts_of_some_requests(trees):
    target = WindowModel(1, scale=0.7)
    plain = alone_and_together(target, lambda: None)
    together = alone_and_together(target, lambda: Sometimes(trees), scheme="race")
    assert torch.equal(together, plain)
    assert target.seen["left"] and target.seen["right"] and target.seen["several"]


@pytest.mark.parametrize("models", ["two", "three"])
def test_a_windowed_model_for_each_path(models):
    target, drafts = WindowModel(1), [WindowModel(1, noise=noise) for noise in (0.5, 1.0, 2.0)]
    drafts = drafts[: 2 if models == "two" else 3]
    for scheme in ("weighted", "race"):
        alone_and_together(target, lambda: drafts, scheme=scheme, depth=3)
    assert all(draft.seen["left"] and draft.seen["several"] for draft in drafts)


def test_the_invariant_can_fail():
    """The assertion detects a gap inside, a gap between cached and new tokens, and a wrong order."""
    model, slots = WindowModel(0), torch.arange(6)
    for used, positions in (
        ([0, 1, 1, 0, 1, 1], [0, 0, 1, 0, 2, 3]), ([0, 1, 1, 1, 1, 1], [0, 0, 1, 3, 2, 4]), ([1] * 6, [0, 1, 2, 2, 3, 4]),
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            model.check(torch.tensor([used]) > 0, torch.tensor([positions]), 2)
    model.check(torch.tensor([[0, 1, 1, 1, 1, 0]]) > 0, (slots - 1)[None], 2)


# -- models of transformers whose windows are shorter than the text --------------------------------------------

SIZES = dict(
    vocab_size=60, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
WINDOWED = {
    "Mistral": {"sliding_window": 4},
    "Gemma3": {"sliding_window": 4, "head_dim": 8, **MIXED},
    "Phi3": {"sliding_window": 4},
    "Olmo3": {"sliding_window": 4, **MIXED},
    "Exaone4": {"sliding_window": 4, **MIXED},
    "Starcoder2": {"sliding_window": 4},
}


def windowed(name, seed=0):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, name + ("TextConfig" if name == "Gemma3" else "Config"))(**SIZES, **WINDOWED[name])
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).double().eval()
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.data = torch.randn_like(weight) * (1.5 / weight.shape[-1] ** 0.5)
    return model


@pytest.mark.parametrize("name", WINDOWED)
def test_windowed_models_of_transformers(name):
    target = windowed(name)
    ids, mask = prompts([7, 3, 9])
    expected = target.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    draft, settings = nearby(target, 0.5, 1), {"attention_mask": mask, "max_new_tokens": 12, "scheme": "race"}
    for drafter, shape in ((draft, {"depth": 3}), (draft, {"paths": 2, "depth": 3}), (Sometimes(True), {})):
        assert torch.equal(ss.generate(target, drafter, ids, sampling=GREEDY, **settings, **shape), expected)
    plain = ss.generate(target, None, ids, seed=3, **settings)
    assert torch.equal(ss.generate(target, draft, ids, seed=3, tree=5, **settings), plain)
    alone_and_together(target, lambda: draft, 60, 12, depth=3)
