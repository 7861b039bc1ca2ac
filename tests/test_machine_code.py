"""Gates on the machine code of the CUDA kernels: the compiled loops over rows, the compiled barriers of a team, and the code size.

Nothing is executed. The gates see instructions and their order, but not how long memory takes or whether two warps ever wait for
each other (docs/ptx.md). Each gate has a control that it must reject. The default run covers both kernels for sm_90 and the row
kernel for sm_80; `make check-cuda` (SPECSAMPLE_CHECK_CUDA=1) covers both for both. Spills and 16-byte loads:
tests/test_cuda_compile.py.
"""

import re
import shutil

import machine_code as code
import native
import pytest
import sass
from nvidia_tools import ALL, PACKAGES, nvcc

ARCHS = ("80", "90")
KERNELS = [(k, a) for k in code.SOURCES for a in ARCHS if ALL or a == "90" or k == "row_kernel"]

# Bytes in flight per SM. By Little's law, the 4.3 TB/s of an H200 with 132 SMs need 26 KB at a latency of 0.8 µs, and the 2.0 TB/s
# of an A100 with 108 SMs need 11 KB at 0.6 µs. Passes that hold a weight for each token have registers for 22.5 KB; the race, which
# keeps one maximum per group, for twice that.
FLOORS = {"tile_masses": 22_500, "sum_tiles": 22_500, "each_unit": 22_500, "bound_groups": 45_000}
PASSES = {"row_kernel": {"tile_masses": 1, "sum_tiles": 2, "each_unit": 8, "bound_groups": 1},
          "verify_kernel": {"tile_masses": 1, "sum_tiles": 6, "each_unit": 10, "bound_groups": 1}}  # fmt: skip
# A turn of a pass is fetched only once if it fits in each scheduler's instruction cache: 12 KiB on Volta, the smallest with
# published measurements, which is code.TURN instructions. The kernels do not fit in the SM's cache (128 KiB there) and need not: a
# call runs few of their passes. But code that runs for the first time is fetched from farther away, 128 bytes at a time, and each
# copy of a pass adds to that: the limit is today's size plus a tenth.
TEXT = {"row_kernel": 390_000, "verify_kernel": 1_360_000}

needs_nvcc = pytest.mark.skipif(nvcc() is None or PACKAGES is not None, reason="no nvcc in CUDA_HOME or on the path")


def small(statement, folder, arch="90", **settings):
    return code.blocks_of(code.pass_alone(statement, folder, arch, **settings))


def changed(folder, file, *edits):
    """Copy the sources and apply edits (old, new) to a file of csrc/cuda; -> the folder of the copy"""
    shutil.copytree(native.ROOT / "csrc", folder / "csrc")
    path = folder / "csrc/cuda" / file
    for old, new in edits:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    return folder


# -- parsing the listing -------------------------------------------------------------------------------------------------


def test_registers():
    """The registers that an instruction writes and reads"""
    for op, written, read in [
        ("@!P1 LDG.E.128.CONSTANT R20, desc[UR8][R52.64+0x410]", {20, 21, 22, 23}, {52, 53}),
        ("LDG.E.U16 R3, [R4.64]", {3}, {4, 5}),
        ("IMAD.U32 R20, R32.reuse, 0x10000, RZ", {20}, {32}),
        ("HMNMX2.BF16_V2 R60, R22, R23, !PT", {60}, {22, 23}),
        ("ISETP.GE.AND P1, PT, R51, R48, PT", set(), {48, 51}),
        ("SHFL.BFLY PT, R44, R14, 0x10, 0x1f", {44}, {14}),
        ("@P1 LEA R8, P3, R67, R112, 0x1", {8}, {67, 112}),
        ("STS.64 [R43+0x6910], R16", set(), {16, 17, 43}),
        ("DFMA R4, R6, R8, R10", {4, 5}, {6, 7, 8, 9, 10, 11}),
        ("MUFU.EX2 R7, R7", {7}, {7}),
    ]:
        assert sass.registers(op) == (written, read), op


def test_waits():
    """Loads issued together, and one after the other"""
    ops = lambda *texts: [sass.Op(text) for text in texts]
    first, second, use = "LDG.E.128 R0, [R8]", "LDG.E.128 R4, [R8]", "FADD R20, R0, R5"
    together = ops(first, second, "FMUL R9, R9, R9", use)
    apart = ops(first, "FADD R20, R0, R20", second, "FADD R20, R4, R20")
    overwritten = ops("LDG.E R0, [R8]", "MOV R0, RZ", "FADD R20, R0, R20", second, "FADD R20, R4, R20")
    either = ops("@P1 LDG.E.U16 R0, [R8]", "@!P1 LDG.E R0, [R8]", "FADD R20, R0, R20")
    found = [sass.waits(way, {id(op) for op in way if "LDG" in op}) for way in (together, apart, overwritten, either)]
    assert found == [[(3, 2)], [(1, 1), (3, 1)], [(4, 1)], [(2, 1)]]


def test_ways():
    """A call to a label leaves a loop, other calls are not followed; frames name the source functions of an instruction."""
    where = f'//## File "{native.ROOT}/csrc/cuda/rows.h", line '
    number = lambda text: 1 + (native.ROOT / "csrc/cuda/rows.h").read_text().splitlines().index(text)
    load = number("SPS_DEVICE uint4 load16(const void* p) { return __ldg(static_cast<const uint4*>(p)); }")
    tops = number("    batch.template tops<1>(dtype, top);")
    lines = [".L_x_1:", "S2R R3, SR_TID.X", f"{where}{load} inlined at", f"{where}{tops}", "LDG.E.128 R0, [R8]",
             "@P0 CALL.REL.NOINC `(.L_x_2)", "MOV R1, R2",
             "BRA `(.L_x_1)", ".L_x_2:", "@P1 BRA `(.L_x_3)", "CALL.REL.NOINC `($slow)", ".L_x_3:", "EXIT"]  # fmt: skip
    text = "\n".join(line if line[0] in "./" else f"        /*0010*/    {line} ;" for line in lines)
    blocks = sass.blocks_of(text)
    assert [follow for _, follow in blocks] == [[2, 1], [0], [4, 3], [], []]
    assert [op.functions for op in blocks[0][0]] == [(), ("load16", "each_unit"), ("load16", "each_unit")]
    assert sass.turn(blocks, 0, [("LDG", 1)]) == blocks[0][0] + blocks[1][0] and sass.turn(blocks, 2, []) is None
    assert sass.way_to(blocks, 0, "EXIT") == blocks[0][0] + blocks[2][0] and sass.way_to(blocks, 3, "LDG") is None
    near, start = sass.around(blocks, 0, 2)
    assert [len(follow) for _, follow in near] == [0] and start == 0
    assert len(sass.around(blocks, 0, 3)[0]) == 3


# -- the gates -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=KERNELS, ids="{0[0]}-sm_{0[1]}".format)
def kernel(request):
    return *request.param, code.kernel_blocks(*request.param)


@needs_nvcc
def test_line_information_changes_no_instruction(tmp_path):
    """The shipped kernels are compiled without it."""
    name, arch = "row_kernel", "90"
    plain, _ = code.compiled(code.SOURCES[name], tmp_path, arch, lines=False)
    with_lines = [ops for ops, _ in code.kernel_blocks(name, arch)]
    assert [ops for ops, _ in code.blocks_of(plain)] == with_lines and len(with_lines) > 1000


@needs_nvcc
def test_passes_over_rows(kernel):
    """The loads of a turn are in flight together, and are only widened or reduced to maxima before the next are issued: the rest of
    the work comes between that and their use."""
    name, _, blocks = kernel
    turns = code.turns(blocks)
    for dtype in code.DTYPES:
        found = [turn.functions[0] for turn in turns if turn.dtype == dtype]
        assert {f: found.count(f) for f in found} == PASSES[name]
    assert refused(turns) == []


def refused(turns):
    """The violations of the gates"""
    out = []
    for turn in turns:
        if turn.waiting < turn.loads or turn.in_flight < FLOORS[turn.functions[0]]:
            out.append(("bytes in flight", turn.functions, turn.dtype, turn.in_flight))
        if turn.before:
            out.append(("used before the next are asked for", turn.functions, turn.dtype, len(turn.before)))
        if len(turn.way) > code.TURN:
            out.append(("long", turn.functions, turn.dtype, 16 * len(turn.way)))
    return out


@needs_nvcc
def test_rows_that_are_not_aligned(tmp_path):
    """Their tokens are loaded one by one, all of a turn before the first is packed; with two rows, all of one row."""
    for statement, rows in ((STATISTICS, 1), ("out[thread_id()] = residual_sum(s, o)", 2)):
        way = sass.common_way(small(statement, tmp_path), [("LDG.E.U16", 32), ("MUFU.EX2", 32)])
        narrow = {id(op) for op in way if "LDG.E.U16" in op}
        assert max(n for _, n in sass.waits(way, narrow)) == 32 // rows


@needs_nvcc
def test_control_rows_that_are_packed_unit_by_unit(tmp_path):
    include = changed(tmp_path, "rows.h", ("if (!aligned && first", "if (false && !aligned && first"))
    way = sass.common_way(small(STATISTICS, tmp_path, include=include), [("LDG.E.U16", 32), ("MUFU.EX2", 32)])
    assert max(n for _, n in sass.waits(way, {id(op) for op in way if "LDG.E.U16" in op})) == 8


OPENING = [("LDG.E.U16", 2), (lambda op: "from_bfloat16" in op.functions, 2), ("IMAD.(WIDE|HI).U32", 36), ("SHFL", 5)]


def opened(folder, **settings):
    """How many logits are in flight each time that the opening of a race's group waits for them"""
    blocks = small("out[thread_id()] = run_race<false>(s, o.dtype).score", folder, **settings)
    way = sass.common_way(blocks, OPENING, loads=False)
    return [n for _, n in sass.waits(way, {id(op) for op in way if "LDG.E.U16" in op})]


@needs_nvcc
def test_logits_of_a_group(tmp_path):
    """They are not loaded ahead, but issued together."""
    assert opened(tmp_path)[0] == 2


@needs_nvcc
def test_control_logits_of_a_group_one_after_the_other(tmp_path):
    asked = "bits[i] = first + i * kGroupTile < vocab ? logit_bits(row, dtype, first + i * kGroupTile) : 0"
    edits = (asked, "bits[i] = 0"), ("logit_of(bits[i], dtype)", "logit(row, dtype, first + i * kGroupTile)")
    assert opened(tmp_path, include=changed(tmp_path, "race_pass.h", *edits)) == [1, 1]


SUMS = """const Affine a = Affine::of(o.law);
  sum_tiles<1, {0}, 1>(s, {{o.law.row}}, {{static_cast<int>(o.law.vocab)}}, o.dtype, [&](Unit(&unit)[1][{0}], int, float (&part)[1]) {{
    part[0] = sum_units(unit[0], [&](float z) {{ return a.kept(z); }});
  }});
  out[thread_id()] = s.tile_sum[thread_id() & 255]"""
STATISTICS = "Law law = o.law; max_and_mass(s, law, o.dtype); out[thread_id()] = law.mass"


@needs_nvcc
def test_control_two_units_are_too_few(tmp_path):
    (tmp_path / "four").mkdir()
    four, two = code.turns(small(SUMS.format(4), tmp_path / "four")), code.turns(small(SUMS.format(2), tmp_path))
    assert refused(four) == [] and [turn.in_flight for turn in four] == [22_528, 22_528, 45_056]
    assert {(what, dtype, n) for what, _, dtype, n in refused(two)} == {
        ("bytes in flight", d, 11_264) for d in ("bfloat16", "float16")
    }


@needs_nvcc
def test_control_a_loop_that_does_not_ask_ahead(tmp_path):
    load = "    if (way.more()) batch.load(law.row, dtype, way.lane_first(), 32 * kUnit, way.end);\n"
    top = "    const float here = clamp_logit(warp_max_fast(batch.top(dtype)));\n"
    include = changed(tmp_path, "sums.h", (load, ""), (top, load.replace("if (way.more()) ", "") + top))
    faults = refused(code.turns(small(STATISTICS, tmp_path, include=include)))
    assert {(what, dtype) for what, _, dtype, _ in faults} >= {("used before the next are asked for", d) for d in code.DTYPES}


@needs_nvcc
def test_control_a_long_turn(tmp_path):
    """The histogram when tokens fall into bins: 16 per lane, one after another (benchmarks/results/predicted.md)"""
    blocks = small("scatter(s, o, s.histogram); out[thread_id()] = s.tile_sum[thread_id() & 255]", tmp_path)
    turns = code.turns(blocks)
    assert "long" not in {what for what, *_ in refused(turns)}
    way = sass.common_way(blocks, [("LDG.E.128", 4), ("MUFU.RCP", 16), ("ATOMS.ADD", 16)])
    faults = refused([turns[0]._replace(way=way)])
    assert "long" in {what for what, *_ in faults}


@needs_nvcc
def test_barriers_of_teams(kernel):
    name, arch, blocks = kernel
    assert code.fences(blocks, teams=arch == "90") == []
    if arch == "90":  # and all of them are there
        arrivals = [op.functions for ops, _ in blocks for op in ops if "SYNCS.ARRIVE" in op]
        functions = {names[names.index("team_barrier") + 1] for names in arrivals}
        assert set(code.TEAM_BARRIERS) - functions == ({"histogram", "crew"} if name == "row_kernel" else set())


TEAM = "SPS_START_TEAM(s); out[thread_id()] = team_max(s, static_cast<float>(out[0]))"
ARRIVAL, WAIT = "mbarrier.arrive.release.cluster", "mbarrier.try_wait.parity.acquire.cluster"
WRONG = {  # edits of team.h: the expected finding
    "nothing": ([], None),
    "released twice": ([("  if (thread_id() < team_size())\n    asm", "  __threadfence();\n  if (thread_id() < team_size())\n    asm")],
                       "stronger than a team needs"),
    "not released": ([(ARRIVAL, ARRIVAL.replace("release", "relaxed"))], "no memory barrier before"),
    "not acquired": ([(WAIT, WAIT.replace("acquire", "relaxed"))], "may be read again"),
    "the crew does not meet": ([("  named_barrier(1, thread_count());\n  if (thread_id() == 0) s.turn", "  if (thread_id() == 0) s.turn")],
                               "the crew does not meet"),
    "no start": ([("  asm volatile(\"barrier.cluster.arrive", "  if (false) asm volatile(\"barrier.cluster.arrive")],
                 "the team does not start together"),
}  # fmt: skip


@needs_nvcc
@pytest.mark.parametrize("what", WRONG)
def test_control_barriers_of_teams(tmp_path, what):
    edits, expected = WRONG[what]
    faults = code.fences(small(TEAM, tmp_path, include=changed(tmp_path, "team.h", *edits)), teams=True)
    assert any(expected in fault for fault in faults) if expected else faults == [], faults
    assert code.fences(small(TEAM, tmp_path), teams=False) != []


@needs_nvcc
def test_control_one_barrier_more(tmp_path):
    statement = re.sub(r"team_max\(.*\)", "total(s.tile_sum, 8); SPS_TEAM_BARRIER(s)", TEAM)
    assert "1 barriers of the team" in "".join(code.fences(small(statement, tmp_path), teams=True))


@needs_nvcc
def test_size(kernel):
    name, _, blocks = kernel
    assert 0.5 * TEXT[name] < code.text_bytes(blocks) < TEXT[name]


@needs_nvcc
def test_control_copies_of_a_pass_are_seen(tmp_path):
    (tmp_path / "once").mkdir()
    once = code.text_bytes(small(STATISTICS, tmp_path / "once"))
    assert code.text_bytes(small(f"{STATISTICS}; max_and_mass(s, o.law, o.dtype)", tmp_path)) > 1.5 * once
