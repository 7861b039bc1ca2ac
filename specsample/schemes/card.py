"""A scheme's description of itself."""

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Scheme(NamedTuple):
    """The properties of a verification scheme. `ss.schemes()` lists all schemes.

    name               the `scheme=` argument, and the stem of every file of the scheme
    family             "single draft", "exponential race", …
    draft_kind         the `kind=` of `ss.draft` that its drafts must come from
    trees              whether a node may have several children
    on_chains          the scheme it equals, token for token, if every node has one child
    uses_draft_logits  whether the decision needs the drafts' distribution (without it, drafts are treated as deterministic)
    one_hot            whether it can verify deterministic drafts (`draft_logits=None`)
    adaptive_trees     whether it stays exact if the drafted tokens themselves shaped the tree (the heaviest nodes, say)
    several_laws       whether a node's children may be drawn from different distributions
    reads_lists        whether it uses the nodes' clock lists
    options            settings of the scheme: name -> (default, (least, most), what it does)
    paper              the source of the rule
    reference          the reference round: reference.walk.Round -> (tokens, num_accepted, nodes)
    backends           the backends that support it on this machine (filled in by `ss.schemes()`)
    """

    name: str
    family: str
    draft_kind: str
    trees: bool
    uses_draft_logits: bool
    options: Mapping
    paper: str
    reference: Callable
    on_chains: str = "token"
    one_hot: bool = True
    adaptive_trees: bool = False
    several_laws: bool = False
    reads_lists: bool = False
    backends: tuple = ()
