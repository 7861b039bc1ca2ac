"""The papers' experiments on tiny models: decoding accepts what theory says, and every experiment runs to its files."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import nearby, tiny_llama

import specsample as ss
from specsample import acceptance, pair, theory

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "papers"


@pytest.fixture
def experiments(monkeypatch):
    """Imports an experiment whose pair is tiny: name -> module"""
    monkeypatch.setattr(sys, "path", [str(FOLDER), str(FOLDER.parent), *sys.path])
    pytest.importorskip("tqdm")
    torch.manual_seed(0)
    target = tiny_llama(3, dtype=torch.float32)
    prompts = lambda text: torch.tensor([[ord(c) % 60 for c in text[:6]]])  # noqa: E731
    both = pair.Pair(target, nearby(target, 0.7, 4), None, "tiny", prompts)
    monkeypatch.setattr(importlib.import_module("common"), "load_pair", lambda *names: both)
    yield importlib.import_module
    for name in ("common", "harness", "rounding", "style", "check", "khisti", "races", "which"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("scheme, paths", [(s, 4 if card.trees else 1) for s, card in ss.schemes().items()])
def test_decoding_accepts_what_theory_says(experiments, scheme, paths):
    """Within five standard deviations; `weighted` has no one law that theory knows."""
    if scheme == "weighted":
        pytest.skip("its acceptance depends on several draft laws")
    common, check = experiments("common"), experiments("check")
    bench = common.Bench(common.parser("", "x").parse_args(["--tokens", "24"]))
    row = check.one(bench, common.Setting(scheme, paths, 1))
    assert row["rounds"] > 80 and abs(row["deviations"]) < 5, row
    spread = (row["theory"] * (1 - row["theory"]) / row["rounds"]) ** 0.5
    assert 0.2 < row["theory"] < 0.95 and spread < 0.06  # so that a wrong figure would show


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("khisti", ["-k", "2", "--acceptance-k", "1", "2", "--depth", "2", "--alphabet", "10", "--free", "2"]),
        ("races", ["--depths", "1", "2", "-k", "1", "2", "--nodes", "1", "2", "--depth", "2", "--entropy-positions", "4"]),
        ("which", ["-k", "1", "2", "--depths", "1", "--temperatures", "1"]),
    ],
)
def test_experiments_run(experiments, tmp_path, name, arguments):
    pytest.importorskip("matplotlib")
    module = experiments(name)
    few = ["--prompts", "2", "--tokens", "5", "--positions", "8", "--out", str(tmp_path / f"{name}.json")]
    module.main([*arguments, *few])
    results = sorted(tmp_path.glob("*.json"))
    assert results and len(list(tmp_path.glob("*.md"))) == len(results) and list(tmp_path.glob("*.png"))
    for path in results:
        result = json.loads(path.read_text())
        assert result["pair"] == "tiny" and result["prompts"] == 2 and result["rows"]
        for row in result["rows"]:
            if "missing" not in row and "block_efficiency" in row:
                assert 1 <= row["block_efficiency"] <= 6 and row["rounds"] <= row["emitted"] == 10
        assert not [row for row in result["rows"] if "missing" in row]


def test_expected_efficiency_is_that_of_equal_laws(experiments):
    """A draft that is the target: every draft is accepted, so each call gives depth + 1 tokens but for the texts' ends."""
    races, common = experiments("races"), experiments("common")
    bench = common.Bench(common.parser("", "x").parse_args(["--positions", "36", "--prompts", "3"]))
    found = races.expected_efficiency(bench, [1, 2])
    assert 1 < found["race", 1] < found["token", 1] < 2 and found["token", 1] == pytest.approx(found["block", 1])
    assert found["token", 2] < found["block", 2]
    bench.pair = bench.pair._replace(draft=bench.pair.target)
    assert races.expected_efficiency(bench, [2])["race", 2] == pytest.approx(3)


def test_bounds_hold_for_races(experiments):
    """Against the exact tokens a call of one target law: chains and K first arrivals, and the likeliest K of a node."""
    pytest.importorskip("matplotlib")
    races, common = experiments("races"), experiments("common")
    bench = common.Bench(common.parser("", "x").parse_args(["--positions", "60", "--prompts", "6"]))
    options = SimpleNamespace(entropy_positions=60, nodes=[1, 2, 8])
    limits = races.least_bounds(bench, options)
    target, draft = (torch.cat(x) for x in zip(*bench.logits(bench.texts())))
    laws = acceptance.laws(target, draft, ss.Sampling(), ss.Sampling())
    for k in options.nodes:
        first = theory.acceptance(*laws, k, "race").mean()
        likeliest = np.mean([t[np.argsort(-d)[:k]].sum() for t, d in zip(*laws)])
        assert 1 + first <= limits["arrivals"][k] < 4 and 1 + likeliest <= limits["likeliest"][k] < 4
        assert likeliest != pytest.approx(first, abs=0.01)
    for order in limits.values():  # more tokens have more room
        assert order[1] < order[2] < order[8]
    assert races.entropies(np.array([0.5, 1.0, 1.0])) == pytest.approx([np.log(2)] * 3)


def test_unknown_parts_are_named(experiments):
    with pytest.raises(SystemExit, match="--parts: expected some of acceptance"):
        experiments("khisti").main(["--parts", "x"])
