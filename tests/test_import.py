"""`import specsample` does not query the GPU: that would initialise CUDA, and forked workers could no longer use it."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import native
import pytest
import torch
from conftest import require

import specsample as ss
from specsample import backends

# A process in which the compiled part and torch claim to be built for CUDA, and every function of torch.cuda, and those of
# torch._C that it calls, raise.
GUARD = """
import importlib.util, multiprocessing, sys, types
from pathlib import Path
import torch

root = Path({root!r})
path = next((root / "specsample").glob("_C*.so"))
spec = importlib.util.spec_from_file_location("specsample._C", path)
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
stated = kernels.build_info() | {{"cuda": "13.0", "architectures": "9.0"}}
sys.modules["specsample._C"] = types.SimpleNamespace(build_info=lambda: stated)
torch.version.cuda = "13.0"

def forbidden(name):
    def function(*args, **settings):
        raise SystemError(f"{{name}} was called")
    return function

count = 0
for owner, wanted in ((torch.cuda, lambda name: True), (torch._C, lambda name: name.startswith("_cuda_"))):
    for name, value in list(vars(owner).items()):
        if wanted(name) and isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            setattr(owner, name, forbidden(f"{{owner.__name__}}.{{name}}"))
            count += 1
assert count > 50, count
torch._C._cuda_getDeviceCount = torch._C._cuda_init = forbidden("torch._C._cuda_*")
"""


def run(code):
    env = {**os.environ, "PYTHONPATH": str(native.ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("SPECSAMPLE_NO_EXTENSION", None)
    program = GUARD.format(root=str(native.ROOT)) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=120)


def test_no_question_about_a_gpu():
    """Neither at import nor in calls on the CPU, in this process and in a forked one; `available` does."""
    require("cpu")
    done = run("""
import specsample as ss
from specsample import backends

def work(backend):
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(1))
    tokens = ss.draft(logits[:, 0], 1, kind="iid", seed=1, position=2, backend=backend)
    tokens = torch.cat([tokens, tokens], 1)
    verdict = ss.verify(logits, tokens, logits[:, :2], parents=[-1, 0], seed=1, position=2, backend=backend)
    return verdict.tokens.tolist()

here = [work(backend) for backend in (None, "cpu", "reference")]
assert backends.BACKENDS["cuda"].functions is not None
with multiprocessing.get_context("fork").Pool(1) as pool:
    there = pool.map(work, (None, "cpu", "reference"))
assert here == there, (here, there)
for ask in (backends.available, ss.build_info, ss.schemes):
    try:
        ask()
    except SystemError as error:
        assert "torch.cuda.is_available was called" in str(error), error
    else:
        raise AssertionError(f"{ask} did not ask")
try:
    ss.sample(torch.zeros(1, 5), seed=1, position=1, backend="cuda")
except SystemError:
    print("asked at first use")
""")
    assert done.returncode == 0 and done.stdout == "asked at first use\n", done.stderr


def test_the_guard_raises():
    """The control: a module that queries while being imported."""
    require("cpu")
    done = run("torch.cuda.is_available()")
    assert done.returncode == 1 and "torch.cuda.is_available was called" in done.stderr


def test_what_is_missing_is_said(monkeypatch):
    """A build for CUDA when no GPU is found: named, and the query is made once."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(1) and False)
    there = backends.BACKENDS["cpu"]._replace(device="cuda", missing=None, no_device=backends._no_gpu)
    monkeypatch.setitem(backends.BACKENDS, "cuda", there)
    backends._no_gpu.cache_clear()
    try:
        assert "no NVIDIA GPU" in ss.build_info()["unavailable"]["cuda"] and "cuda" not in ss.schemes()["token"].backends
        with pytest.raises(ValueError, match="backend: 'cuda' is not available: .*no NVIDIA GPU"):
            ss.sample(torch.zeros(1, 5), seed=1, position=1, backend="cuda")
        assert len(asked) == 1
    finally:
        backends._no_gpu.cache_clear()


def imports(folder, package):
    """{module: modules of the package that it imports at its own import}"""
    files = {path: ".".join((package, *path.relative_to(folder).with_suffix("").parts)) for path in folder.rglob("*.py")}
    names = {path: name.removesuffix(".__init__") for path, name in files.items()}
    known, graph = set(names.values()), {}
    for path, name in names.items():
        inside = name if path.stem == "__init__" else name.rpartition(".")[0]
        found = graph[name] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                start = ".".join([*inside.split(".")[: len(inside.split(".")) - node.level + 1], *filter(None, [node.module])])
                each = {f"{start}.{alias.name}" for alias in node.names}
                found.update(each & known)
                if not each <= known:  # a name that the module itself defines
                    found.add(start)
    return graph


def test_no_module_imports_one_that_imports_it(tmp_path):
    order = list(TopologicalSorter(imports(native.ROOT / "specsample", "specsample")).static_order())
    assert order.index("specsample.reference.walk") < order.index("specsample.schemes.token") < order.index("specsample.api")
    (tmp_path / "a.py").write_text("from .b import f\n")
    (tmp_path / "b.py").write_text("from . import a\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(imports(tmp_path, "package")).static_order())


# What the project's files may import besides Python's own modules and their own.
OTHERS = set(
    "torch triton numpy scipy pytest pybind11 setuptools transformers tokenizers safetensors datasets tqdm matplotlib vllm "
    "mkdocs griffe".split()
)
FOLDERS = ("specsample", "benchmarks", "examples", "release", "docs", "tests")


def bound(path):
    """Names that a module binds anywhere outside its functions and classes"""
    names, todo = set(), list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        else:
            names.update(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            todo += [n for n in ast.iter_child_nodes(node) if isinstance(n, (ast.stmt, ast.excepthandler))]
    return names


def unknown_imports(root, folders=FOLDERS):
    """[(file, import)] of those, also inside functions, whose module or name is nowhere"""
    paths = [path for folder in folders for path in (root / folder).rglob("*.py")]
    scripts = {path.stem for path in paths} | {path.parent.name for path in paths}  # found by the folders put in sys.path

    def missing(start, module, names):
        """What is missing of `from module import names`; start: the folder that contains the module"""
        place = start.joinpath(*module.split(".")) if module else start
        if not place.is_dir() and not place.with_suffix(".py").exists():
            return [module]
        own = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
        defined = bound(own) if own.exists() else set()
        there = lambda name: (place / name).is_dir() or (place / f"{name}.py").exists() or any(place.glob(f"{name}.*.so"))
        lazy = "__getattr__" in defined  # a module may make its names when asked
        return [f"{module}.{name}" for name in names if not (lazy or name == "*" or name in defined or there(name))]

    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                lost = missing(path.parents[node.level - 1], node.module or "", [alias.name for alias in node.names])
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in folders:
                lost = missing(root, node.module, [alias.name for alias in node.names])
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                known = OTHERS | scripts | sys.stdlib_module_names
                lost = [module for module in modules if module.split(".")[0] not in known]
            else:
                continue
            found += [(str(path.relative_to(root)), name) for name in lost]
    return found


def test_every_import_is_of_something_that_exists(tmp_path):
    """Imports inside functions are reached by few tests: a module that was renamed is noticed here. (Not: attributes of modules, and
    names of other packages.)"""
    assert unknown_imports(native.ROOT) == []
    (tmp_path / "package/inner").mkdir(parents=True)
    (tmp_path / "package/__init__.py").write_text("from .inner import a, b\nif True:\n    X = 1\n")
    (tmp_path / "package/inner/a.py").write_text(
        "def f():\n    import plot\n    import torch.nn, a\n    from package import X, Y\n"
    )
    wrong = [("package/__init__.py", "inner.b"), ("package/inner/a.py", "plot"), ("package/inner/a.py", "package.Y")]
    assert unknown_imports(tmp_path, ["package"]) == wrong
