"""A first check of a backend on a GPU: every scheme, filters, deterministic drafts, trees, packed calls, rows; each call is named
before it is made, and its integers are compared with the CPU kernels'.

    python -m benchmarks.gpu.smoke                     on `cuda`, V = 50 000: wide enough for teams of 8 blocks
    python -m benchmarks.gpu.smoke --graph             each call also captured into a graph and replayed
    SPECSAMPLE_TEAM=4 SPECSAMPLE_TRACE=1 python -m benchmarks.gpu.smoke --only token      (README: debugging aids)

`make gpu` runs it in several processes, and under compute-sanitizer with --few.
"""

import argparse
import sys
import time

from benchmarks import ROOT

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "support"))

import cuda_on_cpu
import torch
from conftest import CHAIN_SCHEMES, case, packed
from trees import drafted_tree

import specsample as ss
from specsample import backends

FILTERED = ss.Sampling(0.8, 700, 0.95, 0.001)
MANY_BINS = 1200  # their histogram does not fit in shared memory
ODD = 777  # a vocabulary whose rows begin at every alignment
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def rounds(names, V, few=False):
    """(name, arguments of verify on the CPU): rounds with rows of every kind"""
    for i, name in enumerate(names):
        card, settings = ss.schemes()[name], {"dtype": DTYPES[i % 3], "scheme": name}
        for sampling in (None, FILTERED) if not few else (FILTERED,):
            label = name + (", filtered" if sampling else "")
            if name in CHAIN_SCHEMES:
                yield label, case(3, 3, V, seed=i, sampling=sampling, **settings)
            else:
                yield label + ", tree", drafted_tree(3, 2, 2, V, seed=i, sampling=sampling, **settings)
        if name in CHAIN_SCHEMES:
            requests = [case(1, n, V, seed=40 + n, sampling=FILTERED, **settings) for n in (3, 1, 4)]
            yield f"{name}, packed", packed([requests[0], None, *requests[1:]])
        if card.one_hot and card.uses_draft_logits:
            yield f"{name}, deterministic draft", case(3, 3, V, seed=20 + i, one_hot=True, **settings)
        if "bins" in card.options and not few:
            many = {"options": {"bins": MANY_BINS}}
            yield f"{name}, {MANY_BINS} bins", drafted_tree(2, 3, 1, V, seed=i, **settings) | many


def calls(backend, V, few=False):
    """(name, function of tensors and a backend, its tensors and other arguments, on the CPU)"""
    chosen = backends.BACKENDS[backend]
    for name, args in rounds(chosen.schemes or tuple(ss.schemes()), V, few):
        yield name, ss.verify, args | {"logprobs": "raw"}
    rows = {"logits": case(2, 1, V, torch.bfloat16, seed=9)["target_logits"][:, 0], "sampling": FILTERED}
    at = rows | {"seed": 7, "position": 1 << 33}
    yield "sample", ss.sample, at
    for kind in chosen.kinds or ("iid", "arrivals", "topk", "distinct", "lists", "top"):
        yield f"draft, {kind}", ss.draft, at | {"k": 3, "kind": kind}
    yield "row_stats", ss.row_stats, rows


def moved(args, device):
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in args.items()}


def results(value):
    return [x.cpu() for x in (value if isinstance(value, tuple) else (value,)) if x is not None]


def differences(got, expected):
    """Compares integers exactly, floats approximately"""
    for x, y in zip(results(got), results(expected)):
        if x.dtype.is_floating_point:
            torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-5)
        elif not torch.equal(x, y):
            raise AssertionError(f"{x.tolist()} against {y.tolist()}")


def captured(call):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    for _ in range(2):
        graph.replay()
    return out


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--few", action="store_true", help=f"one call a scheme and kind of rows, and the same with V = {ODD}")
    parser.add_argument("--graph", action="store_true", help="capture each call into a CUDA graph")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="calls whose name has it")
    options = parser.parse_args(arguments)
    emulated = options.backend == cuda_on_cpu.NAME
    if emulated:
        cuda_on_cpu.load()
    device = "cpu" if emulated else "cuda"
    wrong, made = [], 0
    vocabularies = [options.vocabulary, *([ODD] if options.few else [])]
    chosen = [(f"{name}, V = {V}", *call) for V in vocabularies for name, *call in calls(options.backend, V, options.few)]
    for name, function, args in chosen:
        if options.only not in name:
            continue
        print(f"{name} ...", flush=True)
        began = time.perf_counter()
        expected = function(**args, backend="cpu")
        there = moved(args, device) | {"backend": options.backend}
        try:
            ready = time.perf_counter()
            got = function(**there)
            if not emulated:
                torch.cuda.synchronize()
            if options.graph:
                got = captured(lambda: function(**there))  # noqa: B023
            differences(got, expected)
        except AssertionError as error:
            wrong.append(name)
            print(f"    WRONG: {error}", flush=True)
        else:
            done = time.perf_counter()
            print(f"    right, {done - ready:.3f} s (and {ready - began:.3f} s on the CPU)", flush=True)
        made += 1
    print(f"{made} calls, wrong: {', '.join(wrong) or 'none'}", flush=True)
    return 1 if wrong or not made else 0


if __name__ == "__main__":
    sys.exit(main())
