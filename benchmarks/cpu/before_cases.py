"""The cases of before.py, and the worker process that measures them for one tree.

    PYTHONPATH=<tree> python before_cases.py    (orders and answers: JSON, one line each)

`specsample` is the tree's own, the harness always this tree's.

The workers of both trees make the same inputs independently: logits and drafts come from torch's generator, never from the
package, whose streams may differ. Each operation covers the same requests in calls of B, and its time is the mean call's.
"""

import functools
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

import specsample as ss

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import Agreement

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KINDS = ("iid", "arrivals", "distinct", "lists")  # kinds of drafting
ROWS, REQUESTS, LENGTH, POSITION = 16, 64, 4, 100  # rows of an operation on rows, requests of a verification, drafts per request
SPINNING = 0.012  # seconds: longer than the other worker's second thread spins before it sleeps (4 to 7 ms observed)
POOL = 40  # distinct rows of a kind; larger inputs repeat them in memory


class Case(NamedTuple):
    op: str  # "row_stats", "sample", "draft" or "verify"
    kind: str  # the kind of drafts, or the scheme
    rows: str  # "flat", "peaked" or "zipf"
    dtype: str
    V: int
    B: int  # rows or requests per call
    K: int = 1  # children
    acceptance: float = 0.0  # approximate, of one draft

    @property
    def name(self):
        children = f"-K{self.K}" if self.op == "draft" or self.K > 1 else ""
        acceptance = f"-a{self.acceptance:g}" if self.acceptance else ""
        return f"{self.kind or self.op}-{self.rows}-{self.dtype}-V{self.V}-B{self.B}{children}{acceptance}"


def groups():
    """Lists of cases with equal inputs, which are timed together"""
    found = []
    for V in (128_256, 32_000, 1_000):
        for rows in ("flat", "peaked", "zipf"):
            for dtype in DTYPES:
                of = functools.partial(Case, rows=rows, dtype=dtype, V=V)
                for B in (1, ROWS):
                    found.append([of("row_stats", "", B=B), of("sample", "", B=B)])
                found[-1] += [of("draft", kind, B=ROWS, K=K) for kind in KINDS for K in (1, 8)]
    for rows, V in (("flat", 128_256), ("peaked", 128_256), ("zipf", 128_256), ("peaked", 32_000)):
        for dtype in DTYPES:
            for acceptance in (0.3, 0.9):
                of = functools.partial(Case, "verify", rows=rows, dtype=dtype, V=V, acceptance=acceptance)
                found.append(
                    [of(scheme, B=B) for scheme in ("token", "race") for B in (1, 8, REQUESTS)]
                    + [of("block", B=8), of("recursive", B=8, K=4), of("optimal", B=8, K=4)]
                )
    return found


def quick_groups():
    of = functools.partial(Case, rows="zipf", dtype="float32", V=300)
    rows = [of("row_stats", "", B=ROWS), of("sample", "", B=ROWS), *(of("draft", "iid", B=ROWS, K=K) for K in (1, 8))]
    several = of("verify", "optimal", B=8, K=4, acceptance=0.3)
    return [rows, [*(of("verify", scheme, B=1, acceptance=0.3) for scheme in ("token", "race")), several]]


# -- inputs ------------------------------------------------------------------------------------------------------------


def logits(rows, V, seed):
    """float32 [POOL, V]. flat: N(0, 1); peaked: four times that; zipf: exponent 1.1 over shuffled ids, plus some noise"""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(POOL, V, generator=generator)
    if rows == "peaked":
        return z * 4
    if rows == "zipf":
        zipf = -1.1 * torch.arange(1, V + 1).float().log()
        return z * 0.5 + torch.stack([zipf[torch.randperm(V, generator=generator)] for _ in range(POOL)])
    return z


def noise_for(target, noise, acceptance):
    """The noise on the target's logits that gives a draft with this acceptance"""
    low, high = 0.0, 16.0
    for _ in range(16):
        middle = (low + high) / 2
        both = torch.minimum(target.softmax(-1), (target + middle * noise).softmax(-1)).sum(-1).mean()
        low, high = (middle, high) if both > acceptance else (low, middle)
    return low


@functools.lru_cache(maxsize=1)
def rows_of(rows, dtype, V):
    return logits(rows, V, 1)[torch.arange(ROWS) % POOL].to(DTYPES[dtype])


class Chains(NamedTuple):
    target: torch.Tensor  # [REQUESTS, LENGTH + 1, V]
    draft: torch.Tensor  # [REQUESTS, LENGTH, V]
    drawn: torch.Tensor  # int64 [REQUESTS, LENGTH], from the draft's laws
    children: torch.Tensor  # int64 [REQUESTS, 4], all from the first row
    coupled: torch.Tensor  # int64 [REQUESTS, LENGTH]: for `race`, each is the target's winner with probability `acceptance`


@functools.lru_cache(maxsize=1)
def chains(rows, dtype, V, acceptance):
    generator = torch.Generator().manual_seed(2)
    pool, noise = logits(rows, V, 1), torch.randn(POOL, V, generator=generator)
    pool_draft = pool + noise_for(pool[:8], noise[:8], acceptance) * noise
    index = torch.arange(REQUESTS * (LENGTH + 1)).view(REQUESTS, LENGTH + 1) % POOL
    target, draft = pool.to(DTYPES[dtype])[index], pool_draft.to(DTYPES[dtype])[index[:, :-1]]
    laws = pool_draft.to(DTYPES[dtype]).double().softmax(-1)
    many = torch.multinomial(laws, 4 * REQUESTS * (LENGTH + 1), True, generator=generator)
    drawn = many[index[:, :-1], torch.arange(REQUESTS)[:, None]]
    children = torch.stack([many[index[:, 0], REQUESTS * (k + 1) + torch.arange(REQUESTS)] for k in range(4)], 1)
    winners = torch.stack([ss.sample(target[:, i], seed=0, position=POSITION + i) for i in range(LENGTH)], 1)
    agree = torch.rand(winners.shape, generator=generator) < acceptance
    return Chains(target, draft, drawn, children, torch.where(agree, winners, (winners + 1) % V))


def calls_of(case, backend="cpu"):
    """One call for each B requests"""
    parts = [slice(i, i + case.B) for i in range(0, ROWS if case.op != "verify" else REQUESTS, case.B)]
    stream = {"position": POSITION, "backend": backend}
    if case.op == "verify":
        x = chains(case.rows, case.dtype, case.V, case.acceptance)
        stream["scheme"] = case.kind
        tokens = x.children if case.K > 1 else x.coupled if case.kind == "race" else x.drawn
        target, draft = x.target, x.draft
        if case.K > 1:
            stream |= {"parents": [-1] * case.K, "rows": [0] + [1] * case.K, "draft_rows": [0] * case.K}
            target, draft = target[:, :2], draft[:, :1]
        return [functools.partial(ss.verify, target[p], tokens[p], draft[p], seed=p.start, **stream) for p in parts]
    z = rows_of(case.rows, case.dtype, case.V)
    if case.op == "row_stats":
        return [functools.partial(ss.row_stats, z[p], backend=backend) for p in parts]
    op = functools.partial(ss.draft, k=case.K, kind=case.kind) if case.op == "draft" else ss.sample
    return [functools.partial(op, z[p], seed=p.start, **stream) for p in parts]


# -- the worker --------------------------------------------------------------------------------------------------------


def checked(case, call):
    """The first call against the reference -> {"tokens", "differing"}"""
    ours, reference = call(), calls_of(case._replace(B=min(case.B, 2)), "reference")[0]()
    if case.op == "row_stats":
        for mine, its in zip(ours, reference):
            torch.testing.assert_close(mine[: len(its)], its, rtol=1e-5, atol=1e-5)
        return {"tokens": 0, "differing": 0}
    mine, its = (x if isinstance(x, torch.Tensor) else x.tokens for x in (ours, reference))
    return Agreement().count(mine[: len(its)], its)


class Worker:
    def __init__(self, block):
        """block: seconds per measurement, in which a call is repeated"""
        self.block = block

    def about(self):
        return {"folder": os.path.dirname(os.path.dirname(ss.__file__)), "capability": ss.build_info()["cpu"]}

    def open(self, cases, threads):
        torch.set_num_threads(threads)
        self.calls, self.counts, facts = [], [], []
        for case in (Case(*fields) for fields in cases):
            calls = calls_of(case)
            facts.append(checked(case, calls[0]))
            if case.op == "verify":
                accepted = torch.cat([call().num_accepted for call in calls])
                facts[-1]["accepted"] = float(accepted.double().mean())
            self.calls.append(calls)
            self.counts.append(1)
            took = self.seconds(len(self.calls) - 1) * len(calls)
            self.counts[-1] = max(1, math.ceil(self.block / took))
        return facts

    def seconds(self, index):
        """Time of a case's mean call"""
        calls, count = self.calls[index], range(self.counts[index])
        if torch.get_num_threads() > 1:
            time.sleep(SPINNING)
        calls[0]()
        start = time.perf_counter()
        for _ in count:
            for call in calls:
                call()
        return (time.perf_counter() - start) / len(count) / len(calls)


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else that is printed may mix with the answers
    worker = Worker(float(sys.argv[1]))
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(worker, method)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
