"""The build: a stable-ABI extension in an abi3 wheel, or a pure Python wheel that says what is missing."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from native import ROOT

import specsample as ss

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', *sys.argv[1:]]; exec(open('setup.py').read())"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The sources alone, so that nothing here touches the checkout's own build."""
    target = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for name in ("specsample", "csrc"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return target


def wheel(copy, tmp_path, start, **environment):
    import os

    command = [sys.executable, *start, "bdist_wheel", "--dist-dir", str(tmp_path), "--bdist-dir", str(tmp_path / "build")]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "start, environment, reason",
    [
        (["setup.py"], {"CXX": "no-such-compiler"}, "no C++ compiler (no-such-compiler)"),
        (["-c", WITHOUT_TORCH], {}, "torch is not importable"),
        (["setup.py"], {"CXX": "false"}, "not built"),  # a compiler that fails
    ],
    ids=["no compiler", "no torch", "broken compiler"],
)
def test_without_tools_a_pure_wheel_is_built_and_says_why(copy, tmp_path, start, environment, reason):
    done = wheel(copy, tmp_path, start, **environment)
    assert done.returncode == 0, done.stderr
    assert reason in done.stderr and "pip install --no-build-isolation" in done.stderr
    (built,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(built).namelist()
    assert "specsample/api.py" in names and not any(name.endswith(".so") for name in names)


def test_without_tools_a_demanded_extension_fails(copy, tmp_path):
    done = wheel(copy, tmp_path, ["setup.py"], CXX="no-such-compiler", SPECSAMPLE_REQUIRE_EXTENSION="1")
    assert done.returncode != 0 and "no C++ compiler" in done.stderr


def test_without_the_extension_the_package_runs_on_the_reference():
    code = (
        "import torch, specsample as ss; i = ss.build_info(); assert set(i['backends']) - {'triton'} == {'reference'}, i;"
        "assert 'SPECSAMPLE_NO_EXTENSION' in i['unavailable']['cpu'];"
        "v = ss.verify(torch.zeros(1, 3, 5), torch.tensor([[1, 2]]), seed=1, position=0); assert v.tokens.shape == (1, 3);"
        "\ntry: ss.sample(torch.zeros(1, 5), seed=0, position=0, backend='cpu')"
        "\nexcept ValueError as e: assert 'not available' in str(e); print('said')"
    )
    import os

    env = {**os.environ, "SPECSAMPLE_NO_EXTENSION": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "said" in done.stdout, done.stderr


def test_the_extension_needs_only_stable_symbols_of_torch():
    """Undefined symbols of the extension: C shims of torch, CPython's limited API, the C and C++ run time; nothing of c10, at
    or torch's C++ classes, which change between releases."""
    if "cpu" in ss.build_info()["unavailable"]:
        pytest.skip(ss.build_info()["unavailable"]["cpu"])
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    from specsample import _C

    assert _C.__file__.endswith(".abi3.so")
    listing = subprocess.run(["nm", "-D", "-C", "--undefined-only", _C.__file__], capture_output=True, text=True).stdout
    names = [line.split(maxsplit=1)[-1].removeprefix("U ") for line in listing.splitlines()]
    unstable = [n for n in names if n.startswith(("c10::", "at::", "torch::", "caffe2::"))]
    assert names and not unstable
    assert any(n.startswith(("aoti_torch_", "torch_")) for n in names)
