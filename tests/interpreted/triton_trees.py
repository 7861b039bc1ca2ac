"""Trees: the same integers as the reference, for every scheme that supports them; controls that must differ."""

import importlib
import itertools

import cold_laws
import pytest
import torch
import triton.language as tl
from conftest import case, identical, numbers, packed
from shared import DTYPES, few_bins, same
from trees import drafted_tree, drawn_tree

import specsample as ss
from specsample.triton import SUPPORTED

pytest_plugins = ["shared"]


def test_race_on_trees():
    """Siblings, equal siblings that are entered together, a node whose parent is missing, and less depth than nodes."""
    target = numbers(6, 8, 6, seed=12)
    parents = torch.tensor([-1, -1, 0, 1, 1, 3, 2])
    at = {"seed": 5, "position": 100, "scheme": "race"}
    winners = torch.stack([ss.sample(target[:, 0], seed=5, position=100)] * 2, 1)
    below = [ss.sample(target[:, i], seed=5, position=101) for i in (1, 1, 2)]
    tokens = torch.cat([winners, torch.stack(below, 1), torch.randint(6, (6, 2))], 1)
    tokens[4, 0], tokens[5, 1] = -1, 3
    verdict = same({"target_logits": target, "draft_tokens": tokens, "parents": parents, **at}, "raw")
    assert int(verdict.num_accepted.max()) >= 2
    same({"target_logits": target, "draft_tokens": tokens, "parents": parents, "max_depth": 1, **at})


TREES = [scheme for scheme in SUPPORTED if ss.schemes()[scheme].trees]
MULTI = [scheme for scheme in TREES if ss.schemes()[scheme].family == "multi-draft"]


@pytest.mark.parametrize("scheme", TREES)
def test_trees(scheme):
    """Paths of tokens drawn from the draft's laws, some near the target's and some not; some requests are greedy."""
    accepted = 0
    mixed = ss.Sampling(torch.tensor([1.0, 0.0, 0.7]), 20, 0.95)
    for i, (k, depth, V, noise) in enumerate(((2, 2, 7, 0.5), (3, 2, 40, 0.0), (4, 1, 300, 2.0))):
        other = {"dtype": DTYPES[i], "noise": noise, "sampling": (mixed, None, ss.Sampling(0.8))[i]}
        args = few_bins(drafted_tree(3, k, depth, V, scheme, draft_vocab=(None, 43, 250)[i], **other))
        accepted += int(same(args, ("raw", None, "filtered")[i]).num_accepted.sum())
    assert 3 <= accepted <= 14


@pytest.mark.parametrize("scheme", ["kseq", "optimal", "optimal_block"])
def test_default_bins(scheme):
    """More than one tile of bins, a tail, and more draws than usual."""
    same(drafted_tree(1, 3, 1, 2100, scheme, seed=1))
    same(few_bins(drafted_tree(1, 9, 1, 60, scheme, seed=2, noise=2.0)))


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_more_nodes_than_are_looked_at_together(monkeypatch, scheme):
    """Several requests in one call, some with few nodes; the limit is lowered to two."""
    for name in ("tree", "token", "block", "race", "call"):
        monkeypatch.setattr(importlib.import_module(f"specsample.triton.{name}"), "FEW", tl.constexpr(2))
    if scheme in ("token", "block"):
        calls = [case(1, n, 5, scheme=scheme, seed=9 + n, noise=0.2) for n in (3, 1)]
    else:
        calls = [drafted_tree(1, k, depth, 5, scheme, seed=3, noise=0.2) for k, depth in ((3, 2), (1, 1))]
    for args in calls:
        nodes = args["draft_tokens"].shape[1]
        same(few_bins(args))
        args |= {"position": torch.tensor([50]), "parents": torch.tensor(args.get("parents", range(-1, nodes - 1)))}
        # packed: one row per node; unused rows are left as they are
        for name, rows in (("target_logits", nodes + 1), ("draft_logits", nodes)):
            args[name] = torch.nn.functional.pad(args[name], (0, 0, 0, rows - args[name].shape[1]))
    both = packed(calls) | {name: torch.cat([c[name] for c in calls]) for name in ("parents",)} | {"max_depth": 3}
    if "rows" in calls[0]:
        both |= {name: torch.tensor([x for c in calls for x in c[name]]) for name in ("rows", "draft_rows")}
    same(few_bins(both))


@pytest.mark.parametrize("scheme", MULTI)
def test_odd_trees(scheme):
    """Missing nodes, rows that are broken or share all mass, certain laws, a missing row of drafts."""
    args = few_bins(drafted_tree(6, 2, 2, 9, scheme, seed=3))
    tokens, target, draft = args["draft_tokens"].clone(), args["target_logits"].clone(), args["draft_logits"].clone()
    tokens[0, 0], tokens[1, 2], tokens[2, 1] = -1, 9, -5
    target[3, 0, ::2], target[4, 1], target[5, 0] = torch.inf, -torch.inf, torch.nan
    target[5, 0, 4] = 0.0
    draft[1, 1], draft[3, 0, 1:], draft[4, 0, :3] = -torch.inf, -torch.inf, torch.inf
    odd = args | {"draft_tokens": tokens, "target_logits": target, "draft_logits": draft}
    same(odd, "filtered")
    if scheme == "recursive":
        same(odd | {"draft_rows": [0, 1, 7, 1], "max_depth": 1})
    none = {name: odd[name] for name in ("target_logits", "scheme", "seed", "position")}
    same(none | {"draft_tokens": tokens[:, :0], "rows": [0]})


@pytest.mark.parametrize("scheme", MULTI + ["lists", "race"])
def test_packed_trees(scheme):
    """Requests with several trees in one call, siblings sharing rows."""
    sizes, trees, filler = (3, 1, 2), [], torch.zeros(1, 12)
    for k in sizes:  # one row per node: unused rows are left as they are
        tree = drafted_tree(1, k, 1, 12, scheme, seed=4 + k)
        spare = filler.expand(1, k - 1, 12)
        tree["target_logits"] = torch.cat([tree["target_logits"], spare], 1)
        tree["draft_logits"] = torch.cat([tree["draft_logits"], spare], 1)
        trees.append(tree | {"position": torch.tensor([50])})
    args = packed([trees[0], None, *trees[1:]]) | {"max_depth": 1}
    args["parents"] = torch.tensor([-1] * sum(sizes))
    args["draft_rows"] = torch.zeros(sum(sizes), dtype=torch.int64)
    args["rows"] = torch.tensor([row for k in sizes for row in [0] + [1] * k])
    same(few_bins(args))


@pytest.mark.parametrize("scheme", MULTI + ["lists"])
def test_one_child_a_node(scheme):
    """The chain schemes' integers."""
    single = {"optimal_block": "block", "lists": "race"}.get(scheme, "token")
    args = case(3, 2, 11, scheme=single, seed=15)
    identical(ss.verify(**args | {"scheme": scheme}, backend="triton"), ss.verify(**args, backend="reference"))


def test_given_lists():
    args = drafted_tree(4, 3, 2, 8, "lists", seed=5)
    same(args | {"lists": [0, 0, 1, 1, 2, 2]})
    same(args | {"lists": [5, 5, 1, 1, 1024, -1]})


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_cold_laws(scheme):
    """Gaps at which float exponentials underflow (cold_laws.py), in one call."""
    pairs = [cold_laws.rows(*name) for name in zip(cold_laws.SHAPES, itertools.cycle((1500, 90)))]
    target, draft = (torch.stack(x).float()[:, None] for x in zip(*pairs))
    k = 3 if ss.schemes()[scheme].trees else 1
    same(few_bins(drawn_tree(target.expand(-1, 2, -1), draft, k, scheme, torch.arange(len(target)), "reference")))


@pytest.mark.parametrize("temperature", [1.0, 1e-16])
def test_cold_drafts(temperature):
    draft = torch.stack([cold_laws.rows(shape, 1500)[1] for shape in ("cold draft", "tied below", "warm below")]).float()
    at = {"seed": 7, "position": 3, "sampling": ss.Sampling(temperature)}
    for kind in ("distinct", "arrivals", "top"):
        assert torch.equal(*(ss.draft(draft, 4, kind=kind, backend=b, **at) for b in ("triton", "reference"))), kind


def test_lists_are_scored_on_one_scale():
    """Scores near 1e6: some lists' exceed it, others' do not."""
    logits = torch.tensor([0.0, 1.0, 1.0]).expand(12, 3, 3).contiguous()
    args = {"target_logits": logits, "draft_tokens": torch.zeros(12, 2, dtype=torch.int64), "parents": [-1, -1]}
    same(args | {"scheme": "lists", "sampling": ss.Sampling(1e-6), "seed": 0, "position": 3})


@pytest.mark.parametrize(
    "scheme, module, name",
    [("recursive", "recursive", "clipped_mass"), ("optimal", "optimal", "select"), ("recursive", "tree", "last_stream"),
     ("top", "top", "law_without"), ("kseq", "kseq", "threshold"), ("optimal_block", "optimal_block", "select"),
     ("recursive_distinct", "recursive_distinct", "law_without"), ("lists", "lists", "lists_of")],
)  # fmt: skip
def test_control_a_broken_tree_kernel_is_caught(monkeypatch, scheme, module, name):
    """Leaving out a part of a scheme changes the results of the cases above."""
    wrong = {
        "clipped_mass": lambda at, c, block: c * 0 + 1,  # the residual is not updated between siblings
        "select": lambda at, bins: (at.count * 0, 1.0),  # the first draw, as if it had the draft's law
        "last_stream": lambda seed, position, depth, rest, slot: right(seed, position, depth, rest == 0, slot),
        "threshold": lambda bins: bins.k.to(tl.float64),  # lossless as well, but with a different law of acceptance
        "law_without": lambda row, vocab, law, without, block: law,  # the residual law is unchanged
        "lists_of": lambda lists, parents, *rest: right(lists, parents, *rest) + 1,
    }[name]
    target = importlib.import_module(f"specsample.triton.{module}")
    right = getattr(target, name)
    monkeypatch.setattr(target, name, wrong)
    args = few_bins(drafted_tree(16, 3, 1, 5, scheme, seed=6, noise=1.5))
    with pytest.raises(AssertionError, match="against"):
        same(args)
