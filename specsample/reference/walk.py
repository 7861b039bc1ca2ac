"""The walk of one verification round from the root of the drafts to the final emitted token, for a whole batch.

`Round` knows the layout (dense or packed), which nodes exist and every row's law. A scheme's reference is in
`specsample/schemes/<name>.py`: either a rule for one node, run by `walk`, or an entire round (`block`).
"""

import math

import torch

from ..limits import MAX_LISTS, MAX_SIBLINGS
from ..sampling import OFF
from . import rng
from .coupling import selection_uniforms
from .law import Params, from_stats, usable, warp
from .rows import race, spread, winner


class Draws:
    """The random decisions of a round, [B] at a time. The enumeration tests substitute exhaustive ones."""

    def __init__(self, seed, position):
        self.seed, self.position = seed, position

    def accept(self, node, numerator, denominator):
        """u·denominator < numerator for the acceptance uniform of `node` -> bool [B]"""
        u = rng.uniforms(self.seed, self.position, rng.ACCEPT, node)[:, 0]
        return u * denominator < numerator

    def clock_race(self, log_weights, depth, lists=None):
        """The winner on the clocks of the emitted token's position (`race`, bonus); lists int64 [B, n], −1 = none: on the minimum of
        the clocks of these lists -> int64 [B]"""
        position = self.position + depth
        if lists is None:
            return race(log_weights, self.seed, position, rng.CLOCK, torch.zeros_like(self.seed))
        clock = torch.full_like(log_weights, math.inf)
        for one in lists.unbind(-1):
            here = rng.clocks(self.seed, position, rng.CLOCK, one.clamp(min=0), log_weights.shape[-1])
            clock = torch.where((one >= 0)[:, None], torch.minimum(clock, here), clock)
        return winner(log_weights - clock.log())

    def residual_race(self, log_weights, slot=None):
        """slot int64 [B]: how many residual races the round has already run (only `top` runs several)"""
        slot = torch.zeros_like(self.seed) if slot is None else slot
        return race(log_weights, self.seed, self.position, rng.RESIDUAL, slot)

    def selection(self, node):
        return selection_uniforms(self.seed, self.position, node)

    def stays(self, node, numerator, denominator):
        """u·denominator < numerator for the first selection uniform of `node` -> bool [B]"""
        return self.selection(node)[0] * denominator < numerator

    def level(self, node, within):
        """The first level n with u < within_n, for the selection uniform of `node`; within float64 [B, n], increasing, and 1 beyond
        -> int64 [B], counted from 1"""
        return 1 + (self.selection(node)[0][:, None] >= within).sum(-1)


class Round:
    """The inputs of one round. Nodes are numbered 0..N−1, −1 is the root; node arguments are int64 [B].

    target_logits [B, R, V] or packed [rows, V]; the other arguments are those of the op's schema (specsample/ops.py).
    """

    def __init__(
        self, target_logits, draft_tokens, draft_logits, parents, rows, draft_rows, lists, max_depth, options,
        sampling, sampling_rows, draft_sampling, draft_sampling_rows, draft_stats, seed, seeds, position, positions,
        cu_rows, draws=None,
    ):  # fmt: skip
        self.device = device = target_logits.device
        self.target_logits, self.draft_logits, self.max_depth = target_logits, draft_logits, max_depth
        self.options = options
        self.vocab = target_logits.shape[-1]
        self.batch = batch = target_logits.shape[0] if cu_rows is None else cu_rows.shape[0] - 1
        self.index = torch.arange(batch, device=device)
        nodes = draft_tokens.shape[-1]
        node_ids = torch.arange(nodes, device=device)
        if cu_rows is None:
            count = torch.full((batch,), target_logits.shape[1], device=device)
            node_count = torch.full((batch,), nodes, device=device)
            node_start = None
        else:
            start = cu_rows.to(torch.int64)
            count = (start[1:] - start[:-1]).clamp(min=0)
            node_count = (count - 1).clamp(min=0)
            node_start = node_count.cumsum(0) - node_count
            self.row_start = start[:-1]
        self.packed, self.row_count = cu_rows is not None, count

        def per_node(values, default, offset=0):
            """A per-node input as int64 [B, N + offset] (offset 1: the root's entry comes first)."""
            if values is None:
                return default.expand(batch, -1)
            if values.dim() == 1 and not self.packed:
                values = values[None]
            if self.packed:
                if values.shape[0] == 0:
                    return default.expand(batch, -1)
                at = (node_start if offset == 0 else self.row_start)[:, None]
                at = at + torch.arange(nodes + offset, device=device)
                values = values[at.clamp(max=values.shape[0] - 1)]
            return values.to(torch.int64).expand(batch, -1)

        self.tokens = per_node(draft_tokens, node_ids)
        self.parents = per_node(parents, node_ids[None] - 1)
        self.rows = per_node(rows, torch.arange(nodes + 1, device=device)[None], offset=1)
        self.one_row_a_node = self.packed and draft_logits is not None and draft_logits.shape[0] != target_logits.shape[0]
        above = self.rows.gather(1, (self.parents + 1).clamp(0, nodes))
        self.draft_rows = per_node(draft_rows, node_ids[None] if self.one_row_a_node else above)

        id_limit = self.vocab if draft_logits is None else max(self.vocab, draft_logits.shape[-1])
        self.exists = (
            (node_ids < node_count[:, None])
            & (self.tokens >= 0)
            & (self.tokens < id_limit)
            & (self.parents >= -1)
            & (self.parents < node_ids)
            & (self.rows[:, 1:] >= 0)
            & (self.rows[:, 1:] < count[:, None])
        )
        if draft_logits is not None:
            self.node_start = node_start
            if self.one_row_a_node:
                draft_count = node_count
            else:
                draft_count = count if self.packed else torch.full((batch,), draft_logits.shape[1], device=device)
            self.exists = self.exists & (self.draft_rows >= 0) & (self.draft_rows < draft_count[:, None])
            flat = draft_logits.flatten(0, -2)
            has_law = ((flat > -math.inf) & ~flat.isnan()).any(-1)
            if flat.shape[0] == 0:  # no rows, so no nodes; an empty dummy row keeps look-ups valid
                lead = (1,) if self.packed else (batch, 1)
                self.draft_logits = draft_logits.new_full((*lead, draft_logits.shape[-1]), -math.inf)
                draft_stats, draft_sampling_rows, draft_sampling = None, None, OFF
                self.exists = self.exists & False
            elif nodes:
                self.exists = self.exists & has_law[self._draft_row(self.draft_rows)]

        self.given_lists = None if lists is None else per_node(lists, node_ids)
        if lists is not None:
            self.exists = self.exists & (self.given_lists >= 0) & (self.given_lists < MAX_LISTS)

        self.params = Params.of(sampling, sampling_rows, batch, device)
        self.draft_params = Params.of(draft_sampling, draft_sampling_rows, batch, device)
        self.draft_stats = draft_stats
        seed = spread(seed, seeds, batch, device, step=1)
        self.draws = draws or Draws(seed, spread(position, positions, batch, device))

    # -- layout ------------------------------------------------------------------------------------------------

    def _target_row(self, row):
        row = row.clamp(min=0)
        if self.packed:
            return self.target_logits[(self.row_start + row).clamp(max=self.target_logits.shape[0] - 1)]
        return self.target_logits[self.index, row.clamp(max=self.target_logits.shape[1] - 1)]

    def _draft_row(self, row):
        """The index into the flattened draft rows; row: [B] or [B, N]."""
        lead = (lambda x: x[:, None]) if row.dim() == 2 else (lambda x: x)
        if not self.packed:
            at = lead(self.index) * self.draft_logits.shape[1] + row.clamp(0, self.draft_logits.shape[1] - 1)
            return at
        at = lead(self.node_start if self.one_row_a_node else self.row_start) + row.clamp(min=0)
        return at.clamp(max=self.draft_logits.shape[0] - 1)

    # -- what schemes ask for ----------------------------------------------------------------------------------

    def start(self):
        """(node, live, active): the root, the root as the only live node, which requests have a row to start from."""
        node = torch.full((self.batch,), -1, device=self.device)
        live = torch.zeros(self.batch, self.exists.shape[1] + 1, dtype=torch.bool, device=self.device)
        live[:, 0] = True
        return node, live, (self.rows[:, 0] >= 0) & (self.rows[:, 0] < self.row_count)

    def children(self, live):
        """Existing nodes whose parent is live: bool [B, N]"""
        return self.exists & live.gather(1, (self.parents + 1).clamp(0, live.shape[1] - 1))

    def clock_lists(self):
        """Clock list of each node, int64 [B, N]: given, or 0..K−1 for the root's children and inherited below."""
        if self.given_lists is not None:
            return self.given_lists
        root = (self.parents == -1).to(torch.int64)
        lists = root.cumsum(-1) - root
        for i in range(lists.shape[1]):
            above = self.parents[:, i]
            inherited = lists.gather(1, above[:, None].clamp(0, i))[:, 0]
            lists[:, i] = torch.where(above >= 0, inherited, lists[:, i])
        return lists

    def target(self, node):
        """Log law of the target after `node`: float64 [B, V]; −inf throughout if the row has no finite logit."""
        row = self.rows.gather(1, node[:, None] + 1)[:, 0]
        return warp(self._target_row(row), self.params)[0]

    def draft(self, node, whole=False):
        """The log law that `node` was drawn from, on the target's vocabulary (missing ids −inf): float64 [B, V]

        whole: including the ids beyond the target's vocabulary, if the draft has any
        """
        if self.draft_logits is None:
            token = self.token(node)
            point = torch.arange(self.vocab, device=self.device) == token[:, None]
            return torch.where(point, 0.0, -math.inf).to(torch.float64)
        at = self._draft_row(self.draft_rows.gather(1, node[:, None].clamp(min=0))[:, 0])
        logits = self.draft_logits.flatten(0, -2)[at]
        settings = self._draft_settings(at)
        law = warp(logits, settings)[0]
        if self.draft_stats is not None:
            kept = [s[at] for s in self.draft_stats]
            law = torch.where(usable(settings, kept)[:, None], from_stats(logits, settings, kept), law)
        law = torch.nn.functional.pad(law, (0, max(0, self.vocab - law.shape[-1])), value=-math.inf)
        return law if whole else law[:, : self.vocab]

    def _draft_settings(self, at):
        per_request = self.draft_params.values.shape[1] == self.batch
        return self.draft_params if per_request else self.draft_params.rows(at)

    def greedy(self):
        """Which requests have a greedy target: bool [B]"""
        return ~(self.params.values[0] > 0)

    def draft_greedy(self, node):
        """Whether `node` was drawn greedily: bool [B]"""
        at = self._draft_row(self.draft_rows.gather(1, node[:, None].clamp(min=0))[:, 0])
        return ~(self._draft_settings(at).values[0] > 0)

    def token(self, node):
        """The token of `node`, 0 where node is −1."""
        if self.tokens.shape[1] == 0:
            return torch.zeros_like(node)
        return torch.where(node >= 0, self.tokens.gather(1, node[:, None].clamp(min=0))[:, 0], 0)

    def residual(self, target, draft, scale=1.0):
        """Log weights (scale·t − d)⁺, see `log_weights`."""
        return log_weights((scale * target.exp() - draft.exp()).clamp(min=0.0), target)


def log_weights(weight, target):
    """Log of residual weights [B, V]; if they all vanish (the draft covers the target up to rounding), the log target."""
    return torch.where((weight > 0).any(-1, keepdim=True), weight.log(), target)


class Siblings:
    """The live children that a multi-draft rule chooses among, and the law they were drawn from.

    children bool [B, N]; count int64 [B]; nodes: the j-th child of each request, a list of int64 [B], −1 if there is none;
    draft: log law float64 [B, V] of the first child's row; whole: the same including ids beyond the target's vocabulary;
    greedy bool [B]: all children are that row's likeliest token
    """

    def __init__(self, round, children):
        rank = children.cumsum(-1)
        self.children = children & (rank <= MAX_SIBLINGS)
        self.count = self.children.sum(-1)
        most = max(1, int(self.count.max()))
        self.nodes = [first(self.children & (rank == j + 1)) for j in range(most)]
        at = self.nodes[0].clamp(min=0)
        if bool(children.any()):
            self.whole, self.greedy = round.draft(at, whole=True), round.draft_greedy(at)
        else:  # nothing was drawn, so no law is needed
            self.whole = torch.full((round.batch, round.vocab), -math.inf, dtype=torch.float64, device=round.device)
            self.greedy = torch.zeros_like(self.count, dtype=torch.bool)
        self.draft = self.whole[:, : round.vocab]


def first(children):
    """The lowest index that is set, −1 if none: bool [B, N] -> int64 [B]"""
    ids = torch.arange(children.shape[1], device=children.device)
    found = torch.where(children, ids, children.shape[1]).amin(-1) if children.shape[1] else ids.new_zeros(len(children))
    return torch.where(found < children.shape[1], found, -1)


def prob(law, token):
    """The probability of `token` [B] under a log law [B, V]; 0 beyond the law's vocabulary."""
    return at(law, token, -math.inf).exp()


def at(law, token, beyond=0.0):
    """The value of `token` [B] in [B, V], or `beyond` for ids outside the vocabulary."""
    value = law.gather(1, token[:, None].clamp(0, law.shape[1] - 1))[:, 0]
    return torch.where(token < law.shape[1], value, beyond)


def walk(round, rule, shares=True):
    """Walk node by node: `rule(round, node, children, target, depth)` returns (child to move to [B], −1 = none; token to emit [B]).

    shares: moving to a child moves to all live siblings that carry its token; the first of them is reported
    -> tokens int64 [B, D + 1], num_accepted int32 [B], nodes int32 [B, D]
    """
    node, live, active = round.start()
    count = torch.zeros(round.batch, dtype=torch.int32, device=round.device)
    ids = torch.arange(round.exists.shape[1], device=round.device)
    tokens, path = [], []
    for depth in range(round.max_depth + 1):
        target = round.target(node)
        children = round.children(live) & active[:, None]
        if depth == round.max_depth:
            children = children & False
        moved, emitted = rule(round, node, children, target, depth)
        only = target.argmax(-1)  # for a greedy row: emitted whether it was drafted or not
        emitted = torch.where(round.greedy(), only, emitted)
        moved = torch.where(round.greedy(), first(children & (round.tokens == only[:, None])), moved)
        goes = active & (moved >= 0)
        same = round.tokens == round.token(moved)[:, None] if shares else ids == moved[:, None]
        moved = children & same & goes[:, None]
        chosen = first(moved)
        emitted = torch.where(goes, round.token(chosen), emitted)
        broken = (target == -math.inf).all(-1)
        tokens.append(torch.where(active & ~broken, emitted, -1))
        path.append(torch.where(goes & ~broken, chosen, -1))
        active = goes & ~broken
        count = count + active
        node = torch.where(active, chosen, node)
        live = torch.nn.functional.pad(moved, (1, 0))
    nodes = torch.stack(path[: round.max_depth], -1) if round.max_depth else count.new_zeros(round.batch, 0)
    return torch.stack(tokens, -1), count.to(torch.int32), nodes.to(torch.int32)
