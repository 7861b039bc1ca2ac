"""Acceptance probabilities of the schemes, the optimum they are compared with, and shapes of drafting trees.

Laws (probability distributions) are float64 arrays or torch tensors [..., V], one per row; leading dimensions broadcast.
t is the target's law, d the draft's, k the number of children drawn at the node. Needs NumPy; `lp_acceptance` also
needs SciPy: pip install "specsample[theory]".
"""

try:
    import numpy  # noqa: F401
except ImportError as error:
    raise ImportError('specsample.theory needs NumPy: pip install "specsample[theory]"') from error

from .acceptance import FORMULAS, acceptance
from .arrivals import Bracketed, arrivals_acceptance, rank_entropy
from .curves import Curve, acceptance_curves
from .distinct import Estimate, distinct_acceptance, distinct_estimate
from .efficiency import block_efficiency
from .importance import importance_acceptance
from .lp import lp_acceptance, mixed_lp_acceptance
from .optimal import binned_acceptance, optimal_acceptance, optimal_law, two_draft_condition
from .race import lists_acceptance, race_acceptance, race_bound, rejection_index_entropy
from .thresholds import clipped_mass, kseq_threshold, recursive_thresholds
from .tree import DraftingTree, drafting_tree
from .weighted import weighted_acceptance

__all__ = [
    "FORMULAS",
    "Bracketed",
    "Curve",
    "DraftingTree",
    "Estimate",
    "acceptance",
    "acceptance_curves",
    "arrivals_acceptance",
    "binned_acceptance",
    "block_efficiency",
    "clipped_mass",
    "distinct_acceptance",
    "distinct_estimate",
    "drafting_tree",
    "importance_acceptance",
    "kseq_threshold",
    "lists_acceptance",
    "lp_acceptance",
    "mixed_lp_acceptance",
    "optimal_acceptance",
    "optimal_law",
    "race_acceptance",
    "race_bound",
    "rank_entropy",
    "recursive_thresholds",
    "rejection_index_entropy",
    "two_draft_condition",
    "weighted_acceptance",
]
