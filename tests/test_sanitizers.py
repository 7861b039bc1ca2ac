"""The compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on the inputs of the other tests.

The extension and the test bindings are rebuilt with both; each selected test file then runs in a separate process that
loads them in place of the ordinary ones. An access outside a row, an overflow or a bad shift ends that process.
"""

import os
import shutil
import subprocess
import sys
import sysconfig

import native
import pytest

FLAGS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")
# Only compiled code is sanitized, so tests of the reference alone are left out; comparisons with it still call it.
TESTS = [(isa, "test_bad_input.py", "not reference") for isa in ("base", "avx2", "avx512")]
TESTS += [("avx512", f"test_{name}.py", "not reference") for name in ("passes", "layout", "same_integers")]
TESTS += [("avx512", "test_independence.py", "threads and not reference")]


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
    with native.alone(folder):
        package.mkdir(exist_ok=True)
        for path in (native.ROOT / "specsample").iterdir():
            link = package / path.name
            if not path.name.startswith(("_C.", "__pycache__")) and not link.exists():
                link.symlink_to(path)
    sources = [native.ROOT / "csrc/module.cpp", *sorted((native.ROOT / "csrc/cpu").glob("*.cpp"))]
    flags = [*FLAGS, *native.TORCH]
    # With the same flags in the same folder, the bindings reuse the extension's kernel objects.
    extension = native.build(folder / "objects", flags, sources, package / "_C.abi3.so", native.TORCH_LIBRARIES)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    testing = native.build(folder / "objects", flags, output=folder / f"specsample_testing{suffix}")
    assert extension.is_file() and testing.is_file()
    return folder, preload


@pytest.mark.parametrize("capability, tests, chosen", TESTS, ids=[f"{isa}-{name}" for isa, name, _ in TESTS])
def test_no_sanitizer_report(sanitized, capability, tests, chosen):
    if capability not in native.load().capabilities():
        pytest.skip(f"this machine lacks {capability}")
    folder, preload = sanitized
    env = {
        **os.environ,
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "PYTHONPATH": str(folder),
        "SPECSAMPLE_CPU": capability,
        "SPECSAMPLE_TESTING_BUILD": str(folder),
    }
    arguments = ["-x", "-p", "no:cacheprovider", "-c", str(native.ROOT / "pyproject.toml"), "-k", chosen]
    code = (
        "import sys, pytest, specsample._C as c; assert 'sanitized' in c.__file__, c.__file__;"
        f"assert c.build_info()['cpu_capability'] == {capability!r}; sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments, str(native.ROOT / "tests" / tests)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)  # its folder comes first on the path
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert " passed" in done.stdout
