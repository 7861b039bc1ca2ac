"""Build of the compiled kernels: one abi3 extension against the LibTorch stable ABI.

Metadata stands in pyproject.toml. torch is taken from the environment (pip install --no-build-isolation): an isolated build
would download the newest CUDA build. Without torch or a compiler the package installs as pure Python, and says so.
"""

import glob
import os
import shutil
import sys

from setuptools import setup
from setuptools.command.build_ext import build_ext

# The oldest torch whose stable ABI is used; the extension then loads in every later one.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
REQUIRED = os.environ.get("SPECSAMPLE_REQUIRE_EXTENSION", "0") not in ("", "0")


def without_extension(reason):
    message = f"specsample: the compiled kernels are not built: {reason}"
    if REQUIRED:
        raise SystemExit(message)
    print(f"{message}. Installing pure Python (backend 'reference'). {HINT}", file=sys.stderr)
    return {}


HINT = "For the kernels: install torch>=2.10 and a C++ compiler, then pip install --no-build-isolation ."


def compiled():
    if os.environ.get("SPECSAMPLE_NO_EXTENSION", "0") not in ("", "0"):
        return without_extension("SPECSAMPLE_NO_EXTENSION is set")
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return without_extension("torch is not importable in the build environment")
    if tuple(int(x) for x in torch.__version__.split(".")[:2]) < (2, 10):
        return without_extension(f"torch {torch.__version__} is older than 2.10")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return without_extension(f"no C++ compiler ({compiler}) on the path")

    class Build(cpp_extension.BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:  # a broken tool chain must not keep the pure Python part from installing
                if REQUIRED:
                    raise
                without_extension(f"{type(error).__name__}: {error}")
                self.extensions = []

    extension = cpp_extension.CppExtension(
        "specsample._C",
        ["csrc/module.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))],
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
            ]
        },
        extra_link_args=["-Wl,--exclude-libs,ALL", "-s"],
        depends=sorted(glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.inc", recursive=True)),
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**(compiled() or {"cmdclass": {"build_ext": build_ext}}))
