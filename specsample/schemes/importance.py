"""`importance`: the practical scheme of Khisti et al.: select between two draws by pair weights, the winner against the third draw,
and so on, then verify the selected draw Y as a single draft with its exact law P: accept if u·P(Y) < t(Y), else one token of (t − P)⁺.

*Letters.* Which draw of a pair wins depends only on their letters; between equal letters, the earlier draw stays. So all tokens
of a letter share P(i)/d_i = ρ, whatever the letters and the weights: P is known exactly, and the scheme is lossless.
The letters are the bins of the ratio t/d used by `optimal` (specsample/reference/coupling.py), the largest ratio first.

*A stage.* The winner so far has law P (initially the first draw, P = d), the newcomer independently has law d. The part s_b·P_b of
the mass P_b of a letter b is surplus, s_b = (1 − t_b/P_b)⁺. A newcomer of letter a replaces a winner of a later letter b with
probability s_b·λ_a + (1 − s_b)·μ_a; else the winner stays. With t, d, P summed over a letter,

    ρ'_a = ρ_a·κ_a + λ_a·Σ s_b·P_b + μ_a·Σ (1 − s_b)·P_b             sums over later b
    κ_a = Σ d_b over a and later b + Σ d_c·(s_a·(1 − λ_c) + (1 − s_a)·(1 − μ_c)) over earlier c

where κ_a, the chance that a newcomer does not replace a winner of letter a, depends on earlier letters only. So one pass down the
order determines all weights: λ_a, from 0 ("the winner so far stays") to 1 ("the earlier letter wins"), is the least value for which
P'_a reaches t_a; if λ_a = 1 does not suffice, μ_a is chosen likewise. With all weights 1, P(S) = d(S)^K for every set S of last
letters: the minimum for any rule (if all draws lie in S, so does Y), and what the optimum requires of the S that `optimal` finds. But
above S that rule overshoots, by more for larger K. Here a letter gains only below its t, so the gain is accepted, and the other letters
lose only as much: Σ min(t_a, P_a) never falls from one stage to the next. On language-model-like laws the acceptance is within
1e-3 of the optimum (K <= 8).

*The paper's form*, with option `alphabet` > 0: each of the `alphabet` likeliest draft tokens (Ω₀; ties: lowest id first) is a
letter. All others together are one more letter, o, with sums t_o, d_o, so P(i) = c·d_i for every token outside Ω₀, c = P_o/d_o.
If d_o is too small to be known accurately (below 1e-7), o comes last, loses to every other letter, and c' = c·d_o. A pair {a, b}
of letters has mass m_ab = P_a·d_b + P_b·d_a (2·d_a·d_b for two draws), of which a gets the share w_ab and b the share
w_ba = 1 − w_ab: a draw of a wins against one of b with probability w_ab, whichever came first. After the stage

    P'_a = P_a·d_a + Σ over b ≠ a of m_ab·w_ab        (d_a² + Σ 2·d_a·d_b·w_ab for two draws),        c' = P'_o/d_o

Letters are ordered by t_a − P_a·d_a descending (ties: lowest id first, o last). A pair goes entirely to the earlier letter,
except that pairs within the first s letters are free and shared so as to maximise Σ min(t_a, P'_a) (the truncated linear
program; with s = all letters, the full program). That is a maximum flow: starting with everything at the earlier letter,
mass moves from letters that hold more than t_a to letters that hold less, along pairs that the former holds: the shortest path
first, and among several the one whose letters come first in the order. Apart from the order, the result is a continuous function
of the laws, so rounding does not change it. A stage that does not raise Σ min(t_i, P_i) over all tokens by LEAST is skipped, as
are all later ones: the winner stays. So the acceptance, which is that sum, is at least that of `token`, for any s and alphabet.
Since nothing is gained inside o, this form accepts less than `kseq` if the alphabet leaves out much of the draft's mass.

One draw is `token`. Random numbers: stage j is decided by one uniform, purpose 3 (SELECT), slot = the node index of the newcomer,
word 0; the winner stays if u·m < the winner's part of m (m = 1 between bins). Acceptance is purpose 1 at the selected
node, the residual purpose 2, as in every scheme.

Khisti et al., "Multi-draft speculative sampling: canonical decomposition and theoretical limits" (arXiv 2410.18234), section 4:
s = 5, |Ω₀| = 40. The order by t/d and its weights, the letter o, the laws of the stages and skipping a stage are this package's.
"""

import torch

from ..reference.coupling import EMPTY, Coupling
from ..reference.walk import Siblings, log_weights, prob, walk
from .card import Scheme
from .optimal import BINS

LEAST = 1e-6  # gain in acceptance: well above the rounding of other backends, which sum float32 weights
SMALL = 1e-7  # for d_o, which is computed as 1 − the others


class Ranked:
    """Ratio bins as the letters of one node, and the law of the winner. The last letter is the first in the order.
    coupling: the bins of a batch (only their sums: `solve` is not needed), row: index into the batch

    draft, goal, ratio    d, t/d and ρ of each letter, lists of floats
    surplus, first, rest  s, λ and μ of each letter in the last stage
    """

    def __init__(self, coupling, row):
        target, draft = coupling.target[row], coupling.draft[row]
        middle = torch.arange(len(draft), device=draft.device) / coupling.per_unit[row]
        self.goal = torch.where(draft > EMPTY, target / draft, middle).tolist()
        self.draft, self.ratio = draft.tolist(), [1.0] * len(draft)
        self.bin_of_token = coupling.bin_of_token[row]

    def stage(self):
        """Advance to the next stage. -> whether there is one (always)"""
        n = len(self.draft)
        self.surplus, self.first, self.rest = [0.0] * n, [0.0] * n, [0.0] * n
        own, over, under, sums = 0.0, 0.0, 0.0, []  # from the last letter on: positive terms only, so no cancellation
        for ratio, goal, d in zip(self.ratio, self.goal, self.draft):
            own += d
            sums.append((own, over, under))
            over += max(ratio - goal, 0.0) * d
            under += min(ratio, goal) * d
        idle_first = idle_rest = 0.0  # newcomers of earlier letters that do not replace the winner
        for i in reversed(range(n)):
            (own, over, under), ratio, d = sums[i], self.ratio[i], self.draft[i]
            s = max(ratio - self.goal[i], 0.0) / ratio if ratio > 0 else 0.0
            stays = ratio * (own + s * idle_first + (1 - s) * idle_rest)
            lack = self.goal[i] - stays
            first = share(lack, over)
            lack -= first * over
            rest = share(lack, under) if first == 1 else 0.0
            self.surplus[i], self.first[i], self.rest[i] = s, first, rest
            self.ratio[i] = stays + first * over + rest * under
            idle_first, idle_rest = idle_first + d * (1 - first), idle_rest + d * (1 - rest)
        return True

    def shares(self, winner, newcomer):
        """(the winner's part, all) of the mass of a pair of tokens in the last stage"""
        a, b = self._letter(winner), self._letter(newcomer)
        s = self.surplus[a]
        return (s * (1 - self.first[b]) + (1 - s) * (1 - self.rest[b]) if b > a else 1.0), 1.0

    def _letter(self, token):
        return int(self.bin_of_token[token]) if token < len(self.bin_of_token) else 0  # beyond the target's ids: ratio 0

    def winner(self, draft):
        """P of all tokens. draft: float64 [V] -> [V]"""
        return torch.tensor(self.ratio, dtype=torch.float64, device=draft.device)[self.bin_of_token] * draft

    def winner_of(self, token, d):
        """P of one token of probability d"""
        return self.ratio[self._letter(token)] * d


def share(lack, supply):
    """The fraction of `supply` that covers `lack`, at most 1; 0 if a law is NaN"""
    return lack / supply if 0 < lack < supply else float(lack > 0)


class Letters:
    """The letters of one node in the paper's form, and the law of the winner. target: law float64 [V], draft: law float64 [W], W >= V

    token       Ω₀, ascending; letter len(token) stands for all other tokens
    target, draft, law   t, d and P of each letter, lists of floats
    more        whether the last letter, o, is treated like the others
    scale       c: P(i) = c·d_i outside Ω₀
    """

    def __init__(self, target, draft, s, alphabet):
        order = draft.sort(descending=True, stable=True).indices[: alphabet + 1]
        order = order[draft[order] > 0].tolist()
        self.token = sorted(order[:alphabet])
        self.letter_of = {token: letter for letter, token in enumerate(self.token)}
        self.row = target, draft[: len(target)]
        self.target = [target[token].item() if token < len(target) else 0.0 for token in self.token]
        self.draft = [draft[token].item() for token in self.token]
        self.draft.append(max(1 - sum(self.draft), 0.0) if len(order) > alphabet else 0.0)
        self.more = self.draft[-1] >= SMALL
        self.target.append(max(1 - sum(self.target), 0.0) if self.more else 0.0)
        self.law, self.scale, self.s = self.draft, 1.0, s
        self.accepted = self._acceptance(self.law, self.scale)

    def _acceptance(self, law, c):
        """Σ min(t, P): over Ω₀ directly, outside as 1 − Z(c) minus what Ω₀ would contribute to it under c·d"""
        inside = sum(map(min, self.target[:-1], law[:-1]))
        if not self.more:
            return inside
        target, draft = self.row
        c = max(c, 1e-7)
        rejected = (target - c * draft).clamp(min=0.0).sum().item()
        return inside + 1 - rejected - sum(min(t, c * d) for t, d in zip(self.target[:-1], self.draft[:-1]))

    def weights(self):
        """For the next stage: letters in order; held [s][s], what the i-th holds of its pair with the j-th; P of each letter."""
        t, d, before, last = self.target, self.draft, self.law, len(self.token)
        key = [t[a] - before[a] * d[a] if a < last or self.more else -2.0 for a in range(last + 1)]
        order = sorted(range(last + 1), key=lambda a: -key[a])  # stable
        law, later, later_d = [0.0] * (last + 1), 0.0, 0.0
        for a in reversed(order):  # each pair goes to the earlier letter
            law[a] = before[a] * (d[a] + later_d) + d[a] * later
            later, later_d = later + before[a], later_d + d[a]
        free = order[: min(self.s, last + self.more)]
        held = [[pair_mass(before, d, a, b) if i < j else 0.0 for j, b in enumerate(free)] for i, a in enumerate(free)]
        excess = [law[a] - t[a] for a in free]
        balance(held, excess)
        for a, over in zip(free, excess):
            law[a] = t[a] + over
        return order, held, law

    def stage(self):
        """Advance to the next stage. -> whether it raises the acceptance (otherwise nothing changes)"""
        order, held, law = self.weights()
        scale = law[-1] / self.draft[-1] if self.more else self.scale * self.draft[-1]
        accepted = self._acceptance(law, scale)
        if not accepted > self.accepted + LEAST:
            return False
        self.rank, self.held, self.before = {a: i for i, a in enumerate(order)}, held, self.law
        self.law, self.scale, self.accepted = law, scale, accepted
        return True

    def shares(self, winner, newcomer):
        """(the winner's part, all) of the mass of a pair of tokens in the last stage"""
        a, b = (self.letter_of.get(token, len(self.token)) for token in (winner, newcomer))
        i, j = self.rank[a], self.rank[b]
        if i != j and max(i, j) < len(self.held):
            return self.held[i][j], pair_mass(self.before, self.draft, a, b)
        return float(i <= j), 1.0

    def winner(self, draft):
        """P of all tokens. draft: float64 [V] -> [V]"""
        law = self.scale * draft
        for a, token in enumerate(self.token):
            if token < len(law):
                law[token] = self.law[a]
        return law

    def winner_of(self, token, d):
        """P of one token of probability d"""
        a = self.letter_of.get(token)
        return self.scale * d if a is None else self.law[a]


def pair_mass(law, draft, a, b):
    """Probability that the winner (of law `law`) and the newcomer (of law `draft`) are the letters a and b, in either order"""
    return law[a] * draft[b] + law[b] * draft[a]


def balance(held, excess):
    """Move mass from letters with positive excess to those with negative excess: maximum flow by shortest paths, in place.

    held[a][b]: what a holds of the mass of the pair {a, b}, [s][s]; excess: how much each letter holds beyond its target, [s]
    """
    ids = range(len(excess))
    while True:
        distance = [0 if excess[a] < 0 else -1 for a in ids]  # from each letter to the nearest one with negative excess
        reached = [a for a in ids if excess[a] < 0]
        for b in reached:
            for a in ids:
                if distance[a] < 0 and held[a][b] > 0:
                    distance[a] = distance[b] + 1
                    reached.append(a)
        sources = [a for a in ids if excess[a] > 0 and distance[a] > 0]
        if not sources:
            return
        path = [min(sources, key=lambda a: distance[a])]
        while distance[path[-1]] > 0:
            a = path[-1]
            path.append(next(b for b in ids if distance[b] == distance[a] - 1 and held[a][b] > 0))
        arcs = list(zip(path, path[1:]))
        amount = min(excess[path[0]], -excess[path[-1]], *(held[a][b] for a, b in arcs))
        for a, b in arcs:
            held[a][b] -= amount
            held[b][a] += amount
        excess[path[0]] -= amount
        excess[path[-1]] += amount


def letters_of(target, draft, k, bins, s, alphabet):
    """The letters of each node before the first stage. target: laws float64 [B, V], draft likewise [B, W], k: draws int64 [B] -> list"""
    if not len(k):
        return []
    if alphabet >= 1:
        return [Letters(t, d, int(s), int(alphabet)) for t, d in zip(target, draft)]
    coupling = Coupling(target, draft, k, int(bins))
    return [Ranked(coupling, row) for row in range(len(k))]


def reference(round):
    return walk(round, _step)


def _step(round, node, children, target, depth):
    live = Siblings(round, children)
    t, law = target.exp(), live.draft.exp()
    single = (live.count <= 1) | live.greedy  # draws that are all the same token: P = d
    several = (~single).nonzero()[:, 0].tolist()
    letters = dict(zip(several, letters_of(t[several], live.whole[several].exp(), live.count[several], *round.options)))
    going, selected = dict(letters), live.nodes[0]
    for newcomer in live.nodes[1:]:
        part, mass = torch.ones_like(t[:, 0]), torch.ones_like(t[:, 0])
        going = {b: one for b, one in going.items() if newcomer[b] >= 0 and one.stage()}
        winner, other = round.token(selected).tolist(), round.token(newcomer).tolist()
        for b, one in going.items():
            part[b], mass[b] = one.shares(winner[b], other[b])
        stays = round.draws.stays(newcomer.clamp(min=0), part, mass)
        selected = torch.where(stays, selected, newcomer)
    token = round.token(selected)
    d = prob(live.whole, token)
    law_of_token = d.clone()
    for b, one in letters.items():
        law[b], law_of_token[b] = one.winner(law[b]), one.winner_of(int(token[b]), d[b])
    accepted = round.draws.accept(selected.clamp(min=0), prob(target, token), law_of_token)
    residual = round.draws.residual_race(log_weights((t - law).clamp(min=0.0), target))
    emitted = torch.where(live.count > 0, residual, round.draws.clock_race(target, depth))
    return torch.where(accepted & (live.count > 0), selected, -1), emitted


CARD = Scheme(
    name="importance",
    family="multi-draft",
    draft_kind="iid",
    trees=True,
    uses_draft_logits=True,
    one_hot=False,
    options={
        "bins": BINS,
        "s": (5, (1, 64), "with an alphabet: number of letters whose pairs are shared freely; others go to the earlier letter"),
        "alphabet": (
            0,
            (0, 256),
            "0: letters are bins; else the paper's form (40): this many of the draft's likeliest tokens are letters",
        ),
    },
    paper="Khisti et al. 2024 (arXiv 2410.18234)",
    reference=reference,
)
