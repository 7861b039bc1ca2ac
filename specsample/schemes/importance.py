"""`importance`: the practical scheme of Khisti et al.: select among two draws by pair weights, against the third, and so on, then
verify the selected draw Y as a single draft with its exact law P: accept when u·P(Y) < t(Y), else one token of (t − P)⁺.

*Letters.* The `alphabet` likeliest tokens of the draft (Ω₀; ties: the lowest id first) are a letter each. All other tokens together
are one more letter, o, with the sums t_o, d_o of their probabilities, so a pair of draws is always a pair of letters. Between two
equal letters the draw that was there first stays. Inside o the winner of every stage therefore has the law d restricted to o, and
P(i) = c·d_i for every token outside Ω₀, with the one scalar c = P_o/d_o: nothing of the vocabulary's size is kept. Where d_o is too
small to be known (below 1e-7), o comes last, loses to every other letter, and c' = c·d_o.

*A stage.* The winner so far has law P (at first the first draw, P = d), the newcomer law d, independently. A pair {a, b} of
letters has the mass m_ab = P_a·d_b + P_b·d_a (2·d_a·d_b for two draws), of which a gets the share w_ab and b the share
w_ba = 1 − w_ab: a draw of a wins against one of b with probability w_ab, whichever came first. After the stage

    P'_a = P_a·d_a + Σ over b ≠ a of m_ab·w_ab        (d_a² + Σ 2·d_a·d_b·w_ab for two draws),        c' = P'_o/d_o

*Weights.* Letters are ordered by t_a − P_a·d_a descending (ties: the lowest id first, o last). A pair goes to the earlier letter
altogether, but pairs inside the first s letters are free and shared so that Σ min(t_a, P'_a) is largest (the truncated linear
program; for s = all letters it is the program itself). That is a maximum flow: starting with everything at the earlier letter,
mass moves from letters that hold more than t_a to letters that hold less, along pairs that the former holds: the shortest path
first, of several the one whose letters come first in the order. The result is a continuous function of the laws (but for the
order), so rounding does not change it. A stage that does not raise Σ min(t_i, P_i) over all tokens by LEAST is left out, like all
after it: the winner stays. So the acceptance, which is that sum, is at least that of `token`, for any s and alphabet.

Lossless for any weights, since P is exact. One draw is `token`. Random numbers: stage j is decided by one uniform, purpose 3
(SELECT), slot = the node index of the newcomer, word 0; the winner stays when u·m < the winner's part of m. Acceptance is purpose 1
at the selected node, the residual purpose 2, as in every scheme.

Khisti et al., "Multi-draft speculative sampling: canonical decomposition and theoretical limits" (arXiv 2410.18234), section 4:
s = 5, |Ω₀| = 40. The letter o, the stages' laws and leaving a stage out are this package's reading of it.
"""

import torch

from ..reference.walk import Siblings, log_weights, prob, walk
from .card import Scheme

LEAST = 1e-6  # of acceptance: other backends' rounding (they sum float32 weights) is well below it
SMALL = 1e-7  # of d_o, which is 1 − the others


class Letters:
    """The letters of one node and the law of the winner. target: law float64 [V], draft: law float64 [W], W >= V

    token       Ω₀, ascending; letter len(token) is all other tokens
    target, draft, law   t, d and P of each letter, lists of floats
    more        whether the last letter is one like the others
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
        """Σ min(t, P): over Ω₀, and outside as 1 − Z(c) less what Ω₀ would add to it under c·d"""
        inside = sum(map(min, self.target[:-1], law[:-1]))
        if not self.more:
            return inside
        target, draft = self.row
        c = max(c, 1e-7)
        rejected = (target - c * draft).clamp(min=0.0).sum().item()
        return inside + 1 - rejected - sum(min(t, c * d) for t, d in zip(self.target[:-1], self.draft[:-1]))

    def weights(self):
        """Of the next stage: letters in order; held [s][s], what the i-th holds of its pair with the j-th; P of each letter."""
        t, d, before, last = self.target, self.draft, self.law, len(self.token)
        key = [t[a] - before[a] * d[a] if a < last or self.more else -2.0 for a in range(last + 1)]
        order = sorted(range(last + 1), key=lambda a: -key[a])  # stable
        law, later, later_d = [0.0] * (last + 1), 0.0, 0.0
        for a in reversed(order):  # each pair to the earlier letter
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
        """Go on to the next stage. -> whether it is of use (otherwise nothing changes)"""
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


def pair_mass(law, draft, a, b):
    """Chance that the winner (of law `law`) and the newcomer (of law `draft`) are the letters a and b, in whichever order"""
    return law[a] * draft[b] + law[b] * draft[a]


def balance(held, excess):
    """Move mass from letters of positive excess to those of negative excess: maximum flow by shortest paths, in place.

    held[a][b]: what a holds of the mass of the pair {a, b}, [s][s]; excess: held too much by each letter, [s]
    """
    ids = range(len(excess))
    while True:
        distance = [0 if excess[a] < 0 else -1 for a in ids]  # of each letter from the nearest that lacks something
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


def reference(round):
    return walk(round, _step)


def _step(round, node, children, target, depth):
    live = Siblings(round, children)
    s, alphabet = (int(option) for option in round.options)
    t, law = target.exp(), live.draft.exp()
    single = (live.count <= 1) | live.greedy  # draws that are all the same token: P = d
    letters = {b: Letters(t[b], live.whole[b].exp(), s, alphabet) for b in (~single).nonzero()[:, 0].tolist()}
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
        law[b] *= one.scale
        for a, x in enumerate(one.token):
            if x < law.shape[1]:
                law[b, x] = one.law[a]
        a = one.letter_of.get(int(token[b]))
        law_of_token[b] = one.scale * d[b] if a is None else one.law[a]
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
        "s": (5, (1, 64), "letters whose pairs are shared freely, the others' go to the earlier letter"),
        "alphabet": (40, (1, 256), "tokens that are a letter of their own, the likeliest of the draft"),
    },
    paper="Khisti et al. 2024 (arXiv 2410.18234)",
    reference=reference,
)
