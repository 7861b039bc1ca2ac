"""NVIDIA's compilers and disassemblers, wherever they are: CUDA's nvcc, CUDA 12's compiler from the package index, Triton's tools.

The index has no nvcc for CUDA 12, only its parts: NVRTC (the same front end and optimiser as a library, for device code only)
and ptxas. `nvrtc` combines them. The few C++ library headers that the kernels include and NVRTC lacks are supplied here.

By hand: SPECSAMPLE_NVRTC=<site-packages>/nvidia python -m pytest tests/test_cuda_compile.py    (make check-cuda12)
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

ALL = os.environ.get("SPECSAMPLE_CHECK_CUDA", "0") not in ("", "0")  # all shipped architectures
PACKAGES = os.environ.get("SPECSAMPLE_NVRTC")  # the folder `nvidia` of pip's packages

HEADERS = {
    "cuda_runtime.h": "#pragma once\n",
    "cstdint": "#pragma once\n#include <cuda/std/cstdint>\n"
    "namespace std { using ::int32_t; using ::int64_t; using ::uint32_t; using ::uint64_t; }\n",
    "cfloat": "#pragma once\n#define FLT_MAX 3.402823466e+38f\n#define FLT_MIN 1.175494351e-38f\n"
    "#define FLT_EPSILON 1.192092896e-07f\n#define DBL_MAX 1.7976931348623158e+308\n"
    "#define DBL_MIN 2.2250738585072014e-308\n#define DBL_EPSILON 2.2204460492503131e-16\n",
    "cmath": "#pragma once\n#define HUGE_VALF __builtin_bit_cast(float, 0x7f800000)\n"
    "#define HUGE_VAL __builtin_bit_cast(double, 0x7ff0000000000000LL)\n#define INFINITY HUGE_VALF\n"
    "#define NAN __builtin_bit_cast(float, 0x7fc00000)\n",
    "type_traits": "#pragma once\n#include <cuda/std/type_traits>\nnamespace std { using namespace cuda::std; }\n",
}


def nvidia_tool(name):
    """Path of `cuobjdump`, `nvdisasm`, …: on PATH, or in Triton's package; None if not found"""
    places = [os.environ.get("PATH", "")]
    places += [str(p) for site in sys.path for p in Path(site or ".").glob("triton/backends/nvidia/bin")]
    return shutil.which(name, path=os.pathsep.join(places))


def nvcc():
    """The nvcc of CUDA_HOME, as in setup.py, or the one on PATH; None if not found"""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=os.path.join(home, "bin")) if home else shutil.which("nvcc")


def cuda_headers():
    """The folder of CUDA's headers; None if not found"""
    around = [Path(nvcc()).resolve().parent.parent] if nvcc() else []
    return next((p / "include" for p in (*around, Path("/usr/local/cuda")) if (p / "include/cuda_runtime_api.h").exists()), None)


def nvrtc(source, folder, arch, include, flags=()):
    """Compile CUDA C++ to folder/kernels.ptx with NVRTC, and that with ptxas. -> (cubin, the output of ptxas)"""
    packages = Path(PACKAGES).resolve()
    for name, text in HEADERS.items():
        (folder / name).write_text(text)
    library = ctypes.CDLL(str(next(packages.glob("cuda_nvrtc/lib/libnvrtc.so.*"))))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [f"--gpu-architecture=compute_{arch}", "--std=c++17"]
    options += [f"-I{path}" for path in (folder, packages / "cuda_cccl/include", include)]
    passed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    status = library.nvrtcCompileProgram(program, len(options), passed)
    text = {}
    for what in ("ProgramLog", "PTX"):
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        text[what] = buffer.value.decode()
        assert status == 0, text["ProgramLog"]
    (folder / "kernels.ptx").write_text(text["PTX"])
    command = [str(packages / "cuda_nvcc/bin/ptxas"), "-O3", f"-arch=sm_{arch}", *flags, "kernels.ptx", "-o", "kernels.out"]
    os.chmod(command[0], 0o755)  # pip sets this already, other unpackers do not
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "kernels.out", done.stdout + done.stderr
