"""Selection among independent draws from different laws: levels determined by weights, and the exact law of the selected draw.

Draws x_1..x_K come independently from laws d^1..d^K. Each draw gets a random level 1..Q with

    Pr(level <= n | token i) = 1 − exp(−e^α_i·τ_n),  n < Q,    τ_n = 2^(n − ⌊Q/2⌋)

(the last level takes the rest); the lowest level wins, on ties the earlier draw. With G_l(n) = Σ_j d^l_j·Pr(level > n | j), the law
of the winner is the finite sum

    P(i) = Σ_k d^k_i Σ_n Pr(level = n | i) Π_{l<k} G_l(n) Π_{l>k} G_l(n − 1),

so verifying the winner as a single draft against P (accepted if u·P(y) < t(y), else a token of (t − P)⁺) is lossless for *any*
weights α. They only determine the acceptance, Σ min(t, P): a token that wins less often than its target probability gets a larger
weight. α ← α + 1.5·log(t/P), starting from log(t/m) with m the mean law, converges to the optimum of the transport problem (with
step 1 it takes half as many rounds again). Levels spaced by a factor of 2 lose nothing beyond what too few rounds lose: the weights adapt.

*Cells.* The tokens of a cell share one α, hence Pr(level | cell), and G and P need only the cells' sums: P(i) = Σ_g d^g_i·A_g[cell of i]
over the distinct laws g. Still exact, for any cells; only the acceptance falls. The best α of a token depends on its ratios t/d^g; the
two coordinates that matter are t/m and, since A_g differs between the laws, which of them contribute to m: a grid in t/(t + m) and in
Σ_g g·(draws of law g)·d^g / Σ (draws)·d. Both are rounded to the nearest, so that t = m, or equal laws, do not fall on an edge.

The selection, the adaptation and the cells are this package's; that a selection followed by a single-draft test suffices for the
optimum is the canonical decomposition of Khisti et al. (arXiv 2410.18234).
"""

import math

import torch

from ..limits import MAX_LAWS, MAX_SIBLINGS
from .walk import first

COLUMNS = 8  # intervals of the second coordinate
STEP = 1.5
START, LIMIT = 6.0, 15.0  # bounds on |α|, at the start and always
TAIL = 1e-2  # tokens with t and m below TAIL/V share one cell: at most this mass of either (a tenth of it for language models)
LEAST = 1e-3  # an m below LEAST times that bound gets second coordinate 0
TINY = 1e-300


class MixedSiblings:
    """The live children that a rule chooses among, and the laws they were drawn from.

    children bool [B, N]; count int64 [B]; nodes, law_of: the j-th child and the number of its law, lists of int64 [B], −1 if there
    is none; laws int64 [B]: how many; drafts: log laws float64 [B, V], a list with one entry per distinct row; whole: the same including
    ids beyond the target's vocabulary; greedy bool [B]: all children are the likeliest token of one row
    """

    def __init__(self, round, children):
        rows = torch.full((round.batch, MAX_LAWS), -1, device=round.device)
        of = torch.full_like(round.draft_rows, -1)  # each child's law
        self.laws = torch.zeros(round.batch, dtype=torch.int64, device=round.device)
        for i in torch.nonzero(children.any(0))[:, 0].tolist():
            same = rows == round.draft_rows[:, i, None]
            known = same.any(-1)
            more = (of >= 0).sum(-1) < MAX_SIBLINGS
            new = children[:, i] & ~known & (self.laws < MAX_LAWS) & more
            at = torch.where(known & more, same.to(torch.int64).argmax(-1), torch.where(new, self.laws, -1))
            of[:, i] = torch.where(children[:, i], at, -1)
            rows[new, self.laws[new]] = round.draft_rows[new, i]
            self.laws = self.laws + new
        self.children = children & (of >= 0)
        self.count, rank = self.children.sum(-1), self.children.cumsum(-1)
        self.nodes = [first(self.children & (rank == j + 1)) for j in range(max(1, int(self.count.max())))]
        padded = torch.nn.functional.pad(of, (1, 0), value=-1)  # there may be no nodes
        self.law_of = [padded.gather(1, n[:, None] + 1)[:, 0] for n in self.nodes]
        leads = [first(self.children & (of == g)) for g in range(int(self.laws.max()))]
        self.whole = [_masked(round.draft(n.clamp(min=0), whole=True), n) for n in leads]
        self.drafts = [law[:, : round.vocab] for law in self.whole]
        self.greedy = (self.laws == 1) & round.draft_greedy(self.nodes[0].clamp(min=0)) if leads else self.laws == 1


def _masked(law, node):
    return torch.where(node[:, None] >= 0, law, -math.inf)


class Mixture:
    """The cells of a batch of nodes, the resulting weights, and the winner's law. target: probabilities float64 [B, V];
    live: MixedSiblings; levels, rounds, cells: the scheme's options

    cell    int64 [B, V], the cell of each token
    within  float64 [B, C, levels − 1]: Pr(level <= n) of a draw in the cell
    law     P, float64 [B, V]
    """

    def __init__(self, target, live, levels, rounds, cells):
        self.live, self.levels, vocab = live, levels, target.shape[1]
        whole = torch.stack(live.whole, 1).exp()  # [B, G, W]
        drafts, beyond = whole[:, :, :vocab], whole[:, :, vocab:].sum(-1)
        numbers = torch.arange(whole.shape[1], device=target.device)
        drawn = (torch.stack(live.law_of, 1)[:, :, None] == numbers).sum(1).double()  # [B, G]: draws of each law
        self.share = drawn / drawn.sum(1, keepdim=True).clamp(min=1)
        place = self.share * numbers / (live.laws - 1).clamp(min=1)[:, None]

        several = live.laws > 1
        columns = torch.where(several, COLUMNS, 0)[:, None]
        last = torch.where(several, cells // COLUMNS, cells)[:, None]
        mean, along = (torch.einsum("bg,bgv->bv", x, drafts) for x in (self.share, place))
        row = (last * target / (target + mean).clamp(min=TINY) + 0.5).floor().long()
        column = (columns * along / mean.clamp(min=LEAST * TAIL / vocab) + 0.5).floor().long()
        tail = (target < TAIL / vocab) & (mean < TAIL / vocab)
        self.cell = torch.where(tail, (last + 1) * (columns + 1), row * (columns + 1) + column)
        width = int(((last + 1) * (columns + 1)).max()) + 1

        def sums(x):
            return torch.zeros(len(x), width, dtype=x.dtype, device=x.device).scatter_add_(1, self.cell, x)

        self.target = sums(target)
        self.drafts = torch.stack([sums(d) for d in drafts.unbind(1)], 1)
        self.drafts[:, :, 0] += beyond  # ids missing from the target's vocabulary have ratio 0
        total = self.drafts.sum(-1, keepdim=True)
        self.drafts = torch.where(total > 0, self.drafts / total.clamp(min=TINY), 0.0)
        self._climb(rounds)
        of_token = self.shares.gather(2, self.cell[:, None].expand_as(drafts))
        self.law = (drafts * of_token).sum(1)

    def _climb(self, rounds):
        log = lambda x: x.clamp(min=TINY).log()
        mean = torch.einsum("bg,bgc->bc", self.share, self.drafts)
        alpha = torch.where(mean > 0, (log(self.target) - log(mean)).clamp(-START, START), 0.0)
        self._solve(alpha)
        for _ in range(rounds):
            won = (self.drafts * self.shares).sum(1)
            climbed = (alpha + STEP * (log(self.target) - log(won))).clamp(-LIMIT, LIMIT)
            alpha = torch.where(mean > 0, climbed, 0.0)
            self._solve(alpha)

    def _solve(self, alpha):
        """Compute `within` and the shares A_g [B, G, C] for weights α [B, C]"""
        tau = 2.0 ** (torch.arange(1, self.levels, dtype=alpha.dtype, device=alpha.device) - self.levels // 2)
        self.within = -torch.expm1(-alpha.exp()[:, :, None] * tau)
        above = (1 - torch.einsum("bgc,bcn->bgn", self.drafts, self.within)).clamp(min=0.0)
        above = torch.nn.functional.pad(torch.nn.functional.pad(above, (1, 0), value=1.0), (0, 1))  # G_g(0 .. levels)
        wins = self.winning(above)
        at = torch.diff(self.within, dim=-1, prepend=torch.zeros_like(alpha)[:, :, None], append=torch.ones_like(alpha)[:, :, None])
        self.shares = torch.einsum("bcn,bgn->bgc", at, wins)

    def winning(self, above):
        """Σ over the draws k of each law of Π_{l<k} G_l(n) Π_{l>k} G_l(n − 1), for n = 1 .. levels: [B, G, levels + 1] -> [B, G, levels]"""
        draws = []
        for of in self.live.law_of:  # G of each draw; 1 if there is none
            own = above.gather(1, of.clamp(min=0)[:, None, None].expand(-1, 1, above.shape[2]))[:, 0]
            draws.append(torch.where(of[:, None] >= 0, own, 1.0))
        later = [torch.ones_like(draws[0][:, 1:])]
        for own in reversed(draws[1:]):
            later.append(later[-1] * own[:, :-1])
        wins, earlier = torch.zeros_like(above[:, :, 1:]), torch.ones_like(later[0])
        for of, own, after in zip(self.live.law_of, draws, reversed(later)):
            here = torch.where(of[:, None] >= 0, earlier * after, 0.0)
            wins.scatter_add_(1, of.clamp(min=0)[:, None, None].expand(-1, 1, wins.shape[2]), here[:, None])
            earlier = earlier * own[:, 1:]
        return wins


def select(round, live, mixture):
    """The draw with the lowest level, the earlier one on ties. -> node int64 [B], −1 if there is none"""
    lowest = torch.full_like(live.count, mixture.levels + 1)
    selected, width = live.nodes[0], mixture.cell.shape[1]
    for node in live.nodes:
        token = round.token(node)
        cell = mixture.cell.gather(1, token.clamp(max=width - 1)[:, None])
        cell = torch.where(token[:, None] < width, cell, 0)[:, :, None].expand(-1, 1, mixture.levels - 1)
        level = round.draws.level(node.clamp(min=0), mixture.within.gather(1, cell)[:, 0])
        better = (node >= 0) & (level < lowest)
        lowest, selected = torch.where(better, level, lowest), torch.where(better, node, selected)
    return selected
