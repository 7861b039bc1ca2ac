"""Competitors' verification and sampling on a GPU, each given what it needs from the same logits.

A competitor is a `Peer`: `prepare` turns raw logits into its kernels' inputs (scaling, filtering, softmax); `verify` is the
verification alone, including random numbers and the bonus token. Both are timed, together and `verify` by itself. A competitor
that cannot be imported is named with the reason; none is required.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import specsample as ss
from benchmarks import competitors as others
from benchmarks.gpu.clock import reason
from benchmarks.harness import check_law


class Peer(NamedTuple):
    """Its functions: `prepare` (target [B, L + 1, V], tokens int64 [B, L], draft [B, L, V], sampling) -> the input of `verify`;
    `verify` -> its own result; `read` (result, input of `verify`) -> (tokens int [B, L + 1] padded with −1, count [B])"""

    prepare: Callable
    verify: Callable
    read: Callable = lambda result, prepared: result
    whole: Callable | None = None  # in place of both, in sequence
    note: str = ""

    def call(self, *inputs):
        return (self.whole or (lambda *x: self.verify(self.prepare(*x))))(*inputs)


def law_of(sampling):
    """For plain settings just the temperature, which the functions in competitors.py take as well."""
    return sampling.temperature if sampling[1:] == ss.Sampling()[1:] else sampling


def probabilities(logits, sampling):
    return others.probabilities(logits, law_of(sampling))


def scaled_logits(logits, sampling):
    return others.scaled(logits, law_of(sampling))


# -- torch and transformers --------------------------------------------------------------------------------------------


def torch_eager(scheme):
    if scheme == "sample":
        return sampling_by("torch")

    def prepare(target, tokens, draft, sampling):
        laws = probabilities(target, sampling)
        return laws, tokens, None if scheme == "race" else probabilities(draft, sampling)

    return Peer(prepare, lambda made: others.OF_LAWS[scheme](*made))


def torch_compiled(scheme, example):
    """The eager function compiled for the shapes of `example` (target, tokens, draft, sampling)."""
    eager = torch_eager(scheme)

    def whole(target, tokens, draft, sampling):
        return others.VERIFY_TORCH[scheme](target, tokens, draft, law_of(sampling))

    call, how = others.compiled(whole, example)
    if call is None:
        raise RuntimeError(how)
    part, _ = others.compiled(others.OF_LAWS[scheme], eager.prepare(*example), reset=False)
    return Peer(eager.prepare, lambda made: part(*made), whole=call, note=how)


# On one row per request, the first: from (target [B, L + 1, V], …) they read its logits, and their tokens count as verified.
# name: (from scaled logits or from a law, one token or `k` per row)
OF_ROWS = {
    "torch": (probabilities, lambda law, k: others.draw(law)),
    "multinomial": (probabilities, lambda law, k: torch.multinomial(law, k, True)),
    "Gumbel": (scaled_logits, lambda z, k: others.largest_with_noise(z, k)),
}


def sampling_by(name, k=1, example=None):
    """k independent tokens per row, int64 [B, k]. example: compile for its shapes"""
    make, draw = OF_ROWS[name]
    prepare = lambda target, tokens, draft, sampling: make(target[:, 0], sampling)
    verify, whole, how = lambda made: draw(made, k), None, ""
    if example is not None:
        whole, how = others.compiled(lambda *inputs: verify(prepare(*inputs)), example)
        if whole is None:
            raise RuntimeError(how)
    return Peer(prepare, verify, one_a_row, whole, how)


def one_a_row(tokens, made):
    return tokens.view(len(tokens), -1).long(), torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)


def argmax():
    return Peer(lambda target, *_: target[:, 0], lambda logits: logits.argmax(-1), note="draws nothing: what a maximum costs")


def transformers(scheme):
    if not others.HAS_TRANSFORMERS:
        raise ImportError("no transformers with _speculative_sampling")

    def prepare(target, tokens, draft, sampling):
        law = law_of(sampling)
        return others.scaled(target, law), tokens, others.scaled(draft, law)

    return Peer(prepare, lambda made: others.transformers_of_scaled(*made), note="its softmax is in both figures")


# -- FlashInfer --------------------------------------------------------------------------------------------------------


def renormalised(logits, sampling, module):
    """Probabilities, float32, by FlashInfer's fused softmax, top-k and top-p; min-p, which it lacks, by torch"""
    rows = module.softmax(logits.flatten(0, -2).float(), temperature=float(sampling.temperature))
    if sampling.top_k:
        rows = module.top_k_renorm_probs(rows, sampling.top_k)
    if sampling.top_p < 1:
        rows = module.top_p_renorm_probs(rows, sampling.top_p)
    if sampling.min_p:
        rows = torch.where(rows < sampling.min_p * rows.amax(-1, keepdim=True), 0, rows)
        rows = rows / rows.sum(-1, keepdim=True)
    return rows.view(logits.shape)


def _padded(result, prepared):
    """Tokens padded with −1 -> (tokens, count)"""
    tokens = (result[0] if isinstance(result, tuple) else result).long()
    return tokens, (tokens >= 0).sum(-1) - 1


def flashinfer(scheme):
    """As released (0.7); its law is checked before it is timed, as for every competitor."""
    module = importlib.import_module("flashinfer.sampling")

    def state_of(function, device):
        """Tensors, so that a graph can hold it; filled rather than copied from the host, which a capture does not allow."""
        seeded = "seed" in inspect.signature(function).parameters
        return {name: torch.full((1,), 7, device=device) for name in (("seed", "offset") if seeded else ())}

    if scheme == "sample":

        def prepare_row(target, tokens, draft, sampling):
            row, plain = target[:, 0], law_of(sampling) == sampling.temperature
            function = module.sampling_from_logits if plain else module.sampling_from_probs
            rows = others.scaled(row, sampling) if plain else renormalised(row, sampling, module)
            return function, rows, state_of(function, target.device)

        return Peer(prepare_row, lambda made: made[0](made[1], **made[2]), one_a_row)

    def prepare(target, tokens, draft, sampling):
        state = state_of(module.chain_speculative_sampling, target.device)
        return (renormalised(draft, sampling, module), tokens.int(), renormalised(target, sampling, module)), state

    def verify(made):
        arguments, state = made
        return module.chain_speculative_sampling(*arguments, **state)

    return Peer(prepare, verify, _padded)


# -- all competitors ---------------------------------------------------------------------------------------------------


# name: (loader, our schemes beside which it is timed)
PEERS: dict[str, tuple[Any, tuple]] = {
    "torch": (torch_eager, ("token", "block", "race", "sample")),
    "multinomial": (lambda scheme: sampling_by("multinomial"), ("sample",)),
    "Gumbel": (lambda scheme: sampling_by("Gumbel"), ("sample",)),
    "transformers": (transformers, ("token",)),
    "FlashInfer": (flashinfer, ("token", "sample")),
}
ONE_REQUEST = ("transformers",)


def loaded(scheme, which=None):
    """({name: Peer}, {name: why not}) of those timed beside `scheme`"""
    found, missing = {}, {}
    for name, (loader, schemes) in (PEERS if which is None else which).items():
        if scheme not in schemes:
            continue
        try:
            found[name] = loader(scheme)
        except Exception as error:  # a package that is installed but fails to import is a reason like any other
            missing[name] = reason(error)
    return found, missing


def check(name, peer, device, one=False, trials=20_000, vocab=32, length=2):
    """Raise AssertionError unless the first token of `peer` has the target's law. one: it takes one request per call"""
    generator, sampling = torch.Generator().manual_seed(5), ss.Sampling(0.7)
    trials = trials // 20 if one else trials
    target = torch.randn(1, length + 1, vocab, generator=generator)
    draft = target[:, :-1] + torch.randn(1, length, vocab, generator=generator)
    laws = (draft[0] / sampling.temperature).softmax(-1).double()
    tokens = torch.multinomial(laws, trials, True, generator=generator).T.contiguous()
    target_rows, draft_rows = (x.expand(trials, -1, -1).contiguous() for x in (target, draft))
    many = [x.to(device) for x in (target_rows, tokens, draft_rows)]
    if one:
        first = [peer.call(*(x[i : i + 1] for x in many), sampling)[0][:, 0] for i in range(trials)]
        first = torch.cat(first)
    else:
        prepared = peer.prepare(*many, sampling)
        emitted, count = peer.read(peer.verify(prepared), prepared)
        if not torch.equal((emitted >= 0).sum(-1), count.long() + 1):
            raise AssertionError(f"{name}: the number of tokens is not num_accepted + 1")
        first = emitted[:, 0]
    check_law(name, first.cpu(), (target[0, 0] / sampling.temperature).softmax(-1))
