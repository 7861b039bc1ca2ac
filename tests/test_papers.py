"""The papers' experiments on tiny models: decoding accepts what theory predicts, and every experiment runs through to its files."""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import nearby, tiny_llama
from test_acceptance import bytes_tokenizer

import specsample as ss
from specsample import theory
from specsample.tools import acceptance, pair


@pytest.fixture
def experiments(monkeypatch):
    """Imports an experiment with a tiny pair of models: name -> module"""
    pytest.importorskip("tqdm")
    torch.manual_seed(0)
    target = tiny_llama(3, dtype=torch.float32)
    prompts = lambda text: torch.tensor([[ord(c) % 60 for c in text[:6]]])
    both = pair.Pair(target, nearby(target, 0.7, 4), None, "tiny", prompts)
    monkeypatch.setattr(importlib.import_module("benchmarks.papers.common"), "load_pair", lambda *names: both)
    return lambda name: importlib.import_module(f"benchmarks.papers.{name}")


@pytest.mark.parametrize("scheme, paths", [(s, 4 if card.trees else 1) for s, card in ss.schemes().items()])
def test_decoding_accepts_what_theory_says(experiments, scheme, paths):
    """Within five standard deviations; `weighted` has no single law that theory knows."""
    if scheme == "weighted":
        pytest.skip("its acceptance depends on several draft laws")
    common, check = experiments("common"), experiments("check")
    bench = common.Bench(common.parser("", "x").parse_args(["--tokens", "24"]))
    setting = common.Setting(scheme, paths, 1)
    row = check.total([check.one(bench, setting, i) for i in range(len(bench.prompts))])
    assert row["rounds"] > 80 and abs(row["deviations"]) < 5, row
    spread = (row["theory"] * (1 - row["theory"]) / row["rounds"]) ** 0.5
    assert 0.2 < row["theory"] < 0.95 and spread < 0.06  # so that a wrong figure would be noticed


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
    few = ["--prompts", "2", "--repeats", "2", "--tokens", "5", "--positions", "8", "--out", str(tmp_path / f"{name}.json")]
    module.main([*arguments, *few])
    results = sorted(tmp_path.glob("*.json"))
    assert results and len(list(tmp_path.glob("*.md"))) == len(results) and list(tmp_path.glob("*.png"))
    for path in results:
        result = json.loads(path.read_text())
        assert result["pair"] == "tiny" and (result["prompts"], result["repeats"]) == (2, 2) and result["rows"]
        for row in result["rows"]:
            if "missing" not in row and "block_efficiency" in row:
                assert 1 <= row["block_efficiency"] <= 6 and row["rounds"] <= row["emitted"] == 20
        assert not [row for row in result["rows"] if "missing" in row]


def test_expected_efficiency_is_that_of_equal_laws(experiments):
    """A draft that is the target: every draft is accepted, so each call gives depth + 1 tokens except at the texts' ends."""
    races, common = experiments("races"), experiments("common")
    bench = common.Bench(common.parser("", "x").parse_args(["--positions", "36", "--prompts", "3"]))
    found = races.expected_efficiency(bench, [1, 2])
    assert 1 < found["race", 1] < found["token", 1] < 2 and found["token", 1] == pytest.approx(found["block", 1])
    assert found["token", 2] < found["block", 2]
    bench.pair = bench.pair._replace(draft=bench.pair.target)
    assert races.expected_efficiency(bench, [2])["race", 2] == pytest.approx(3)


def test_bounds_hold_for_races(experiments):
    """Against the exact tokens per call for one target law: chains and K first arrivals, and the likeliest K of a node."""
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
    for order in limits.values():  # more tokens give more room
        assert order[1] < order[2] < order[8]
    assert races.entropies(np.array([0.5, 1.0, 1.0])) == pytest.approx([np.log(2)] * 3)


def test_unknown_parts_are_named(experiments):
    with pytest.raises(SystemExit, match="--parts: expected some of acceptance"):
        experiments("khisti").main(["--parts", "x"])


@pytest.fixture
def saved(tmp_path):
    """A folder with models target and draft, and prompts as text and as .jsonl: arguments that name them"""
    target = tiny_llama(1, vocab=256, dtype=torch.float32)
    for name, model in (("target", target), ("draft", nearby(target, 1.0, 2))):
        model.save_pretrained(tmp_path / name)
        bytes_tokenizer(1).save_pretrained(tmp_path / name)
    (tmp_path / "prompts.txt").write_text("A line.\n\nAnother one.\nA third.\n")
    (tmp_path / "prompts.jsonl").write_text('{"question": "What?"}\n{"question": "Why?"}\n{"answer": "So."}\n')
    return ["--target", str(tmp_path / "target"), "--draft", str(tmp_path / "draft"), "--out", str(tmp_path / "x.json")]


@pytest.mark.parametrize("data, prompts", [(["prompts.txt"], 3), (["prompts.jsonl", "--field", "question", "--prompts", "2"], 2)])
def test_models_and_prompts_by_path(experiments, monkeypatch, saved, tmp_path, data, prompts):
    monkeypatch.setattr(importlib.import_module("benchmarks.papers.common"), "load_pair", pair.load_pair)
    few = ["--tokens", "5", "--schemes", "token", "race", "-k", "2", "--data", str(tmp_path / data[0]), *data[1:]]
    experiments("check").main([*saved, *few])
    result = json.loads((tmp_path / "x-measured.json").read_text())
    assert result["pair"] == f"{tmp_path / 'target'} and {tmp_path / 'draft'}" and result["prompts"] == prompts
    assert [row["prompts"] for row in result["rows"]] == [prompts, prompts]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--target": "/no/such"}, "target: expected a folder with a model of transformers, or a name on a hub, got /no/such"),
        ({"--draft": "."}, r"draft: cannot load \.: "),
        ({"--draft": None}, "target and draft: expected both or neither"),
        ({"--data": "./none.txt"}, "--data: expected a file, or the name of a data set, got './none.txt'"),
        ({"--data": "prompts.jsonl", "--field": "question"}, "--field: expected a field with text, got 'question' where"),
        ({"--data": "empty.txt"}, "--data: expected prompts, got none"),
    ],
)
def test_what_is_not_there_is_named(experiments, monkeypatch, saved, tmp_path, change, message):
    monkeypatch.setattr(importlib.import_module("benchmarks.papers.common"), "load_pair", pair.load_pair)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    arguments = dict(zip(saved[::2], saved[1::2])) | change
    with pytest.raises(SystemExit, match=message):
        experiments("check").main([x for name, value in arguments.items() if value is not None for x in (name, value)])


def test_interrupted_runs_keep_what_they_have(experiments, monkeypatch, tmp_path):
    """Ctrl-C in the third prompt of the second scheme: the first has three results, the second two."""
    check, calls = experiments("check"), []
    one = check.one

    def once(*arguments):
        calls.append(arguments[2])
        if len(calls) == 6:
            raise KeyboardInterrupt
        return one(*arguments)

    monkeypatch.setattr(check, "one", once)
    arguments = ["--prompts", "4", "--tokens", "5", "--schemes", "token", "race", "--out", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit, match="interrupted in measured; what was done is in"):
        check.main(arguments)
    rows = json.loads((tmp_path / "x-measured.json").read_text())["rows"]
    assert [row["prompts"] for row in rows] == [3, 2] and calls == [0, 0, 1, 1, 2, 2]


def test_time_that_is_used_up_takes_no_new_prompts(experiments, monkeypatch, tmp_path):
    """All cells have the same number of prompts, except in the last round; cells with none are reported."""
    which, common = experiments("which"), experiments("common")
    for cells, reached in ((5, [2, 2, 1]), (2, [1, 1, None])):
        left = iter([False] * (1 + 3 + cells))  # the very first call, every cell against the clock, the sample's cells
        monkeypatch.setattr(common.Bench, "late", lambda self: next(left, True))
        few = ["--prompts", "3", "--batch", "1", "--timed", "1", "--tokens", "5"]
        few += ["--temperatures", "1", "--depths", "1", "-k", "1", "--schemes", "token", "race"]
        which.main([*few, "--out", str(tmp_path / "x.json")])
        rows = json.loads((tmp_path / "x-page.json").read_text())["rows"]
        assert [row.get("prompts") for row in rows] == reached
        assert [row.get("missing") for row in rows] == [None if n else "out of time" for n in reached]
    assert "Not run: race: out of time." in (tmp_path / "x-page.md").read_text()
