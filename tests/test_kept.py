"""Lists that are copied to an accelerator once (specsample/kept.py), with CPU tensors in place of a device's."""

from types import SimpleNamespace

import cuda_on_cpu
import pytest
import torch
from conftest import identical, require
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from trees import drafted_tree

import specsample as ss
from specsample import kept

CPU = torch.device("cpu")


@pytest.fixture
def runtime(monkeypatch):
    """A device's run time: the current stream, whether it is being captured; `copies`: what was copied."""
    there = SimpleNamespace(stream=0, capturing=False, copies=[])
    there.current_stream = lambda device: SimpleNamespace(stream_id=there.stream)
    there.is_current_stream_capturing = lambda: there.capturing
    monkeypatch.setattr(kept, "HOST", ())
    monkeypatch.setattr(torch, "get_device_module", lambda device: there)
    copy = kept._copy
    monkeypatch.setattr(kept, "_copy", lambda values, device: there.copies.append(values) or copy(values, device))
    monkeypatch.setattr(kept, "_captured", {})
    kept._kept.cache_clear()
    yield there
    kept._kept.cache_clear()


@pytest.mark.parametrize("backend", ["reference", "cpu", cuda_on_cpu.NAME])
@pytest.mark.parametrize("scheme", ["recursive", "lists"])
def test_a_static_tree_is_copied_once(runtime, backend, scheme):
    """… and the ops leave it unchanged."""
    args = drafted_tree(3, 2, 2, 50, scheme, seed=1)
    names = [name for name in ("parents", "rows", "draft_rows") if name in args]
    as_tensors = {name: torch.tensor(args[name]) for name in names}
    args["backend"] = require(backend)
    assert names and all(isinstance(args[name], list) for name in names)
    expected = ss.verify(**args | as_tensors)
    runtime.copies.clear()
    for _ in range(3):
        identical(ss.verify(**args), expected)
    assert 0 < len(runtime.copies) == len({tuple(args[name]) for name in names})
    for name in names:
        held = kept.on_device(args[name], CPU)
        assert held._version == 0 and held.tolist() == args[name]


def test_other_values_are_other_tensors(runtime):
    values = [-1, 0, 1]
    first = kept.on_device(values, CPU)
    values[2] = 0
    second = kept.on_device(values, CPU)
    assert first.tolist() == [-1, 0, 1] and second.tolist() == [-1, 0, 0]
    assert kept.on_device((-1, 0, 0), CPU) is second
    assert kept.on_device([[0, 1], [2, 3]], CPU).tolist() == [[0, 1], [2, 3]]
    assert kept.on_device([[0, 1, 2, 3]], CPU).shape == (1, 4)
    runtime.stream = 1
    assert kept.on_device(values, CPU) is not second  # whose memory returns to the other stream


def test_only_plain_ints_are_kept(runtime):
    one = torch.tensor(1)
    for values in ([one, one], [True, False], [1.0, 2.0], [[1, 2], [one, one]], [], [0] * (kept.MOST + 1)):
        first = kept.on_device(values, CPU)
        assert kept.on_device(values, CPU) is not first
    for values in ("ab", [1, None], [[1], [2, 3]], 7.5j):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            kept.on_device(values, CPU)


def test_a_capture_finds_what_came_before_it_and_holds_it(runtime):
    logits = torch.zeros(1, 3, 8)
    args = {"target_logits": logits, "draft_tokens": torch.zeros(1, 2, dtype=torch.int64), "scheme": "race", "seed": 1}
    args |= {"position": 2, "parents": [-1, -1], "max_depth": 1, "backend": "reference"}
    runtime.capturing = True
    with pytest.raises(ValueError, match="parents: .*make one such call before it"):
        ss.verify(**args)
    runtime.capturing = False
    ss.verify(**args)
    runtime.capturing, runtime.stream = True, 5  # captures use a separate stream
    ss.verify(**args)
    held = kept._captured[(-1, -1), CPU]
    runtime.capturing = False
    for i in range(300):
        kept.on_device([i], CPU)
    assert len(kept._latest) <= 129  # the kept ones, and the graph's
    runtime.capturing = True
    assert kept.on_device([-1, -1], CPU) is held and held.tolist() == [-1, -1]


def test_modes_get_tensors_of_their_own(runtime):
    with FakeTensorMode():
        assert isinstance(kept.on_device([0, 1], CPU), FakeTensor)
    with torch.inference_mode():
        held = kept.on_device([0, 1], CPU)
    assert type(held) is torch.Tensor and not held.is_inference()
    with FakeTensorMode():
        assert isinstance(kept.on_device([0, 1], CPU), FakeTensor)
    assert kept.on_device([0, 1], CPU) is held


def test_compiled_calls_keep_nothing(monkeypatch):
    monkeypatch.setattr(kept, "HOST", ())
    kept._kept.cache_clear()

    def step(logits):
        return ss.verify(
            logits * 1.0, torch.zeros(1, 2, dtype=torch.int64), parents=[-1, -1], max_depth=1, scheme="race", seed=1, position=2,
            backend="cpu",
        ).tokens  # fmt: skip

    require("cpu")
    logits = torch.randn(1, 3, 8)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(logits)
    assert kept._kept.cache_info().misses == 0
    monkeypatch.undo()
    assert torch.equal(compiled, step(logits))
