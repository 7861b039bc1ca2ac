"""nvcc of CUDA 12.4 as packaged by Debian, unpacked into a folder without being installed.

    python release/debian_cuda.py FOLDER          (make_wheel.py calls it: make wheel CUDA=12.4)

Debian 13 has CUDA 12.4 in its section non-free. The packages are fetched with apt, with package lists kept in FOLDER, from the
mirrors configured on this machine; a Debian machine of another release will do. 1 GB is downloaded, 0.5 GB is kept.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITE, SECTIONS, CUDA = "trixie", "main contrib non-free", "12.4"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("nvidia-cuda-toolkit", "nvidia-cuda-dev", "libcu++-dev", "libcub-dev", "libthrust-dev")
TOOLS = ("cudafe++", "ptxas", "fatbinary", "nvlink", "bin2c", "cuobjdump")
PROFILE = """NVVMIR_LIBRARY_DIR = $(_HERE_)/../nvvm/libdevice
PATH += $(_HERE_)/../nvvm/bin:$(_HERE_):
INCLUDES += "-I$(_HERE_)/../include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(_HERE_)/../lib64"
"""


def run(*command, **how):
    return subprocess.run(command, check=True, text=True, **how)


def mirror():
    """The mirror from which this machine fetches Debian's packages"""
    sites = run("apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN) $(SUITE)", capture_output=True).stdout.splitlines()
    found = [line.split()[0] for line in sites if " Debian " in line and "security" not in line]
    if not found:
        sys.exit("apt knows no mirror of Debian: run `apt-get update` on a Debian machine first, or set CUDA_HOME to CUDA " + CUDA)
    return found[0]


def fetch(folder):
    """The packages, by apt with separate lists"""
    for name in ("lists/partial", "cache/archives/partial", "debs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirror()} {SUITE} {SECTIONS}\n")
    settings = {"Dir::Etc::sourcelist": "sources.list", "Dir::State::lists": "lists", "Dir::Cache": "cache"}
    lines = [f'{name} "{folder / path}";' for name, path in settings.items()]
    lines += ['Dir::Etc::sourceparts "/dev/null";', 'APT::Sandbox::User "root";']
    (folder / "apt.conf").write_text("\n".join(lines) + "\n")
    env = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    run("apt-get", "update", "-qq", env=env)
    run("apt-get", "download", "-qq", *PACKAGES, env=env, cwd=folder / "debs")
    return sorted((folder / "debs").glob("*.deb"))


def unpack(folder):
    """-> the folder as a CUDA_HOME"""
    folder = Path(folder).resolve()
    if (folder / "bin/nvcc.profile").exists():
        return folder
    work = folder / "work"
    root = work / "root"
    for package in fetch(work):
        run("dpkg", "-x", str(package), str(root))
    toolkit = root / "usr/lib/nvidia-cuda-toolkit"
    for name in ("bin", "lib64", "nvvm/bin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in TOOLS:
        shutil.copy2(root / "usr/bin" / name, folder / "bin")
    shutil.copy2(toolkit / "bin/nvcc", folder / "bin")  # /usr/bin has a script that calls it by its path
    shutil.copy2(toolkit / "bin/cicc", folder / "nvvm/bin")
    shutil.copytree(toolkit / "bin/crt", folder / "bin/crt")
    shutil.copytree(toolkit / "libdevice", folder / "nvvm/libdevice")
    shutil.copytree(root / "usr/include", folder / "include", symlinks=True)
    for name in ("libcudart_static.a", "libcudadevrt.a"):
        shutil.copy2(next(root.glob(f"usr/lib/*/{name}")), folder / "lib64")
    shutil.rmtree(work)
    (folder / "bin/nvcc.profile").write_text(PROFILE)  # last: marks the folder as complete
    return folder


if __name__ == "__main__":
    print(unpack(sys.argv[1]))
