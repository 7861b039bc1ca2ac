"""The optimal selection among k i.i.d. draws: which law b the selected draw can have, and how to draw it.

One of k draws x_1..x_k from d is selected, Y, and then verified as a single draft with law b: accepted if u·b(Y) < t(Y),
else a token of (t − b)⁺; acceptance Σ min(t, b). The reachable laws are those with b(S) >= d(S)^k for all S (Y lies in S
if all draws do), and among them Σ min(t, b) is largest for a law in closed form:

    D = max over S of d(S)^k − t(S)                   one scan over lower sets of the ratio t/d; acceptance is 1 − D
    b = min(max(t, c2·d), c1·d)                       Σ (t − c1·d)⁺ = D = Σ (c2·d − t)⁺

Clipping takes D off the top and adds D at the bottom, so Σ b = 1; a lower set S between the clips has
b(S) = t(S) + D >= d(S)^k, so b is reachable.

*Selection.* Each draw gets a priority U whose law depends on its token only; the draw with the smallest priority is Y. If U is
uniform over all draws, the smallest of k has density G(u) = k(1 − u)^(k−1), so Y = i with probability d_i·E[G(U) | i]. So
we need E[G(U) | i] = b_i/d_i = ρ_i with U uniform. Tokens own intervals of [0, 1] of length d_i, in order of descending ρ; R(v)
is the ρ of the interval containing v. With Φ⁺(x) = ∫₀ˣ (G − R)⁺, Φ⁻(x) = ∫₀ˣ (R − G)⁺, a draw takes v uniform in its token's
interval, and w with Φ⁻(w) = Φ⁺(v) if G(v) > R(v), else Φ⁺(w) = Φ⁻(v); U = w with probability |G(v) − R(v)| / |G(v) − G(w)|,
else v. Then E[G(U) | v] = R(v), and since v ↔ w exchange equal mass, U stays uniform.

*Bins.* Each token's ratio is replaced by that of its bin, with D, c1, c2 computed from the bins' sums; b_i = ρ_bin·d_i. All of
the above stays exact for any binning; only the acceptance falls slightly.

Khisti et al., "Multi-draft speculative sampling" (arXiv 2410.18234), Theorems 1 and 3; the closed form for any k, the selection
and the binning are this package's.
"""

import torch

from .rng import SELECT, uniforms

EMPTY = 2.0**-53  # a bin with less draft mass than this is never drawn from; its midpoint stands in for its ratio
TAIL = 1e-3  # tokens whose probabilities are both below TAIL/V share one bin: at most this mass of either law in total


class Coupling:
    """The bins of a batch of nodes. target: law (probabilities) float64 [B, V], draft likewise [B, W], W >= V;
    k: int64 [B] draws, >= 2; bins: int

    ratio_of_token  ρ of each token, float64 [B, V], after `solve`
    """

    def __init__(self, target, draft, k, bins):
        beyond, draft = draft[:, target.shape[1] :].sum(-1), draft[:, : target.shape[1]]
        self.k = k[:, None].double()
        self.per_unit = (bins // k).clamp(min=1)[:, None].double()
        self.last = (self.per_unit * self.k).long()
        width = int(self.last.max()) + 1
        position = (torch.where(draft > 0, target / draft, torch.inf) * self.per_unit + 0.5).floor()
        bin = torch.minimum(position, self.last.double()).long()  # ratio 1 is at the middle of a bin
        tail = (target < TAIL / target.shape[1]) & (draft < TAIL / target.shape[1])
        bin = torch.where(tail, width, bin)
        sums = torch.zeros(2, len(k), width + 1, dtype=torch.float64, device=target.device)
        sums[0].scatter_add_(1, bin, target)
        sums[1].scatter_add_(1, bin, draft)
        # The tail joins the bin of its own ratio; draft ids beyond the target's vocabulary have ratio 0.
        tail_t, tail_d = sums[:, :, width:].clone()
        own = (torch.where(tail_d > 0, tail_t / tail_d, torch.inf) * self.per_unit + 0.5).floor()
        self.tail_bin = torch.where(tail_t + tail_d > 0, torch.minimum(own, self.last.double()), 0.0).long()
        sums[0].scatter_add_(1, self.tail_bin, tail_t)
        sums[1].scatter_add_(1, self.tail_bin, tail_d)
        sums = sums[:, :, :width]
        sums[1, :, 0] += beyond
        self.target, self.draft = sums / sums.sum(-1, keepdim=True)
        self.bin_of_token = torch.where(tail, self.tail_bin, bin)
        self.width = width

    def kseq_threshold(self):
        """The c of K-SEQ: the lowest bin edge in [1, k] with γ((1 − Z(c))/c) <= c. -> float64 [B]"""
        above_t, above_d = (x.flip(-1).cumsum(-1).flip(-1) for x in (self.target, self.draft))
        index = torch.arange(self.width, device=self.k.device)
        edge = (index - 0.5) / self.per_unit
        c = torch.minimum(edge.clamp(min=1.0), self.k)
        bad = (edge >= 1) & (index <= self.last)
        bad = bad & (kseq_gamma((1 - (above_t - c * above_d).clamp(min=0.0)) / c, self.k) > c)
        good = (edge >= 1) & (index <= self.last) & (bad.flip(-1).cumsum(-1).flip(-1) == 0)
        return torch.where(good, c, self.k).amin(-1)

    def solve(self):
        """Compute the law b and the exchange tables. -> self"""
        k, target, draft = self.k, self.target, self.draft
        below_t, below_d = target.cumsum(-1), draft.cumsum(-1)
        rejection = (below_d.clamp(max=1.0) ** k - below_t).amax(-1, keepdim=True).clamp(min=0.0)
        rejection = torch.minimum(rejection, (target - draft).clamp(min=0.0).sum(-1, keepdim=True))  # Z(1): there b = d
        above_t, above_d = (x.flip(-1).cumsum(-1).flip(-1) for x in (target, draft))
        upper = torch.where(above_d > 0, (above_t - rejection) / above_d, -torch.inf).amax(-1, keepdim=True)
        under = torch.where(below_d > 0, (below_t + rejection) / below_d, torch.inf).amin(-1, keepdim=True)
        meet = under >= upper
        under, upper = torch.where(meet, 1.0, under), torch.where(meet, 1.0, upper)
        middle = torch.arange(self.width, device=k.device) / self.per_unit
        own = torch.where(draft > EMPTY, target / draft, middle)
        ratio = torch.minimum(torch.maximum(own, under), upper)
        self.ratio_of_token = ratio.gather(1, self.bin_of_token)

        # Segments of [0, 1], largest ratio first: bin j is segment width − 1 − j.
        self.ratio = ratio.flip(-1)
        self.edge = torch.nn.functional.pad(draft.flip(-1).cumsum(-1).clamp(max=1.0), (1, 0))
        start, end = self.edge[:, :-1], self.edge[:, 1:]
        cross = 1 - (self.ratio / k).clamp(max=1.0) ** (1 / (k - 1))  # G(cross) = ratio
        self.cross = torch.minimum(torch.maximum(cross, start), end)
        self.plus = torch.nn.functional.pad(self._gain(self.ratio, start, self.cross).cumsum(-1), (1, 0))
        self.minus = torch.nn.functional.pad(-self._gain(self.ratio, self.cross, end).cumsum(-1), (1, 0))
        return self

    def _gain(self, ratio, a, x):
        """∫ₐˣ (G − ratio)"""
        return (1 - a) ** self.k - (1 - x) ** self.k - ratio * (x - a)

    def _density(self, u):
        return self.k * (1 - u) ** (self.k - 1)

    def partner(self, v, segment):
        """The w for each v in `segment`, both [B, 1]."""
        at = lambda table, i: table.gather(1, i)
        ratio, cross = at(self.ratio, segment), at(self.cross, segment)
        gains = v < cross
        goal = torch.where(
            gains,
            at(self.plus, segment) + self._gain(ratio, at(self.edge, segment), v),
            at(self.minus, segment) - self._gain(ratio, cross, v),
        )
        table = torch.where(gains, self.minus, self.plus)
        i = (torch.searchsorted(table.contiguous(), goal, side="left") - 1).clamp(0, self.width - 1)
        turn, ratio = at(self.cross, i), at(self.ratio, i)
        left = torch.where(gains, turn, at(self.edge, i))
        right = torch.where(gains, at(self.edge, i + 1), turn)
        begin, sign = left, torch.where(gains, -1.0, 1.0)
        for _ in range(60):
            middle = 0.5 * (left + right)
            short = at(table, i) + sign * self._gain(ratio, begin, middle) < goal
            left, right = torch.where(short, middle, left), torch.where(short, right, middle)
        return 0.5 * (left + right)

    def priority(self, token, place, move):
        """The priority of a draw of `token` int64 [B], from uniforms [B]. -> (float64 [B], ρ of its token [B])"""
        inside = token < self.bin_of_token.shape[1]  # ids beyond the target's vocabulary have ratio 0
        at = token.clamp(0, self.bin_of_token.shape[1] - 1)[:, None]
        segment = self.width - 1 - torch.where(inside[:, None], self.bin_of_token.gather(1, at), 0)
        start, end = self.edge.gather(1, segment), self.edge.gather(1, segment + 1)
        v = start + (end - start) * place[:, None]
        w, ratio = self.partner(v, segment), self.ratio.gather(1, segment)
        gap = self._density(v) - self._density(w)
        moves = move[:, None] * gap.abs() < (self._density(v) - ratio).abs()
        return torch.where(moves, w, v)[:, 0], ratio[:, 0]


def kseq_gamma(beta, k):
    """(1 − (1 − β)^k)/β as the sum of (1 − β)^j, j < k: accurate for small β. beta float64 [B, n], k [B, 1]"""
    gamma = torch.zeros_like(beta)
    for j in range(int(k.max())):
        gamma = torch.where(j < k, 1 + (1 - beta) * gamma, gamma)
    return gamma


def select(round, live, coupling):
    """The live draw with the smallest priority. -> (node int64 [B], ρ of its token float64 [B])"""
    least = torch.full((round.batch,), torch.inf, dtype=torch.float64, device=round.device)
    selected, ratio = live.nodes[0], torch.ones_like(least)
    for node in live.nodes:
        u, of_token = coupling.priority(round.token(node), *round.draws.selection(node.clamp(min=0)))
        better = (node >= 0) & (u < least)
        least, ratio = torch.where(better, u, least), torch.where(better, of_token, ratio)
        selected = torch.where(better, node, selected)
    return selected, ratio


def selection_uniforms(seed, position, node):
    """The uniforms (place in the interval, move or stay) of a node, float64 [B] each."""
    u = uniforms(seed, position, SELECT, node, count=2)
    return u[:, 0], u[:, 1]
