"""Build of the compiled kernels: one abi3 extension against the LibTorch stable ABI.

Metadata is in pyproject.toml. torch is taken from the environment (pip install --no-build-isolation): an isolated build
would download the newest CUDA build. Without torch or a compiler the package installs as pure Python, and says so.
release/ uses this file to make wheels, each for one CUDA (docs/releasing.md).
"""

import glob
import os
import re
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_ext import build_ext


def stated(module):
    """The definitions of a package module that imports nothing, by name: the package itself may not be importable yet"""
    names = {}
    with open(f"specsample/{module}.py") as file:
        exec(file.read(), names)
    return names


# `make check-torch` compiles against its headers and later ones', and runs under it.
OLDEST_TORCH = stated("version")["OLDEST_TORCH"]
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*map(int, OLDEST_TORCH.split(".")))
REQUIRED = os.environ.get("SPECSAMPLE_REQUIRE_EXTENSION", "0") not in ("", "0")
# Additional flags for the C++ compiler, after those below.
CXX_FLAGS = os.environ.get("SPECSAMPLE_CXXFLAGS", "").split()
ROOT = os.getcwd()  # all paths below are relative to it


def anonymous(torch):
    """Flags that keep paths of the compiling machine out of all messages"""
    package = os.path.dirname(os.path.realpath(torch.__file__))
    folders = {package: "torch", os.path.dirname(os.path.abspath(torch.__file__)): "torch", ROOT: "."}
    return [f"-ffile-prefix-map={folder}={short}" for folder, short in folders.items()]


def without_extension(reason):
    message = f"specsample: the compiled kernels are not built: {reason}"
    if REQUIRED:
        raise SystemExit(message)
    print(f"{message}. Installing pure Python (backend 'reference'). {HINT}", file=sys.stderr)
    return {}


# Compute capabilities that CUDA kernels are compiled for, as far as this nvcc knows them. PTX, which later GPUs compile themselves,
# is included for the last one, and for 9.0, for later GPUs without machine code of their family here: 11.0.
# SPECSAMPLE_CUDA_ARCHS="9.0" (or more, separated by spaces) replaces them.
CUDA_ARCHS = "8.0 8.6 8.9 9.0 10.0 12.0"


def cuda(torch):
    """Settings for building the CUDA kernels: {home, version, archs, flags}, or None if they are not wanted.

    SPECSAMPLE_CUDA = auto (the default): if torch was built for CUDA and nvcc is present; 1: always; 0: never.
    """
    wanted = os.environ.get("SPECSAMPLE_CUDA", "auto").lower()
    if wanted == "0" or (wanted != "1" and torch.version.cuda is None):
        return None
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = os.path.join(named, "bin", "nvcc") if named else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not os.path.exists(nvcc):
        message = f"specsample: no CUDA compiler ({nvcc}); set CUDA_HOME"
        if wanted == "1":
            raise SystemExit(message)
        print(f"{message}. Building the CPU kernels only.", file=sys.stderr)
        return None
    run = lambda *args: subprocess.run([nvcc, *args], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"sm_(\d+)", run("--list-gpu-code")))
    chosen = os.environ.get("SPECSAMPLE_CUDA_ARCHS")
    archs = re.split(r"[\s,;]+", (chosen or CUDA_ARCHS).strip())
    archs = [a for a in archs if chosen or a.replace(".", "") in known]
    codes = [a.replace(".", "") for a in archs]
    flags = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in codes]
    texts = sorted({"90", codes[-1]} & set(codes))
    flags += [f"-gencode=arch=compute_{c},code=compute_{c}" for c in texts]
    around = os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))  # differs if nvcc is a script that calls another
    homes = [h for h in (named, around, "/usr/local/cuda") if h and os.path.exists(f"{h}/include/cuda_runtime.h")]
    home = homes[0] if homes else around
    version = re.search(r"release ([\d.]+)", run("--version")).group(1)
    return {"home": home, "version": version, "archs": " ".join(archs), "flags": flags}


HINT = f"For the kernels: install torch>={OLDEST_TORCH} and a C++ compiler, then pip install --no-build-isolation ."


def compiled():
    if os.environ.get("SPECSAMPLE_NO_EXTENSION", "0") not in ("", "0"):
        return without_extension("SPECSAMPLE_NO_EXTENSION is set")
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return without_extension("torch is not importable in the build environment")
    if [int(x) for x in torch.__version__.split(".")[:2]] < [int(x) for x in OLDEST_TORCH.split(".")]:
        return without_extension(f"torch {torch.__version__} is older than {OLDEST_TORCH}")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return without_extension(f"no C++ compiler ({compiler}) on the path")

    class Build(cpp_extension.BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:  # a broken tool chain must not prevent the pure Python part from being installed
                if REQUIRED:
                    raise
                without_extension(f"{type(error).__name__}: {error}")
                self.extensions = []

    sources, links, gpu = ["csrc/module.cpp", "csrc/portable.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))], {}, cuda(torch)
    if gpu:
        cpp_extension.CUDA_HOME = gpu["home"]  # torch leaves it unset in a CPU build
        sources += sorted(glob.glob("csrc/cuda/*.cu"))
        lib = os.path.join(gpu["home"], "lib64")
        links = {"library_dirs": [lib], "libraries": ["cudart_static", "rt", "dl", "pthread"]}
        links["include_dirs"] = [os.path.join(gpu["home"], "include")]

    extension = cpp_extension.CppExtension(
        "specsample._C",
        sources,
        py_limited_api=True,
        extra_compile_args={
            "cxx": [
                "-std=c++17",
                "-O3",
                "-g0",
                "-fvisibility=hidden",
                "-Wno-maybe-uninitialized",  # false alarms in gcc's own AVX-512 headers
                STABLE_ABI,
                f'-DSPS_TORCH_VERSION="{torch.__version__}"',
                f"-DSPS_OPS={stated('names')['LIBRARY']}",
                *anonymous(torch),
                *([f'-DSPS_CUDA_VERSION="{gpu["version"]}"', f'-DSPS_CUDA_ARCHS="{gpu["archs"]}"'] if gpu else []),
                *CXX_FLAGS,
            ],
            "nvcc": [
                "-std=c++17",
                "-O3",
                "--threads=2",
                "-Xcompiler=-fvisibility=hidden",
                STABLE_ABI,
                f"-DSPS_OPS={stated('names')['LIBRARY']}",
                *(f"-Xcompiler={flag}" for flag in anonymous(torch)),
                *(gpu["flags"] if gpu else []),
            ],
        },
        **links,
        # Only its entry point is exported: its own definitions (csrc/portable.cpp), and cudart, stay private.
        extra_link_args=["-Wl,--version-script=csrc/exports.map", "-s"] if sys.platform.startswith("linux") else [],
        depends=sorted(
            glob.glob("csrc/**/*.h", recursive=True) + ["csrc/exports.map"] + glob.glob("csrc/**/*.inc", recursive=True)
        ),
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**(compiled() or {"cmdclass": {"build_ext": build_ext}}))
