"""`make gpu` without a GPU: all timings, on the CPU with the clock of fake_gpu.py."""

import functools
import json

import fake_gpu
import pytest
import torch
from test_benchmarks import needs_cpu
from test_gpu_run import SMOKE, WARM, bench  # noqa: F401


@pytest.fixture
def device(bench, monkeypatch):
    monkeypatch.setattr(bench.gpu_clock, "LARGE", 1 << 20)
    cuda = fake_gpu.Cuda()
    return bench.gpu_clock.Gpu(cuda, "cpu", cuda.clock, profile=lambda call: 2, repetitions=3)


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_device_time_is_of_graphs_and_eager_time_of_calls(device):
    """A call that takes 3 µs on the device cold, 1 µs warm, and 8 µs to make in Python."""
    cuda, last = device.cuda, []

    def call(i):
        cold = len(last) == 0 or last[-1] != i
        last.append(i)
        cuda.take(4096)
        cuda.spend(3e-6 if cold else 1e-6)
        if cuda.graph_in_capture is None:
            cuda.spend(5e-6)

    times = device.times([functools.partial(call, i) for i in range(10)])
    assert times.cold == pytest.approx((9 * 3e-6 + 1e-6) / 10, rel=0.01)  # the first one was warmed up before the capture
    assert times.warm == pytest.approx(1e-6, rel=0.1)
    assert times.eager == pytest.approx(8e-6, rel=0.1)
    assert (times.launches, times.scratch, times.graph) == (2, 4096, None)


def test_a_call_that_cannot_be_captured_is_timed_by_events_and_says_so(device):
    times = device.times([lambda: device.cuda.spend(7e-6, waits=True)] * 4)
    assert times.graph == "RuntimeError: CUDA error: operation not permitted when stream is capturing"
    assert times.cold == pytest.approx(7e-6, rel=0.1) and device.cuda.graph_in_capture is None


def test_copies_of_the_inputs_exceed_the_cache(device):
    cache = device.cache
    assert device.copies_for(4 * cache, 1) == 1  # reading the rest evicts the beginning
    assert device.copies_for(cache // 8, 1) == 16
    assert device.copies_for(4, 1) == 1024  # and no more
    assert device.copies_for(1, device.free // 10) == 3  # nor more than memory holds


def test_small_reads_are_held_against_a_copy_of_their_size(device):
    device.copy(1 << 20)
    before = device.cuda.captured
    assert device.copy(1 << 20) == device.copy((1 << 20) + 5000) and device.cuda.captured == before  # measured once
    device.copy(1 << 12)
    assert device.cuda.captured == before + 1


# -- cases -------------------------------------------------------------------------------------------------------------


def test_the_grid_holds_what_was_asked_for(bench):
    grid, named = bench.gpu_cases.grid(), bench.gpu_cases.NAMED
    assert len({case.name for case in grid}) == len(grid) and set(named) <= set(grid)
    assert 12 <= len(named) <= 20
    for scheme in ("token", "block", "race"):
        found = {case[1:] for case in grid if case.scheme == scheme}
        for B in (1, 8, 64, 256):
            for L in (1, 4, 8):
                for V in (32_000, 128_256, 151_936):
                    for t in (1.0, 0.7):
                        for f in ("plain", "top-k", "top-p", "min-p", "all"):
                            assert (B, L, V, t, f, 1) in found
    several = {(c.scheme, c.B) for c in named if c.K == 4}
    assert several == {(s, b) for s in ("optimal", "optimal_block", "recursive") for b in (1, 64)}


def test_bytes_of_the_rows_that_must_be_read(bench):
    Case, needed = bench.gpu_cases.Case, bench.gpu_cases.bytes_needed
    accepted = torch.tensor([0, 4])  # two rows; all nine
    assert needed(Case("token", 2, 4, 100), accepted) == 2 * 100 * 2 * (2 + 9) / 2
    assert needed(Case("race", 2, 4, 100), accepted) == 2 * 100 * 2 * (1 + 5) / 2
    assert needed(Case("block", 2, 4, 100), accepted) == 2 * 100 * 2 * (8 + 9) / 2
    assert needed(Case("sample", 3, 0, 100), None) == 3 * 100 * 2
    assert needed(Case("optimal", 1, 1, 100, K=4), torch.tensor([1])) == 100 * 2 * 3


# -- competitors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ("token", "block", "sample"))
def test_the_law_of_competitors_is_checked(bench, scheme):
    """Those available here have the target's law; one that squares it is rejected."""
    peers, missing = bench.gpu_peers.loaded(scheme)
    assert "torch" in peers and set(missing) <= {"FlashInfer", "transformers"}
    for name, peer in peers.items():
        bench.gpu_peers.check(name, peer, "cpu", one=name == "transformers", trials=4000)
    with pytest.raises(AssertionError, match="wrong law"):
        bench.gpu_peers.check("wrong", wrong(bench)(scheme), "cpu", trials=4000)


def wrong(bench):
    """A loader for a competitor that samples from squared laws"""

    def loader(scheme):
        peer = bench.gpu_peers.torch_eager(scheme)

        def prepare(target, *rest):
            return peer.prepare(2 * target, *rest)

        return peer._replace(prepare=prepare)

    return loader


def test_filtered_laws_of_competitors_are_ours(bench):
    sampling, logits = bench.gpu_cases.ss.Sampling(0.7, 9, 0.9, 0.05), torch.randn(2, 3, 50)
    expected = bench.competitors.probabilities(logits, sampling)
    ours = bench.gpu_cases.ss.log_probs(logits.flatten(0, 1), sampling=sampling, backend="reference")
    torch.testing.assert_close(expected, ours.exp().view(logits.shape).float(), rtol=1e-4, atol=1e-6)


def test_compiled_competitors(bench, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compiled.append(settings) or function)
    target = torch.randn(2, 3, 40)
    given = target, torch.zeros(2, 2, dtype=torch.int64), target[:, :2] * 0.5, bench.gpu_cases.ss.Sampling(0.7)
    peer = bench.gpu_peers.torch_compiled("token", given)
    assert peer.note == "one graph" and peer.call(*given)[0].shape == peer.verify(peer.prepare(*given))[0].shape == (2, 3)
    peer = bench.gpu_peers.sampling_by("Gumbel", example=given)
    assert peer.call(*given).shape == (2, 1) and len(compiled) == 3
    assert all(settings == {"fullgraph": True, "dynamic": False} for settings in compiled)


# -- the whole run -----------------------------------------------------------------------------------------------------


def small(bench):
    Case = bench.gpu_cases.Case
    return [
        Case("token", 1, 2, 300), Case("token", 3, 2, 300, 0.7, "all"), Case("block", 2, 2, 300), Case("race", 2, 2, 300),
        Case("sample", 3, 0, 300), Case("draft", 3, 0, 300, K=8), Case("optimal", 2, 1, 300, K=4), Case("optimal_block", 1, 2, 300, K=4),
    ]  # fmt: skip


def broken(scheme):
    raise OSError("libfast.so: cannot open shared object file")


def run(bench, device, path, arguments=(), cases=None, which=None, ran=None):
    """main() of gpu.py with a fake torch, commands that are recorded instead of run, and the device."""
    timings = functools.partial(bench.gpu_run.bench, gpu=device, backends=("cpu",), cases=cases or small(bench), which=which)
    ran = [] if ran is None else ran
    torch, arguments = fake_gpu.fake_torch(), ["--out", str(path), *arguments]
    said = bench.gpu_run.main(arguments, torch, lambda commands, *_: ran.append(commands) or {}, timings, lambda tool: tool)
    return said, json.loads(path.read_text()) if path.exists() else None


@needs_cpu
def test_the_whole_run(bench, device, tmp_path, monkeypatch):
    which = bench.gpu_peers.PEERS | {"Broken": (broken, ("token",)), "Wrong": (wrong(bench), ("token", "block"))}
    path, ran = tmp_path / "gpu.json", []
    said, result = run(bench, device, path, which=which, ran=ran)
    assert said == 0
    assert [list(commands) for commands in ran] == [["the build"], ["the extension"], SMOKE, ["the tests on cuda"], [
        f"compute-sanitizer {tool}" for tool in ("memcheck", "racecheck", "synccheck")
    ], WARM, ["the tests on triton"]]  # fmt: skip
    assert [row["case"] for row in result["rows"]] == [case.name for case in small(bench)]
    assert result["machine"]["gpu"] == "Fake GPU 1" and result["agreement"]["differing"] == 0 < result["agreement"]["tokens"]
    left_out = result["left_out"]
    assert left_out["Broken"] == "OSError: libfast.so: cannot open shared object file"
    assert "wrong law" in left_out["Wrong, token"] and "wrong law" in left_out["Wrong, block"]  # the control of the law check
    for row in result["rows"]:
        it = row["ours"]["cpu"]
        assert min(it["us_cold"], it["us_warm"], it["us_eager"], it["gbps"], it["percent_of_copy"], row["copy_gbps"]) > 0
        assert it["launches"] == 2 and row["copies"] > 1 and row["bytes_needed"] > 0 and row["checked"]["differing"] == 0
        assert ("accepted" in row) == (row["L"] > 0) and ("beside" in row) == (row["K"] > 1)
        for other in row["others"].values():
            assert other["ratio"] > 0 and {"whole", "verify"} <= set(other)
    others = {row["case"]: set(row["others"]) for row in result["rows"]}
    first, filtered, *_ = small(bench)
    assert "torch" in others[first.name]
    assert others[first.name] - others[filtered.name] <= {"transformers"}  # which takes one request
    assert [row["beside"]["scheme"] for row in result["rows"] if row["K"] > 1] == ["sample", "token", "block"]
    of_rows = {"torch", "multinomial", "Gumbel", "argmax"}
    assert of_rows == others["sample-B3-V300-T1-plain"] and others["draft-B3-K8-V300-T1-plain"] == {"multinomial", "Gumbel"}
    text = path.with_suffix(".md").read_text()
    assert all(case.name in text for case in small(bench))
    assert "Fake GPU 1" in text and "libfast.so" in text and "| torch × |" in text and result["machine"]["torch"] in text


@needs_cpu
def test_an_interrupted_run_goes_on(bench, device, tmp_path, monkeypatch):
    path, cases = tmp_path / "gpu.json", small(bench)[:4]
    only = {"torch": bench.gpu_peers.PEERS["torch"]}
    measured, real = [], bench.gpu_bench.run_case

    def run_case(case, *rest):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(case.name)
        return real(case, *rest)

    monkeypatch.setattr(bench.gpu_bench, "run_case", run_case)
    grid = ["--grid", "--no-build"]
    with pytest.raises(KeyboardInterrupt):
        run(bench, device, path, grid, cases, only)
    assert [row["case"] for row in json.loads(path.read_text())["rows"]] == measured == [case.name for case in cases[:2]]
    monkeypatch.setattr(bench.gpu_bench, "run_case", lambda case, *rest: measured.append(case.name) or real(case, *rest))

    # The next process ended inside a competitor: the one after leaves it out, and says so.
    left = json.loads(path.read_text())
    path.write_text(json.dumps({**left, "running": [cases[2].name, "torch"]}))
    said, result = run(bench, device, path, grid, cases, only)
    assert said == 0 and measured == [case.name for case in cases]
    rows = {row["case"]: row for row in result["rows"]}
    assert "ended in it" in rows[cases[2].name]["others"]["torch"]["failed"] and "ratio" in rows[cases[3].name]["others"]["torch"]
    assert "ended in it" in path.with_suffix(".md").read_text()

    # Everything is measured: the grid measures nothing. The named shapes are measured again; another driver begins a new file.
    run(bench, device, path, grid, cases, only)
    assert len(measured) == 4
    run(bench, device, path, ["--no-build", "--no-tests"], cases[:1], only)
    assert measured[4:] == [cases[0].name] and len(json.loads(path.read_text())["rows"]) == 4
    monkeypatch.setattr(bench.harness, "output_of", lambda *command: "999.9")
    _, result = run(bench, device, path, grid, cases[:1], only)
    assert len(result["rows"]) == 1 and result["machine"]["driver"] == "999.9"


@needs_cpu
def test_failures_are_told(bench, device, tmp_path, monkeypatch):
    """A case that fails does not affect the others; differing tokens fail the run."""
    path, cases, only = tmp_path / "gpu.json", small(bench)[:2], {"torch": bench.gpu_peers.PEERS["torch"]}
    real = bench.gpu_bench.calls_of
    monkeypatch.setattr(bench.gpu_bench, "calls_of", lambda case, *rest: 1 / 0 if case == cases[0] else real(case, *rest))
    said, result = run(bench, device, path, ["--no-build", "--no-tests"], cases, only)
    assert f"{cases[0].name}: ZeroDivisionError" in said and [("failed" in row) for row in result["rows"]] == [True, False]

    def shifted(case, *rest):
        calls = real(case, *rest)
        return [lambda call=call: (lambda v: v._replace(tokens=v.tokens + 1))(call()) for call in calls]

    monkeypatch.setattr(bench.gpu_bench, "calls_of", shifted)
    said, result = run(bench, device, path, ["--no-build", "--no-tests"], [cases[0]._replace(B=8)], only)
    assert "the tokens of 2 requests differ from the reference's" in said and result["rows"][-1]["checked"]["differing"] > 0


def test_predictions_stand_beside(bench, tmp_path):
    path = tmp_path / "predicted.md"
    path.write_text("# P\n\n| pass | issue | predicted, B = 1 |\n|---|--:|--:|\n| x | 3 | 4 |\n\n"
                    "| case | bytes | predicted, µs |\n|:--|--:|--:|\n| `token-B1` | 7 | 12.5 |\n| other | 1 | – |\n")  # fmt: skip
    assert bench.gpu_report.predictions(path) == {"token-B1": 12.5}
    assert bench.gpu_report.predictions(tmp_path / "none.md") == {}
