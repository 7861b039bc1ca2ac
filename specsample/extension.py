"""The compiled extension: specsample/_C or, where there are several, the one for torch's version of CUDA.

A wheel for one CUDA version, like a build from source, has one library. The combined wheel has a CPU library, specsample/_C.abi3.so,
and beside it one for each major version of CUDA: specsample/_C_cu12.abi3.so, specsample/_C_cu13.abi3.so. Those contain the CPU kernels
too, so only one library is loaded. None of them links a CUDA library: each also loads on a machine without a GPU.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import torch

from .names import EXTENSION
from .version import STREAM_VERSION

INSTALL_HINT = "reinstall with a C++ compiler and torch present: pip install --no-build-isolation ."


def load():
    """Load the compiled kernels, which register themselves. -> (the module, None), or (None, the reason)"""
    if os.environ.get("SPECSAMPLE_NO_EXTENSION", "0") not in ("", "0"):
        return None, "switched off by SPECSAMPLE_NO_EXTENSION"
    if EXTENSION is None:
        return None, "this package is without compiled kernels: install specsample for them"
    name = f"{__package__}.{EXTENSION}"
    try:
        module = _for_cuda(name) or importlib.import_module(name)
    except ImportError as error:
        return None, f"the compiled extension {name} is not loadable ({error}); {INSTALL_HINT}"
    built = module.build_info().get("stream_version")
    if built != STREAM_VERSION:  # left over from other sources: it would emit different tokens
        what = f"has version {built} of the streams, this package {STREAM_VERSION}"
        return None, f"the compiled extension {name} {what}; {INSTALL_HINT}"
    return module, None


def _for_cuda(name):
    """Load the library for torch's CUDA version under the extension's usual name; None if there is none or it is already loaded"""
    major = (torch.version.cuda or "").partition(".")[0]
    path = next(Path(__file__).parent.glob(f"{EXTENSION}_cu{major}.*.so"), None) if major else None
    if path is None or name in sys.modules:
        return None
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def _majors():
    """Major versions of CUDA that have a library beside the CPU's: ["12", "13"]"""
    return sorted(path.name.partition("_cu")[2].partition(".")[0] for path in Path(__file__).parent.glob(f"{EXTENSION}_cu*.so"))


def cuda_misfit(built):
    """Why kernels built with CUDA `built` ("13.0"; None: no kernels) cannot run under this torch on any machine, or None"""
    running = torch.version.cuda
    if built is None and torch.version.hip is None and (majors := _majors()):
        lacks = f"is for CUDA {running}" if running else "was built without CUDA"
        return f"this wheel has kernels for CUDA {' and '.join(majors)}, and torch {torch.__version__} {lacks}"
    if built is None:
        return "this build has no CUDA kernels; rebuild with nvcc present: SPECSAMPLE_CUDA=1 pip install --no-build-isolation ."
    if torch.version.hip is not None:
        return f"the CUDA kernels are built, but torch {torch.__version__} is for AMD GPUs: backend='triton' runs there"
    if running is None:
        return f"the CUDA kernels are built, but torch {torch.__version__} was built without CUDA"
    major = running.partition(".")[0]
    if built.partition(".")[0] != major:
        fix = f"install a wheel of specsample for CUDA {major}, or build it with that nvcc"
        return f"its CUDA kernels are built with CUDA {built}, and torch {torch.__version__} is for CUDA {running}; {fix}"
    return None


def no_gpu(architectures):
    """Why no GPU in this machine can run kernels compiled for these compute capabilities ("8.0 9.0"), or None. Initialises CUDA."""
    if not torch.cuda.is_available():
        return "the CUDA kernels are built, but torch.cuda.is_available() is False: no NVIDIA GPU or driver was found"
    oldest = min((tuple(map(int, x.split("."))) for x in architectures.split()), default=(0, 0))
    found = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if all(capability < oldest for capability in found):
        text = ", ".join("{}.{}".format(*x) for x in sorted(set(found)))
        least = "{}.{}".format(*oldest)
        return f"the CUDA kernels need compute capability {least} or later, and this machine's GPU has {text}; try backend='triton'"
    return None
