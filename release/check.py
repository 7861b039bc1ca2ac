"""Every wheel in dist, in fresh environments with the oldest and the newest torch for its CUDA; and the sources under pip.

    python release/check.py [--torch 2.14.1 ...] [--wheels cu124 ...] [--keep] [--quick]          (make release-check)

An environment has the CUDA build of one torch (5 GB, downloaded) and nothing else; it is made in build/release, and removed again
unless --keep. In each, release/smoke.py runs for each wheel: its build info, every scheme against the reference, torch's opcheck,
the README's examples. A wheel for another CUDA must say so there, and still serve the CPU. Without a GPU the CUDA kernels are
loaded but not run. --quick: only with the torch of this environment, and so without a download.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import inspection

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/release"
# The oldest for CUDA 12 and for CUDA 13 on the package index, and the newest.
TORCHES = ("2.10.0", "2.11.0", "2.14.1")
CUDA_OF = "import torch; print(torch.version.cuda or '')"


def run(*command, **how):
    done = subprocess.run([str(x) for x in command], text=True, capture_output=True, **how)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def environment(folder, *packages):
    """-> the Python of a fresh environment"""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", folder)
    if packages:
        run(folder / "bin/python", "-m", "pip", "install", "--quiet", *packages)
    return folder / "bin/python"


def with_this_torch(folder):
    """A fresh environment that sees this one's torch, and nothing that is installed as specsample here"""
    import torch

    python = environment(folder)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # By links: a path to the whole folder would bring in its editable installations.
    for path in Path(torch.__file__).parent.parent.iterdir():
        target = Path(site) / path.name
        own = re.match(r"__editable__|specsample|pip|setuptools|wheel|_distutils|pkg_resources|distutils-", path.name)
        if not own and not target.exists() and path.suffix != ".pth":
            target.symlink_to(path)
    return python


def expected(wheel, torch_cuda):
    """What smoke.py must find, under a torch for CUDA "12.8" ("": none)"""
    version = wheel.name.split("-")[1]
    found = re.fullmatch(r".*\+cu(\d+)(\d)", version)
    if found:
        cuda = ".".join(found.groups())
    elif "+" in version:
        cuda = None
    else:  # several libraries: the one for torch's major version
        cuda = library_for(wheel, torch_cuda.partition(".")[0])
    fits = cuda is not None and cuda.partition(".")[0] == torch_cuda.partition(".")[0]
    return {"version": version, "cuda": cuda, "fits": fits, "folder": "site-packages"}


def library_for(wheel, major):
    """The CUDA of a joined wheel's library for a major version; None if it has none"""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if major and f"_cu{major}." in name), None)
        return name and inspection.cuda_of(wheel, archive.extract(name, folder))


def clean():
    """This process's environment without variables that would lead to the checkout"""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SPECSAMPLE"))}


def check_wheels(python, wheels):
    """Each wheel in an environment that has torch"""
    cuda = run(python, "-c", CUDA_OF).strip()
    readme = ROOT / "README.md"
    for wheel in wheels:
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel)
        print(f"  {wheel.name}", flush=True)
        with tempfile.TemporaryDirectory() as elsewhere:
            env = clean()
            smoke = shutil.copy(ROOT / "release/smoke.py", elsewhere)
            print(run(python, smoke, json.dumps(expected(wheel, cuda)), readme, cwd=elsewhere, env=env).rstrip(), flush=True)
            said = run(python, "-m", "specsample", "info", cwd=elsewhere, env=env)
            assert "specsample " in said and "backends" in said, said


def check_sources(python):
    """pip on the sdist: isolated (no torch: pure Python, with a message), not isolated, editable"""
    (sdist,) = (ROOT / "dist").glob("specsample-*.tar.gz")
    env = clean() | {"PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]])}
    why = "import specsample as ss; print(ss.build_info()['unavailable'].get('cpu', 'compiled'))"
    with tempfile.TemporaryDirectory() as elsewhere:
        run("tar", "-xf", sdist, "-C", elsewhere)
        (sources,) = Path(elsewhere).iterdir()
        steps = {
            "isolated": ["--no-deps", sdist],
            "editable": ["--no-deps", "--no-build-isolation", "--editable", sources],
            "without a compiler": ["--no-deps", "--no-build-isolation", sources],
        }
        run(python, "-m", "pip", "install", "--quiet", "setuptools>=77", "ninja")
        for name, arguments in steps.items():
            run(python, "-m", "pip", "uninstall", "--yes", "--quiet", "specsample")
            these = {**env, "CXX": "no-such-compiler"} if name == "without a compiler" else env
            run(python, "-m", "pip", "install", "--quiet", *arguments, env=these)
            said = run(python, "-c", why, cwd=elsewhere, env=env).strip()
            assert (said == "compiled") == (name == "editable"), (name, said)
            print(f"  pip install, {name}: {said}", flush=True)
        run(python, "-m", "pip", "uninstall", "--yes", "--quiet", "specsample")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", nargs="+", default=list(TORCHES), help="versions of torch")
    parser.add_argument("--wheels", nargs="+", default=[""], help="parts of the wheels' names: cu124")
    parser.add_argument("--keep", action="store_true", help="leave the environments in build/release")
    parser.add_argument("--quick", action="store_true", help="with the torch of this environment alone")
    asked = parser.parse_args()
    wheels = sorted(path for path in (ROOT / "dist").glob("specsample-*.whl") if any(part in path.name for part in asked.wheels))
    if not wheels:
        sys.exit("no wheels in dist: make wheels")
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(run(sys.executable, ROOT / "release/inspection.py", *wheels).rstrip(), flush=True)
    here = with_this_torch(FOLDER / "here")
    print(f"this environment's torch, {run(here, '-c', 'import torch; print(torch.__version__)').strip()}", flush=True)
    check_wheels(here, wheels)
    check_sources(here)
    for version in [] if asked.quick else asked.torch:
        folder = FOLDER / f"torch-{version}"
        python = environment(folder, f"torch=={version}", "numpy")
        print(f"torch {version}, for CUDA {run(python, '-c', CUDA_OF).strip()}", flush=True)
        check_wheels(python, wheels)
        if not asked.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
