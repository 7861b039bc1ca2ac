"""The benchmarks that no other test runs, on shapes that take a moment: they end, and what they report hangs together."""

import importlib.util
import sys
from pathlib import Path

import pytest

import specsample as ss

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
needs_cpu = pytest.mark.skipif("cpu" not in ss.schemes()["token"].backends, reason="the compiled extension is missing")


def load(name, monkeypatch):
    pytest.importorskip("numpy", reason="needs specsample[theory]")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_cpu
@pytest.mark.parametrize("length", (1, 2))
def test_several_drafts_beside_one(length, monkeypatch):
    bench = load("multi_draft", monkeypatch)
    shape, agreement = bench.Shape("peaked", "float32", 4, 3, length, 300), bench.harness.Agreement()
    rows = bench.run(shape, agreement, 0.0)
    assert agreement.tokens > 0 and agreement.differing == 0
    several = {row["scheme"] for row in rows if row["paths"] == 3}
    assert {"recursive", "kseq", "optimal", "optimal_block", "importance"} <= several
    assert ({"race", "top", "lists", "recursive_distinct"} <= several) == (length == 1)
    for row in rows:
        assert row["us"]["median"] > 0 and row["ratio"] > 0 and 0 <= row["accepted"] <= length
        assert (row["ratio"] == 1) == (row["scheme"] in ("token", "race") and row["paths"] == 1)
        if row["scheme"] == "optimal":  # its bins cost next to nothing
            assert 0 <= row["optimum"] - row["acceptance"] < 2e-3
    assert bench.markdown({"machine": bench.harness.machine(), "seconds": 1.0, "rows": rows,
                           "agreement": {"tokens": agreement.tokens, "differing": 0}}).count("\n| ") > len(rows)  # fmt: skip


@needs_cpu
def test_linear_programs_beside_optimal(monkeypatch):
    pytest.importorskip("scipy", reason="needs specsample[theory]")
    bench = load("multi_draft", monkeypatch)
    rows = bench.programs(((2, 40), (3, 12)), 5)
    for row in rows:
        assert row["ratio"] > 1 and abs(row["lp_less_it"]) < 1e-6 and -1e-9 < row["bins_lose"] < 1e-3
    assert bench.markdown({"machine": bench.harness.machine(), "seconds": 1.0, "rows": [], "programs": rows,
                           "agreement": {"tokens": 0, "differing": 0}}).count("\n| ") == len(rows) + 2  # fmt: skip


@needs_cpu
def test_overhead_of_the_loop(monkeypatch):
    pytest.importorskip("transformers", reason="needs transformers")
    bench = load("overhead", monkeypatch)
    rows = bench.measure(1, 6)
    assert [row["case"] for row in rows] == [name for name, _ in bench.SETTINGS]
    assert all(min(row["us"].values()) > 0 for row in rows)
