"""The compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on the inputs of the other tests.

The extension and the test bindings are built again with both; the chosen test files then run in a process of their own that
loads them in the place of the ordinary ones. A read or write outside a row, an overflow or a bad shift ends that process.
"""

import os
import shutil
import subprocess
import sys
import sysconfig

import native
import pytest
from torch.utils import cpp_extension

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")
TESTS = ["test_passes.py", "test_bad_input.py", "test_layout.py", "test_same_integers.py"]


def library(name):
    found = subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return found if os.path.isabs(found) else None


@pytest.fixture(scope="module")
def sanitized():
    """A package folder whose extension is sanitized; -> (folder to put first on the path, libraries to preload)"""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++) on the path")
    preload = [library("libasan.so"), library("libubsan.so")]
    if None in preload:
        pytest.skip("the compiler has no sanitizer libraries")
    folder = native.ROOT / "build/sanitized"
    package = folder / "specsample"
    package.mkdir(parents=True, exist_ok=True)
    for path in (native.ROOT / "specsample").iterdir():
        link = package / path.name
        if not path.name.startswith(("_C.", "__pycache__")) and not link.exists():
            link.symlink_to(path)
    sources = [native.ROOT / "csrc/module.cpp", *sorted((native.ROOT / "csrc/cpu").glob("*.cpp"))]
    includes = [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"])]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    flags = [*FLAGS, "-DTORCH_TARGET_VERSION=0x020a000000000000", *includes]
    native.build(folder / "extension", flags, sources, package / "_C.abi3.so", libraries)
    native.build(folder / "testing", FLAGS)
    return folder, preload


@pytest.mark.parametrize("capability", ["base", "avx2", "avx512"])
def test_no_sanitizer_report(sanitized, capability):
    if capability not in native.load().capabilities():
        pytest.skip(f"this machine lacks {capability}")
    folder, preload = sanitized
    env = {
        **os.environ,
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "PYTHONPATH": str(folder),
        "SPECSAMPLE_CPU": capability,
        "SPECSAMPLE_TESTING_BUILD": str(folder / "testing"),
    }
    check = f"import specsample._C as c; assert 'sanitized' in c.__file__ and c.build_info()['cpu_capability'] == {capability!r}"
    subprocess.run([sys.executable, "-c", check], env=env, check=True, cwd=folder)  # the working folder is first on the path
    chosen = TESTS if capability == "avx512" else TESTS[1:2]
    paths = [str(native.ROOT / "tests" / name) for name in chosen]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-c", str(native.ROOT / "pyproject.toml"), *paths]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert " passed" in done.stdout
