"""README and docs: every Python example runs as it stands, and every link leads somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from models import Tokenizer, tiny_llama

import specsample as ss

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
]


@pytest.fixture
def small_models(monkeypatch):
    """Tiny models in place of those that would be downloaded"""
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda name: tiny_llama(seed=len(name)))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: Tokenizer())


def test_there_are_examples():
    assert len([x for x in EXAMPLES if x.id.startswith("README")]) >= 2


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, small_models, capsys):
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    assert "print(" not in code or capsys.readouterr().out.strip()


def anchors(page):
    """Anchors as GitHub makes them from headings"""
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
    """Prose only: without code, tables and headings"""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.S)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "#", "    "))]
    assert len(" ".join(lines).split()) < 750


def test_the_api_reference_has_every_public_name():
    listed = re.findall(r"^::: specsample\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    public = {name for name in ss.__all__ if callable(getattr(ss, name))}
    assert len(public) > 12 and public - set(listed) == set()


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")} | {"contributing.md", "changes.md"}


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs the packages of make docs")
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]  # strict: mkdocs.yml
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    api = (tmp_path / "site/api/index.html").read_text()
    assert 'id="specsample.verify"' in api and "<code>target_logits</code></td>" in api
    assert "<strong>Returns</strong> Verdict" in api
    assert "Adding a scheme" in (tmp_path / "site/contributing/index.html").read_text()
    assert "A plausible rule that is wrong" in (tmp_path / "site/examples/laws/index.html").read_text()
    assert 'href="../examples/engine_loop/"' in (tmp_path / "site/engine/index.html").read_text()
    assert (tmp_path / "site/figures/acceptance.png").stat().st_size > 10_000
