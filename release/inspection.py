"""What is in a wheel, and what is wrong with it.

    python release/inspection.py WHEEL...        (make wheel and make release-check call it)

A wheel must run under every supported Python and torch, on old systems, and reveal nothing about the machine that built it. Needs
binutils (nm, objdump); cuobjdump, from CUDA or Triton's package, lists the code for GPUs; auditwheel and torch-abi-audit are used
if installed. Whatever could not be inspected is reported.
"""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Tools are programs of the environment, which need not be the shell's.
PATH = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
LIMIT = 15_000_000  # bytes of a wheel
# manylinux_2_28, and the libraries present on every such system besides torch's own.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
NEEDED = ("libc10.so", "libtorch*.so", "libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0",
          "librt.so.1", "ld-linux-*.so.*")  # fmt: skip
# C functions of torch's stable ABI and of Python's, and symbols that the compiler's start-up code may or may not find.
UNVERSIONED = ("aoti_torch_*", "torch_*", "Py*", "_Py*", "_ITM_*", "__gmon_start__")
# cudart's own: where it looks for the driver's services, and paths of the machine on which NVIDIA compiled it.
OF_CUDART = rb"^/(tmp/nvidia|usr/(lib|share|bin)|dvs/p4/build)"
PATHS = rb"/(?:home|root|work|tmp|usr|opt|build|project|github|mnt|src|dvs)/[\w.+@/-]+"


def run(*command):
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def cuobjdump():
    """Path of the tool, or None"""
    places = [
        os.environ.get("PATH", ""),
        *(f"{home}/bin" for home in (os.environ.get("CUDA_HOME"), *ROOT.glob("build/cuda-*")) if home),
    ]
    places += [str(p) for site in sys.path for p in Path(site or ".").glob("triton/backends/nvidia/bin")]
    return shutil.which("cuobjdump", path=os.pathsep.join(places))


def shipped_architectures(cuda):
    """Compute capabilities that a build with CUDA "13.0" must contain: those of setup.py that this compiler knows"""
    listed = re.search(r'^CUDA_ARCHS = "([\d. ]+)"', (ROOT / "setup.py").read_text(), re.M).group(1).split()
    newest = (9, 0) if tuple(map(int, cuda.split("."))) < (12, 8) else (12, 0)
    return [arch for arch in listed if tuple(map(int, arch.split("."))) <= newest]


def code_of(library):
    """({machine code: count}, {PTX: count}), each by compute capability without the point"""
    count = lambda option: {
        code: len(re.findall(rf"\.sm_{code}\.", text))
        for text in [run(cuobjdump(), option, library)]
        for code in re.findall(r"\.sm_(\d+)", text)
    }
    return count("--list-elf"), count("--list-ptx")


def symbols(library):
    """[(name, version or None)] of the symbols that a library imports"""
    names = [line.split(maxsplit=1)[-1].split()[-1] for line in run("nm", "-D", "--undefined-only", library).splitlines()]
    return [(name.partition("@")[0], name.rpartition("@")[2] if "@" in name else None) for name in names]


def symbol_faults(library):
    for name, version in symbols(library):
        if version is None and not any(fnmatch.fnmatchcase(name, pattern) for pattern in UNVERSIONED):
            yield f"wants {name}, which is no C function of torch or Python"
        elif version and (found := re.fullmatch(r"([A-Z]+)_([\d.]+)", version)):
            kind, number = found.group(1), tuple(map(int, found.group(2).split(".")))
            if number > NEWEST[kind]:
                yield f"wants {name} of {version}, newer than manylinux_2_28 has"
    for line in run("nm", "-D", "--defined-only", library).splitlines():
        if not line.split()[-1].startswith("PyInit_"):
            yield f"exports {line.split()[-1]}"
    for name in re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", library)):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in NEEDED):
            yield f"needs the library {name}"
    if found := re.search(r"(RPATH|RUNPATH)\s+(\S+)", run("objdump", "-p", library)):
        yield f"has a search path of its own: {found.group(2)}"


def path_faults(library):
    for path in sorted(set(re.findall(PATHS, Path(library).read_bytes()))):
        if not re.match(OF_CUDART, path):
            yield f"holds a path of the machine that built it: {path.decode()}"


def code_faults(machine, text, cuda):
    """machine, text: of `code_of`; cuda: "13.0", or None for a library without kernels for GPUs"""
    if cuda is None:
        if machine or text:
            yield "holds code for GPUs"
        return
    expected = [arch.replace(".", "") for arch in shipped_architectures(cuda)]
    sources = len(list((ROOT / "csrc/cuda").glob("*.cu")))
    if machine != dict.fromkeys(expected, sources):
        yield f"holds machine code of {machine}, not {sources} times of {expected}"
    later = sorted({"90", expected[-1]}, key=int)
    if text != dict.fromkeys(later, sources):
        yield f"holds PTX of {text}, not {sources} times of {later}"


def cuda_of(wheel, library):
    """ "12.4" for a library of CUDA 12.4, None for the CPU's: by the wheel's version, 0.1.0+cu124, or, for one of several, by
    the library itself, which reports its version to build_info()"""
    if found := re.search(r"\+cu(\d+)(\d)-", Path(wheel).name):
        return ".".join(found.groups())
    named = re.search(r"_cu(\d+)\.", Path(library).name)
    if named is None:
        return None
    found = re.search(rb"\0(%s\.\d+)\0" % named.group(1).encode(), Path(library).read_bytes())
    return found.group(1).decode() if found else f"{named.group(1)}.0"


def metadata_faults(wheel, archive):
    """The file's name must agree with the metadata: otherwise pip rejects it."""
    name, version, python, abi, tags = Path(wheel).name.removesuffix(".whl").split("-")
    (path,) = (x for x in archive.namelist() if x.endswith(".dist-info/METADATA"))
    stated = re.search(r"^Version: (.+)$", archive.read(path).decode(), re.M).group(1)
    if stated != version:
        yield f"is version {stated} inside, {version} outside"
    if (python, abi) != ("cp310", "abi3") or not tags.startswith("manylinux_2_28_"):
        yield f"is for {python}-{abi}-{tags}, not cp310-abi3-manylinux_2_28"
    for extra in (x for x in archive.namelist() if x.split("/")[0] not in (name, path.split("/")[0])):
        yield f"holds {extra}"


def look(wheel):
    """-> (what is in it, what is wrong with it, what could not be inspected): three lists of sentences"""
    seen, wrong, unseen = [], [], []
    size = Path(wheel).stat().st_size
    seen.append(f"{size / 1e6:.1f} MB")
    if size > LIMIT:
        wrong.append(f"is larger than {LIMIT / 1e6:.0f} MB")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        wrong += metadata_faults(wheel, archive)
        libraries = [archive.extract(x, folder) for x in archive.namelist() if x.endswith(".so")]
        if not libraries:
            wrong.append("holds no compiled part")
        for library in map(Path, libraries):
            cuda = cuda_of(wheel, library)
            faults = [*symbol_faults(library), *path_faults(library)]
            if not library.name.endswith(".abi3.so"):
                faults.append("is not abi3")
            if cuobjdump():
                machine, text = code_of(library)
                faults += code_faults(machine, text, cuda)
                code = [f"sm_{x}" for x in machine] + [f"PTX {x}" for x in text]
                seen.append(f"{library.name}: {'CUDA ' + cuda if cuda else 'CPU'} {' '.join(code)}".strip())
            else:
                unseen.append("code for GPUs: no cuobjdump")
            if audit := shutil.which("torch-abi-audit", path=PATH):
                if subprocess.run([audit, "--check", "both", str(library)], capture_output=True).returncode:
                    faults.append(f"fails torch-abi-audit: {run(audit, '-v', library)}")
            else:
                unseen.append("torch's stable ABI: no torch-abi-audit")
            wrong += [f"{library.name} {fault}" for fault in faults]
    return seen, wrong, sorted(set(unseen))


if __name__ == "__main__":
    failed = False
    for path in sys.argv[1:]:
        seen, wrong, unseen = look(path)
        print(f"{Path(path).name}: {'; '.join(seen)}")
        for line in unseen:
            print(f"  not looked at: {line}")
        for line in wrong:
            print(f"  WRONG: {line}")
        failed |= bool(wrong)
    sys.exit(failed)
