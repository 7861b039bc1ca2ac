"""Cross-compile every Triton kernel for GPUs that need not be present, and report registers and spills.

usage: python tests/support/triton_compile.py sm_90 gfx942 …   one JSON line per kernel and target; exit status 1 if any of them
spills or fails. For NVIDIA also: arithmetic that may be fused, how bins are computed (triton_ptx.py), and the loads in flight in
loops over rows that are read 16 bytes at a time (triton_sass.py). Kernels are compiled as they are launched,
for the dtypes, layouts and settings of `variants`: bf16 stands for rows that can be read 16 bytes at a time, fp32 and fp16 for others.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

assert os.environ.get("TRITON_INTERPRET", "0") == "0", "the interpreter has no compiler"
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="specsample-triton-")

import sass  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
import triton_ptx  # noqa: E402
import triton_sass  # noqa: E402
from nvidia_tools import nvidia_tool  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from specsample import limits  # noqa: E402
from specsample.triton import (  # noqa: E402
    block,
    kseq,
    law,
    lists,
    optimal,
    optimal_block,
    race,
    recursive,
    recursive_distinct,
    rows,
    token,
    top,
    tree,
    walk,
)  # fmt: skip
from specsample.triton.launch import (  # noqa: E402
    ALONE,
    ALONE_BLOCK,
    BLOCK,
    LAST,
    LAWS_REGISTERS,
    OPTIONS,
    REGISTERS,
    TILES,
    TILES_ANY,
    WARPS,
)  # fmt: skip

# Arguments that are pointers, by name.
POINTERS = {
    "logits": "*{dtype}", "target": "*{dtype}", "draft": "*{dtype}", "laws": "*fp64", "draft_laws": "*fp64", "stats": "*fp32",
    "owner": "*i64", "sampling": "*fp64", "kept_max": "*fp32", "kept_logsumexp": "*fp32", "kept_cutoff": "*fp32",
    "seeds": "*i64", "lists": "*i64", "positions": "*i64", "depths": "*i64", "nodes": "*i64", "out": "*i64", "spans": "*i64", "stops": "*i64",
    "weights": "*fp64", "kept_weights": "*fp64", "masses": "*fp64", "steps": "*i64", "lengths": "*i64", "winners": "*i64",
    "tokens": "*i64", "parents": "*i64", "rows_of": "*i64", "draft_rows": "*i64", "emitted": "*i64", "path": "*i32",
    "num_accepted": "*i32", "marks": "*i32", "room": "*i64", "tops": "*fp32",
}  # fmt: skip
NAMES_OF = {"logprobs_kernel": {"out": "*fp32", "nodes": "*i32"}, "spilling_kernel": {"out": "*fp32"}}
DENSE = ("spans", "owner", "seeds", "positions", "depths", "nodes", "kept_max", "kept_logsumexp", "kept_cutoff")
CHAIN = (*DENSE, "parents", "rows_of", "draft_rows", "lists")
ONE_HOT = ("draft", "draft_laws")
ON_ITS_OWN = (tree.tree_kernel, optimal_block.optimal_block_kernel, lists.lists_kernel)


@triton.jit
def spilling_kernel(out, BLOCK: tl.constexpr):
    """The negative control: five vectors of 64 (NVIDIA) or 128 (AMD) registers per thread, all live throughout a loop."""
    ids = tl.arange(0, BLOCK)
    a, b, c = tl.load(out + ids), tl.load(out + BLOCK + ids), tl.load(out + 2 * BLOCK + ids)
    d, e = tl.load(out + 3 * BLOCK + ids), tl.load(out + 4 * BLOCK + ids)
    for _ in range(tl.load(out).to(tl.int32)):
        a, b, c, d, e = b * e + 1, c * a + 2, d * b + 3, e * c + 4, a * d + 5
    tl.store(out + ids, a + b * c + d * e)


def variants():
    """(kernel, arguments that are None or constant, dtype)"""
    few, many = {"P": walk.FEW.value}, {"P": limits.MAX_NODES}
    none = lambda names, **constants: dict.fromkeys(names) | constants
    yield law.laws_kernel, none(DENSE, NORMALISED=True, BLOCK=BLOCK), "bf16"
    yield law.laws_kernel, none((), NORMALISED=True, BLOCK=BLOCK), "fp32"
    yield law.laws_kernel, none(("stats", *DENSE), NORMALISED=False, BLOCK=BLOCK), "fp16"
    yield rows.race_kernel, none(("laws", *DENSE), PURPOSE=0, TILES=TILES), "bf16"
    yield rows.race_kernel, none((), PURPOSE=4, TILES=TILES_ANY), "fp32"
    yield rows.arrivals_kernel, none((), PURPOSE=0, TILES=TILES), "bf16"
    yield rows.arrivals_kernel, none((), PURPOSE=0, TILES=TILES_ANY), "fp16"
    few_children, many_children = {"WIDTH": rows.FEW_CHILDREN}, {"WIDTH": limits.MAX_NODES}
    yield rows.independent_kernel, none(("laws", *DENSE), **few_children, TILES=TILES), "bf16"
    yield rows.independent_kernel, none((), **many_children, TILES=TILES), "bf16"
    yield rows.independent_kernel, none((), **few_children, TILES=TILES_ANY), "fp16"
    yield rows.independent_kernel, none((), **many_children, TILES=TILES_ANY), "fp32"
    yield rows.topk_kernel, none((), BLOCK=BLOCK), "bf16"
    yield rows.rest_kernel, none((), TILES=TILES), "bf16"
    yield rows.rest_kernel, none((), TILES=TILES_ANY), "fp32"
    for kernel in (token.token_kernel, block.weights_kernel):
        yield kernel, none(CHAIN, **few), "bf16"
        yield kernel, none((*CHAIN, *ONE_HOT), **few), "fp16"
        yield kernel, none((), **many), "fp32"
    alone, alone_any = ({"BLOCK": ALONE_BLOCK, "TILES": n} for n in (TILES, TILES_ANY))
    for scheme in (recursive, recursive_distinct, kseq, optimal, top):
        yield tree.tree_kernel, none(CHAIN, STEP=scheme.step, **alone), "bf16"
        yield tree.tree_kernel, none((), STEP=scheme.step, **alone_any), "fp32"
    yield optimal_block.optimal_block_kernel, none(CHAIN, **alone), "bf16"
    yield optimal_block.optimal_block_kernel, none((), **alone_any), "fp32"
    yield lists.lists_kernel, none(CHAIN, **few, TILES=TILES), "bf16"
    yield lists.lists_kernel, none((), **many, TILES=TILES_ANY), "fp32"
    yield block.masses_kernel, none(DENSE, BLOCK=BLOCK), "bf16"
    yield block.masses_kernel, none(ONE_HOT, BLOCK=BLOCK), "fp32"
    yield block.longest_kernel, none(()), "bf16"
    yield walk.finish_kernel, none(DENSE, TILES=TILES), "bf16"
    yield walk.finish_kernel, none(ONE_HOT, TILES=TILES_ANY), "fp32"
    yield walk.finish_kernel, none((), TILES=TILES_ANY), "fp16"
    yield walk.logprobs_kernel, none(()), "bf16"
    yield race.winners_kernel, none(("laws", *CHAIN), TILES=TILES), "bf16"
    yield race.winners_kernel, none((), TILES=TILES_ANY), "fp16"
    yield race.race_walk_kernel, none(CHAIN, **few), "bf16"
    yield race.race_walk_kernel, none((), **many), "fp32"


def usage(binary, backend):
    """Registers per thread, bytes or instructions of spilling (0 in a good kernel), 16-byte loads, and the other checked figures."""
    if backend == "hip":
        read = lambda name: int(re.search(rf"\.{name}:\s+(\d+)", binary.asm["amdgcn"])[1])
        spills = read("vgpr_spill_count") + read("private_segment_fixed_size")
        # Scalar registers spill into lanes of vector registers, not to memory: reported, but not an error.
        wide = len(re.findall(r"\b(?:global|buffer)_load_(?:dwordx4|b128)\b", binary.asm["amdgcn"]))
        return {"registers": read("vgpr_count"), "spills": spills, "wide_loads": wide, "scalar_spills": read("sgpr_spill_count")}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [nvidia_tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        (code,) = sass.disassembled(file.name).values()
    read = lambda name: int(re.search(rf"\b{name}:(\d+)", report)[1])
    local = len(re.findall(r"\b(?:STL|LDL)\b", code))
    wide = len(re.findall(r"\bLDG\.E\.128\b", code))
    threads = 32 * binary.metadata.num_warps
    loops = [(loads, threads * size, names) for loads, size, names in triton_sass.loops_over_rows(sass.blocks_of(code))]
    binned, forms = triton_ptx.forms(binary.asm["ptx"])
    return {
        "registers": read("REG"), "spills": read("STACK") + read("LOCAL") + local, "wide_loads": wide, "loops": loops,
        "fused": triton_ptx.fused(binary.asm["ptx"]), "binned": binned, "forms": len(forms),
    }  # fmt: skip


def compile_one(kernel, fixed, dtype, target):
    form = kernel if kernel is spilling_kernel else kernel.aligned if dtype == "bf16" else kernel.any
    names, pointers = form.arg_names, POINTERS | NAMES_OF.get(kernel.__name__, {})
    type_of = lambda p: pointers.get(p.name, p.annotation_type or "i32").format(dtype=dtype)
    signature = {p.name: "constexpr" if p.name in fixed else type_of(p) for p in form.params}
    constants = {(names.index(n),): value for n, value in fixed.items() if n in names}
    aligned = {(p.num,): [["tt.divisibility", 16]] for p in form.params if not p.do_not_specialize and p.name not in fixed}
    source = ASTSource(fn=form, signature=signature, constexprs=constants, attrs=aligned)
    many_children = kernel is rows.independent_kernel and fixed["WIDTH"] > rows.FEW_CHILDREN
    how = ALONE if kernel in ON_ITS_OWN or many_children else LAST if kernel is walk.finish_kernel else {}
    if kernel is law.laws_kernel and dtype != "bf16":
        how = {"registers": LAWS_REGISTERS}
    options = {"num_warps": how.get("warps", WARPS), **OPTIONS}
    options |= {"maxnreg": how.get("registers", REGISTERS)} if target.backend == "cuda" else {}
    return triton.compile(source, target=target, options=options)


def main(names):
    bad = 0
    for name in names:
        hip = name.startswith("gfx")
        target = GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32) if hip else GPUTarget("cuda", int(name[3:]), 32)
        control = [(spilling_kernel, {"BLOCK": 1 << 15 if hip else 1 << 13}, "fp32")]
        for kernel, fixed, dtype in control if "--control" in sys.argv else variants():
            line = {"kernel": kernel.__name__, "target": name, "dtype": dtype}
            if "STEP" in fixed:
                line["scheme"] = fixed["STEP"].__module__.split(".")[-1]
            start = sum(os.times()[:4])
            try:
                binary = compile_one(kernel, fixed, dtype, target)
                line |= {"seconds": round(sum(os.times()[:4]) - start, 1)} | usage(binary, target.backend)
            except Exception as error:
                while error.__cause__ is not None:  # the innermost line of Triton's own report
                    error = error.__cause__
                line |= {"error": f"{type(error).__name__}: {error}"[-800:]}
            bad += "error" in line or line["spills"] > 0
            print(json.dumps(line), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main([name for name in sys.argv[1:] if not name.startswith("--")]))
