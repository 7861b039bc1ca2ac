"""Does the package build against, and run with, the oldest supported torch, that of the GPU machines and the newest?

    python tests/support/torch_versions.py [--headers-only] [VERSION ...]     (make check-torch; before a release)

Every host file is checked against each version's headers, from its wheel, which pip downloads and which is unpacked without its
dependencies (0.5 to 0.9 GB each, in build/torch). With the oldest, in a separate virtual environment (5 GB), the extension of this
checkout is loaded, whatever torch it was built with: opcheck, and the reference's integers.
"""

import subprocess
import sys
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

from specsample.version import OLDEST_TORCH

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/torch"
OLDEST = f"{OLDEST_TORCH}.0"
VERSIONS = (OLDEST, "2.11.0", "2.14.1")
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*map(int, OLDEST.split(".")[:2]))
HOST = ["csrc/module.cpp", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.cpp")), "csrc/emulator/ops.cpp"]
UNDER_THE_OLDEST = [
    ["tests/test_torch_integration.py", "-k", "opcheck"],
    ["tests/test_same_integers.py", "-k", "(rows or many_requests or one_hot) and not cuda"],
]


def pip(python, *arguments):
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def headers(version):
    """The folder with torch's headers"""
    include = FOLDER / version / "torch/include"
    if not include.is_dir():
        pip(sys.executable, "download", "--quiet", "--no-deps", "--dest", str(FOLDER), f"torch=={version}")
        (wheel,) = FOLDER.glob(f"torch-{version}[-+]*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(FOLDER / version, [x for x in archive.namelist() if x.startswith("torch/include/")])
    return include


def complaint(version, source):
    """The compiler's diagnostics for a file with the headers of a version; empty if none"""
    include = headers(version)
    folders = [include, include / "torch/csrc/api/include", sysconfig.get_paths()["include"], pybind11.get_include()]
    flags = ["-std=c++17", "-w", STABLE_ABI, *(f"-I{folder}" for folder in folders)]
    if source.endswith(".cu"):  # host code; the GPU code, which does not use torch, is not optimised
        command = ["nvcc", *flags, "-gencode=arch=compute_90,code=compute_90", "-Xcicc=-O0", "-c", source, "-o", "/dev/null"]
    else:
        command = ["c++", *flags, "-fsyntax-only", source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]


def compile_all(versions):
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from nvidia_tools import nvcc

    sources = HOST + (sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cu")) if nvcc() else [])
    if not nvcc():
        print("no nvcc: csrc/cuda/*.cu are left out")
    failed = False
    for version in versions:
        headers(version)
        with ThreadPoolExecutor(2) as pool:
            said = list(pool.map(lambda source: complaint(version, source), sources))
        for source, text in zip(sources, said):
            failed |= bool(text)
            print(f"torch {version}: {source}: {text or 'fine'}", flush=True)
    return failed


def run_under(version):
    """Run the extension of this checkout with that torch"""
    home = FOLDER / f"venv-{version}"
    python = str(home / "bin/python")
    if not (home / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip(python, "install", "--quiet", "--find-links", str(FOLDER), f"torch=={version}", "numpy", "pytest", "pybind11")
        (home / "ready").touch()
    said = "import torch, specsample as ss; i = ss.build_info(); print(torch.__version__, i); assert 'cpu' in i['backends'], i"
    failed = subprocess.run([python, "-c", said], cwd=ROOT).returncode != 0
    for arguments in UNDER_THE_OLDEST:
        failed |= subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=ROOT).returncode != 0
    return failed


if __name__ == "__main__":
    named = [x for x in sys.argv[1:] if not x.startswith("-")]
    FOLDER.mkdir(parents=True, exist_ok=True)
    wrong = compile_all(named or VERSIONS)
    if "--headers-only" not in sys.argv:
        wrong |= run_under(OLDEST)
    sys.exit(1 if wrong else 0)
