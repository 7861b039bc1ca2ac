"""README and docs: every Python example runs as it stands, and every link leads somewhere."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from models import tiny_llama

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
]


class Tokenizer:
    """Of a model with 60 tokens"""

    def __call__(self, text, return_tensors):
        return SimpleNamespace(input_ids=torch.tensor([[ord(c) % 60 for c in text]]))

    def decode(self, ids):
        return " ".join(map(str, ids.tolist()))


@pytest.fixture
def small_models(monkeypatch):
    """Models of a moment in the place of those that would be downloaded"""
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda name: tiny_llama(seed=len(name)))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: Tokenizer())


def test_there_are_examples():
    assert len([x for x in EXAMPLES if x.id.startswith("README")]) >= 2


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, small_models, capsys):
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    assert "print(" not in code or capsys.readouterr().out.strip()


def anchors(page):
    """As GitHub makes them of headings"""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in re.findall(r"\bmake ([a-z][\w-]+)\b", page.read_text().replace("\n", " "))}
    assert len(named) > 10 and named - {"sure"} <= targets, named - targets


def test_the_readme_is_short():
    """Prose: without code, tables and headings"""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.S)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "#", "    "))]
    assert len(" ".join(lines).split()) < 750
