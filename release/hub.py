"""The package as a kernel for the Hugging Face hub `kernels`, made from these sources.

    python release/hub.py [--out build/hub]          (make hub)

The result has two parts:

- OUT, a project for kernel-builder: build.toml, flake.nix, CARD.md, and torch-ext/specsample with the Python files.
- OUT/build, what kernel-builder would build from it: one folder per kind of device, loaded by
  kernels.get_local_kernel(OUT / "build") and, once uploaded, by kernels.get_kernel("<owner>/specsample", version=1).

It has no compiled part: the Triton kernels serve GPUs of all makers, the reference the CPU. The hub loads a kernel from any folder,
and several versions in one process, so its torch ops have a different namespace: only the file specsample/names.py differs.
"""

import argparse
import ast
import base64
import hashlib
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "specsample"
NAME, VERSION = "specsample", 1  # of the kernel: raised by a change that callers notice
BACKENDS = ("cpu", "cuda", "rocm", "xpu")
WHOLE = ("schemes", "triton")  # loaded by names assembled at run time

NAMES = '''"""Names under which the package is known to torch, here as a kernel of the hub: see specsample/names.py of the sources."""

from ._ops import add_op_namespace_prefix

LIBRARY = add_op_namespace_prefix("").removesuffix("::")
TRITON_LIBRARY = f"{LIBRARY}_triton"
EXTENSION = None  # Triton and the reference alone
'''
# kernel-builder writes a similar file into what it builds.
OPS = """import torch

LIBRARY = "{id}"
ops = getattr(torch.ops, LIBRARY)


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{{LIBRARY}}::{{op_name}}"
"""
BUILD = """[general]
name = "{name}"
version = {version}
edition = 5
license = "Apache-2.0"
backends = [{backends}]

[torch-noarch]
pyext = ["py", "typed"]
"""
FLAKE = """{
  description = "Exact verification for speculative decoding";

  inputs.kernel-builder.url = "github:huggingface/kernels";

  outputs =
    { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""
CARD = """---
library_name: kernels
license: apache-2.0
---

# specsample

Exact verification for speculative decoding, from raw logits: the Triton kernels of the package
[specsample](https://pypi.org/project/specsample/). Its CPU and CUDA kernels are in the package's wheels.

```python
import torch
from kernels import get_kernel

ss = get_kernel("<owner>/specsample", version={version})
target, drafts = torch.randn(2, 4, 32_000, device="cuda"), torch.randint(0, 32_000, (2, 3), device="cuda")
verdict = ss.verify(target, drafts, target[:, :3], scheme="token", seed=1, position=0)
```
"""


def modules():
    """The files that `import specsample` may reach, as paths inside the package; not the command line, the demo, other engines"""
    reached, todo = set(), [PACKAGE / "__init__.py", *(p for folder in WHOLE for p in (PACKAGE / folder).glob("*.py"))]
    while todo:
        path = todo.pop()
        if path in reached:
            continue
        reached.add(path)
        todo += [folder / "__init__.py" for folder in path.parents if folder != PACKAGE.parent and folder.is_relative_to(PACKAGE)]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                start = path.parents[node.level - 1].joinpath(*filter(None, (node.module or "").split(".")))
                for place in (start, *(start / alias.name for alias in node.names)):
                    todo += [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
    return sorted(str(path.relative_to(PACKAGE)) for path in reached)


def write_package(folder):
    for name in (*modules(), "py.typed"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PACKAGE / name, folder / name)
    (folder / "names.py").write_text(NAMES)


def write_project(out):
    """The input of kernel-builder"""
    write_package(out / "torch-ext" / NAME)
    backends = ", ".join(f'"{x}"' for x in BACKENDS)
    (out / "build.toml").write_text(BUILD.format(name=NAME, version=VERSION, backends=backends))
    (out / "flake.nix").write_text(FLAKE)
    (out / "CARD.md").write_text(CARD.replace("{version}", str(VERSION)))


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "metadata.json")
    hashed = lambda path: base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
    return {"algorithm": "sha256", "files": {str(path.relative_to(folder)): hashed(path) for path in files}}


def write_variant(folder, backend):
    """What kernel-builder makes of the project for one kind of device"""
    write_package(folder)
    mark = hashlib.sha256("".join(digest(folder)["files"].values()).encode()).hexdigest()[:7]
    identity = f"_{NAME}_{backend}_{mark}"
    (folder / "_ops.py").write_text(OPS.format(id=identity))
    metadata = {"name": NAME, "id": identity, "version": VERSION, "license": "Apache-2.0", "python-depends": []}
    metadata |= {"backend": {"type": backend, **({"archs": []} if backend in ("cuda", "rocm") else {})}, "digest": digest(folder)}
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def write(out):
    """-> the folder, recreated"""
    out = Path(out)
    shutil.rmtree(out, ignore_errors=True)
    write_project(out)
    for backend in BACKENDS:
        write_variant(out / "build" / f"torch-{backend}", backend)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(ROOT / "build/hub"))
    print(write(parser.parse_args().out))
