"""CONTRIBUTING.md: the files it names exist, each test is listed, and a scheme is where it says and nowhere else."""

import re
from pathlib import Path

import pytest
import tiers

import specsample as ss
from specsample import triton

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
# Where a scheme may be named besides its own files: tables of schemes, their formulas, defaults, kinds of drafts that share a name,
# and the command line, which shows some of them.
TABLES = {
    "specsample/schemes/card.py", "specsample/triton/__init__.py", "specsample/theory/acceptance.py", "specsample/theory/curves.py",
    "specsample/theory/efficiency.py", "specsample/theory/table.py",
    "specsample/api.py", "specsample/decoding/loop.py", "specsample/integrations/transformers.py", "specsample/integrations/vllm/__init__.py",
    "specsample/triton/warm.py",
    "specsample/decoding/drafts.py", "specsample/decoding/trees.py", "specsample/reference/rows.py", "specsample/triton/rows.py",
    "csrc/row_ops.h", "csrc/verify_op.h", "csrc/testing/bindings.cpp",
    "specsample/tools/demo_tasks.py",
    "specsample/tools/acceptance.py", "specsample/tools/demo.py", "specsample/tools/expected.py", "specsample/decoding/arguments.py",
}  # fmt: skip


def named():
    """Paths on the page, except those of a scheme yet to be written"""
    return [path for path in re.findall(r"`([\w./*<>-]+)`", PAGE) if "/" in path or path.endswith((".py", ".toml", "file"))]


def test_files_exist():
    paths = [path for path in named() if "<name>" not in path]
    assert len(paths) > 60
    missing = [path for path in paths if not list(ROOT.glob(path))]
    assert missing == []


def test_every_test_has_a_room():
    tests = {f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py")}
    assert tests - set(named()) == set()


def test_every_folder_has_a_room():
    folders = {f"{top}/{path.name}" for top in ("specsample", "csrc") for path in (ROOT / top).iterdir() if path.is_dir()}
    folders = {path for path in folders if not path.endswith("__pycache__")}
    assert folders - set(named()) == set()


@pytest.mark.parametrize("scheme", ss.schemes())
def test_a_scheme_is_found_by_its_stem(scheme):
    table = (ROOT / "csrc/schemes/table.h").read_text()
    assert (ROOT / f"specsample/schemes/{scheme}.py").exists() and (ROOT / f"csrc/schemes/{scheme}.h").exists()
    assert f'#include "{scheme}.h"' in table and f"X({scheme}, " in table
    assert (ROOT / f"specsample/triton/{scheme}.py").exists() == (scheme in triton.SUPPORTED)


def test_a_scheme_is_named_nowhere_else():
    names = "|".join(ss.schemes())
    files = [
        p for top in ("specsample", "csrc") for p in (ROOT / top).rglob("*") if p.suffix in (".py", ".h", ".cpp", ".cu", ".inc")
    ]
    own = {f"{folder}/{scheme}{suffix}" for scheme in ss.schemes() for folder, suffix in
           (("specsample/schemes", ".py"), ("csrc/schemes", ".h"), ("specsample/triton", ".py"), ("specsample/theory", ".py"))}  # fmt: skip
    found = {str(p.relative_to(ROOT)) for p in files if re.search(rf"[\"']({names})[\"']", p.read_text())}
    assert len(found) > 30  # the search finds the tables
    assert found - own == TABLES


def test_tiers_name_what_is_there():
    stems = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert {stem for named in tiers.FILES.values() for stem in named} <= stems
    for test in (test for named in tiers.TESTS.values() for test in named):
        stem, name = test.partition("[")[0].split("::")
        assert f"def {name}(" in (ROOT / f"tests/{stem}.py").read_text(), test
