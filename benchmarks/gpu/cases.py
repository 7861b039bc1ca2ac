"""What the GPU benchmarks measure: cases, their inputs on the device, and the bytes they must read."""

import functools
import itertools
from typing import NamedTuple

import torch

import specsample as ss
from benchmarks import registry

BATCHES, LENGTHS, VOCABS, TEMPERATURES = (1, 8, 64, 256), (1, 4, 8), (128_256, 32_000, 151_936), (1.0, 0.7)
FILTERS = {
    "plain": {},
    "top-k": {"top_k": 50},
    "top-p": {"top_p": 0.95},
    "min-p": {"min_p": 0.05},
    "all": {"top_k": 50, "top_p": 0.95, "min_p": 0.05},
}
SINGLE = {"optimal": "token", "recursive": "token", "optimal_block": "block", "draft": "sample"}  # baselines of multi-draft cases
OF_ROWS = ("sample", "draft")  # one row per request: nothing is verified
DTYPE = torch.bfloat16
BY_REQUEST = ("target_logits", "draft_tokens", "draft_logits", "logits", "seed")  # arguments with one row per request


class Case(NamedTuple):
    scheme: str  # of `verify`, or one of OF_ROWS
    B: int  # requests
    L: int  # drafts per path; 0 for OF_ROWS
    V: int
    temperature: float = 1.0
    filters: str = "plain"
    K: int = 1  # paths; for `draft`, independent children

    @property
    def name(self):
        length = f"-L{self.L}" if self.L else ""
        paths = f"-K{self.K}" if self.K > 1 else ""
        return f"{self.scheme}-B{self.B}{length}{paths}-V{self.V}-T{self.temperature:g}-{self.filters}"

    @property
    def sampling(self):
        return ss.Sampling(self.temperature, **FILTERS[self.filters])

    @property
    def row_bytes(self):
        return self.V * DTYPE.itemsize

    @property
    def compiled_too(self):
        """torch.compile takes tens of seconds per shape."""
        return self.L in (0, 4) and self[3:] == (128_256, 0.7, "plain", 1)


V = 128_256
MULTI = [Case(s, b, n, V, K=4) for b in (1, 64) for s, n in (("optimal", 1), ("recursive", 1), ("optimal_block", 4))]
CHILDREN = [Case("draft", b, 0, V, K=8) for b in (1, 64)]
# `make gpu`: a dozen shapes, and several drafts per node.
NAMED = (
    Case("token", 1, 4, V),
    Case("token", 1, 4, V, 0.7),
    Case("race", 1, 4, V),
    Case("block", 1, 4, V),
    Case("token", 64, 4, V, 0.7),
    Case("race", 64, 4, V),
    Case("block", 64, 4, V),
    Case("token", 256, 8, V),
    Case("token", 64, 4, V, 0.7, "min-p"),
    Case("token", 64, 4, V, 0.7, "all"),
    Case("token", 64, 4, V + 1, 0.7),  # rows that are not aligned to 16 bytes
    Case("sample", 1, 0, V),
    Case("sample", 256, 0, V),
    Case("draft", 64, 0, V, K=8),
    *MULTI,
)


def grid():
    """Every case of `make gpu-bench`: those of `make gpu` first, then the more common ones"""
    chains = [
        Case(scheme, b, n, v, t, f)
        for v, f, t, n, b in itertools.product(VOCABS, FILTERS, TEMPERATURES, LENGTHS, BATCHES)
        for scheme in registry.SINGLE_DRAFT
    ]
    samples = [Case("sample", b, 0, v, t, f) for v in VOCABS for f in FILTERS for t in TEMPERATURES for b in BATCHES]
    several = [c._replace(V=v, temperature=t) for v in VOCABS for t in TEMPERATURES for c in (*MULTI, *CHILDREN)]
    return list(dict.fromkeys([*NAMED, *several, *samples, *chains]))


class Inputs(NamedTuple):
    """n copies of a case's inputs, one after another: distinct requests with their own seeds."""

    target: torch.Tensor  # [n · B, L + 1, V]: one row per depth
    draft: torch.Tensor | None  # [n · B, L, V]
    tokens: dict  # {draft kind: int64 [n · B, K · L], path after path}
    seeds: torch.Tensor  # int64 [n · B]

    @property
    def bytes(self):
        return sum(x.numel() * x.element_size() for x in (self.target, self.draft) if x is not None)


@functools.lru_cache(maxsize=2)
def _pool(V, device):
    return [part.to(device, DTYPE) for part in registry._pool("peaked", V)]


def inputs_of(case, copies, device, backend=None):
    """Drafts drawn, by `backend`, from the draft's law under the case's sampling, for the case's scheme and for those
    timed beside it."""
    target, draft = _pool(case.V, device)
    R, pool = copies * case.B, len(target)
    index = torch.arange(R * (case.L + 1), device=device).view(R, case.L + 1) % pool
    seeds = registry.SEED + torch.arange(R, device=device)
    if case.scheme in OF_ROWS:
        return Inputs(target[index], None, {}, seeds)
    rows, laws = target[index], draft[index[:, : case.L]]
    stream = {"sampling": case.sampling, "seed": seeds, "position": registry.POSITION, "backend": backend}
    tokens = {}
    for kind in {ss.schemes()[case.scheme].draft_kind, "iid"}:
        level = [(k * case.L + d, d) for k in range(case.K) for d in range(case.L)]
        drawn = [ss.draft(laws[:, d], kind=kind, depth=d, node=node, **stream) for node, d in level]
        tokens[kind] = torch.cat(drawn, 1)
    return Inputs(rows, laws, tokens, seeds)


def arguments(case, inputs, copy=0, scheme=None):
    """Arguments of the package's call on one copy. scheme: instead, a single-draft one on the first path, or `sample`"""
    part = slice(copy * case.B, (copy + 1) * case.B)
    stream = {"seed": inputs.seeds[part], "position": registry.POSITION, "sampling": case.sampling}
    if case.scheme in OF_ROWS:
        return {"logits": inputs.target[part, 0], **({"k": case.K} if (scheme or case.scheme) == "draft" else {}), **stream}
    paths, scheme = (case.K, case.scheme) if scheme is None else (1, scheme)
    tokens = inputs.tokens[ss.schemes()[scheme].draft_kind][part, : paths * case.L]
    args = {"target_logits": inputs.target[part], "draft_tokens": tokens, "draft_logits": inputs.draft[part]} | {"scheme": scheme}
    if paths > 1:
        parents, rows, draft_rows = _tree(paths, case.L, inputs.target.device)
        args |= {"parents": parents, "rows": rows, "draft_rows": draft_rows, "max_depth": case.L}
    return args | stream


@functools.lru_cache(maxsize=16)
def _tree(paths, depth, device):
    """(parents, rows, draft_rows) of `paths` chains whose laws depend only on the depth"""
    level = [i % depth for i in range(paths * depth)]
    lists = [i - 1 if d else -1 for i, d in enumerate(level)], [0] + [d + 1 for d in level], level
    return [torch.tensor(values, device=device) for values in lists]


def bytes_needed(case, num_accepted):
    """Bytes of the rows that a call must read, each once, averaged over requests. num_accepted: int [R], or None"""
    if case.scheme in OF_ROWS:
        return case.B * case.row_bytes
    rows = registry.BYTES[SINGLE.get(case.scheme, case.scheme)]
    counts = torch.bincount(num_accepted.long().cpu(), minlength=1).tolist()
    each = sum(count * rows(case.L, n)[0] for n, count in enumerate(counts)) / sum(counts)
    return each * case.B * case.row_bytes


def least_bytes(case):
    """Bytes that the call reads if its first draft is rejected"""
    rows = 1 if case.scheme in (*OF_ROWS, "race") else 2
    return case.B * rows * case.row_bytes
