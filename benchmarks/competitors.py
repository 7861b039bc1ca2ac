"""Other implementations on the same inputs, and the check that each of them emits the right law.

Each takes (target_logits [B, L + 1, V], draft_tokens int64 [B, L], draft_logits [B, L, V], law) and returns (tokens int64
[B, L + 1] padded with −1, num_accepted int64 [B]); `law` is the temperature, or an ss.Sampling of numbers. Whatever a user must
do before a call (dividing by the temperature, filtering, converting to float32) is included, since verification from raw
logits makes it unnecessary; the part after it, from probabilities, is a separate function, so that it can be timed alone.
"""

import torch

import specsample as ss
from benchmarks.harness import check_law

try:
    from transformers.generation.utils import _speculative_sampling
except ImportError:
    _speculative_sampling = None


def scaled(logits, law):
    """float32 logits divided by the temperature and filtered as transformers' warpers do: top-k, top-p, min-p"""
    if not isinstance(law, ss.Sampling):
        return logits.float() / law
    x = logits.float() / law.temperature
    if law.top_k:
        x = x.masked_fill(x < x.topk(law.top_k).values[..., -1:], -torch.inf)
    if law.top_p < 1:
        ascending, order = x.sort(-1)
        beyond = ascending.softmax(-1).cumsum(-1) <= 1 - law.top_p
        beyond[..., -1] = False  # the likeliest token stays
        x = x.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    if law.min_p:
        p = x.softmax(-1)
        x = x.masked_fill(p < law.min_p * p.amax(-1, keepdim=True), -torch.inf)
    return x


def probabilities(logits, law):
    return scaled(logits, law).softmax(-1)


def draw(weights):
    """One index per row, int64 [B, 1]. On a GPU, the race inside torch.multinomial, without its check, which synchronises."""
    if weights.is_cuda:
        return (weights / torch.empty_like(weights).exponential_()).argmax(-1, keepdim=True)
    return torch.multinomial(weights, 1)


def _emit(draft_tokens, count, weights):
    """The first `count` [B] drafts and one token drawn from `weights` [B, V]."""
    place = torch.arange(draft_tokens.shape[1] + 1, device=draft_tokens.device)
    tokens = torch.where(place < count[:, None], torch.nn.functional.pad(draft_tokens, (0, 1), value=-1), -1)
    return tokens.scatter(1, count[:, None], draw(weights)), count


def _rest(target, draft, count, weight):
    """(weight·t − d)⁺ of the row at which each request stops; the target's own law after the last draft.

    target [B, L + 1, V], draft [B, L, V], count int64 [B], weight [B] -> [B, V]
    """
    request, length = torch.arange(len(count), device=count.device), draft.shape[1]
    stop = target[request, count]
    rest = (weight[:, None] * stop - draft[request, count.clamp(max=length - 1)]).relu_()
    keep = (count == length) | ~(rest.sum(-1) > 0)  # nothing left: the draft covers the target up to rounding
    return torch.where(keep[:, None], stop, rest)


def token_of_laws(target, draft_tokens, draft):
    t = target[:, :-1].gather(-1, draft_tokens[:, :, None])[:, :, 0]
    d = draft.gather(-1, draft_tokens[:, :, None])[:, :, 0]
    count = (torch.rand_like(t) * d < t).long().cumprod(-1).sum(-1)
    return _emit(draft_tokens, count, _rest(target, draft, count, torch.ones_like(t[:, 0])))


def block_of_laws(target, draft_tokens, draft):
    t = target[:, :-1].gather(-1, draft_tokens[:, :, None])[:, :, 0]
    d = draft.gather(-1, draft_tokens[:, :, None])[:, :, 0]
    weight = [torch.ones_like(t[:, 0])]  # P_i = min(1, P_{i−1} t_i / d_i)
    for i in range(t.shape[1]):
        weight.append((weight[-1] * t[:, i] / d[:, i]).clamp(max=1.0))
    weight = torch.stack(weight, -1)
    inner = weight[:, 1:-1]
    mass = (inner[:, :, None] * target[:, 1:-1] - draft[:, 1:]).relu_().sum(-1)
    inner = torch.where((mass == 0) & (inner == 1), 1.0, mass / (mass + 1 - inner))
    accepted = torch.rand_like(t) < torch.cat([inner, weight[:, -1:]], -1)
    place = torch.arange(1, t.shape[1] + 1, device=t.device)
    count = (accepted * place).amax(-1)  # the longest accepted prefix
    kept = weight.gather(1, count[:, None])[:, 0]
    return _emit(draft_tokens, count, _rest(target, draft, count, kept))


def race_of_laws(target, draft_tokens, draft=None):
    """Noise the size of the logits, drawn once and shared by every row's race (coupled drafts would reuse it)."""
    winner = (target / torch.empty_like(target).exponential_()).argmax(-1)
    count = (winner[:, :-1] == draft_tokens).long().cumprod(-1).sum(-1)
    place = torch.arange(winner.shape[1], device=winner.device)
    return torch.where(place <= count[:, None], winner, -1), count


def token_torch(target_logits, draft_tokens, draft_logits, law):
    return token_of_laws(probabilities(target_logits, law), draft_tokens, probabilities(draft_logits, law))


def block_torch(target_logits, draft_tokens, draft_logits, law):
    return block_of_laws(probabilities(target_logits, law), draft_tokens, probabilities(draft_logits, law))


def race_torch(target_logits, draft_tokens, draft_logits, law):
    return race_of_laws(probabilities(target_logits, law), draft_tokens)


def token_transformers(target_logits, draft_tokens, draft_logits, law):
    """transformers' own function, which takes one request at a time."""
    return transformers_of_scaled(scaled(target_logits, law), draft_tokens, scaled(draft_logits, law))


def transformers_of_scaled(target, draft_tokens, draft):
    """The same from scaled logits; the softmax is inside."""
    tokens, count = _speculative_sampling(draft_tokens, draft, draft_tokens.shape[1], target)
    return torch.nn.functional.pad(tokens, (0, target.shape[1] - tokens.shape[1]), value=-1), count[None]


def sample_torch(logits, law):
    return draw(probabilities(logits, law))[:, 0]


def argmax_torch(logits, law):
    """Nothing is drawn: the cost of a maximum alone."""
    return logits.argmax(-1)


def largest_with_noise(z, k=1):
    """The Gumbel trick, argmax of the logits plus noise −log E, k times. float32 [B, V] -> int64 [B, k]"""
    return (z[:, None] - torch.empty(len(z), k, z.shape[1], device=z.device).exponential_().log()).argmax(-1)


def gumbel_torch(logits, law):
    return largest_with_noise(scaled(logits, law))[:, 0]


def draft_torch(logits, law, k, kind):
    """k children drawn by torch, int64 [B, k]: multinomial over the softmax, without replacement for `distinct` and for `arrivals`
    (whose law is that of `distinct`)"""
    return torch.multinomial(probabilities(logits, law), k, kind in ("iid", "lists"))


def draft_gumbel(logits, law, k, kind):
    """The same by the Gumbel trick: separate noise for each child, or the k largest"""
    if kind in ("iid", "lists"):
        return largest_with_noise(scaled(logits, law), k)
    z = scaled(logits, law)
    return (z - torch.empty_like(z).exponential_().log()).topk(k).indices


def row_stats_torch(logits, temperature):
    scaled = logits.float() / temperature
    return scaled.amax(-1), scaled.logsumexp(-1)


def package_reference(scheme):
    """The package's own specification, with the same arguments."""

    def verify(target_logits, draft_tokens, draft_logits, temperature, seed=0):
        return ss.verify(
            target_logits, draft_tokens, draft_logits, scheme=scheme, sampling=ss.Sampling(temperature),
            seed=seed, position=0, backend="reference",
        )[:2]  # fmt: skip

    return verify


def compiled(function, example, reset=True):
    """(function compiled for fixed shapes, how): as one graph if possible, otherwise with breaks; `how` says which.

    reset: discard earlier compilations
    """
    if reset:
        torch._dynamo.reset()
    for full in (True, False):
        call = torch.compile(function, fullgraph=full, dynamic=False)
        try:
            call(*example)
        except Exception as error:  # any reason against one graph is reported, not hidden
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
            continue
        return call, "one graph" if full else f"with graph breaks ({reason})"
    return None, reason


VERIFY_TORCH = {"token": token_torch, "block": block_torch, "race": race_torch}
OF_LAWS = {"token": token_of_laws, "block": block_of_laws, "race": race_of_laws}
SAMPLE_TORCH = {"multinomial": sample_torch, "Gumbel": gumbel_torch}
DRAFT_TORCH = {"multinomial": draft_torch, "Gumbel": draft_gumbel}
HAS_TRANSFORMERS = _speculative_sampling is not None


def check_all(trials=20000, vocab=8, length=2, temperature=0.7):
    """Each implementation's first token against the target's law, on a vocabulary small enough for every token to count.

    -> [name]; raises AssertionError naming an implementation that is wrong.
    """
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(1, length + 1, vocab, generator=generator)
    draft = target[:, :-1] + torch.randn(1, length, vocab, generator=generator)
    law, draft_law = (target[0, 0] / temperature).softmax(-1), (draft[0] / temperature).softmax(-1)
    # float64: with this many trials the rounding of a float32 multinomial would show
    tokens = torch.multinomial(draft_law.double(), trials, True, generator=generator).T.contiguous()
    many = [target.expand(trials, -1, -1).contiguous(), tokens, draft.expand(trials, -1, -1).contiguous()]
    checked = []
    for scheme, function in VERIFY_TORCH.items():
        emitted, count = function(*many, temperature)
        check_law(f"{scheme} in torch", emitted[:, 0], law)
        if not torch.equal((emitted >= 0).sum(-1), count + 1):
            raise AssertionError(f"{scheme} in torch: the number of tokens is not num_accepted + 1")
        checked.append(f"torch {scheme}")
    if HAS_TRANSFORMERS:
        few, threads = trials // 10, torch.get_num_threads()
        torch.set_num_threads(1)  # for thousands of tiny calls, waking a second thread only costs time
        first = [token_transformers(target, tokens[i : i + 1], draft, temperature)[0][0, 0] for i in range(few)]
        torch.set_num_threads(threads)
        check_law("transformers", torch.stack(first), law)
        checked.append("transformers")
    rows = many[0][:, 0]
    for name, function in SAMPLE_TORCH.items():
        check_law(f"sample by {name}", function(rows, temperature), law)
    for name, function in DRAFT_TORCH.items():
        for kind, place in (("iid", 2), ("distinct", 0)):  # the first of the distinct ones has the law itself
            check_law(f"{kind} drafts by {name}", function(rows, temperature, 3, kind)[:, place], law)
    checked += [f"{name} of a row" for name in SAMPLE_TORCH]
    for scheme, card in ss.schemes().items():
        if scheme not in VERIFY_TORCH:
            continue
        seeds = torch.arange(trials)
        place = {"sampling": ss.Sampling(temperature), "seed": seeds, "position": 7}
        drawn = [ss.draft(many[2][:, i], kind=card.draft_kind, depth=i, node=i, **place)[:, 0] for i in range(length)]
        verdict = ss.verify(many[0], torch.stack(drawn, 1), many[2], scheme=scheme, **place)
        check_law(f"specsample {scheme}", verdict.tokens[:, 0], law)
        checked.append(f"specsample {scheme}")
    return checked
