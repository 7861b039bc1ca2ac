"""Count how often Triton would compile the kernels of a scheme as calls vary the way they do in serving: one JSON line per variation.

Then count how many more compilations occur for calls that `warmup` should have covered, including those of the GPU tests.

usage: python tests/support/triton_keys.py    (no GPU, and nothing is compiled: Triton's own binder makes the keys, with its driver stubbed)
"""

import collections
import contextlib
import json
import os
import sys
from pathlib import Path

assert os.environ.get("TRITON_INTERPRET", "0") == "0", "the interpreter has no keys"

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

import specsample as ss  # noqa: E402
import specsample.triton as backend  # noqa: E402

KEYS = collections.defaultdict(set)  # by kernel
VOCAB, DEPTH = 512, 2


class Driver:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


class Compiled:
    """A stand-in for a compiled kernel: its launches do nothing."""

    function = packed_metadata = None
    launch_metadata = run = staticmethod(lambda *args: None)


def compile_nothing(self, key, signature, device, constexprs, options, attrs, warmup):
    KEYS[self.__name__].add(key)
    self.device_caches[device][0][key] = Compiled()
    return Compiled()


def numbers(*shape, dtype=torch.bfloat16, offset=0):
    """Rows of logits that start `offset` elements into their memory"""
    count = torch.Size(shape).numel()
    return torch.zeros(count + offset, dtype=dtype)[offset:].view(shape)


def arguments(scheme, batch, layout, *, offset=0, vocab=VOCAB, sampling=None, position=5, seed=7):
    """A call: chains or trees with two children per node, dense or packed. The values do not matter."""
    card = ss.schemes()[scheme]
    nodes = DEPTH if layout.endswith("chain") else 6
    target, draft = numbers(batch, nodes + 1, vocab, offset=offset), numbers(batch, nodes, vocab, offset=offset)
    args = {"scheme": scheme, "draft_tokens": torch.zeros(batch, nodes, dtype=torch.int64), "max_depth": DEPTH}
    args |= {"target_logits": target, "seed": seed, "position": position, "sampling": sampling or ss.Sampling()}
    parents = torch.tensor([-1, -1, 0, 0, 1, 1])
    if layout.endswith("tree"):
        args |= {"parents": parents, "rows": torch.arange(7), "draft_rows": torch.tensor([0, 0, 1, 1, 2, 2])}
    if layout.startswith("packed"):
        rows = torch.arange(batch + 1, dtype=torch.int32) * (nodes + 1)
        args |= {"target_logits": target.view(-1, vocab), "draft_tokens": args["draft_tokens"].flatten(), "cu_rows": rows}
        args |= {name: args[name].repeat(batch) for name in ("parents", "rows", "draft_rows") if name in args}
        draft = draft.view(-1, vocab)
    if card.uses_draft_logits:
        args["draft_logits"] = draft
    return args


def settings(batch):
    yield ss.Sampling()
    yield ss.Sampling(0.7, top_k=16, top_p=0.9)
    yield ss.Sampling(1.0, 1, 0.5, 0.25)
    yield ss.Sampling(torch.linspace(0.0, 1.5, batch), top_p=torch.linspace(0.5, 1.0, batch))


def ways(scheme, layout):
    """(what varies, the calls)"""
    call = lambda batch, **how: arguments(scheme, batch, layout, **how)
    yield "batch", (call(b) for b in (*range(1, 18), 31, 32, 33, 48, 64, 100, 128, 171, 199))
    yield "offset", (call(3, offset=n, vocab=v) for v in (512, 500) for n in (0, 1, 2, 8, 16, 250, 512))
    yield "halves", (call(2 * b, vocab=v) | {"half": half} for v in (512, 500) for b in (1, 2, 3, 8) for half in (0, 1))
    yield "settings", (call(b, sampling=s) for b in (1, 3, 16) for s in settings(b))
    yield "position", (call(3, position=p) for p in (0, 1, 15, 16, 1 << 31, 1 << 40, -1))
    yield "seed", (call(3, seed=s) for s in (0, 1, 16, 1 << 31, 1 << 40, -(1 << 62)))


def run(args):
    half = args.pop("half", None)
    if half is not None and "cu_rows" not in args:
        part = slice(len(args["target_logits"]) // 2 * half, None)
        args = {n: x[part] if n in ("target_logits", "draft_logits", "draft_tokens") else x for n, x in args.items()}
    ss.verify(**args, backend="triton")


def counted(calls, function):
    """Keys of each kernel"""
    KEYS.clear()
    for kernel in kernels():
        kernel.device_caches.clear()
    for call in calls:
        function(call)
    return {name: len(keys) for name, keys in KEYS.items()}


def new_keys(scheme, layout, **how):
    """Kernels that calls in serving would still have to compile after a warm-up"""
    counted((), run)
    backend.warmup(how.get("vocab", VOCAB), schemes=(scheme,), device="cpu", packed="packed" in layout, tree="tree" in layout)
    before = {name: set(keys) for name, keys in KEYS.items()}
    for batch in (1, 2, 16, 33, 199):
        each = torch.arange(batch)
        for position in (each, each + (1 << 40)):
            args = arguments(scheme, batch, layout, seed=each, position=position, **how)
            run(args)
            rows = numbers(batch, how.get("vocab", VOCAB))
            for k in (2, 3, 32):  # more independent children have a kernel of their own
                ss.draft(rows, k, kind=ss.schemes()[scheme].draft_kind, seed=each, position=position, backend="triton")
            ss.sample(rows, seed=each, position=position, backend="triton")
    return {name: len(keys - before.get(name, set())) for name, keys in KEYS.items()}


def gpu_run(scheme):
    """The same for cases of the GPU tests, for which `make gpu` warms up. `race`: those without filters."""
    import test_teams

    from benchmarks.gpu.run import layouts

    counted((), run)
    for how in layouts(scheme):
        backend.warmup(VOCAB, schemes=(scheme,), device="cpu", **how)
    before = {name: set(keys) for name, keys in KEYS.items()}
    if scheme in test_teams.CHAIN_SCHEMES:
        cases = [test_teams.chains(2, VOCAB, torch.bfloat16, scheme)]
        cases += [test_teams.packed_chains(2, VOCAB, scheme, row_a_node)[0] for row_a_node in (False, True)]
    else:
        cases = [test_teams.trees(2, VOCAB, scheme)]
    for args in cases:
        ss.verify(**args | ({"sampling": ss.Sampling()} if scheme == "race" else {}), backend="triton")
    return {name: len(keys - before.get(name, set())) for name, keys in KEYS.items()}


def kernels():
    import importlib

    for name in ("law", "rows", "walk", "tree", *backend.SUPPORTED):
        for value in vars(importlib.import_module(f"specsample.triton.{name}")).values():
            for form in (getattr(value, "any", value), getattr(value, "aligned", value)):
                if isinstance(form, JITFunction):
                    yield form


def drafts():
    for batch, k in ((1, 2), (2, 3), (3, 4), (15, 8), (16, 15), (17, 16), (64, 17), (199, 32)):
        for how in ({"seed": 1}, {"seed": 1 << 40, "position": 1 << 40, "depth": 16, "node": 16}):
            yield numbers(batch, VOCAB), {"k": k, "position": 0} | how
    for s in settings(8):
        yield numbers(8, VOCAB), {"k": 2, "seed": 3, "position": 4, "sampling": s}


@contextlib.contextmanager
def stubbed():
    """Context in which CPU tensors are accepted, and nothing is compiled."""
    kept = JITFunction._do_compile
    backend.INTERPRETED, JITFunction._do_compile = True, compile_nothing
    triton.runtime.driver.set_active(Driver())
    try:
        yield
    finally:
        backend.INTERPRETED, JITFunction._do_compile = False, kept


def main():
    with stubbed():
        for scheme in backend.SUPPORTED:
            print(json.dumps({"scheme": scheme, "in the GPU run": gpu_run(scheme)}), flush=True)
            chains, trees = ["dense chain", "packed chain"], ["dense tree", "packed tree"]
            for layout in chains + trees * ss.schemes()[scheme].trees:
                for what, calls in ways(scheme, layout):
                    print(json.dumps({"scheme": scheme, "layout": layout, "varies": what, "keys": counted(calls, run)}), flush=True)
                for vocab in (VOCAB, VOCAB - 12):
                    line = {
                        "scheme": scheme,
                        "layout": layout,
                        "vocab": vocab,
                        "after a warm-up": new_keys(scheme, layout, vocab=vocab),
                    }
                    print(json.dumps(line), flush=True)
                everything = (call for _what, calls in ways(scheme, layout) for call in calls)
                print(
                    json.dumps({"scheme": scheme, "layout": layout, "varies": "all", "keys": counted(everything, run)}), flush=True
                )
        for kind in ("iid", "arrivals", "topk", "distinct", "lists", "top"):
            calls = counted(drafts(), lambda c: ss.draft(c[0], kind=kind, backend="triton", **c[1]))
            print(json.dumps({"draft": kind, "varies": "all", "keys": calls}), flush=True)
        print(json.dumps({"sample": "sample", "varies": "all", "keys": counted(drafts(), sample)}), flush=True)


def sample(call):
    logits, how = call
    ss.sample(logits, backend="triton", **{n: how[n] for n in ("seed", "position", "sampling") if n in how})


if __name__ == "__main__":
    sys.exit(main())
