"""The ops of the CPU and of CUDA in one shared object, as in the extension: of two functions of one name the linker keeps one.

Every test of the backend "cuda on cpu" runs it from such an object, linked in the order of setup.py. Here: the CPU's ops from that
object, both from one linked in the other order, and the objects themselves, including nvcc's.
"""

import os
import shutil
import subprocess
import sys

import cuda_on_cpu
import native
import pytest
import torch
import weak_symbols
from conftest import CHAIN_SCHEMES, case, numbers, same_as_reference
from nvidia_tools import nvcc
from trees import drafted_tree

import specsample as ss
from specsample import backends

SAMPLINGS = (ss.Sampling(), ss.Sampling(0.8, 50, 0.95, 0.001), ss.Sampling(torch.tensor([0.7, 0.0, 1.0]), top_p=0.9))
KINDS = ("iid", "distinct", "arrivals", "lists", "top", "topk")


def same_integers(backend):
    """Every op and every scheme of a backend against the reference."""
    accepted = 0
    for i, scheme in enumerate(backends.BACKENDS[backend].schemes or ss.schemes()):
        settings = {"seed": i, "sampling": SAMPLINGS[i % len(SAMPLINGS)], "dtype": (torch.float32, torch.bfloat16)[i % 2]}
        args = (
            case(3, 3, 700, scheme=scheme, **settings)
            if scheme in CHAIN_SCHEMES
            else drafted_tree(3, 3, 2, 150, scheme, **settings)
        )
        accepted += int(same_as_reference(args, backend, "filtered").num_accepted.sum())
    assert accepted > 0
    rows = numbers(3, 700, seed=1, scale=2.0)
    for sampling in SAMPLINGS:
        at = {"seed": 5, "position": 1 << 33, "sampling": sampling}
        assert torch.equal(ss.sample(rows, **at, backend=backend), ss.sample(rows, **at, backend="reference"))
        for kind in KINDS:
            got, expected = (ss.draft(rows, 3, kind=kind, **at, backend=b) for b in (backend, "reference"))
            assert torch.equal(got, expected), kind
        got, expected = (ss.row_stats(rows, sampling=sampling, backend=b) for b in (backend, "reference"))
        for x, y in zip(got, expected):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_cpu_ops_linked_before_cuda():
    cuda_on_cpu.load()
    same_integers(cuda_on_cpu.BESIDE)


def test_both_linked_in_the_other_order():
    cuda_on_cpu.load()
    other = cuda_on_cpu.build(sources=(*cuda_on_cpu.CUDA, *cuda_on_cpu.CPU), name="other_order")
    code = "import cuda_on_cpu as c, test_one_library as t; c.load(); t.same_integers(c.NAME); t.same_integers(c.BESIDE); print('done')"
    env = {**os.environ, "SPECSAMPLE_CUDA_ON_CPU_BUILD": str(other), "PYTHONPATH": native.PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=native.ROOT / "tests")
    assert done.returncode == 0 and "done" in done.stdout, (done.stdout + done.stderr)[-4000:]


def objects(sources):
    return [native.FOLDER / f"{source.stem}.o" for source in sources]


@pytest.fixture(scope="module")
def cpu_objects():
    if None in map(shutil.which, ("nm", "objdump", "c++filt")):
        pytest.skip("no nm, objdump or c++filt")
    cuda_on_cpu.load()
    return objects(cuda_on_cpu.CPU)


def test_no_two_definitions_with_the_emulator(cpu_objects):
    weak_symbols.check(cpu_objects, objects(cuda_on_cpu.CUDA))


@pytest.mark.skipif(nvcc() is None, reason="no nvcc in CUDA_HOME or on the path")
def test_no_two_definitions_with_nvcc(cpu_objects, tmp_path):
    """What nvcc passes to the host compiler; the GPU code, which takes minutes, is not optimised here."""
    running = []
    for source in sorted((native.ROOT / "csrc/cuda").glob("*.cu")):
        command = [nvcc(), "-std=c++17", "-O2", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xcicc=-O0", *native.TORCH]
        command += ["-gencode=arch=compute_90,code=compute_90", "-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running), said
    weak_symbols.check(cpu_objects, sorted(tmp_path.glob("*.o")))


def test_instruction_sets_keep_to_themselves(cpu_objects):
    """Nothing that other objects may also define is compiled for AVX: the linker could pick it for machines without it."""
    for name in ("avx2", "avx512"):
        (path,) = (path for path in cpu_objects if path.stem == f"isa_{name}")
        names = weak_symbols.readable(weak_symbols.weak(path))
        assert not [x for x in names if f"::{name}::" not in x]


def test_control_two_definitions_are_found(tmp_path):
    built = []
    for name, body in {"one": "x + 1", "same": "x + 1", "other": "x * 3"}.items():
        text = f"namespace n {{ inline __attribute__((noinline)) int f(int x) {{ return {body}; }} }}\nint {name}(int x) {{ return n::f(x); }}"
        (tmp_path / f"{name}.cpp").write_text(text)
        built.append(tmp_path / f"{name}.o")
        subprocess.run(["c++", "-O2", "-c", str(tmp_path / f"{name}.cpp"), "-o", str(built[-1])], check=True)
    assert weak_symbols.doubled(built[:1], built[1:2]) == (["n::f(int)"], [])
    assert weak_symbols.doubled(built[:1], built[2:]) == (["n::f(int)"], ["n::f(int)"])


def types_that_differ(sources, folder, *flags):
    """The link-time optimiser's report on types that two objects define differently"""
    flags = ["-std=c++17", "-O0", "-flto", "-fPIC", "-fvisibility=hidden", "-w", *native.FLAGS, *flags]
    built = []
    for source in sources:
        built.append(str(folder / f"{len(built)}.o"))
        subprocess.run(["c++", *flags, "-c", str(source), "-o", built[-1]], check=True)
    command = ["c++", "-flto", "-Wodr", "-O0", "-shared", *built, "-o", str(folder / "all.so")]
    said = subprocess.run(command, capture_output=True, text=True)
    if "lto" in said.stderr and said.returncode:
        pytest.skip(f"the compiler has no link-time optimiser: {said.stderr[-300:]}")
    assert said.returncode == 0, said.stderr[-3000:]
    return said.stderr


def test_no_two_definitions_of_a_type(tmp_path):
    sources = [path for path in (*cuda_on_cpu.CPU, *cuda_on_cpu.CUDA) if not path.stem.startswith("isa_")]
    assert "-Wodr" not in types_that_differ(sources, tmp_path)


def test_control_two_definitions_of_a_type_are_found(tmp_path):
    text = "struct S {{ {0} x; virtual int f(); }};\nint S::f() {{ return 1; }}\n{0} {1}(S* s) {{ return s->x + s->f(); }}"
    for name, kind in {"one": "int", "other": "double"}.items():
        (tmp_path / f"{name}.cpp").write_text(text.format(kind, name).replace("int S::f()", "inline int S::f()"))
    assert "-Wodr" in types_that_differ([tmp_path / "one.cpp", tmp_path / "other.cpp"], tmp_path)
