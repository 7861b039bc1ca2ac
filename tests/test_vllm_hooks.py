"""When the vLLM adapter installs itself, and what it rejects; that nothing on the hot path waits for the device."""

import ast
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import vllm_fakes as fakes
from vllm_fakes import MIXED, SUPPORTED, TEXTS, V, names_of, step

from specsample import backends
from specsample.integrations import vllm as adapter
from specsample.integrations.vllm import hooks, requests, sources, v1, v2

# --- off, on, refused --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_vllm(monkeypatch, tmp_path):
    """A module `vllm` of some version in its own folder; nothing in it can be replaced unnoticed, because it has no functions."""
    module = ModuleType("vllm")
    module.__file__, module.__version__ = str(tmp_path / "vllm" / "__init__.py"), "9.9.0"
    triton = ModuleType("vllm.triton_utils")
    triton.HAS_TRITON = False
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.triton_utils", triton)
    monkeypatch.setattr(adapter, "_done", False)
    return module


@pytest.mark.parametrize("value", [None, "", "0", "off"])
def test_off_by_default(fake_vllm, monkeypatch, value):
    monkeypatch.delenv(adapter.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(adapter.VARIABLE, value)
    monkeypatch.setattr(hooks, "install", lambda scheme: pytest.fail("installed"))
    adapter.register()


def test_on_once(monkeypatch, fake_vllm):
    calls = []
    monkeypatch.setenv(adapter.VARIABLE, "block")
    monkeypatch.setattr(hooks, "install", calls.append)
    adapter.register()
    adapter.register()
    assert calls == ["block"]


def test_other_values_are_refused(monkeypatch, fake_vllm):
    monkeypatch.setenv(adapter.VARIABLE, "kseq")
    with pytest.raises(ValueError, match="expected one of token, block, race or off, got 'kseq'"):
        adapter.register()


def test_an_unknown_version_is_refused(monkeypatch, fake_vllm):
    monkeypatch.setenv(adapter.VARIABLE, "token")
    with pytest.raises(RuntimeError, match="knows vLLM 0.32.0, 0.33.0, this is 9.9.0"):
        adapter.register()
    assert not adapter._done and list(vars(fake_vllm)).count("sampling_params") == 0


def test_changed_functions_are_refused(monkeypatch, fake_vllm):
    fake_vllm.__version__ = "0.32.0+cpu"
    monkeypatch.setenv(adapter.VARIABLE, "token")
    with pytest.raises(RuntimeError, match="knows another vLLM 0.32.0: here sampling_params.py: SamplingParams"):
        adapter.register()


def test_digests_see_code_not_layout(tmp_path):
    def write(text):
        (tmp_path / "a.py").write_text(text)
        sources._parsed.cache_clear()
        return sources.digest(tmp_path, "a.py", "A.f")

    first = write("class A:\n    def f(self):\n        return 1\n")
    assert write("import os\n\n\nclass A:\n    x = 1\n\n    def f( self ):\n        return 1\n") == first
    assert write("class A:\n    def f(self):\n        return 2\n") != first
    assert write("class A:\n    pass\n") == sources.digest(tmp_path, "b.py", "A.f") == "-"


def test_the_table_of_sources_is_whole():
    rows = list(sources.entries())
    assert len({row[:2] for row in rows}) == len(rows) > 20
    assert all(len(digests) == len(sources.VERSIONS) and "-" not in digests for _, _, digests in rows)
    assert ("v1/worker/gpu_model_runner.py", "GPUModelRunner._sample") in {row[:2] for row in rows}


@pytest.mark.parametrize("field, value", [("rejection_sample_method", "synthetic"), ("rejection_sample_method", "fly"),
                                          ("enable_adaptive_verification", True)])  # fmt: skip
def test_lossy_modes_are_refused(field, value):
    hooks.refuse_lossy(None)
    hooks.refuse_lossy(SimpleNamespace(rejection_sample_method="block", enable_adaptive_verification=False))
    with pytest.raises(ValueError, match=field):
        hooks.refuse_lossy(SimpleNamespace(**{field: value}))


# --- nothing waits for the device --------------------------------------------------------------------------------------------

WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "unique_consecutive", "synchronize"}


@pytest.mark.parametrize("module", [v1, v2, requests])
def test_the_hot_path_calls_nothing_that_waits(module):
    tree = ast.parse(Path(module.__file__).read_text())
    tree.body = [part for part in tree.body if getattr(part, "name", None) != "upload"]  # the only way to copy a list to the device
    called = [n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    assert len(called) > 20 and not WAITS & set(called)
    built = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in ("torch.tensor", "torch.as_tensor")]
    assert not built  # they copy a list to the device and wait


@pytest.fixture
def no_memory(monkeypatch):
    """A device without memory: whatever would read it raises, as would a shape that depends on values. (A torch without CUDA
    cannot index tensors that pretend to be on a GPU.)"""
    monkeypatch.setattr(backends, "pick", lambda *args, **kwargs: torch.ops.specsample)
    rows = torch.empty(3, V, device="meta")
    for waits in (lambda: bool(rows[0, 0] > 0), lambda: rows[rows[:, 0] > 0], lambda: rows[0, 0].item(), lambda: rows.tolist()):
        with pytest.raises((NotImplementedError, RuntimeError)):
            waits()
    return "meta"


@pytest.mark.parametrize("scheme", SUPPORTED)
@pytest.mark.parametrize("extra", [False, True])
def test_v1_does_not_wait(no_memory, scheme, extra):
    own = {"logit_bias": {3: 1.0}, "min_tokens": 9, "all_stop_token_ids": {6}, "structured_outputs": object()} if extra else {}
    asked = [fakes.params(**{**each, **own}) for each in MIXED]
    runner = fakes.runner(names_of(4), asked, TEXTS, device=no_memory, max_num_logprobs=0 if extra else None)
    state = v1.State(runner, scheme)
    out, _ = step(runner, scheme, torch.empty(4, V, device=no_memory), state=state)
    assert out.sampled_token_ids.device.type == "meta"
    _, kept = v1.draft(SimpleNamespace(), state, torch.empty(4, V, device=no_memory))
    laws = None if kept is None else torch.empty(4, 3, V, device=no_memory)
    metadata = fakes.with_drafts(runner, [[1, 2, 3], [], [1, 2], [4]], laws)
    out, _ = step(runner, scheme, torch.empty(10, V, device=no_memory), metadata, state)
    assert out.sampled_token_ids.shape == (4, 4)


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_v2_does_not_wait(no_memory, scheme):
    asked = [fakes.params(**own) for own in MIXED]
    sampler = fakes.sampler_v2(asked, V, no_memory)
    rejection = SimpleNamespace(sampler=sampler, num_speculative_steps=3)
    rows = fakes.rows_v2([2, 0, 3], [[1, 2, 3], [], [4, 5]], [10, 11, 12], no_memory)
    rows["verify_draft_sampled"] = rows["draft_sampled"].clone()
    cache = torch.empty(5, 3, V, device=no_memory)
    _, tokens, _ = v2.verify(rejection, None, scheme, torch.empty(8, V, device=no_memory), cache, **rows)
    assert tokens.shape == (3, 4) and tokens.device.type == "meta"
    states = sampler.sampling_states
    drawn = v2.draw(
        scheme, torch.empty(2, V, device=no_memory), rows["idx_mapping"][:2], states.temperature.gpu, states.seeds.gpu,
        rows["pos"][:2], True, True, logits_cache=cache, logits_cache_col=torch.empty((), dtype=torch.int32, device=no_memory),
    )  # fmt: skip
    assert drawn.shape == (2,)
