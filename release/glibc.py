"""The C library that a wheel is linked against: stubs of an old glibc, so that symbol versions are those of old systems.

    python release/glibc.py FOLDER          (make_wheel.py calls it)

The linker takes the newest version of a symbol that it finds: on a current machine exp@GLIBC_2.29, and dlsym@GLIBC_2.34 for cudart.
Zig brings the symbol lists of every glibc and makes stub libraries from them; nothing else of Zig is used. gcc compiles and links,
and finds the stubs first (LDFLAGS=-LFOLDER). The result runs with every later glibc.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "2.28"  # of manylinux_2_28, which torch's own wheels are for
STUBS = ("libc.so.6", "libld.so.2", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1")  # libld: the loader


def static_part():
    """Path of the part that glibc links into every library (atexit and a few more)"""
    path = subprocess.run(["cc", "-print-file-name=libc_nonshared.a"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(path):
        sys.exit("no libc_nonshared.a: is this a system with glibc?")
    return path


def stubs(folder):
    """Write the libraries into `folder` if they are missing. -> the folder"""
    folder = Path(folder).resolve()
    if (folder / "libc.so").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "empty.c"
        program.write_text("int main(void) { return 0; }\n")
        target = f"{os.uname().machine}-linux-gnu.{VERSION}"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, str(program), "-o", str(program.with_suffix(""))]
        caches = {"ZIG_LOCAL_CACHE_DIR": scratch, "ZIG_GLOBAL_CACHE_DIR": scratch}
        subprocess.run(command, env={**os.environ, **caches}, check=True)
        for name in STUBS:
            (made,) = Path(scratch).rglob(name)
            (folder / name).write_bytes(made.read_bytes())
    for name in STUBS[2:]:
        link = folder / name[: name.index(".so") + 3]
        link.unlink(missing_ok=True)
        link.symlink_to(name)
    libc, loader = (folder / name for name in STUBS[:2])
    script = f"GROUP ( {libc} {static_part()} AS_NEEDED ( {loader} ) )\n"
    (folder / "libc.so").write_text(script)  # last: marks the folder as complete
    return folder


if __name__ == "__main__":
    print(stubs(sys.argv[1]))
