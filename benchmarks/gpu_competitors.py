"""The others' verification and sampling on a GPU, each fed what it needs from the same logits; serving engines' in gpu_engines.py.

A competitor is a `Peer`: `prepare` makes of raw logits what its kernels take (scaling, filtering, softmax), `verify` is the
verification alone, random numbers and bonus token included. Both are timed, together and `verify` by itself. Who cannot be
imported is named with the reason; nobody here is needed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import competitors as others
import torch
from gpu_clock import reason
from harness import check_law

import specsample as ss


class Peer(NamedTuple):
    """Its functions: `prepare` (target [B, L + 1, V], tokens int64 [B, L], draft [B, L, V], sampling) -> what `verify` takes;
    `verify` -> a result of its own; `read` (that, what `verify` took) -> (tokens int [B, L + 1] padded with −1, count [B])"""

    prepare: Callable
    verify: Callable
    read: Callable = lambda result, prepared: result
    whole: Callable | None = None  # in the place of both, one after the other
    note: str = ""

    def call(self, *inputs):
        return (self.whole or (lambda *x: self.verify(self.prepare(*x))))(*inputs)


def law_of(sampling):
    """Of plain settings the temperature alone, which the functions in competitors.py take as well."""
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
    """The eager one compiled for the shapes of `example` (target, tokens, draft, sampling)."""
    eager = torch_eager(scheme)

    def whole(target, tokens, draft, sampling):
        return others.VERIFY_TORCH[scheme](target, tokens, draft, law_of(sampling))

    call, how = others.compiled(whole, example)
    if call is None:
        raise RuntimeError(how)
    part, _ = others.compiled(others.OF_LAWS[scheme], eager.prepare(*example), reset=False)
    return Peer(eager.prepare, lambda made: part(*made), whole=call, note=how)


# Of one row a request, the first: what they read from (target [B, L + 1, V], …) is its logits, and their tokens count as verified.
# name: (from scaled logits or from a law, one token or `k` of each row)
OF_ROWS = {
    "torch": (probabilities, lambda law, k: others.draw(law)),
    "multinomial": (probabilities, lambda law, k: torch.multinomial(law, k, True)),
    "Gumbel": (scaled_logits, lambda z, k: others.largest_with_noise(z, k)),
}


def sampling_by(name, k=1, example=None):
    """k independent tokens of a row, int64 [B, k]. example: compiled for its shapes"""
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


# -- all of them -------------------------------------------------------------------------------------------------------


def _engine(name):
    def load(scheme):
        import gpu_engines

        return getattr(gpu_engines, name)(scheme)

    return load


# name: (loader, the schemes of ours beside which it is timed)
PEERS: dict[str, tuple[Any, tuple]] = {
    "torch": (torch_eager, ("token", "block", "race", "sample")),
    "multinomial": (lambda scheme: sampling_by("multinomial"), ("sample",)),
    "Gumbel": (lambda scheme: sampling_by("Gumbel"), ("sample",)),
    "transformers": (transformers, ("token",)),
    "vLLM V1": (_engine("vllm_v1"), ("token",)),
    "vLLM V2": (_engine("vllm_v2"), ("token", "block")),
    "SGLang Triton": (_engine("sglang_triton"), ("token", "block")),
    "sgl-kernel": (_engine("sglang_kernel"), ("token",)),
    "FlashInfer": (_engine("flashinfer"), ("token", "sample")),
}
ONE_REQUEST = ("transformers",)


def loaded(scheme, which=None):
    """({name: Peer}, {name: why not}) of those that are timed beside `scheme`"""
    found, missing = {}, {}
    for name, (loader, schemes) in (PEERS if which is None else which).items():
        if scheme not in schemes:
            continue
        try:
            found[name] = loader(scheme)
        except Exception as error:  # a package that is there but does not import is a reason like another
            missing[name] = reason(error)
    return found, missing


def check(name, peer, device, one=False, trials=20_000, vocab=32, length=2):
    """Raise AssertionError unless the first token of `peer` has the target's law. one: it takes one request a call"""
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
