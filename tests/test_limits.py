"""Constants of the rules shared by all backends: defined once per language, and the definitions agree."""

import math
import re
from pathlib import Path

import pytest

from specsample import limits, version
from specsample.decoding import arguments as decoding
from specsample.reference import coupling, rng
from specsample.schemes import importance

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".inc", ".cpp", ".cu")]
IN_HEADERS = {
    "MAX_NODES": ("walk.h", "kMaxNodes"),
    "MAX_SIBLINGS": ("mixture.h", "kMaxDraws"),
    "MAX_LAWS": ("mixture.h", "kMaxLaws"),
    "MAX_LISTS": ("walk.h", "kMaxLists"),
    "SLACK": ("law.h", "kSlack"),
    "MAX_LOGSUMEXP": ("law.h", "kMaxLogsumexp"),
}


def number(text):
    bits = re.fullmatch(r"1u << (\d+)", text)
    return 1 << int(bits[1]) if bits else float.fromhex(text) if text.startswith("0x") else float(text)


def defined(name, files):
    """[(file, value)] of `name = value` in C++"""
    found = []
    for path in files:
        for line in path.read_text().splitlines():
            if line.lstrip().startswith("constexpr"):
                found += [(path.name, number(value)) for value in re.findall(rf"\b{name} = ([\w.+-]+?|1u << \d+)[,;]", line)]
    return found


RULES = {  # for the streams and for single schemes: (value, header, constant)
    "refined words": (rng.REFINE_BELOW, "philox.h", "kRefineBelow"),
    "block of refined words": (rng.REFINE_BLOCK, "philox.h", "kRefineBlock"),
    "block of groups": (rng.GROUP_BLOCK, "philox.h", "kGroupBlock"),
    "tokens of a group": (rng.GROUP, "philox.h", "kGroupTokens"),
    "empty bins": (coupling.EMPTY, "coupling.h", "kEmpty"),
    "stages of importance": (importance.LEAST, "importance.h", "kLeast"),
    "exponentials by powers of two": (math.log2(math.e), "common.h", "kLog2e"),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_agree(rule):
    value, file, constant = RULES[rule]
    assert defined(constant, SOURCES) == [(file, value)]


@pytest.mark.parametrize("name", IN_HEADERS)
def test_headers_agree(name):
    file, constant = IN_HEADERS[name]
    assert defined(constant, SOURCES) == [(file, getattr(limits, name))]


def test_every_limit_is_compared():
    assert {name for name in vars(limits) if name.isupper()} == set(IN_HEADERS)


def test_siblings_and_draws_are_one_number():
    assert "kMaxSiblings = kMaxDraws;" in (ROOT / "csrc/walk.h").read_text()


def test_one_home_in_python():
    values = {name: re.compile(rf"^{name}\b.*= *[\d(]", re.M) for name in IN_HEADERS}
    files = [p for p in (ROOT / "specsample").rglob("*.py") if p.name != "limits.py"]
    again = {(p.name, name) for p in files for name, pattern in values.items() if pattern.search(p.read_text())}
    assert again == set()
    assert decoding.MAX_NODES is limits.MAX_NODES


def test_stream_version_of_the_headers():
    assert defined("kStreamVersion", [ROOT / "csrc/philox.h"]) == [("philox.h", version.STREAM_VERSION)]
