"""What is measured: cases (operation × scheme × logits × dtype × shape), their inputs, bytes and competitors.

A new scheme adds its line to BYTES (the rows it must read), and a competitor if there is one.
"""

import functools
from typing import NamedTuple

import torch

import specsample as ss
from benchmarks import competitors as others

TEMPERATURE, SEED, POSITION = 0.7, 1000, 100
SAMPLING = ss.Sampling(TEMPERATURE)
BATCHES, LENGTHS, VOCABS = (1, 8, 32), (1, 4, 8), (32000, 128256)
SINGLE_DRAFT = ("token", "block", "race")
DRAFTS = ("iid", "arrivals", "distinct", "lists")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REQUESTS = 32  # a timed call of any case covers at least this many requests, in batches of B: see `Inputs`
POOL = 40  # distinct rows of a kind; larger inputs repeat them in memory


class Case(NamedTuple):
    op: str  # "verify", "sample", "draft" or "row_stats"
    scheme: str | None  # for `draft`, the kind of children
    rows: str  # "peaked" or "flat"
    dtype: str
    B: int  # requests; for other operations, rows
    L: int  # drafts per request; 0 if there are none
    V: int
    K: int = 1  # children of a row

    @property
    def name(self):
        length = f"-L{self.L}" if self.op == "verify" else f"-K{self.K}" if self.op == "draft" else ""
        return f"{self.scheme or self.op}-{self.rows}-{self.dtype}-B{self.B}{length}-V{self.V}"

    @property
    def compiled_too(self):
        """torch.compile takes tens of seconds per shape, so only these have it."""
        chosen = self.rows == "peaked" and self.dtype == "float32" and self.V == 32000
        return chosen and (self.B, self.L) in ((1, 4), (8, 4), (8, 0)) and self.scheme in (None, "iid", *SINGLE_DRAFT)

    @property
    def requests(self):
        return max(REQUESTS, self.B)

    @property
    def row_bytes(self):
        return self.V * DTYPES[self.dtype].itemsize


def cases(quick=False):
    """Every case, those with equal inputs next to each other."""
    if quick:
        shapes = [(1, 4, 32000), (8, 4, 32000), (8, 4, 128256)]
        kinds = [("peaked", "float32"), ("peaked", "bfloat16")]
        found = [Case("verify", s, *k, *shape) for k in kinds for shape in shapes for s in SINGLE_DRAFT]
        found = [c for c in found if c.dtype == "float32" or c.B == 8]
        found += [Case(op, None, "peaked", "float32", 8, 0, 32000) for op in ("sample", "row_stats")]
        found += [Case("draft", kind, "peaked", "float32", 8, 0, 32000, 8) for kind in DRAFTS]
    else:
        kinds = [(rows, dtype) for rows in ("peaked", "flat") for dtype in DTYPES]
        plain = [("sample", None, 1), ("row_stats", None, 1)]
        drafts = [("draft", "iid", 1), *(("draft", kind, 8) for kind in DRAFTS)]
        found = [
            Case(op, kind, *k, b, 0, v, n)
            for k in kinds for v in VOCABS for b in BATCHES for op, kind, n in (plain if b == 32 else plain + drafts)
        ]  # fmt: skip
        found += [
            Case("verify", s, *k, b, n, v) for k in kinds for v in VOCABS for n in LENGTHS for b in BATCHES
            for s in SINGLE_DRAFT
        ]  # fmt: skip
    # A tiny vocabulary: the call's own cost. And a row pass over more than the caches hold.
    few = [Case("verify", s, "peaked", "float32", 1, 4, 100) for s in SINGLE_DRAFT]
    return [*few, Case("row_stats", None, "peaked", "float32", 512, 0, 128256), *found]


# -- inputs ------------------------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """R requests. The cost of a scheme that stops at the first rejection depends on which drafts are accepted, and one request
    says little about it; so every case covers the same requests, in calls of B, and reports the mean call."""

    target: torch.Tensor  # [R, L + 1, V], or [R, V]
    draft: torch.Tensor | None  # [R, L, V]
    tokens: dict  # {draft kind: int64 [R, L], drawn from the draft rows' law}
    seeds: torch.Tensor  # int64 [R]

    def batches(self, B):
        """Inputs of B requests each, as views of these"""
        part = [slice(i, i + B) for i in range(0, len(self.target), B)]
        return [
            Inputs(
                self.target[p],
                None if self.draft is None else self.draft[p],
                {kind: tokens[p] for kind, tokens in self.tokens.items()},
                self.seeds[p],
            )
            for p in part
        ]


@functools.lru_cache(maxsize=2)
def _pool(rows, vocab):
    """(target, draft) float32 [POOL, V].

    peaked: like a language model's: Zipf with exponent 1.1 over shuffled ids, plus noise; scaled so that at the temperature
    used here the likeliest token mostly has 0.3 to 0.9. flat: all tokens about equally likely.
    """
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(POOL, vocab, generator=generator)
    if rows == "flat":
        target *= 0.1
        return target, torch.randn(POOL, vocab, generator=generator) * 0.1
    zipf = -1.1 * torch.arange(1, vocab + 1).float().log()
    for row in target:
        row += zipf[torch.randperm(vocab, generator=generator)]
    target *= 1.3
    return target, target + 0.8 * torch.randn(POOL, vocab, generator=generator)


@functools.lru_cache(maxsize=1)  # the schemes and batches of a shape share its inputs; larger ones are not kept
def inputs_of(rows, dtype, requests, L, V):
    target, draft = (part.to(DTYPES[dtype]) for part in _pool(rows, V))
    index = torch.arange(requests * (L + 1)).view(requests, L + 1) % POOL
    seeds = SEED + torch.arange(requests)
    if L == 0:
        return Inputs(target[index[:, 0]], None, {}, seeds)
    target, draft = target[index], draft[index[:, :-1]]
    tokens = {}
    for kind in ("iid", "arrivals"):
        level = [
            ss.draft(draft[:, i], kind=kind, sampling=SAMPLING, seed=seeds, position=POSITION, depth=i, node=i) for i in range(L)
        ]
        tokens[kind] = torch.cat(level, 1)
    return Inputs(target, draft, tokens, seeds)


# -- bytes -------------------------------------------------------------------------------------------------------------
# Rows of the vocabulary for a request whose first n of L drafts were accepted: (rows that the scheme must read, reads by our
# kernels). Tiles of a row are read twice for a law (maximum, then sum), but the second time from the first-level cache, so
# they count as one read. Gathers of single tokens do not count.


def _token(L, n):
    # The target's and the draft's row at every node up to the first rejection, of which the residual race reads the target's
    # again; or, if all drafts are accepted, the bonus row, raced without its law.
    return (2 * L + 1, 2 * L + 1) if n == L else (2 * (n + 1), 2 * (n + 1) + 1)


def _block(L, n):
    # A later token may accept an earlier one, so every pair of rows is read; those above the leaf again for M_i; then
    # the row of the residual race, or the bonus row.
    return (2 * L + 1 if n == L else 2 * L), 2 * L + 2 * (L - 1) + 1


def _race(L, n):
    # One race over each target row up to the first token that differs from the draft; no law, no draft row.
    return n + 1, n + 1


BYTES = {"token": _token, "block": _block, "race": _race}


def bytes_of(case, num_accepted):
    """(bytes that must be read, bytes that our kernels read) by one call of `case`, averaged over all its requests'
    num_accepted int32 [R], or None."""
    if case.op != "verify":
        return (case.B * case.row_bytes,) * 2
    rows = [BYTES[case.scheme](case.L, n) for n in num_accepted.tolist()]
    return tuple(sum(column) / len(rows) * case.B * case.row_bytes for column in zip(*rows))


# -- who runs a case ---------------------------------------------------------------------------------------------------


def ours(case, inputs, backend="cpu"):
    """The package's call for a case."""
    stream = {"seed": inputs.seeds, "position": POSITION}
    if case.op == "sample":
        return lambda: ss.sample(inputs.target, sampling=SAMPLING, backend=backend, **stream)
    if case.op == "draft":
        return lambda: ss.draft(inputs.target, case.K, kind=case.scheme, sampling=SAMPLING, backend=backend, **stream)
    if case.op == "row_stats":
        return lambda: ss.row_stats(inputs.target, sampling=SAMPLING, backend=backend)
    tokens = inputs.tokens[ss.schemes()[case.scheme].draft_kind]
    return lambda: ss.verify(inputs.target, tokens, inputs.draft, scheme=case.scheme, sampling=SAMPLING, backend=backend, **stream)


def competitors(case, batches, compile=True, compile_reference=False):
    """({name: call over all `batches`}, {name: what to know about it}) of the competitors on the same inputs."""
    functions, notes = {}, {}
    if case.op == "verify":
        kind = ss.schemes()[case.scheme].draft_kind
        arguments = [(part.target, part.tokens[kind], part.draft, TEMPERATURE) for part in batches]
        if case.scheme == "token" and case.B == 1 and others.HAS_TRANSFORMERS:
            functions["transformers"] = others.token_transformers
        if (case.B, case.V) == (1, 32000) and case.L <= 4 and (case.rows, case.dtype) == ("peaked", "float32"):
            functions["reference"] = others.package_reference(case.scheme)
        functions["torch"] = others.VERIFY_TORCH[case.scheme]
    else:
        arguments = [(part.target, TEMPERATURE) for part in batches]
        functions = {
            "sample": {"argmax": others.argmax_torch, **others.SAMPLE_TORCH},
            "draft": {n: functools.partial(f, k=case.K, kind=case.scheme) for n, f in others.DRAFT_TORCH.items()},
            "row_stats": {"torch": others.row_stats_torch},
        }[case.op]
    wanted = {}
    if compile and case.compiled_too:
        if "Gumbel" in functions:
            wanted["Gumbel, torch.compile"] = functions["Gumbel"]
        else:
            wanted["torch.compile"] = functions["torch"]
    if compile_reference and "reference" in functions and case.L == 1:
        wanted["reference, torch.compile"] = functions["reference"]
    for name, function in wanted.items():
        call, notes[name] = others.compiled(function, arguments[0])
        if call is not None:
            functions[name] = call
    return {name: over(functools.partial(f, *a) for a in arguments) for name, f in functions.items()}, notes


def over(calls):
    """One call that makes all of `calls`."""
    calls = list(calls)

    def every():
        for call in calls:
            call()

    return every
