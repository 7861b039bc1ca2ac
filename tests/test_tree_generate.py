"""Decoding with paths and trees: greedy equals transformers, `race` equals plain sampling, caches keep the accepted nodes."""

import numpy as np
import pytest
import torch
from conftest import ALL_SCHEMES
from models import TableModel, nearby, prompts, tiny_llama

import specsample as ss
from specsample.decoding import ModelDrafter, Prefixes, RoundInfo, Tree, tree_cache
from specsample.theory import drafting_tree

transformers = pytest.importorskip("transformers")

NEW = 10
LENGTHS = [5, 2, 9, 1]
GREEDY = ss.Sampling(temperature=0.0)
TREES = [name for name in ALL_SCHEMES if ss.schemes()[name].trees]
BUSHY = [-1, 0, 0, -1, 3, 1, 1, 3, -1]  # not in level order, leaves at all depths
PATHS = {"paths": 3, "depth": 3}
SHAPES = [PATHS, {"tree": BUSHY}, {"tree": [-1, -1, 0, 0, 1, 2, 2, 2]}]
IDS = ["paths", "bushy", "levels"]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=["masked", "expanded"])
def reading(request, monkeypatch):
    """Both ways of reading a tree."""
    if request.param == "expanded":
        monkeypatch.setattr(tree_cache, "takes_masks", lambda model: False)
    return request.param


def run(target, draft, scheme, new=NEW, **settings):
    ids, mask = prompts(LENGTHS)
    return ss.generate(target, draft, ids, attention_mask=mask, max_new_tokens=new, scheme=scheme, **settings)


# -- what must not change the output ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def greedy(target):
    """The prompts and the tokens that transformers generates after them."""
    ids, mask = prompts(LENGTHS)
    return target.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("scheme", TREES)
def test_greedy_is_transformers_greedy(target, draft, greedy, scheme, shape):
    warm = ss.Sampling(temperature=0.8) if shape is PATHS else None  # random drafts for a greedy target
    assert (run(target, draft, scheme, sampling=GREEDY, draft_sampling=warm, **shape) == greedy).all()


@pytest.mark.parametrize("other", ["narrower", "wider", "float32"])
def test_greedy_with_drafts_of_another_vocabulary_or_dtype(target, draft, other, reading):
    model = nearby(target, 0.6, 1).float() if other == "float32" else tiny_llama(8, vocab={"narrower": 41, "wider": 83}[other])
    for scheme in ("optimal_block", "recursive_distinct"):
        output = run(target, model, scheme, sampling=GREEDY, draft_sampling=ss.Sampling(), **PATHS)
        assert (output == run(target, None, "token", sampling=GREEDY)).all()
    output = run(target, [draft, model], "weighted", sampling=GREEDY, draft_sampling=[ss.Sampling(), ss.Sampling(0.5)], depth=3)
    assert (output == run(target, None, "token", sampling=GREEDY)).all()


@pytest.mark.parametrize("shape", [*SHAPES, {"tree": 7}, {"tree": 5, "depth": 2}], ids=[*IDS, "budget", "flat budget"])
def test_race_is_plain_sampling(target, draft, shape, reading):
    temperature = torch.tensor([0.9, 0.0, 1.3, 0.5])
    settings = {"sampling": ss.Sampling(temperature, top_k=30), "seed": torch.tensor([11, 11, -5, 2**40])}
    output, stats = run(target, draft, "race", return_stats=True, **settings, **shape)
    assert (output == run(target, None, "race", **settings)).all()
    assert sum(stats.accepted) > 0


def test_race_with_a_model_and_a_temperature_for_each_path(target, draft, reading):
    plain, narrow = run(target, None, "race", seed=4), tiny_llama(8, vocab=41)
    settings = {"seed": 4, "depth": 3, "return_stats": True}
    for models in ([draft, narrow], [draft, narrow, draft], [draft, draft]):
        output, stats = run(target, models, "race", **settings)
        assert (output == plain).all()
        assert len(stats.accepted) == 3
    laws = [ss.Sampling(0.5), ss.Sampling(torch.tensor([1.0, 2.0, 0.0, 0.7]))]
    for model in (draft, [draft, narrow]):
        assert (run(target, model, "race", draft_sampling=laws, **settings)[0] == plain).all()


@pytest.mark.parametrize("scheme", ["optimal_block", "top", "lists", "recursive_distinct"])
def test_both_ways_of_reading_are_one(target, draft, scheme, monkeypatch):
    """At temperature 1 with eos: a fork's mask gives the tokens and counts of a batch of paths."""
    settings = {"eos_token_id": [7, 21], "seed": 3, "return_stats": True}
    for shape in SHAPES[:2]:
        output, stats = run(target, draft, scheme, **settings, **shape)
        with monkeypatch.context() as patch:
            patch.setattr(tree_cache, "takes_masks", lambda model: False)
            other, counts = run(target, draft, scheme, **settings, **shape)
        assert torch.equal(output, other)
        assert (stats.reached, stats.accepted) == (counts.reached, counts.accepted)


@pytest.mark.parametrize("scheme", ["recursive", "optimal_block", "top", "lists"])
def test_companions_do_not_matter(target, draft, scheme):
    temperature = torch.tensor([1.0, 0.7, 0.0, 1.5])
    ids, _ = prompts(LENGTHS)
    settings = {"eos_token_id": [7, 21, 30, 35], "depth": 3, "paths": 2}
    together = run(target, draft, scheme, seed=20, sampling=ss.Sampling(temperature), **settings)[:, ids.shape[1] :]
    for b, n in enumerate(LENGTHS):
        alone = ss.generate(
            target, draft, ids[b : b + 1, -n:], max_new_tokens=NEW, scheme=scheme, seed=20 + b,
            sampling=ss.Sampling(float(temperature[b])), **settings,
        )[0, n:]  # fmt: skip
        assert (together[b, : len(alone)] == alone).all() and (together[b, len(alone) :] == 7).all()


# -- caches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, scheme", [(PATHS, "optimal"), ({"tree": BUSHY}, "kseq"), ({"tree": 6}, "race")])
def test_caches_hold_the_accepted_tokens(target, draft, shape, scheme, reading, monkeypatch):
    """In every round, for target and draft: keys and values are those of a fresh forward over the prefix, and so are the logits
    at all places read."""
    checked, begin, read = [0, 0], tree_cache._Tree.start, tree_cache._Tree.read

    def start(self, prefixes):
        before = list(self.cached)
        begin(self, prefixes)
        self.prefixes, kept = [prefix.clone() for prefix in prefixes], self.before
        # No more is read again than the request that lacks most needs.
        columns = max(len(p) - min(n, len(p) - 1) for n, p in zip(before, prefixes))
        assert kept == [max(0, len(p) - columns) for p in prefixes]
        for layer in range(len(getattr(self.cache, "layers", ()))):
            for b, prefix in enumerate(prefixes):
                for name in ("keys", "values"):
                    held = getattr(self.cache.layers[layer], name)[b, :, self.width - kept[b] : self.width]
                    fresh = self.model(prefix[None, : max(1, kept[b])]).past_key_values.layers[layer]
                    torch.testing.assert_close(held, getattr(fresh, name)[0, :, : kept[b]], atol=1e-10, rtol=0)
                    checked[0] += held.numel()
        self.said = [{-1: []} for _ in self.fresh]

    def checked_read(self):
        fresh, first = self.fresh, self.pending is not None
        rows = read(self)
        for b, places in enumerate(fresh):
            expected = [self.prefixes[b]] if first else []
            for place, token in places:
                above = (-1, *self.routes[b][place])[-2]
                self.said[b][place] = self.said[b][above] + [token]
                known = min(token, self.highest)
                assert known == token
                expected.append(torch.cat([self.prefixes[b], torch.tensor(self.said[b][place])]))
            for row, text in zip(rows[b], expected):
                torch.testing.assert_close(row, self.model(text[None]).logits[0, -1], atol=1e-10, rtol=0)
                checked[1] += 1
        return rows

    monkeypatch.setattr(tree_cache._Tree, "start", start)
    monkeypatch.setattr(tree_cache._Tree, "read", checked_read)
    run(target, draft, scheme, new=6, seed=1, **shape)
    for seed in range(3):  # one request: its cache is not gathered, but moved in place
        ss.generate(target, draft, prompts([4])[0], max_new_tokens=12, scheme=scheme, seed=seed, **shape)
    assert checked[0] > 1000 and checked[1] > 50


def test_equal_prefixes_are_read_once():
    """A certain draft: three equal paths cost the width of one, in the target and in the draft."""
    certain = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    model, draft = TableModel(certain), TableModel(certain)
    prompt = torch.zeros(1, 4, dtype=torch.int64)
    output = ss.generate(model, draft, prompt, max_new_tokens=8, depth=3, paths=3, scheme="recursive")
    assert output[0, 4:].tolist() == [1, 2, 0, 1, 2, 0, 1, 2]
    assert model.widths == [4 + 3, 1 + 3]
    assert draft.widths == [4, 1, 1, 2, 1, 1]


class Deaf(torch.nn.Module):
    """A Llama that ignores 4-D masks, or refuses them."""

    def __init__(self, model, refuses):
        super().__init__()
        self.model, self.config, self.refuses, self.device, self.dtype = model, model.config, refuses, model.device, model.dtype

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, **given):
        if attention_mask is not None and attention_mask.dim() == 4:
            if self.refuses:
                raise RuntimeError("two dimensions")
            attention_mask = None
        return self.model(input_ids, attention_mask=attention_mask, **given)


def test_which_models_take_masks(target):
    assert tree_cache.takes_masks(target)
    assert not tree_cache.takes_masks(TableModel(torch.eye(3)))
    assert not tree_cache.takes_masks(Deaf(target, False)) and not tree_cache.takes_masks(Deaf(target, True))
    eager = tiny_llama(0, dtype=torch.bfloat16)
    eager.set_attn_implementation("eager")
    assert tree_cache.takes_masks(eager)
    small = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    windows = transformers.MistralConfig(**small, num_key_value_heads=2, sliding_window=8)
    assert not tree_cache.takes_masks(transformers.MistralForCausalLM(windows))
    tilted = transformers.BloomConfig(vocab_size=30, hidden_size=16, n_layer=1, n_head=2)
    assert not tree_cache.takes_masks(transformers.BloomForCausalLM(tilted))


# -- shapes ----------------------------------------------------------------------------------------------------


def test_trees():
    paths = Tree.of_paths(3, 2)
    assert paths.parents == [-1, -1, -1, 0, 1, 2] and paths.levels == [[0, 1, 2], [3, 4, 5]] and paths.lists == [0, 1, 2] * 2
    assert Tree([-1, 0, 1]).is_chain and not paths.is_chain
    bushy = Tree(BUSHY)
    assert bushy.levels == [[0, 3, 8], [1, 2, 4, 7], [5, 6]] and bushy.inner == {0, 1, 3}
    assert bushy.lists == [0, 0, 3, 1, 1, 0, 4, 5, 2]  # siblings have separate lists, and so have the root's children


@pytest.mark.parametrize("kind", ["iid", "distinct", "top", "lists", "arrivals"])
def test_a_level_is_drawn_from_the_streams_of_its_nodes(kind):
    """Each node of a drafted tree, redrawn by itself as the API page says."""
    model, tree = TableModel(torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) + 0.1, strict=False), Tree(BUSHY)
    scheme = next(card.name for card in ss.schemes().values() if card.draft_kind == kind and card.trees)
    seed, position = torch.tensor([5, 6]), torch.tensor([2, 1])
    some = Prefixes(torch.tensor([[3, 1], [4, 0]]), position)
    info = RoundInfo(seed, position, (ss.Sampling(0.8),), scheme, kind, torch.ones(2, dtype=torch.bool), None, tree)
    proposal = ModelDrafter(model).propose(some, 9, info)
    for b in range(2):
        tokens = proposal.tokens[b].tolist()
        for parent in (-1, 0, 1, 3):
            children = [i for i, p in enumerate(BUSHY) if p == parent]
            row = model.logits[tokens[parent] if parent >= 0 else some[b][-1]][None]
            at = {"sampling": ss.Sampling(0.8), "seed": seed[b : b + 1], "position": position[b : b + 1]}
            at |= {"depth": tree.depth_of[children[0]], "kind": kind}
            if kind == "lists":
                expected = ss.draft(row, 6, **at)[0, [tree.lists[child] for child in children]].tolist()
            else:
                first = children[-1] - len(children) + 1 if kind == "top" else children[0]
                expected = ss.draft(row, len(children), node=first, **at)[0].tolist()
            assert [tokens[child] for child in children] == expected
            if proposal.draft_logits is not None:
                for child in children:
                    assert (proposal.draft_logits[b, proposal.draft_rows[b, child]] == row[0]).all()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_budget_buys_the_heaviest_tree(target, depth):
    """The tree of specsample.theory, cut at `depth`, is the one grown level by level, for requests of unequal length."""
    ids, mask = prompts(LENGTHS)
    said = [row[m > 0] for row, m in zip(ids, mask)]
    lengths = torch.tensor(LENGTHS)
    some = Prefixes(torch.stack([torch.nn.functional.pad(s, (0, 9 - len(s))) for s in said]), lengths)
    law = ss.Sampling(torch.tensor([1.0, 0.3, 2.0, 0.0]), top_k=12)
    info = RoundInfo(lengths, lengths, (law,), "race", "arrivals", torch.ones(4, dtype=torch.bool), None, 13)
    proposal = ModelDrafter(target).propose(some, depth, info)
    assert proposal.tokens.shape[1] <= 13
    for b in range(4):
        own = ss.Sampling(float(law.temperature[b]), 12)

        def after(path):
            if len(path) == depth:
                return None
            logits = target(torch.cat([said[b], torch.tensor(path, dtype=torch.int64)])[None]).logits[0, -1:]
            return np.asarray(ss.log_probs(logits, sampling=own, backend="reference")[0].exp())

        expected = drafting_tree(after, 13)
        tokens, parents = proposal.tokens[b].tolist(), proposal.parents[b].tolist()
        assert [t for t in tokens if t >= 0] == expected.tokens
        assert parents[: len(expected.parents)] == expected.parents


def test_stats_of_trees(target, draft):
    for scheme in TREES:
        _, stats = run(target, draft, scheme, seed=5, return_stats=True, tree=BUSHY)
        assert stats.emitted == NEW * len(LENGTHS) == sum(stats.accepted) + stats.rounds  # nothing was cut
        assert all(a <= r for a, r in zip(stats.accepted, stats.reached))
        assert all(r <= a for r, a in zip(stats.reached[1:], stats.accepted))
        assert stats.reached[0] <= stats.rounds and 2 <= len(stats.reached) <= 3
    assert stats.reached[1] < stats.accepted[0]  # node 8 has no children


@pytest.mark.parametrize("new", [1, 2, 5, 8])
def test_max_new_tokens_is_exact(target, new, reading):
    for scheme in ("optimal_block", "race"):
        output, stats = run(target, target, scheme, new=new, paths=2, depth=3, return_stats=True)
        assert output.shape == (4, 9 + new) and stats.emitted == 4 * new
    assert stats.target_calls == -(-new // 4)  # race: everything is accepted, 3 drafts and the bonus


# -- errors ----------------------------------------------------------------------------------------------------

BAD = [
    ("paths", "token", {"paths": 2}),
    ("paths", "block", {"paths": 2}),
    ("paths", "race", {"paths": 0}),
    ("paths", "race", {"paths": 2.0}),
    ("paths", "race", {"paths": 2, "tree": [-1, -1]}),
    ("paths", "kseq", {"paths": 65}),
    ("paths", "race", {"paths": 300}),
    ("tree", "token", {"tree": [-1, -1]}),
    ("tree", "block", {"tree": [-1, 0, 0]}),
    ("tree", "race", {"tree": 0}),
    ("tree", "race", {"tree": 1025}),
    ("tree", "race", {"tree": True}),
    ("tree", "race", {"tree": []}),
    ("tree", "race", {"tree": [0]}),
    ("tree", "race", {"tree": [-1, 2, 0]}),
    ("tree", "race", {"tree": [-2]}),
    ("tree", "race", {"tree": [-1, 0.0]}),
    ("tree", "race", {"tree": "wide"}),
    *[("tree", name, {"tree": 8}) for name in ALL_SCHEMES if name != "race"],
    ("draft", "kseq", {"draft": "pair"}),
    ("draft", "race", {"draft": [None, None]}),
    ("draft", "race", {"draft": []}),
    ("draft", "race", {"draft": "pair", "paths": 3}),
    ("tree", "race", {"draft": "pair", "tree": [-1, -1]}),
    ("draft", "recursive", {"draft": ss.NgramDrafter(), "paths": 2}),
    ("draft", "race", {"draft": ss.NgramDrafter(), "tree": [-1, -1, 0]}),
    ("draft_sampling", "kseq", {"draft_sampling": [ss.Sampling()] * 2, "paths": 2}),
    ("draft_sampling", "race", {"draft_sampling": [ss.Sampling()] * 2, "paths": 3}),
    ("draft", "weighted", {"draft": "nine"}),
    ("draft_sampling", "race", {"draft_sampling": [], "paths": 3}),
    ("draft_sampling.top_k", "race", {"draft_sampling": [ss.Sampling(), ss.Sampling(top_k=-1)]}),
]


@pytest.mark.parametrize("name, scheme, change", BAD, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(BAD)])
def test_errors_come_before_the_first_forward(name, scheme, change):
    model, draft = TableModel(torch.eye(3)), TableModel(torch.eye(3))
    if change.get("draft") == "pair":
        change = change | {"draft": [draft, TableModel(torch.eye(3))]}
    if change.get("draft") == "nine":
        change = change | {"draft": [TableModel(torch.eye(3)) for _ in range(9)]}
    drafter = change.pop("draft", draft) if (change := dict(change)) else draft
    with pytest.raises(ValueError, match=f"^{name.replace('.', '[.]')}: .*got"):
        ss.generate(model, drafter, torch.zeros(1, 2, dtype=torch.int64), max_new_tokens=3, scheme=scheme, **change)
    assert model.calls == 0


class Star:
    """A custom drafter: a tree of fixed tokens, with a row of logits for each of them on request."""

    def __init__(self, parents, law=None):
        self.parents, self.law = parents, law

    def propose(self, prefixes, shape, round):
        assert round.kind == ss.schemes()[round.scheme].draft_kind
        nodes = len(torch.as_tensor(self.parents).view(-1, 3)[0])
        logits = None if self.law is None else self.law.log().expand(len(prefixes), nodes, -1)
        return ss.Proposal(torch.tensor([[0, 1, 2]]).expand(len(prefixes), -1), self.parents, logits)

    def commit(self, tokens):
        pass


@pytest.mark.parametrize("parents", [[-1, -1, 0], torch.tensor([[-1, -1, 1], [-1, 0, 0]]), [-1, 0, 1]])
def test_a_drafters_own_tree(target, parents):
    ids, mask = prompts([3, 2])
    settings = {"attention_mask": mask, "max_new_tokens": 8, "seed": 2}
    for scheme, law, sampling in (("race", None, ss.Sampling()), ("recursive", torch.ones(60).double(), GREEDY)):
        plain = ss.generate(target, None, ids, sampling=sampling, **settings)
        output = ss.generate(target, Star(parents, law), ids, scheme=scheme, sampling=sampling, **settings)
        assert (output == plain).all()


def test_a_drafters_bad_tree(target):
    ids, _ = prompts([3])
    for scheme, parents in (("token", [-1, -1, 0]), ("race", [-1, 1, 0]), ("race", [-1, -2, 0]), ("race", "abc")):
        with pytest.raises(ValueError, match="^Proposal.parents: .*got"):
            ss.generate(target, Star(parents) if parents != "abc" else Fixed(parents), ids, max_new_tokens=5, scheme=scheme)


class Fixed(Star):
    def propose(self, prefixes, shape, round):
        return ss.Proposal(torch.tensor([[0, 1, 2]]), self.parents)
