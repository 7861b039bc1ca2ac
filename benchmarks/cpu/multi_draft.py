"""Several drafts per node: time relative to the single-draft scheme on the same rows, acceptance relative to the optimum.

    python -m benchmarks.cpu.multi_draft [--filter K4] [--quick]

K paths of L drafts per request, as K chains in one tree whose equal prefixes share rows. For each shape all schemes are timed
together, with `token` (for `optimal_block` also `block`, for `race` and `lists` also `race`) on the first path alone: the ratio
is the cost of the other paths. `weighted` has drafts from K laws, one row at K temperatures. Every scheme's tokens are first
compared with the reference's. Writes benchmarks/results/multi_draft.{json,md}.
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import specsample as ss
from benchmarks import RESULTS, harness, registry
from specsample import theory

BESIDE = {"token": "token", "optimal_block": "block", "race": "race", "lists": "race"}  # compared with; else with token
PROGRAMS = ((2, 500), (3, 60), (4, 16))  # (K, V) whose linear program is solved within a minute
POINTS = 8  # requests whose laws at the root determine the acceptance


class Shape(NamedTuple):
    rows: str  # "peaked" or "flat"
    dtype: str
    B: int
    K: int  # paths
    L: int  # drafts per path
    V: int

    @property
    def name(self):
        return f"{self.rows}-{self.dtype}-B{self.B}-K{self.K}-L{self.L}-V{self.V}"


def shapes(quick=False):
    if quick:
        return [Shape("peaked", "float32", 1, 4, 1, 32000)]
    found = [Shape(rows, "float32", b, 4, 1, v) for rows in ("peaked", "flat") for v in (32000, 128256) for b in (1, 8)]
    found += [Shape("peaked", "float32", 1, k, 1, 128256) for k in (2, 8)]
    found += [Shape("peaked", "bfloat16", b, 4, n, 128256) for b, n in ((1, 1), (8, 1), (1, 4))]
    return [*found, Shape("peaked", "float32", 1, 4, 4, 128256)]


def schemes(shape):
    """Those that take several children; the deeper trees are drawn only for i.i.d. children."""
    cards = [c for c in ss.schemes().values() if "cpu" in c.backends and c.name not in ("token", "block")]
    return [c for c in cards if shape.L == 1 or c.draft_kind == "iid" and c.name != "weighted"]


def drafts_of(card):
    """How the scheme's drafts are drawn here: as its card says, or for `weighted` each from a separate law."""
    return "models" if card.name == "weighted" else card.draft_kind


class Tree(NamedTuple):
    target: torch.Tensor  # [R, 1 + K L, V]: the root's row, then one per node
    draft: torch.Tensor  # the same for the draft model
    tokens: torch.Tensor  # int64 [R, K L]: path after path
    rows: torch.Tensor  # int64 [R, 1 + K L]: the row of the first node with the same prefix
    draft_rows: torch.Tensor  # int64 [R, K L]
    parents: list


@functools.lru_cache(maxsize=4)
def tree_of(shape, kind):
    """The drafts of all requests, drawn from the rows of their prefixes; "models": the K children of a root from K laws, one row at
    different temperatures."""
    R, nodes = max(registry.REQUESTS, shape.B), shape.K * shape.L
    target, draft = (part.to(registry.DTYPES[shape.dtype]) for part in registry._pool(shape.rows, shape.V))
    index = torch.arange(R * (1 + nodes)).view(R, 1 + nodes) % registry.POOL
    target, draft = target[index], draft[index]
    seeds, each = registry.SEED + torch.arange(R), torch.arange(R)
    tokens, rows = torch.empty(R, nodes, dtype=torch.int64), torch.zeros(R, 1 + nodes, dtype=torch.int64)
    parents = [k * shape.L + i - 1 if i else -1 for k in range(shape.K) for i in range(shape.L)]
    if kind == "models":
        draft[:, : shape.K] = draft[:, :1] * torch.linspace(1.0, 0.7, shape.K, dtype=draft.dtype)[:, None]
        for c in range(shape.K):
            tokens[:, c : c + 1] = ss.draft(
                draft[:, c], sampling=registry.SAMPLING, seed=seeds, position=registry.POSITION, node=c
            )  # fmt: skip
        return Tree(target, draft, tokens, rows, torch.arange(nodes).repeat(R, 1), parents)
    stream = {"kind": kind, "sampling": registry.SAMPLING, "seed": seeds, "position": registry.POSITION}
    for i in range(shape.L):
        for k in range(1 if i == 0 else shape.K):
            node = k * shape.L + i
            drawn = ss.draft(draft[each, rows[:, node]], shape.K if i == 0 else 1, depth=i, node=node, **stream)
            for c in range(drawn.shape[1]):
                tokens[:, node + c * shape.L] = drawn[:, c]
        for r in range(R):  # equal prefixes share the first one's row
            first = {}
            for k in range(shape.K):
                node = k * shape.L + i
                prefix = tuple(tokens[r, k * shape.L : node + 1].tolist())
                rows[r, node + 1] = first.setdefault(prefix, node + 1)
    above = torch.cat([rows[:, 1 + p : 2 + p] for p in parents], 1)
    return Tree(target, draft, tokens, rows, above, parents)


def call(shape, tree, scheme, part, backend="cpu", paths=None):
    """verify over one batch of requests, with all paths or only the first."""
    nodes = (paths or shape.K) * shape.L
    rows = tree.rows[part, : nodes + 1].contiguous()
    seeds = registry.SEED + torch.arange(len(tree.target))[part]
    above = tree.draft_rows[part, :nodes].contiguous()
    parents = torch.tensor(tree.parents[:nodes])
    arguments = (tree.target[part], tree.tokens[part, :nodes].contiguous(), tree.draft[part])
    return functools.partial(
        ss.verify, *arguments, parents=parents, rows=rows, draft_rows=above, max_depth=shape.L, scheme=scheme,
        sampling=registry.SAMPLING, seed=seeds, position=registry.POSITION, backend=backend,
    )  # fmt: skip


def run(shape, agreement, budget):
    """Rows of the results, one per scheme."""
    parts = [slice(i, i + shape.B) for i in range(0, max(registry.REQUESTS, shape.B), shape.B)]
    calls, accepted = {}, {}
    single = {name: tree_of(shape, ss.schemes()[name].draft_kind) for name in ("token", "block", "race")}
    for name, tree in single.items():
        calls[name, 1] = [call(shape, tree, name, part, paths=1) for part in parts]
    for card in schemes(shape):
        tree = tree_of(shape, drafts_of(card))
        few = slice(0, 2)
        agreement.count(call(shape, tree, card.name, few)().tokens, call(shape, tree, card.name, few, "reference")().tokens)
        calls[card.name, shape.K] = [call(shape, tree, card.name, part) for part in parts]
    for key, every in calls.items():
        accepted[key] = float(torch.cat([one().num_accepted for one in every]).double().mean())
    times = harness.time_together({key: registry.over(every) for key, every in calls.items()}, budget)
    curves = _curves(shape)
    out = []
    for (name, paths), timing in times.items():
        beside = times[BESIDE.get(name, "token"), 1]
        timing = timing.divided(len(parts))
        value = curves.get(name)
        out.append(
            {
                "case": f"{name}-{shape.name}", "scheme": name, **shape._asdict(), "paths": paths, "accepted": accepted[name, paths],
                "us": {"median": timing.median * 1e6, "min": timing.minimum * 1e6, "n": timing.repetitions},
                "beside": BESIDE.get(name, "token"), "ratio": timing.median * len(parts) / beside.median,
                "ratio_minima": timing.minimum * len(parts) / beside.minimum,
                "acceptance": None if value is None or paths == 1 else value, "optimum": curves.get("optimum"),
            }
        )  # fmt: skip
    return out


@functools.lru_cache(maxsize=8)
def _acceptance(rows, V, K, names):
    laws = [torch.softmax(x[:POINTS].double() / registry.TEMPERATURE, -1).numpy() for x in registry._pool(rows, V)]
    curves = theory.acceptance_curves(*laws, [K], schemes=names)
    return {name: float(np.mean(curve.value)) for name, curve in curves.items()}


def _curves(shape):
    """{scheme: exact acceptance of the root's K children, averaged over some rows}"""
    names = [c.name for c in schemes(shape) if c.name in theory.FORMULAS and c.name not in ("recursive_distinct", "weighted")]
    return _acceptance(shape.rows, shape.V, shape.K, (*names, "optimum"))


def programs(sizes=PROGRAMS, repetitions=200):
    """`optimal` on the CPU against the linear program of the same selection, solved by HiGHS: rows of the results.

    The program is built beforehand; one solution is timed, and `repetitions` calls of `verify` that do only this (one request, K
    children, their selection, the test and the residual). Both must have the same acceptance: the closed form for the laws of the
    logits, which `optimal` reaches except for the loss by its bins.
    """
    from scipy.optimize import linprog

    from specsample.theory.lp import program
    from specsample.theory.table import zipf_pair

    rows = []
    for K, V in sizes:
        logits = [torch.from_numpy(np.log(law)).float()[None] for law in zipf_pair(V, 1.0, np.random.default_rng(0))]
        target, draft = (torch.softmax(x[0].double(), -1).numpy() for x in logits)
        problem = program(target, [draft] * K)
        begin = time.perf_counter()
        solution = linprog(**problem)
        seconds = time.perf_counter() - begin
        optimum = float(theory.optimal_acceptance(target, draft, K))
        if solution.status != 0 or abs(-solution.fun - optimum) > 1e-6:
            raise AssertionError(f"the linear program of K = {K}, V = {V} gives {-solution.fun}, the closed form {optimum}")
        tokens = torch.cat([ss.draft(logits[1], seed=1, position=0, node=k) for k in range(K)], 1)
        one = functools.partial(
            ss.verify, logits[0][:, None].repeat(1, 1 + K, 1), tokens, logits[1][:, None], parents=[-1] * K, rows=[0] * (K + 1),
            draft_rows=[0] * K, max_depth=1, scheme="optimal", seed=1, position=0, backend="cpu",
        )  # fmt: skip
        took = harness.time_together({"optimal": one}, 0.2, most=repetitions)["optimal"].median
        binned = float(theory.binned_acceptance(target, draft, K))
        rows.append({"K": K, "V": V, "variables": len(problem["c"]), "lp_seconds": seconds, "us": took * 1e6,
                     "ratio": seconds / took, "acceptance": optimum, "lp_less_it": -solution.fun - optimum,
                     "bins_lose": optimum - binned})  # fmt: skip
    return rows


def markdown(result):
    machine = result["machine"]
    lines = [
        "# Several drafts a node, on the CPU",
        "",
        f"{machine['cpu']}, {machine['threads']} threads, kernels for {machine['capability']}. torch {machine['torch']}, specsample "
        f"{machine['specsample']} ({machine['revision'] or 'no revision'}), {machine['date']}; load average {machine['load_at_start']:.1f} "
        f"at the start, {result['seconds']:.0f} s in all.",
        "",
        f"K paths of L drafts, temperature {registry.TEMPERATURE}, raw logits; {registry.REQUESTS} requests in calls of B, the mean call's "
        "median time. `×`: the time over that of the scheme named beside it on the first path alone, in the same rounds. `accepted`: drafts "
        "a call, as drawn. `acceptance`: of the root's K children, by theory, and the transport optimum for i.i.d. children.",
        "",
        f"Checked first: {result['agreement']['tokens']} tokens against the reference ({result['agreement']['differing']} differ).",
        "",
        "| case | accepted | µs | × | beside | acceptance | optimum less it |",
        "|:--|--:|--:|--:|:--|--:|--:|",
    ]
    for row in result["rows"]:
        value, optimum = row["acceptance"], row["optimum"]
        name = row["case"] + (" (one path)" if row["paths"] == 1 else "")
        theirs = ["", ""] if value is None else [f"{value:.4f}", f"{optimum - value:.1e}"]
        cells = [name, f"{row['accepted']:.2f}", f"{row['us']['median']:.0f}", f"{row['ratio']:.2f}", row["beside"], *theirs]
        lines.append("| " + " | ".join(cells) + " |")
    if result.get("programs"):
        lines += [
            "",
            "The linear program of the same selection (HiGHS, built beforehand) beside `optimal` on the same Zipf-like laws, one request a "
            "call. `apart`: the program's acceptance less the closed form's; `bins`: what the default bins lose of it.",
            "",
            "| K | V | variables | program, s | `optimal`, µs | × | acceptance | apart | bins |",
            "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
    for row in result.get("programs", ()):
        lines.append(
            f"| {row['K']} | {row['V']} | {row['variables']} | {row['lp_seconds']:.1f} | {row['us']:.0f} | {row['ratio']:.0f} | "
            f"{row['acceptance']:.4f} | {row['lp_less_it']:.0e} | {row['bins_lose']:.0e} |"
        )
    return "\n".join([*lines, ""])


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="multi_draft", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--filter", default="", metavar="SUBSTRING", help="shapes whose name has it")
    parser.add_argument("--quick", action="store_true", help="one small shape")
    parser.add_argument("--programs", action="store_true", help="also linear programs, for a minute or two (needs SciPy)")
    parser.add_argument("--budget", type=float, default=0.15, help="seconds for each call of a shape")
    parser.add_argument("--out", type=Path, default=RESULTS / "multi_draft.json")
    options = parser.parse_args(arguments)
    chosen = [shape for shape in shapes(options.quick) if options.filter in shape.name]
    if not chosen:
        return f"multi_draft: no shape has {options.filter!r} in its name"
    begin, agreement, progress = time.perf_counter(), harness.Agreement(), harness.Progress(len(chosen))
    result, rows = {"machine": harness.machine()}, []
    for shape in chosen:
        rows += run(shape, agreement, options.budget)
        progress.step(shape.name)
    if options.programs:
        result["programs"] = programs()
    result["agreement"] = {"tokens": agreement.tokens, "differing": agreement.differing}
    result["seconds"], result["rows"] = time.perf_counter() - begin, rows
    harness.write_json(options.out, result)
    options.out.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))
    return 0 if agreement.acceptable else f"multi_draft: {agreement.differing} tokens differ from the reference's"


if __name__ == "__main__":
    sys.exit(main())
