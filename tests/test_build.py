"""The build: a stable-ABI extension in an abi3 wheel, or a pure Python wheel that says what is missing."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import native
import pytest
import torch
import weak_symbols
from native import ROOT
from nvidia_tools import ALL, nvcc, nvidia_tool

import specsample as ss
from specsample import needs

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', *sys.argv[1:]]; exec(open('setup.py').read())"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Only the sources, so that nothing here touches the checkout's own build."""
    target = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for name in ("specsample", "csrc"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return target


def wheel(copy, tmp_path, start, **environment):
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
    env = {**os.environ, "SPECSAMPLE_NO_EXTENSION": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "said" in done.stdout, done.stderr


def setup_file():
    """The definitions of setup.py before it asks for torch"""
    names = {}
    exec((ROOT / "setup.py").read_text().split("\ndef compiled")[0], names)
    return names


def test_the_oldest_torch_is_the_same_everywhere():
    oldest = setup_file()["OLDEST_TORCH"]
    assert f'dependencies = ["torch>={oldest}"]' in (ROOT / "pyproject.toml").read_text()
    assert oldest == needs.OLDEST_TORCH
    assert setup_file()["STABLE_ABI"] == native.STABLE_ABI


@pytest.mark.skipif(nvcc() is None, reason="no nvcc in CUDA_HOME or on the path")
@pytest.mark.parametrize("chosen, texts", [(None, ["90", "120"]), ("8.0", ["80"]), ("9.0", ["90"]), ("9.0 10.0", ["90", "100"])])
def test_later_gpus_have_text_to_compile(chosen, texts, monkeypatch):
    """Machine code runs only on its own family: for compute capability 11.0 none is shipped, and 12.0's PTX is too new."""
    monkeypatch.setenv("SPECSAMPLE_CUDA", "1")
    if chosen is None:
        monkeypatch.delenv("SPECSAMPLE_CUDA_ARCHS", raising=False)
        known = subprocess.run([nvcc(), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
        if "sm_120" not in known:
            pytest.skip("this nvcc does not know 12.0")
    else:
        monkeypatch.setenv("SPECSAMPLE_CUDA_ARCHS", chosen)
    flags = setup_file()["cuda"](torch)["flags"]
    assert sorted(re.findall(r"code=compute_(\d+)", " ".join(flags)), key=int) == texts


def test_the_extension_needs_only_stable_symbols_of_torch():
    """Undefined symbols of the extension: torch's C shims, CPython's limited API, the C and C++ run time; nothing of c10, at
    or torch's C++ classes, which change between releases."""
    if "cpu" in ss.build_info()["unavailable"]:
        pytest.skip(ss.build_info()["unavailable"]["cpu"])
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    from specsample import _C

    only_stable_symbols(_C.__file__)


def only_stable_symbols(path):
    assert str(path).endswith(".abi3.so")
    listing = subprocess.run(["nm", "-D", "-C", "--undefined-only", str(path)], capture_output=True, text=True).stdout
    names = [line.split(maxsplit=1)[-1].removeprefix("U ") for line in listing.splitlines()]
    unstable = [n for n in names if n.startswith(("c10::", "at::", "torch::", "caffe2::"))]
    assert names and not unstable
    assert any(n.startswith(("aoti_torch_", "torch_")) for n in names)
    # The CUDA run time is linked in; symbols that only a CUDA build of torch has are looked up when needed.
    assert not [n for n in names if n.startswith(("cuda", "cu", "__cuda")) or "current_cuda_stream" in n]


@pytest.mark.skipif(not ALL, reason="some minutes of compilation: make check-cuda, or SPECSAMPLE_CHECK_CUDA=1")
def test_one_extension_for_every_architecture(copy):
    """Built with a torch that may itself lack CUDA: one abi3 extension with machine code for every architecture that this nvcc
    knows (CUDA 12.4: 8.0 to 9.0) and PTX of 9.0 and the last for each of its CUDA sources; it loads, and its CPU ops run."""
    if (tool := nvidia_tool("cuobjdump")) is None or nvcc() is None:
        pytest.skip("not on the path: nvcc, or cuobjdump")
    shipped = re.search(r'^CUDA_ARCHS = "([\d. ]+)"', (ROOT / "setup.py").read_text(), re.M).group(1).split()
    assert shipped == ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
    known = subprocess.run([nvcc(), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    shipped = [arch for arch in shipped if f"sm_{arch.replace('.', '')}" in known]
    assert shipped[:4] == ["8.0", "8.6", "8.9", "9.0"]
    env = {**os.environ, "SPECSAMPLE_CUDA": "1", "SPECSAMPLE_REQUIRE_EXTENSION": "1", "MAX_JOBS": os.environ.get("MAX_JOBS", "2")}
    done = subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (built,) = (copy / "specsample").glob("*.so")
    only_stable_symbols(built)
    sources = len(list((ROOT / "csrc/cuda").glob("*.cu")))
    codes = sorted(sources * [arch.replace(".", "") for arch in shipped])
    listed = lambda what: subprocess.run([tool, what, str(built)], capture_output=True, text=True, check=True).stdout
    assert sorted(re.findall(r"\.sm_(\d+)\.cubin", listed("--list-elf"))) == codes
    texts = sorted(sources * sorted({"90", shipped[-1].replace(".", "")}))
    assert sorted(re.findall(r"\.sm_(\d+)\.ptx", listed("--list-ptx"))) == texts
    host = sorted((copy / "build").rglob("csrc/cpu/*.o"))
    weak_symbols.check(host, sorted((copy / "build").rglob("csrc/cuda/*.o")))
    code = (
        "import torch, specsample as ss; i = ss.build_info(); print(i);"
        f"assert i['architectures'] == {shipped} and i['cuda'] and 'cpu' in i['backends'];"
        "assert ss.sample(torch.zeros(2, 5), seed=1, position=0, backend='cpu').shape == (2,)"
    )
    env = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
