"""The joint law of several rounds with paths and trees, through generate's own seeds and positions; negative controls."""

import pytest
import torch
from conftest import ALL_SCHEMES, CAUGHT
from models import TableModel
from test_rounds import CONSTANT, FAILURE_RATE, MARKOV, one_thread, p_value  # noqa: F401 (a fixture)

import specsample as ss
from specsample.decoding.drafters import PathsDrafter
from specsample.theory import acceptance

REQUESTS = 4_000
TREES = [name for name in ALL_SCHEMES if ss.schemes()[name].trees]


def table_model(table):
    """In float32, so that the compiled kernels run: with so many requests the reference's bins would take gigabytes."""
    return TableModel(table, False, torch.float32)


def three_tokens(target, draft, requests=REQUESTS, **settings):
    """The first three of four new tokens of many requests with separate seeds, and the Stats; draft: a table or a drafter."""
    if hasattr(draft, "propose"):
        drafter = draft
    else:  # a table, or one per path
        drafter = table_model(draft) if isinstance(draft[0][0], float) else [table_model(table) for table in draft]
    output, stats = ss.generate(
        table_model(target), drafter, torch.zeros(requests, 1, dtype=torch.int64), max_new_tokens=4,
        seed=7 * REQUESTS, return_stats=True, **settings,
    )  # fmt: skip
    assert output.min() >= 0
    return output[:, 1:4], stats


@pytest.mark.parametrize("tables, shape", [(CONSTANT, {"paths": 2, "depth": 2}), (MARKOV, {"tree": [-1, -1, 0, 0, 0, 1]})],
                         ids=["paths", "tree"])  # fmt: skip
@pytest.mark.parametrize("scheme", TREES)
def test_joint_law(scheme, tables, shape):
    target, draft = tables
    tokens, _ = three_tokens(target, draft, scheme=scheme, **shape)
    assert p_value(tokens, target) > FAILURE_RATE


@pytest.mark.parametrize("different", ["models", "temperatures"])
def test_joint_law_of_paths_with_different_laws(different):
    """Two models, or one at two temperatures."""
    target, draft = MARKOV
    other = [row[::-1] for row in draft]
    cold = [ss.Sampling(0.5), ss.Sampling(2.0)]
    drafts, laws = ([draft, other], None) if different == "models" else (draft, cold)
    tokens, _ = three_tokens(target, drafts, scheme="weighted", draft_sampling=laws, paths=2, depth=2)
    assert p_value(tokens, target) > FAILURE_RATE


class Exchanged(PathsDrafter):
    """A drafter that names the other path's rows."""

    def propose(self, prefixes, shape, round):
        proposal = super().propose(prefixes, shape, round)
        return proposal._replace(draft_rows=proposal.draft_rows[:, [1, 0, *range(2, proposal.tokens.shape[1])]])


def test_exchanged_laws_are_caught():
    target, draft = CONSTANT
    models = [table_model(draft), table_model([row[::-1] for row in draft])]
    tokens, _ = three_tokens(target, Exchanged(models), scheme="weighted", paths=2, depth=1)
    assert p_value(tokens, target) < CAUGHT


@pytest.mark.parametrize("scheme", ["optimal", "recursive", "kseq", "recursive_distinct", "top"])
def test_acceptance_is_theorys(scheme):
    """For a first draft, with two children: within five standard deviations."""
    target, draft = CONSTANT
    _, stats = three_tokens(target, draft, scheme=scheme, paths=2, depth=1)
    expected = float(acceptance(torch.tensor(target[0]).numpy(), torch.tensor(draft[0]).numpy(), 2, scheme))
    assert 0.5 < expected < 0.9
    assert abs(stats.acceptance[0] - expected) < 5 * (0.25 / stats.reached[0]) ** 0.5


class Wrong:
    """Two children per round, drafted wrongly from `table`, for schemes that expect independent ones.

    one_stream  both children are drawn from the first one's stream
    merged      a second child that equals the first is dropped
    likeliest   of three draws, the two that the draft likes best are kept
    None        nothing is wrong
    """

    def __init__(self, table, fault):
        self.logits, self.fault = torch.tensor(table).log(), fault

    def propose(self, prefixes, shape, round):
        row = self.logits[prefixes.tokens.gather(1, prefixes.lengths[:, None] - 1)[:, 0]]
        drawn = ss.draft(row, 3, kind=round.kind, sampling=round.sampling, seed=round.seed, position=round.position)
        tokens = drawn[:, :2].clone()
        if self.fault == "one_stream":
            tokens[:, 1] = tokens[:, 0]
        if self.fault == "merged":
            tokens[:, 1] = torch.where(tokens[:, 1] == tokens[:, 0], -1, tokens[:, 1])
        if self.fault == "likeliest":
            tokens = drawn.gather(1, row.gather(1, drawn).argsort(1, descending=True)[:, :2])
        return ss.Proposal(tokens, [-1, -1], row[:, None], torch.zeros(2, dtype=torch.int64))

    def commit(self, tokens):
        pass


@pytest.mark.parametrize("fault", ["one_stream", "merged", "likeliest", None])
@pytest.mark.parametrize("scheme", ["kseq", "recursive", "optimal"])
def test_wrong_children_are_caught(scheme, fault):
    """Negative controls: the test detects dependence; for the same drafter without a fault it detects nothing."""
    table = [[0.6, 0.3, 0.1]] * 3
    tokens, _ = three_tokens(table, Wrong([[0.2, 0.2, 0.6]] * 3, fault), 2 * REQUESTS, scheme=scheme)
    p = p_value(tokens, table)
    assert p > FAILURE_RATE if fault is None else p < CAUGHT
