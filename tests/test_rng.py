"""Philox4x32-10 and the stream map: published and known answers, Python against C++ (scalar and every instruction set), clocks of
words at the ends of their range, and the tokens that the streams give on every backend. Their law: test_clocks.py."""

import math

import known_answers
import native
import pytest
import torch
from conftest import require
from known_answers import CLOCKS, ENDS, GROUPS, TOKENS, WORDS

import specsample as ss
from specsample import extension
from specsample.reference import rng

STREAM = ("seed", "position", "purpose", "slot")
OF_CLOCKS = [case for case in WORDS["streams"] if "group_words" in case]


def of(case):
    return tuple(case[name] for name in STREAM)


def tensors(seed, position, purpose, slot):
    return torch.tensor([seed]), torch.tensor([position]), purpose, torch.tensor([slot])


def as_ints(words):
    return [int(w, 16) for w in words]


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", WORDS["philox4x32_10"], ids=lambda c: c["counter"][0])
def test_known_answers_of_random123(case):
    counter, key, answer = (as_ints(case[name]) for name in ("counter", "key", "answer"))
    got = rng.philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert [int(g) for g in got] == answer
    assert list(native.load().philox(counter, key)) == answer


def by_hand(seed, position, purpose, slot, block):
    """The four words of a block, on Python's integers."""
    m = 1 << 32
    c, k = [block, position % m, (position >> 32) % m, purpose << 24 | slot], [seed % m, (seed >> 32) % m]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b % m, (a >> 32) ^ c[3] ^ k[1], a % m]
        k = [(k[0] + 0x9E3779B9) % m, (k[1] + 0xBB67AE85) % m]
    return c


@pytest.mark.parametrize("case", WORDS["streams"], ids=lambda c: f"purpose {c['purpose']}")
def test_words_by_hand(case):
    """Key, counter and word layout, written independently: the two top bits of the block name the sub-stream."""
    for name, top in (("words", 0), ("refine", 1 << 31)):
        assert as_ints(case[name]) == [by_hand(*of(case), top + i // 4)[i % 4] for i in range(10)]
    for name, top in (("group_words", 1 << 30), ("second_group_words", (1 << 31) + (1 << 30))):
        if name in case:
            first = [g // 32 * 1024 + g % 32 * 8 for g in GROUPS]  # token of each group
            want = [by_hand(*of(case), top + 32 * (i // 4096) + i // 8 % 32)[i // 1024 % 4] for i in first]
            assert as_ints(case[name]) == want
            assert rng.group_of(torch.tensor(first)).tolist() == list(GROUPS)


@pytest.mark.parametrize("case", WORDS["streams"], ids=lambda c: f"purpose {c['purpose']}")
def test_words(case):
    for second, name in ((False, "words"), (True, "refine")):
        want = as_ints(case[name])
        assert rng.words(*tensors(*of(case)), len(want), second)[0].tolist() == want
        assert native.load().words(*of(case), len(want), second) == want


@pytest.mark.parametrize("case", OF_CLOCKS, ids=lambda c: f"purpose {c['purpose']}")
def test_words_of_groups(case):
    count = GROUPS[-1] + 1
    for second, name in ((False, "group_words"), (True, "second_group_words")):
        got = rng.group_words(*tensors(*of(case)), count, second)[0]
        assert got[list(GROUPS)].tolist() == as_ints(case[name])
        assert native.load().group_words(*of(case), count, second) == got.tolist()


@pytest.mark.parametrize("stream", [(0, 0, 0, 0), (-5, 2**40 + 3, 4, 1023), (2**62, -1, 5, 77)], ids=str)
def test_vector_words_equal_scalar_words(stream):
    module = native.load()
    want = rng.group_words(*tensors(*stream), 128 * 3)[0].tolist()
    for isa in module.capabilities():
        assert [w for first in (0, 128, 256) for w in module.group_words_by_lanes(isa, *stream, first)] == want, isa


def test_groups_partition_the_tokens():
    """Two tiles: 64 groups of 32 tokens, with each place taken once: eight neighbours in each of four rows of 256."""
    token = torch.arange(2048)
    at = rng.group_of(token) * 32 + rng.place_of(token)
    assert torch.equal(at.sort().values, token)
    of_group = token[rng.group_of(token) == 33]
    assert of_group.tolist() == [1024 + 256 * row + 8 + j for row in range(4) for j in range(8)]
    assert rng.place_of(of_group).tolist() == list(range(32))


# -- clocks ------------------------------------------------------------------------------------------------------------

CLOSE = {"rel": 1e-14, "abs": 0}  # log1p of two libraries


@pytest.mark.parametrize("a", sorted({case["a"] for case in CLOCKS["least"]}))
def test_least_clocks_of_given_words(a):
    """Both ends of A and of its refinement: M positive and finite, the same in Python and C++, and accurate in relative terms
    against 60-digit arithmetic."""
    mpmath = pytest.importorskip("mpmath")
    for case in (case for case in CLOCKS["least"] if case["a"] == a):
        words, want = as_ints((a, case["s"])), float.fromhex(case["clock"])
        low = (mpmath.mpf(words[1] % 2**27) + 0.5) / 2**27 if words[0] < 4096 else mpmath.mpf(0.5)
        with mpmath.workdps(60):
            assert want == pytest.approx(float(-mpmath.log(1 - (words[0] + low) / 2**32) / 32), **CLOSE)
        assert case["place"] == words[1] >> 27 and 0 < want < 1
        for clock, place in (known_answers.least(*words), native.load().least(*words)):
            assert clock == pytest.approx(want, **CLOSE) and place == case["place"]


@pytest.mark.parametrize("case", CLOCKS["clocks"], ids=lambda c: f"purpose {c['purpose']}")
def test_clocks(case):
    want = [float.fromhex(x) for x in case["clocks"]]
    got = rng.clocks(*tensors(*of(case)), TOKENS[-1] + 1)[0]
    assert got[list(TOKENS)].tolist() == pytest.approx(want, **CLOSE)
    for token, clock in zip(TOKENS, want):
        assert native.load().clock(*of(case), token) == pytest.approx(clock, **CLOSE)
        assert native.load().log_clock(*of(case), token) == pytest.approx(math.log(clock), rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("case", CLOCKS["of_words"], ids=lambda c: c["word"])
def test_clocks_of_given_words(case):
    """E = M + Exp(1), where the exponential uses a second word if the token's own is small: Python, C++ and 60-digit arithmetic."""
    mpmath = pytest.importorskip("mpmath")
    word, token, want = int(case["word"], 16), case["token"], float.fromhex(case["clock"])
    a, s = (rng.group_words(*tensors(*of(case)), 3, second)[0, rng.group_of(token)].item() for second in (False, True))
    second = rng.words(*tensors(*of(case)), token + 1, refine=True)[0, token].item()
    assert s >> 27 != rng.place_of(token)
    with mpmath.workdps(60):
        u = (word + ((mpmath.mpf(second) + 0.5) / 2**32 if word < 4096 else mpmath.mpf(0.5))) / 2**32
        assert native.load().uniform(*of(case), token, word) == float(u)
        assert want == pytest.approx(float(mpmath.mpf(known_answers.least(a, s)[0]) - mpmath.log(1 - u)), **CLOSE)
    assert known_answers.clock(*of(case), token, word) == pytest.approx(want, **CLOSE)
    assert native.load().clock_of_words(*of(case), token, a, s, word) == pytest.approx(want, **CLOSE)
    at_place = (s & 0x7FFFFFF) | rng.place_of(token) << 27
    assert native.load().clock_of_words(*of(case), token, a, at_place, word) == native.load().least(a, at_place)[0]


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_known_races(backend):
    """Partial groups, every kind of draft and both ends of a residual: tokens, on every backend."""
    known_answers.check_races(backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_odd_rows(backend, dtype):
    """NaN, +inf, excluded tokens, ties and tails, anywhere in a group."""
    known_answers.check_odd_rows(backend, dtype)


def test_control_known_races_notice_another_stream(monkeypatch):
    """For each sub-stream and for the layout: a change changes tokens of the file."""
    words, group_words, place_of = rng.words, rng.group_words, rng.place_of
    wrong = {
        "words": lambda *stream, refine=False: words(*stream, refine=refine).flip(-1),
        "group_words": lambda *stream, second=False: group_words(*stream, second=second).flip(-1),
        "place_of": lambda token: (place_of(token) + 1) % 32,
        "group_of": lambda token: token // 32,
    }
    for name, function in wrong.items():
        monkeypatch.setattr(rng, name, function)
        with pytest.raises(AssertionError, match="vocab"):
            known_answers.check_races("reference", vocabs=(31,))
        monkeypatch.undo()


def test_version_of_the_streams():
    """Known answers belong to a version: they are rewritten only with a new one."""
    assert WORDS["stream_version"] == CLOCKS["stream_version"] == ss.STREAM_VERSION == ss.build_info()["stream_version"]


def test_an_extension_of_other_streams_is_refused(monkeypatch):
    """Built from other sources and left in place, it would emit different tokens."""
    require("cpu")
    assert extension.load()[1] is None
    monkeypatch.setattr(extension, "STREAM_VERSION", ss.STREAM_VERSION + 1)
    module, why = extension.load()
    assert module is None and f"version {ss.STREAM_VERSION} of the streams, this package {ss.STREAM_VERSION + 1}" in why


def test_the_files_are_what_the_reference_writes():
    assert known_answers.words() == WORDS["streams"]
    assert {case["a"] for case in CLOCKS["least"]} == {f"{a:08x}" for a in ENDS}
    assert {name for case in CLOCKS["races"] for name in case} >= set(known_answers.calls(CLOCKS["races"][0]))
