"""examples/: each one runs, on tiny models if it would load large ones, and shows what it claims to show."""

import json
import runpy
import sys
from pathlib import Path

import matplotlib
import transformers
from models import Tokenizer, nearby, tiny_llama

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
APART = {"make_student.py", "student.py"}  # the demo's draft model: tests/test_cli.py


def run(name, monkeypatch, capsys, *arguments):
    """The output of an example."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_tested_and_listed():
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} - APART
    here, readme, site = (path.read_text() for path in (Path(__file__), ROOT / "README.md", ROOT / "mkdocs.yml"))
    assert len(there) == 6
    for name in there:
        assert f'"{name}"' in here and f"examples/{name}" in readme and f"examples/{name.split('.')[0]}.md" in site, name


def test_quickstart(monkeypatch, capsys):
    rows = [line.split() for line in run("quickstart.py", monkeypatch, capsys).splitlines() if line.startswith("token ")]
    assert len(rows) == 5
    for row in rows:  # 100 000 draws: five standard errors
        target, emitted = float(row[5]), float(row[7])
        assert abs(target - emitted) < 5 * (target * (1 - target) / 100_000) ** 0.5 + 0.001


def test_with_transformers(monkeypatch, capsys):
    target = tiny_llama(seed=4)
    models = {"large": target, "small": nearby(target, 0.2, seed=5)}
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", models.__getitem__)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: Tokenizer())
    said = run("with_transformers.py", monkeypatch, capsys, "large", "small")
    assert "race gives the text of plain sampling: True" in said and "block efficiency" in said
    prompt = "Speculative decoding is"
    texts = [line for line in said.splitlines() if line.startswith(f"{ord(prompt[0]) % 60} {ord(prompt[1]) % 60} ")]
    assert [len(text.split()) for text in texts] == [len(prompt) + 40] * 2


def test_engine_loop(monkeypatch, capsys):
    said = run("engine_loop.py", monkeypatch, capsys).splitlines()
    calls = {line.split(":")[0]: int(line.split()[1]) for line in said}
    assert calls["plain"] == 60 and all(calls[scheme] < 40 for scheme in ("token", "block", "race"))
    assert said[-1].startswith("race") and said[-1].endswith("the plain text, token for token")
    assert len((EXAMPLES / "engine_loop.py").read_text().splitlines()) < 80


def test_own_drafter(monkeypatch, capsys):
    said = run("own_drafter.py", monkeypatch, capsys).splitlines()
    calls = [int(line.split()[5]) for line in said]
    assert calls[0] > 2 * calls[1] and all("the text of plain sampling" in line for line in said)


def test_batched_packed(monkeypatch, capsys):
    said = run("batched_packed.py", monkeypatch, capsys)
    together, alone = (int(line.split()[-2]) for line in said.splitlines()[:2])
    assert together < alone / 2 and said.splitlines()[2].endswith("gets alone: True")


def test_laws_notebook(monkeypatch):
    """Runs its cells in order; they contain their own checks. The stored output must be that of today's code."""
    matplotlib.use("Agg")
    notebook = json.loads((EXAMPLES / "laws.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 7 and all(cell["outputs"] or n == 0 for n, cell in enumerate(cells) if n != 0)
    printed, scope = [], {"__name__": "__main__", "print": lambda *text: printed.append(" ".join(map(str, text)) + "\n")}
    for n, cell in enumerate(cells):
        printed.clear()
        exec(compile("".join(cell["source"]), f"laws.ipynb, cell {n + 1}", "exec"), scope)
        stored = [line for output in cell["outputs"] for line in output.get("text", [])]
        own = [line for line in stored if not line.startswith("wrong")]  # that one draws from torch's generator
        assert len(printed) == len(stored) and set(own) <= set(printed)
    matplotlib.pyplot.close("all")
