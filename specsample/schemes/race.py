"""`race`: draft and target race on the same clocks; the target's winner is emitted, and a draft is accepted if it equals the winner.

The output is a function of (seed, prefix, target) alone: the text is the same whatever is drafted, from any distribution.
Acceptance with one child: Σ_j 1 / Σ_i max(t_i/t_j, d_i/d_j).
Kobus and Gündüz, "Speculative sampling via exponential races" (arXiv 2504.15475).
"""

from ..reference.walk import first, walk
from .card import Scheme


def reference(round):
    return walk(round, _step)


def _step(round, node, children, target, depth):
    winner = round.draws.clock_race(target, depth)
    return first(children & (round.tokens == winner[:, None])), winner


CARD = Scheme(
    name="race",
    family="exponential race",
    draft_kind="arrivals",
    trees=True,
    uses_draft_logits=False,
    options={},
    paper="Kobus and Gündüz 2025 (arXiv 2504.15475)",
    reference=reference,
    on_chains="race",
    adaptive_trees=True,
    several_laws=True,
)
