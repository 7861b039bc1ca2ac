"""Access to the C++ internals for the tests: builds csrc/testing/bindings.cpp with ninja and imports it."""

import contextlib
import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from specsample import backends, ops

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join(str(ROOT / folder) for folder in ("", "tests", "tests/support"))  # for subprocesses
SOURCES = [
    ROOT / "csrc/testing/bindings.cpp",
    ROOT / "csrc/cpu/capability.cpp",
    *sorted((ROOT / "csrc/cpu").glob("isa_*.cpp")),
]


STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# For sources that include torch. The bindings do not, but with the same flags and folder each object is compiled only once.
TORCH = (STABLE_ABI, *(f"-I{path}" for path in cpp_extension.include_paths()))
TORCH_LIBRARIES = (*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu", "-lc10")
FOLDER = ROOT / "build/testing"
FLAGS = (*TORCH, "-DSPS_CPU_LIBRARY=specsample_cpu_beside_cuda")  # see cuda_on_cpu.py


@contextlib.contextmanager
def alone(directory):
    """A lock per directory: of the processes that run the tests (pytest-xdist's workers), one at a time may hold it."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ninja(directory, lines):
    """Run ninja on a build file of these lines. Only what changed is rebuilt."""
    program = shutil.which("ninja") or str(Path(sys.executable).parent / "ninja")
    with alone(directory):
        (directory / "build.ninja").write_text("\n".join(lines) + "\n")
        done = subprocess.run([program, "-j2", "-C", str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def build(directory=FOLDER, flags=FLAGS, sources=SOURCES, output=None, libraries=()):
    """Compile the bindings (or other sources) in `directory` with ninja. -> the shared object, linked in the order of the sources"""
    import pybind11

    output = output or directory / f"specsample_testing{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    cflags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-w", *flags, *(f"-I{path}" for path in includes)]
    lines = [
        "rule cc",
        f"  command = c++ -MMD -MF $out.d {' '.join(cflags)} -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = c++ -shared {' '.join(flags)} $in -o $out {' '.join(libraries)}",
    ]
    objects = []
    for source in sources:
        objects.append(source.stem + ".o")
        lines.append(f"build {objects[-1]}: cc {source}")
    lines.append(f"build {output}: link {' '.join(objects)}")
    ninja(directory, lines)
    return output


def declare(backend, library, like):
    """Define the ops' schemas in `library`, whose kernels are loaded afterwards, and add a CPU backend that uses them and otherwise
    equals the backend `like`. -> the definitions, which must be kept alive while in use"""
    definitions = torch.library.Library(library, "DEF")
    for name, schema in ops.SCHEMAS.items():
        definitions.define(name + schema)
    functions = getattr(torch.ops, library)
    backends.BACKENDS[backend] = backends.BACKENDS[like]._replace(functions=functions, device="cpu", missing=None, no_device=None)
    return definitions


@functools.cache
def load():
    """The module `specsample_testing`; skips the test if no C++ compiler is installed."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++) on the path")
    # The sanitizer tests point to their own build, made before their process starts.
    ready = os.environ.get("SPECSAMPLE_TESTING_BUILD")
    output = next(Path(ready).glob("*.so")) if ready else build()
    spec = importlib.util.spec_from_file_location("specsample_testing", output)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
