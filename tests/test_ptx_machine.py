"""The PTX machine itself (csrc/emulator/ptx): known answers of its instructions. The mistakes it finds: test_ptx_mistakes.py; the
kernels on it: test_ptx.py.
"""

import math
import struct

import ptx_machine
import pytest
import torch
from ptx_programs import ALL_BLOCKS, CLUSTER, PHASES, REVERSE, STORE, found


@pytest.fixture(scope="module", autouse=True)
def machine():
    return ptx_machine.load()


# -- known answers -------------------------------------------------------------------------------------------------

F32, F64 = lambda x: struct.unpack("<I", struct.pack("<f", x))[0], lambda x: struct.unpack("<Q", struct.pack("<d", x))[0]
NAN, INF = F32(math.nan), F32(math.inf)
CANONICAL = 0x7FFFFFFF
U32, U64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
ANSWERS = [  # opcode, operands as bits or, for other widths, (prefix, bits); result
    ("add.s32", [U32, 2], 1),
    ("sub.s32", [1, 3], U32 - 1),
    ("add.s64", [U64, 2], 1),
    ("mul.lo.s32", [0x10001, 0x10001], 0x20001),
    ("mul.hi.u32", [U32, U32], U32 - 1),
    ("mul.hi.u64", [U64, 3], 2),
    ("mul.hi.s32", [U32, 3], U32),
    ("mul.wide.s32", [("r", U32), ("r", 3)], U64 - 2),
    ("mul.wide.u32", [("r", U32), ("r", 3)], 3 * U32),
    ("mad.lo.s32", [3, 4, U32], 11),
    ("div.s32", [U32 - 6, 2], U32 - 2),  # -7 / 2
    ("div.u32", [7, 2], 3),
    ("rem.s64", [U64 - 6, 4], U64 - 2),  # -7 % 4
    ("rem.u32", [7, 4], 3),
    ("min.s32", [U32, 1], U32),
    ("max.s32", [U32, 1], 1),
    ("max.u32", [U32, 1], U32),
    ("neg.s32", [1], U32),
    ("and.b32", [0xF0F0, 0xFF00], 0xF000),
    ("or.b64", [1 << 40, 1], (1 << 40) + 1),
    ("xor.b32", [0xF0F0, 0xFF00], 0x0FF0),
    ("not.b32", [0], U32),
    ("shl.b32", [1, 31], 1 << 31),
    ("shl.b32", [1, 32], 0),
    ("shl.b64", [1, ("r", 63)], 1 << 63),
    ("shr.u32", [1 << 31, 31], 1),
    ("shr.s32", [1 << 31, 40], U32),
    ("shr.u64", [1 << 63, ("r", 64)], 0),
    ("shr.s64", [1 << 63, ("r", 62)], U64 - 1),
    ("shf.r.wrap.b32", [0x11111111, 0x22222222, 36], 0x21111111),
    ("shf.l.wrap.b32", [0x11111111, 0x22222222, 4], 0x22222221),
    ("shf.r.clamp.b32", [0x11111111, 0x22222222, 36], 0x22222222),
    ("brev.b32", [1], 1 << 31),
    ("clz.b32", [0], 32),
    ("clz.b32", [1], 31),
    ("popc.b32", [0xF0F], 8),
    ("bfind.shiftamt.u32", [1], 31),
    ("bfind.u32", [0], U32),
    ("bfind.s32", [U32 - 1], 0),
    ("bfi.b32", [0xFF, 0, 4, 4], 0xF0),
    ("bfi.b32", [0xABCD, 0x11111111, 3, 29], 0x55E69),
    ("bfe.u32", [0xABCD, 4, 8], 0xBC),
    ("bfe.s32", [0xABCD, 4, 8], U32 - 0x43),
    ("prmt.b32", [0x44332211, 0x88776655, 0x7604], 0x88771155),
    ("prmt.b32", [0x80, 0, 0x8], 0x808080FF),
    ("lop3.b32", [0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA, "0x96"], 0x96969696),
    ("selp.b32", [5, 6, "1"], 5),
    ("add.f32", [F32(1.5), F32(2.25)], F32(3.75)),
    ("add.f32", [0x7F800001, F32(1.0)], CANONICAL),  # a NaN's payload is lost
    ("add.f32", [0x00000001, 0x00000001], 2),  # subnormal numbers are kept
    ("mul.rn.f32", [F32(1 + 2**-23), F32(1 + 2**-23)], F32(1 + 2**-22)),
    ("fma.rn.f32", [F32(1 + 2**-23), F32(1 + 2**-23), F32(-1 - 2**-22)], F32(2**-46)),  # one rounding
    ("fma.rn.f64", [F64(1 + 2**-52), F64(1 + 2**-52), F64(-1 - 2**-51)], F64(2**-104)),
    ("div.rn.f32", [F32(1), F32(3)], F32(1 / 3)),
    ("div.rn.f64", [F64(1), F64(3)], F64(1 / 3)),
    ("rcp.rn.f64", [F64(3)], F64(1 / 3)),
    ("sqrt.rn.f64", [F64(2)], F64(math.sqrt(2))),
    ("abs.f32", [F32(-2)], F32(2)),
    ("neg.f64", [F64(-2)], F64(2)),
    ("max.f32", [NAN, F32(1)], F32(1)),
    ("max.f32", [F32(-0.0), F32(0.0)], 0),
    ("min.f32", [F32(0.0), F32(-0.0)], F32(-0.0)),
    ("max.NaN.f32", [NAN, F32(1)], CANONICAL),
    ("max.f64", [F64(1), F64(2)], F64(2)),
    ("max.bf16x2", [0x3F80_7FC0, 0x4000_BF80], 0x4000_BF80),
    ("max.f16x2", [0x3C00_7E00, 0x4000_7E01], 0x4000_7FFF),
    ("ex2.approx.ftz.f32", [F32(3)], F32(8)),
    ("ex2.approx.ftz.f32", [F32(-127.5)], 0),
    ("lg2.approx.ftz.f32", [F32(8)], F32(3)),
    ("lg2.approx.ftz.f32", [1], F32(-math.inf)),
    ("lg2.approx.ftz.f32", [F32(-1)], CANONICAL),
    ("rcp.approx.ftz.f32", [F32(4)], F32(0.25)),
    ("rcp.approx.ftz.f32", [1], INF),
    ("rcp.approx.ftz.f64", [F64(3)], F64(1 / 3) & ~0xFFFFFFFF),
    ("cvt.f32.f16", [("h", 0x3555)], F32(0.333251953125)),
    ("cvt.f32.f16", [("h", 0x0001)], F32(2**-24)),
    ("cvt.f32.bf16", [("h", 0x3F80)], F32(1)),
    ("cvt.rn.f16.f32", [("f", F32(65519.0))], 0x7BFF),
    ("cvt.rn.f16.f32", [("f", F32(2**-25 * 1.5))], 1),
    ("cvt.rn.bf16.f32", [("f", F32(1 + 2**-8))], 0x3F80),
    ("cvt.rn.bf16.f32", [("f", F32(1 + 3 * 2**-8))], 0x3F82),
    ("cvt.f64.f32", [("f", F32(0.1))], F64(struct.unpack("<f", struct.pack("<f", 0.1))[0])),
    ("cvt.rn.f32.f64", [("d", F64(0.1))], F32(0.1)),
    ("cvt.rn.f32.u32", [("r", U32)], F32(2.0**32)),
    ("cvt.rn.f32.s32", [("r", U32)], F32(-1)),
    ("cvt.rn.f64.u64", [("l", U64)], F64(2.0**64)),
    ("cvt.rn.f64.s64", [("l", U64)], F64(-1)),
    ("cvt.rzi.s32.f32", [("f", F32(-1.9))], U32),
    ("cvt.rzi.s32.f32", [("f", F32(3e9))], 0x7FFFFFFF),
    ("cvt.rzi.s32.f32", [("f", NAN)], 0),
    ("cvt.rzi.u64.f32", [("f", F32(-5))], 0),
    ("cvt.rmi.f64.f64", [F64(-1.5)], F64(-2)),
    ("cvt.s32.s8", [("r", 0x1FF)], U32),
    ("cvt.u32.u16", [("h", 0xFFFF)], 0xFFFF),
    ("cvt.s64.s32", [("r", U32)], U64),
    ("cvt.u16.u64", [("l", 0x12345)], 0x2345),
]  # fmt: skip


def kind(name):
    """(letter of the registers, width in bits) of a type"""
    bits = 32 if name.endswith("x2") else int("".join(c for c in name[1:] if c.isdigit()) or 0)
    if name in ("f16", "bf16"):
        return "h", 16
    return {16: "h", 32: "f" if name[0] == "f" and not name.endswith("x2") else "r", 64: "d" if name[0] == "f" else "l"}[bits], bits


@pytest.mark.parametrize("opcode, operands, result", ANSWERS, ids=[f"{a[0]}-{i}" for i, a in enumerate(ANSWERS)])
def test_known_answers(opcode, operands, result):
    """From registers, by all lanes and by a single one."""
    parts = opcode.split(".")
    to = next(
        p
        for p in parts[1:]
        if p not in ("wide", "hi", "lo", "rn", "rzi", "rmi", "wrap", "clamp", "approx", "ftz", "l", "r", "shiftamt", "NaN")
    )
    own, bits = kind(to)
    if opcode.startswith("mul.wide"):
        own, bits = "l", 64
    if parts[0] in ("clz", "popc", "bfind"):
        own, bits = "r", 32
    lines, names = [], []
    for i, operand in enumerate(operands):
        if isinstance(operand, str):  # literally; selp's predicate from a register
            if parts[0] == "selp":
                lines.append(f"setp.eq.s32 %p1, {operand}, 1;")
                operand = "%p1"
            names.append(operand)
            continue
        letter, value = operand if isinstance(operand, tuple) else (own, operand)
        names.append(f"%{letter}{10 + i}")
        type_of = {"h": "b16", "r": "b32", "f": "b32", "d": "b64", "l": "b64"}[letter]
        lines.append(f"mov.{type_of} {names[-1]}, {value};")
    stored = {"h": "b16", "r": "b32", "f": "b32", "d": "b64", "l": "b64"}[own]
    body = "\n".join(
        [*lines, "mul.wide.u32 %l20, %r2, 8;", "add.s64 %l20, %l20, %l0;", "{guard}" + f"{opcode} %{own}19, {', '.join(names)};"]
    )
    body += f"\n{{guard}}st.global.{stored} [%l20], %{own}19;"
    out = torch.zeros(32, dtype=torch.int64)
    assert found("setp.eq.s32 %p0, %r2, 5;\n" + body.format(guard=""), out) == ""
    assert [x & ((1 << bits) - 1) for x in out.tolist()] == [result] * 32
    out = torch.zeros(32, dtype=torch.int64)
    assert found("setp.eq.s32 %p0, %r2, 5;\n" + body.format(guard="@%p0 "), out) == ""
    assert [x & ((1 << bits) - 1) for x in out.tolist()] == [result if lane == 5 else 0 for lane in range(32)]


def lanes(body, **how):
    """The value that each of 32 lanes leaves in %r19"""
    out = torch.zeros(32, dtype=torch.int32)
    assert found(body + "\n" + STORE, out, **how) == ""
    return [x & U32 for x in out.tolist()]


@pytest.mark.parametrize(
    "shuffle, source",
    [
        ("bfly.b32 %r19, %r2, 5, 31", lambda at: at ^ 5),
        ("up.b32 %r19, %r2, 3, 0", lambda at: at - 3 if at >= 3 else at),
        ("down.b32 %r19, %r2, 3, 31", lambda at: at + 3 if at + 3 < 32 else at),
        ("idx.b32 %r19, %r2, 7, 31", lambda at: 7),
        ("bfly.b32 %r19, %r2, 1, 6175", lambda at: at ^ 1),  # segments of 8 lanes
        ("down.b32 %r19, %r2, 2, 6175", lambda at: at + 2 if at % 8 < 6 else at),
    ],
)
def test_shuffles(shuffle, source):
    assert lanes(f"shfl.sync.{shuffle}, -1;") == [source(lane) for lane in range(32)]


def test_votes_and_reductions():
    odd = "and.b32 %r10, %r2, 1;\nsetp.eq.s32 %p1, %r10, 1;\n"
    assert lanes(odd + "vote.sync.ballot.b32 %r19, %p1, -1;") == [0xAAAAAAAA] * 32
    assert lanes("redux.sync.max.s32 %r19, %r2, -1;") == [31] * 32
    assert lanes("redux.sync.or.b32 %r19, %r2, -1;") == [31] * 32
    assert lanes("redux.sync.add.u32 %r19, %r2, -1;") == [496] * 32
    assert lanes("shr.u32 %r10, %r2, 4;\nmatch.any.sync.b32 %r19, %r10, -1;") == [0xFFFF] * 16 + [0xFFFF0000] * 16
    # only some lanes, selected by the mask
    assert lanes(odd + "mov.u32 %r19, 0;\n@%p1 redux.sync.max.s32 %r19, %r2, 0xAAAAAAAA;") == [31 * (i % 2) for i in range(32)]


def test_lanes_meet_again():
    """A loop with as many iterations as the lane's number, a branch in it, and a shuffle by all lanes after it"""
    body = (
        "mov.u32 %r10, 0;\nmov.u32 %r11, 0;\n"
        "LOOP:\nsetp.ge.u32 %p1, %r10, %r2;\n@%p1 bra DONE;\nadd.u32 %r10, %r10, 1;\nand.b32 %r12, %r10, 1;\nsetp.eq.s32 %p2, %r12, 0;\n"
        "@%p2 bra EVEN;\nadd.u32 %r11, %r11, 100;\nbra.uni LOOP;\nEVEN:\nadd.u32 %r11, %r11, 1;\nbra.uni LOOP;\n"
        "DONE:\nshfl.sync.bfly.b32 %r19, %r11, 1, 31, -1;"
    )
    sums = [100 * ((i + 1) // 2) + i // 2 for i in range(32)]
    for shuffle in range(4):
        assert lanes(body, shuffle=shuffle) == [sums[i ^ 1] for i in range(32)]


def test_lanes_wait_for_each_other_in_different_branches():
    """bar.warp.sync need not be reached in one step: the first lanes wait at theirs while the others are on their way."""
    body = (
        "setp.lt.u32 %p1, %r2, 16;\nmov.u32 %r10, 0;\n@%p1 bra MEET;\n"
        "WAIT:\nadd.u32 %r10, %r10, 1;\nsetp.lt.u32 %p2, %r10, 50;\n@%p2 bra WAIT;\n"
        "MEET:\nbar.warp.sync -1;\nshfl.sync.idx.b32 %r19, %r10, 31, 31, -1;"
    )
    assert lanes(body) == [50] * 32


@pytest.mark.parametrize("threads", [32, 64, 96, 256])
def test_barriers(threads):
    for shuffle in range(4):
        out = torch.zeros(threads, dtype=torch.int32)
        assert found(REVERSE.format(barrier="bar.sync 0;"), out, threads=threads, shuffle=shuffle) == ""
        assert out.tolist() == list(reversed(range(threads)))
        assert found(REVERSE.format(barrier=f"bar.sync 3, {threads};"), out, threads=threads, shuffle=shuffle) == ""


def test_atomics_and_memory():
    body = (
        "atom.global.add.u32 %r10, [%l0], 1;\nred.global.max.s32 [%l0+4], %r2;\natom.global.cas.b32 %r11, [%l0+8], 0, 7;\n"
        "atom.global.exch.b32 %r12, [%l0+12], %r2;\natom.add.u64 %l10, [%l0+16], 3;"
    )
    out = torch.zeros(6, dtype=torch.int32)
    assert found(body, out, threads=64, blocks=2) == ""
    assert out[[0, 1, 2, 4]].tolist() == [128, 63, 7, 384]
    vector = "ld.global.v4.u8 {%h1, %h2, _, %h3}, [%l0];\nst.global.v2.u16 [%l0+4], {%h1, %h3};"
    out = torch.tensor([0x04030201, 0], dtype=torch.int32)
    assert found(vector, out, threads=1) == ""
    assert out.tolist() == [0x04030201, 0x00040001]


@pytest.mark.parametrize("size", [2, 4, 8])
def test_clusters(size):
    for shuffle in range(3):
        out = torch.zeros(2 * size, dtype=torch.int32)
        body = CLUSTER.format(start=ALL_BLOCKS, middle=ALL_BLOCKS, end="")
        assert found(body, out, threads=64, blocks=2 * size, cluster=size, shuffle=shuffle) == ""
        assert out.tolist() == [(i - 1) % size for i in range(size)] * 2


def test_phases_of_mbarriers():
    for shuffle in range(4):
        out = torch.zeros(64, dtype=torch.int32)
        assert found(PHASES.format(count=2, parity="%r15"), out, threads=64, shuffle=shuffle) == ""
        assert out.tolist() == [33] * 32 + [30] * 32


def test_launches_that_wait_for_the_one_before():
    body = (
        "griddepcontrol.launch_dependents;\n{wait}\nld.global.u32 %r10, [%l0];\nadd.s32 %r10, %r10, 1;\nst.global.u32 [%l0], %r10;"
    )
    out = torch.zeros(1, dtype=torch.int32)
    assert found(body.format(wait="griddepcontrol.wait;"), out, threads=1, launches=3) == ""
    assert out.tolist() == [3]
    early = found(body.format(wait=""), out, threads=1, launches=2)
    assert "of what the launch before wrote to buffer 0, without griddepcontrol.wait" in early and "ld.global.u32" in early


def test_blocks_wait_for_each_other_through_global_memory():
    """The last block spins on the first one's flag: both must be resident."""
    body = (
        "setp.eq.s32 %p1, %r3, 0;\n@%p1 bra FIRST;\nSPIN:\nld.acquire.gpu.global.u32 %r10, [%l0];\nsetp.eq.s32 %p2, %r10, 0;\n@%p2 bra SPIN;\n"
        "ld.global.u32 %r19, [%l0+4];\nst.global.u32 [%l0+8], %r19;\nret;\n"
        "FIRST:\nst.global.u32 [%l0+4], 42;\nst.{order}.global.u32 [%l0], 1;"
    )
    for shuffle in range(4):
        out = torch.zeros(3, dtype=torch.int32)
        assert found(body.format(order="release.gpu"), out, threads=1, blocks=2, shuffle=shuffle) == ""
        assert out.tolist() == [1, 42, 42]
    out = torch.zeros(3, dtype=torch.int32)
    assert "race: a read of byte 4 of buffer 0" in found(body.format(order="relaxed.gpu"), out, threads=1, blocks=2)
    fenced = body.format(order="relaxed.gpu").replace(
        "FIRST:\nst.global.u32 [%l0+4], 42;", "FIRST:\nst.global.u32 [%l0+4], 42;\nmembar.gl;"
    )
    assert found(fenced, torch.zeros(3, dtype=torch.int32), threads=1, blocks=2) == ""
    assert "no end after" in found(
        body.format(order="release.gpu").replace("[%l0], 1", "[%l0], 0"), out.zero_(), threads=1, blocks=2, steps=10**5
    )


def test_approximations_are_perturbed_within_their_bounds():
    """Every result is within the documented error; some differ from the exact one, both ways; equal arguments, equal results."""
    x = torch.linspace(0.6, 30.0, 32)
    for opcode, exact, bound in (
        ("ex2", torch.exp2(x.double()), 2**-22),
        ("lg2", torch.log2(x.double()), 2**-22),
        ("rcp", 1 / x.double(), 2**-23),
    ):
        body = "mul.wide.u32 %l20, %r2, 4;\nadd.s64 %l20, %l20, %l0;\nld.global.f32 %f1, [%l20];\n"
        body += f"{opcode}.approx.ftz.f32 %f2, %f1;\nst.global.f32 [%l20], %f2;"
        off = []
        for seed in (0, 1, 2, 1):
            out = x.clone()
            assert found(body, out, perturb=seed) == ""
            off.append(out.double() / exact - 1)
            limit = torch.where((opcode == "lg2") & (x < 2), bound / exact.abs(), bound)
            assert (off[-1].abs() <= limit * 1.2).all()
        assert torch.equal(off[1], off[3]) and not torch.equal(off[1], off[2])
        assert (off[1] > off[0] + 2**-24).any() and (off[1] < off[0] - 2**-24).any()
