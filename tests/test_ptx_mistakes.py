"""The PTX machine (csrc/emulator/ptx) finds the mistake in a program and reports it with its line: small programs, each with one
mistake."""

import pytest
import torch
from ptx_programs import ALL_BLOCKS, CLUSTER, PHASES, REVERSE, STORE, found, program

OUT = "a buffer of 64 ints"


WRONG = {  # name: (body, diagnosis, threads, launch arguments)
    "out of bounds": (
        "mul.wide.u32 %l20, %r2, 4;\nadd.s64 %l20, %l20, %l0;\nst.global.u32 [%l20+4], %r2;",
        "out of bounds: 4 bytes at",
        64,
        {},
    ),
    "nowhere": ("mov.u64 %l20, 8;\nld.global.u32 %r19, [%l20];", "out of bounds", 32, {}),
    "beyond shared memory": ("mov.u32 %r10, shared;\nld.shared.u32 %r19, [%r10+1024];", "of shared memory", 32, {}),
    "misaligned": ("ld.global.u64 %l20, [%l0+4];", "misaligned: 8 bytes", 32, {}),
    "misaligned vector": ("ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%l0+8];", "misaligned: 16 bytes", 32, {}),
    "missing barrier": (REVERSE.format(barrier=""), "race: ", 64, {}),
    "missing barrier of a warp": (REVERSE.format(barrier=""), "used it in lane 31 of the same warp", 32, {}),
    "wrong count": (REVERSE.format(barrier="bar.sync 0, 32;"), "race: ", 64, {}),
    "count of half a warp": (REVERSE.format(barrier="bar.sync 0, 48;"), "no whole warps", 64, {}),
    "count beyond the block": (REVERSE.format(barrier="bar.sync 0, 96;"), "of which the block has 64", 64, {}),
    "counts that differ": (
        "setp.lt.u32 %p1, %r2, 32;\n@%p1 bra A;\nbar.sync 1, 64;\nbra.uni B;\nA:\nbar.sync 1, 96;\nB:",
        "while others wait at it for",
        96,
        {},
    ),
    "divergent barrier": (
        "setp.lt.u32 %p1, %r2, 7;\n@%p1 bra A;\nbar.sync 0;\nbra.uni B;\nA:\nbar.sync 0;\nB:",
        ".aligned, but reached divergently, by lanes 7-31; lanes 0-6",
        32,
        {},
    ),
    "guarded barrier": ("setp.lt.u32 %p1, %r2, 7;\n@%p1 bar.sync 0;", "guarded by a predicate that lanes differ in", 32, {}),
    "early exit of a warp": ("setp.ge.u32 %p1, %r2, 32;\n@%p1 ret;\nbar.sync 0, 64;", "deadlock: block 0, warp 0 waits", 64, {}),
    "early exit of lanes": (
        "setp.ge.u32 %p1, %r2, 8;\n@%p1 ret;\nshfl.sync.idx.b32 %r19, %r2, 0, 31, -1;",
        "lanes 8-31, absent",
        32,
        {},
    ),
    "a mask without its own lane": (
        "shfl.sync.idx.b32 %r19, %r2, 0, 31, 0x7FFFFFFF;",
        "a lane that its own mask does not name",
        32,
        {},
    ),
    "a shuffle from an absent lane": (
        "setp.lt.u32 %p1, %r2, 8;\n@%p1 shfl.sync.idx.b32 %r19, %r2, 9, 31, 0xFF;",
        "a shuffle from lane 9, which takes no part",
        32,
        {},
    ),
    "half a warp never comes": (
        "setp.lt.u32 %p1, %r2, 16;\n@%p1 bra A;\nbar.warp.sync -1;\nbra.uni B;\nA:\nshfl.sync.idx.b32 %r19, %r2, 0, 31, -1;\nB:",
        "not all lanes of its mask come",
        32,
        {},
    ),
    "uninitialised branch": (
        "ld.shared.u32 %r10, [shared];\nsetp.eq.s32 %p1, %r10, 0;\n@%p1 bra A;\nA:",
        "nobody has written it; read at line",
        32,
        {},
    ),
    "uninitialised address": (
        "ld.shared.u32 %r10, [shared+8];\nmul.wide.u32 %l20, %r10, 0;\nadd.s64 %l20, %l20, %l0;\nld.global.u32 %r11, [%l20];",
        "an address depends on byte 8 of shared memory, uninitialised",
        32,
        {},
    ),
    "uninitialised sum": ("atom.shared.add.u32 %r10, [shared], 1;", "uninitialised", 32, {}),
    "a constant load of what is written": (
        "st.global.u32 [%l0], 1;\nld.global.nc.u32 %r10, [%l0];",
        "ld.global.nc of buffer 0, which this launch writes",
        1,
        {},
    ),
    "an atomic beside a plain write": (
        "@%p9 bra A;\natom.global.add.u32 %r10, [%l0], 1;\nst.global.u32 [%l0], 1;\nA:",
        "race: a write of byte 0",
        2,
        {},
    ),
    "a block that has not begun": (
        CLUSTER.format(start="", middle=ALL_BLOCKS, end=""),
        "which need not have begun",
        64,
        {"blocks": 2, "cluster": 2},
    ),
    "a missing cluster barrier": (
        CLUSTER.format(start=ALL_BLOCKS, middle="bar.sync 0;", end=""),
        "race: ",
        64,
        {"blocks": 2, "cluster": 2},
    ),
    "a block that leaves": (
        CLUSTER.format(start=ALL_BLOCKS, middle=ALL_BLOCKS, end="@%p1 ld.shared::cluster.u32 %r12, [%r11];"),
        "leaves while another may still use its shared memory|which has left",
        64,
        {"blocks": 2, "cluster": 2},
    ),
    "a rank that is not there": (
        "mapa.shared::cluster.u32 %r11, shared, 2;",
        "mapa: rank 2 of 2 blocks",
        32,
        {"blocks": 2, "cluster": 2},
    ),
    "another block by st.shared": (
        ALL_BLOCKS + "\nmapa.shared::cluster.u32 %r11, shared, 1;\nst.shared.u32 [%r11], 1;",
        "of another block's shared memory",
        32,
        {"blocks": 2, "cluster": 2},
    ),
    "a block that skips the cluster barrier": (
        "setp.eq.s32 %p1, %r3, 1;\n@%p1 bra A;\n"
        + ALL_BLOCKS
        + "\nA:\nbar.sync 0;\nsetp.eq.s32 %p1, %r3, 1;\nSPIN:\n@%p1 bra SPIN;",
        "no end after",
        32,
        {"blocks": 2, "cluster": 2, "steps": 10**5},
    ),
    "an mbarrier for too many": (PHASES.format(count=3, parity="%r15"), "mbarrier: 2 of 3 arrivals have come", 64, {}),
    "an mbarrier for too few": (PHASES.format(count=1, parity="%r15"), "race: |mbarrier: ", 64, {}),
    "a wrong phase": (PHASES.format(count=2, parity="1"), "race: ", 64, {}),
    "an mbarrier nobody made": ("mbarrier.arrive.shared::cta.b64 _, [shared];", "an mbarrier that was not initialised", 32, {}),
    "a lane's arrival for another lane's write": (
        PHASES.format(count=2, parity="%r15").replace("@%p2 mbarrier.arrive", "setp.eq.s32 %p5, %r4, 1;\n@%p5 mbarrier.arrive"),
        "race: ",
        64,
        {},
    ),
    "a write to a parameter": ("st.param.u32 [number], 1;", "a write to a parameter", 32, {}),
}


@pytest.mark.parametrize("shuffle", [0, 1, 2])
@pytest.mark.parametrize("name", WRONG)
def test_control_mistakes_are_found(name, shuffle):
    body, expected, threads, how = WRONG[name]
    said = found(body, torch.zeros(64, dtype=torch.int32), threads=threads, shuffle=shuffle, **how)
    assert any(part in said for part in expected.split("|")), said
    assert "line " in said or "deadlock" in said or "no end" in said


def test_an_uninitialised_value_may_be_loaded_and_left():
    """Compilers load ahead of a test, and copy structures including their padding."""
    unused = "ld.shared.u32 %r10, [shared];\nsetp.eq.s32 %p1, %r2, 99;\nselp.b32 %r19, %r10, %r2, %p1;\n" + STORE
    out = torch.zeros(32, dtype=torch.int32)
    assert found(unused, out) == "" and out.tolist() == list(range(32))
    copied = (
        "st.shared.u32 [shared], %r2;\nld.shared.v2.u32 {{%r10, %r11}}, [shared];\nst.shared.v2.u32 [shared+8], {{%r10, %r11}};\n"
    )
    copied += "ld.shared.u32 %r19, [shared+{at}];\nsetp.eq.s32 %p1, %r19, 0;\n@%p1 bra A;\nA:"
    assert found(copied.format(at=8), out, threads=1) == ""
    assert "uninitialised" in found(copied.format(at=12), out, threads=1)


def test_uninitialised_global_memory():
    body = "ld.global.u32 %r10, [%l0];\nsetp.eq.s32 %p1, %r10, 0;\n@%p1 bra A;\nA:"
    assert found(body, torch.zeros(1, dtype=torch.int32)) == ""
    assert "byte 0 of buffer 0, uninitialised" in found(body, torch.zeros(1, dtype=torch.int32), known=[0])


@pytest.mark.parametrize(
    "body, said",
    [
        ("frobnicate.u32 %r1, %r2;", "unknown opcode: frobnicate.u32"),
        ("add.sat.s32 %r1, %r2, %r3;", "unknown opcode: add.sat.s32"),
        ("add.u32 %r1, %r2;", "a wrong number of operands"),
        ("add.u32 %l1, %r2, %r3;", "not of the operand's width"),
        ("add.u32 %r1, %r2, %x3;", "unknown special register %x3"),
        ("bra NOWHERE;", "unknown label NOWHERE"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(body, said):
    out = torch.zeros(1, dtype=torch.int32)
    message = found("mov.u32 %r10, 0;\n" + body, out)
    line = program("mov.u32 %r10, 0;\n" + body).split("\n").index(body) + 1
    assert said in message and message.startswith(f"line {line}: "), message
