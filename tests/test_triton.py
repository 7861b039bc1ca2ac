"""The Triton backend without a GPU: its kernels under the interpreter (tests/interpreted, in separate processes), and how it is
selected and refused in this one."""

import importlib.util
import os
import re
import subprocess
import sys

import native
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import specsample as ss
from specsample import backends, triton

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason=f"the package triton is not installed; {triton.INSTALL_HINT}"
)


@needs_triton
@pytest.mark.parametrize("cases, least", [("streams", 30), ("chains", 50), ("trees", 60)])
def test_kernels_under_the_interpreter(cases, least):
    """Triton reads TRITON_INTERPRET when the kernels are defined. By hand: TRITON_INTERPRET=1 python -m pytest tests/interpreted/triton_*.py"""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": native.PYTHONPATH}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-x",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        f"triton_{cases}.py",
    ]
    done = subprocess.run(
        command, cwd=native.ROOT / "tests/interpreted", env=environment, capture_output=True, text=True, timeout=900
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) >= least, done.stdout[-6000:] + done.stderr[-2000:]


@needs_triton
def test_picked_for_accelerators_only():
    """The default for tensors on any accelerator without compiled kernels, and never for those on the CPU."""
    with FakeTensorMode():
        for device in ("cuda", "xpu"):
            assert backends.pick(None, torch.empty(2, 5, device=device), "logits") is triton.functions
        assert backends.pick(None, torch.empty(2, 5, device="cuda", dtype=torch.float64), "logits") is not triton.functions
        logits = torch.empty(2, 5, device="cuda")
        assert ss.sample(logits, seed=0, position=0).device == logits.device
        rows, tokens = torch.empty(2, 1, 5, device="cuda"), torch.empty(2, 0, dtype=torch.int64, device="cuda")
        verdict = ss.verify(rows, tokens, seed=0, position=0)
        assert verdict.tokens.shape == (2, 1) and verdict.tokens.device == logits.device
    assert backends.pick(None, torch.empty(2, 5), "logits") is not triton.functions


@needs_triton
@pytest.mark.skipif(triton.INTERPRETED, reason="TRITON_INTERPRET is set for this process")
def test_cpu_tensors_are_refused_without_the_interpreter():
    with pytest.raises(ValueError, match="^backend: 'triton' does not take logits.*TRITON_INTERPRET=1"):
        ss.sample(torch.zeros(1, 3), seed=0, position=0, backend="triton")


@needs_triton
@pytest.mark.skipif(triton.INTERPRETED, reason="TRITON_INTERPRET is set for this process")
def test_what_the_launcher_lacks_is_named(monkeypatch, tmp_path):
    """A C compiler and Python's headers, only if something failed; an error with another cause is unchanged."""
    from specsample.triton import launch

    class Failing:
        form = staticmethod(lambda args: {(1,): _fails})

    def call():
        launch.launch(Failing, (1,), torch.zeros(1))

    with pytest.raises(OSError, match="^of its own$"):
        call()
    with monkeypatch.context() as m:
        m.setattr(launch.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
        with pytest.raises(RuntimeError, match="^backend 'triton'.*Python's headers are missing.*Python.h.*python3-dev"):
            call()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError, match="^backend 'triton'.*no C compiler.*install gcc"):
        call()
    monkeypatch.setenv("CC", "of-nobody")
    with pytest.raises(RuntimeError, match="no C compiler .of-nobody."):
        call()


def _fails(*args, **constants):
    raise OSError("of its own")


def test_missing_package_is_named(monkeypatch):
    gone = backends.BACKENDS["triton"]._replace(functions=None, missing="the package triton is not installed")
    monkeypatch.setitem(backends.BACKENDS, "triton", gone)
    with pytest.raises(ValueError, match="^backend: 'triton' is not available: the package triton is not installed"):
        ss.sample(torch.zeros(1, 3), seed=0, position=0, backend="triton")
    assert "triton" in ss.build_info()["unavailable"]
