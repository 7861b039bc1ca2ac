"""Drafters: n-gram look-up, custom drafters, and how the draft model's cache keeps up."""

import pytest
import torch
from conftest import CHAIN_SCHEMES
from models import TableModel, prompts, tiny_llama

import specsample as ss
from specsample.decoding import ModelDrafter, Prefixes, RoundInfo, Tree


def info(batch, active=None, **change):
    active = torch.ones(batch, dtype=torch.bool) if active is None else torch.tensor(active)
    seed, position = torch.arange(batch), torch.full((batch,), 4)
    return RoundInfo(seed, position, (ss.Sampling(),), "token", "iid", active, None)._replace(**change)


def prefixes(*rows):
    lengths = torch.tensor([len(row) for row in rows])
    return Prefixes(torch.tensor([list(row) + [99] * (int(lengths.max()) - len(row)) for row in rows]), lengths)


def test_prefixes_are_a_sequence_without_padding():
    some = prefixes([1, 2, 3], [4])
    assert len(some) == 2
    assert [p.tolist() for p in some] == [[1, 2, 3], [4]]


@pytest.mark.parametrize(
    "prefix, expected",
    [
        ([1, 2, 3, 9, 1, 2, 3], [9, 1, 2, 3]),
        ([5, 1, 2, 7, 8, 5, 2, 1, 2], [7, 8, 5, 2]),  # two tokens match, three do not
        ([1, 2, 8, 1, 2, 9, 1, 2], [9, 1, 2, 9]),  # the last occurrence; beyond the end it repeats
        ([4, 4, 4], [4, 4, 4, 4]),
        ([1, 7, 2, 7], [2, 7, 2, 7]),
        ([1, 2, 3], [-1, -1, -1, -1]),
        ([1], [-1, -1, -1, -1]),
    ],
)
def test_ngram(prefix, expected):
    proposal = ss.NgramDrafter().propose(prefixes(prefix), 4, info(1))
    assert proposal.tokens.tolist() == [expected]
    assert proposal.parents is None and proposal.draft_logits is None


def test_ngram_of_a_batch_leaves_out_finished_requests():
    some = prefixes([1, 1], [2, 2, 2], [3, 4])
    proposal = ss.NgramDrafter().propose(some, 2, info(3, [True, False, True]))
    assert proposal.tokens.tolist() == [[1, 1], [-1, -1], [-1, -1]]


@pytest.mark.parametrize(
    "tree, tokens, parents",
    [
        (Tree.of_paths(1, 2), [8, 1], [-1, 0]),
        (Tree.of_paths(2, 2), [8, 1, 6], [-1, 0, 0]),
        (Tree.of_paths(9, 2), [8, 1, 6, 9, 1], [-1, 0, 0, -1, 3]),
        (2, [8, 1], [-1, 0]),
        (4, [8, 1, 6, 9], [-1, 0, 0, -1]),
    ],
)
def test_ngram_trees(tree, tokens, parents):
    """The ending [1, 2] was followed by [8, 1] last, by [8, 6] and [9, 1] before; equal beginnings form one path."""
    prefix = [1, 2, 9, 1, 2, 8, 6, 1, 2, 8, 1, 2]
    proposal = ss.NgramDrafter(2).propose(prefixes(prefix, [1]), 2, info(2, tree=tree))
    assert proposal.tokens[0].tolist() == tokens and proposal.parents[0] == parents
    assert set(proposal.tokens[1].tolist()) == {-1}  # nothing found


@pytest.mark.parametrize("n", [0, 1.5, True, None])
def test_ngram_errors(n):
    with pytest.raises(ValueError, match="^n: "):
        ss.NgramDrafter(n)


def test_ngram_makes_copying_cheap():
    """A periodic chain: once one period has been seen, all proposals are right."""
    circle = torch.eye(7).roll(1, 1)
    ids = torch.arange(8)[None] % 7
    for scheme in CHAIN_SCHEMES:
        output, stats = ss.generate(TableModel(circle), ss.NgramDrafter(), ids, max_new_tokens=20, scheme=scheme, return_stats=True)
        assert (output[0] == torch.arange(28) % 7).all()
        assert stats.target_calls == 4


@pytest.mark.parametrize("shape", [{"paths": 3}, {"tree": 8}])
def test_ngram_trees_of_a_text_that_goes_on_in_several_ways(shape):
    """Under `race` the text remains that of plain sampling, in fewer target calls than with one continuation."""
    table = 0.5 * torch.eye(8).roll(1, 1) + 0.4 * torch.eye(8).roll(3, 1) + 0.1 / 8
    ids, settings = torch.arange(40)[None] % 8, {"max_new_tokens": 150, "seed": 5, "return_stats": True}
    plain, _ = ss.generate(TableModel(table), None, ids, **settings)
    _, one = ss.generate(TableModel(table), ss.NgramDrafter(), ids, scheme="race", **settings)
    output, several = ss.generate(TableModel(table, strict=False), ss.NgramDrafter(), ids, scheme="race", **shape, **settings)
    assert torch.equal(output, plain) and several.target_calls < 0.85 * one.target_calls


class Recorder:
    """A custom drafter: always the same tokens, and a record of its calls."""

    def __init__(self, tokens, parents=None, draft_logits=None):
        self.proposal = ss.Proposal(tokens, parents, draft_logits)
        self.shapes, self.rounds, self.seen, self.committed = [], [], [], []

    def propose(self, prefixes, shape, round):
        self.shapes.append(shape)
        self.rounds.append(round)
        self.seen.append([prefix.tolist() for prefix in prefixes])
        return self.proposal

    def commit(self, tokens):
        self.committed.append(tokens)


@pytest.mark.parametrize("parents", [None, [-1, 0, 1], torch.tensor([[-1, 0, 1]] * 2)])
def test_what_a_drafter_is_told(parents):
    model = TableModel([[0.5, 0.3, 0.2]] * 3)
    ids, mask = torch.tensor([[1, 2, 0], [0, 0, 2]]), torch.tensor([[1, 1, 0], [0, 0, 1]])
    recorder = Recorder(torch.tensor([[0, 0, 1], [0, 1, 0]], dtype=torch.int32), parents)
    output = ss.generate(
        model, recorder, ids, attention_mask=mask, max_new_tokens=6, depth=2, seed=8,
        draft_sampling=ss.Sampling(temperature=0.5),
    )  # fmt: skip
    said = [[1, 2], [2]]
    for seen, round, tokens in zip(recorder.seen, recorder.rounds, recorder.committed):
        assert seen == said
        assert round.position.tolist() == [len(s) for s in said]
        assert round.seed.tolist() == [8, 9] and round.kind == "iid" and round.scheme == "token"
        assert round.sampling == ss.Sampling(temperature=0.5)
        assert round.active.tolist() == [len(s) - n < 6 for s, n in zip(said, (2, 1))]
        for s, row in zip(said, tokens.tolist()):
            kept = [t for t in row if t >= 0]
            assert row == kept + [-1] * (len(row) - len(kept))
            s.extend(kept)
    while len(recorder.committed) > len(recorder.seen):  # no drafts are made for the very last token
        for s, t in zip(said, recorder.committed.pop().tolist()):
            s.extend(x for x in t if x >= 0)
    assert max(recorder.shapes) == 2
    assert [s[-6:] for s in said] == output[:, 3:].tolist()


@pytest.mark.parametrize(
    "name, tokens, parents, rows",
    [
        ("Proposal.tokens", [[1, 2]], None, None),
        ("Proposal.tokens", torch.zeros(2, 1, dtype=torch.int64), None, None),
        ("Proposal.tokens", torch.zeros(1, 2), None, None),
        ("Proposal.parents", torch.zeros(1, 2, dtype=torch.int64), [-1, -1], None),
        ("draft_logits", torch.zeros(1, 2, dtype=torch.int64), None, torch.zeros(1, 1, 3, dtype=torch.float64)),
    ],
)
def test_bad_proposals(name, tokens, parents, rows):
    with pytest.raises(ValueError, match=f"^{name}: .*got"):
        ss.generate(TableModel(torch.eye(3)), Recorder(tokens, parents, rows), torch.tensor([[0]]), max_new_tokens=9, depth=2)


def test_ids_beyond_the_vocabulary_are_rejected():
    """Ids that the target does not know are neither passed to it nor accepted."""
    pytest.importorskip("transformers")
    target = tiny_llama(0)
    ids, _ = prompts([3])
    for scheme in CHAIN_SCHEMES:
        drafter = Recorder(torch.tensor([[1000, 1, 2]]))
        output, stats = ss.generate(target, drafter, ids, max_new_tokens=5, scheme=scheme, return_stats=True)
        assert sum(stats.accepted) == 0 and output.max() < 60


def test_the_draft_models_cache_keeps_up():
    """In each round the drafter's logits equal those of a run from scratch, for requests that accept different numbers."""
    pytest.importorskip("transformers")
    model = tiny_llama(3)
    generator = torch.Generator().manual_seed(0)
    drafter = ModelDrafter(model)
    said = [torch.randint(60, (n,), generator=generator) for n in (4, 1, 7)]
    for accepted in ([3, 0, 1], [2, 2, 2], [0, 3, 3], [1, 0, 0], [3, 3, 3], [0, 0, 0]):
        some = prefixes(*[s.tolist() for s in said])
        proposal = drafter.propose(some, 3, info(3, position=some.lengths))
        for b, keep in enumerate(accepted):
            for i in range(3):
                fresh = model(torch.cat([said[b], proposal.tokens[b, :i]])[None]).logits[0, -1]
                torch.testing.assert_close(proposal.draft_logits[b, i], fresh, atol=1e-9, rtol=1e-9)
            other = torch.randint(60, (1,), generator=generator)
            said[b] = torch.cat([said[b], proposal.tokens[b, :keep], other])
    width = max(drafter.cached.cached)
    assert drafter.cached.cache.layers[0].keys.shape[2] <= width + 3  # rejected tokens do not accumulate
