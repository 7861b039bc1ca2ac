"""The benchmarks that no other test runs, on shapes that take a moment: they finish, and their reports are consistent."""

import importlib
import json

import pytest

import specsample as ss

needs_cpu = pytest.mark.skipif("cpu" not in ss.schemes()["token"].backends, reason="the compiled extension is missing")


def load(name):
    pytest.importorskip("numpy", reason="needs specsample[theory]")
    return importlib.import_module(f"benchmarks.{name}")


@needs_cpu
@pytest.mark.parametrize("length", (1, 2))
def test_several_drafts_beside_one(length):
    bench = load("cpu.multi_draft")
    shape, agreement = bench.Shape("peaked", "float32", 4, 3, length, 300), bench.harness.Agreement()
    rows = bench.run(shape, agreement, 0.0)
    assert agreement.tokens > 0 and agreement.differing == 0
    several = {row["scheme"] for row in rows if row["paths"] == 3}
    assert {"recursive", "kseq", "optimal", "optimal_block", "importance"} <= several
    assert ({"race", "top", "lists", "recursive_distinct"} <= several) == (length == 1)
    for row in rows:
        assert row["us"]["median"] > 0 and row["ratio"] > 0 and 0 <= row["accepted"] <= length
        assert (row["ratio"] == 1) == (row["scheme"] in ("token", "race") and row["paths"] == 1)
        if row["scheme"] == "optimal":  # its bins cost almost nothing
            assert 0 <= row["optimum"] - row["acceptance"] < 2e-3
    assert bench.markdown({"machine": bench.harness.machine(), "seconds": 1.0, "rows": rows,
                           "agreement": {"tokens": agreement.tokens, "differing": 0}}).count("\n| ") > len(rows)  # fmt: skip


@needs_cpu
def test_linear_programs_beside_optimal():
    pytest.importorskip("scipy", reason="needs specsample[theory]")
    bench = load("cpu.multi_draft")
    rows = bench.programs(((2, 40), (3, 12)), 5)
    for row in rows:
        assert row["ratio"] > 1 and abs(row["lp_less_it"]) < 1e-6 and -1e-9 < row["bins_lose"] < 1e-3
    assert bench.markdown({"machine": bench.harness.machine(), "seconds": 1.0, "rows": [], "programs": rows,
                           "agreement": {"tokens": 0, "differing": 0}}).count("\n| ") == len(rows) + 2  # fmt: skip


@needs_cpu
def test_overhead_of_the_loop():
    pytest.importorskip("transformers", reason="needs transformers")
    bench = load("cpu.overhead")
    rows = bench.measure(1, 6)
    assert [row["case"] for row in rows] == [name for name, _ in bench.SETTINGS]
    assert all(min(row["us"].values()) > 0 for row in rows)


@needs_cpu
def test_this_tree_beside_itself(tmp_path, capsys):
    bench = load("cpu.before")
    path = tmp_path / "groups.json"
    assert bench.main(["--quick", "--threads", "1", "--out", str(path)]) == 0
    result, table = json.loads(path.read_text()), path.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out and str(bench.ROOT) not in table + path.read_text()
    rows = {(row["case"], row["compared"]): row for row in result["rows"]}
    names = [case.name for group in bench.before_cases.quick_groups() for case in group]
    assert len(rows) == len(names) + 2 and all((name, "before / now") in rows for name in names)
    for row in rows.values():
        assert row["n"] >= bench.LEAST and 0 < row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert min(us["low"] for us in row["us"]) > 0 and table.count(f"| {row['case']} | ") >= 1
        if row["compared"] == "before / now":
            assert row["checked"]["differing"] == 0 and len(set(row.get("accepted", [0]))) == 1
    assert rows["sample-zipf-float32-V300-B16", "row_stats before / sample now"]
    assert rows["iid-zipf-float32-V300-B16-K8", "K = 8 / K = 1, now"]


def test_aims_beside_what_was_measured():
    bench = load("cpu.before")

    def row(compared, op, kind, B, median, dtype="float32", V=128_256):
        case = bench.before_cases.Case(op, kind, "peaked", dtype, V, B)
        ratio = {"median": median, "low": median - 0.1, "high": median + 0.1}
        return {"case": case.name, "compared": compared, **case._asdict(), "threads": 1, "ratio": ratio}

    both = "before / now"
    rows = [row(both, "sample", "", 1, 2.9), row(both, "sample", "", 16, 4.0), row(both, "sample", "", 16, 2.5, "bfloat16"),
            row(both, "verify", "token", 1, 1.4), row(both, "verify", "token", 8, 0.95), row(both, "verify", "race", 1, 1.2, V=1000),
            row("row_stats before / sample now", "sample", "", 16, 0.9),
            row("K = 8 / K = 1, now", "draft", "iid", 16, 1.9)]  # fmt: skip
    found = {line[0]: line[1:] for line in bench.aim_lines(rows)}
    assert found["`sample`, float32, V = 128 256: × faster"] == [
        "≥ 3", "2.90", "3.45", "1 of 2", "not met", "sample-peaked-float32-V128256-B1, 1 thread"]  # fmt: skip
    assert found["`sample`, bfloat16, V = 128 256: × faster"][3:5] == ["1 of 1", "met"]
    assert found["row statistics before over `sample` now, V = 128 256"][1:5] == ["0.90", "0.90", "0 of 1", "not met"]
    assert found["`token`, B = 1, peaked rows, V = 128 256: × faster"][3:5] == ["1 of 1", "met"]
    assert found["`draft`, iid, k = 8 over k = 1, V = 128 256"][:5] == ["≤ 2", "1.90", "1.90", "1 of 1", "met"]
    assert found["`race`, V = 128 256: × faster"][4] == "not measured"  # the small vocabulary does not count
    assert found["nothing slower, upper quartile: × faster"][3:5] == ["6 of 6", "met"]  # .95 to 1.05 is noise around 1


def test_prices_of_a_pass():
    """A loop over bfloat16 or float32 rows with random words every fourth turn, in nvdisasm's notation"""
    pytest.importorskip("triton", reason="needs specsample[triton]")
    load("gpu.predict")  # which finds the helpers of the tests
    passes, sass = load("gpu.passes"), importlib.import_module("sass")
    of_16_bits, of_float32 = ["@P1 LDG.E.128.CONSTANT R0, [R2]"] * 4, ["@!P1 LDG.E.128.CONSTANT R0, [R2]"] * 8
    lines = [".L_x_1:", *of_16_bits, *of_float32, *["HMNMX2.BF16_V2 R1, R2, R3"] * 4, "@P0 BRA `(.L_x_2)",
             *["IMAD.WIDE.U32 R4, R5, 0x9, RZ"] * 18, ".L_x_2:", "MUFU.LG2 R1, R1", "@P3 BRA `(.L_x_1)",
             ".L_x_3:", "LDG.E.U16 R1, [R2]", "SHFL.BFLY R1, R2", "@P4 BRA `(.L_x_3)", "EXIT"]  # fmt: skip
    blocks = sass.blocks_of(listing(lines))
    way = sass.common_way(blocks, [passes.LOADS, passes.LOG2])
    assert len(way) == 19 and passes.loads_of(way) == 4 and passes.loads_of(of_float32) == 8
    one = passes.Pass(blocks, passes.Kind("", (passes.LOADS, passes.LOG2), (passes.PHILOX,), 128))
    assert one.turn == 32 and one.instructions == (37 + 3 * 19) / 128 and one.wide == 18 / 128 and one.special == 4 / 128
    assert one.in_flight == 4 * 16 * passes.CREW * passes.BLOCKS
    assert one.after == 19 + 3 and one.waits > passes.LATENCY + 22 * passes.DEPENDENT / passes.CLOCK
    assert len(sass.common_way(blocks, [("LDG.E.U16", 1), ("SHFL", 1)], loads=False)) == 3
    with pytest.raises(RuntimeError, match="no loop does all of"):
        sass.common_way(blocks, [("ATOMS", 1)])
    assert passes.rounds(88) == [1, 2] and passes.rounds(11) == [3, 4]

    # The same loop over a row that is read token by token, eight of which are packed before the next are loaded.
    packed = [f"LDG.E.U16 R{j}, [R20]" for j in range(8)] + ["PRMT R8, R0, 0x5410, R1"]
    narrow = sass.blocks_of(listing([".L_x_1:", *lines[1:14], "@P2 BRA `(.L_x_4)", *packed * 4, ".L_x_4:", "MUFU.LG2 R1, R8",
                                     "@P3 BRA `(.L_x_1)", "EXIT"]).replace("[R2]", "[R30]"))  # fmt: skip
    one = passes.Pass(narrow, passes.Kind("", (passes.LOADS, passes.LOG2)), aligned=False)
    assert one.turn == 32 and one.in_flight == 8 * 2 * passes.CREW * passes.BLOCKS
    assert one.first == passes.VOCAB / 32 * passes.LINES / passes.CLOCK


def listing(lines):
    return "\n".join(line if line.startswith(".L") else f"        /*0010*/    {line} ;" for line in lines)


def test_plan_of_a_call():
    """Teams as the launch code chooses them (the same numbers as in tests/test_ptx.py), and the passes that follow from a filter"""
    pytest.importorskip("triton", reason="needs specsample[triton]")
    load("gpu.predict")
    plan, passes, Case = load("gpu.plan"), load("gpu.passes"), load("gpu.cases").Case
    assert [plan.team(n, 128_256) for n in (1, 16, 17, 33, 34, 66, 67, 1000)] == [8, 8, 4, 4, 2, 2, 1, 1]
    assert [plan.team(1, v) for v in (777, 5631, 5641, 11_300, 22_600)] == [1, 1, 2, 4, 8]
    assert plan.team(2, 22_600, processors=8) == 4
    shape = lambda case: [(launch.teams, launch.team) for launch in plan.launches(case)]
    V = 128_256
    assert shape(Case("token", 1, 4, V)) == [(9, 8), (1, 8)] and shape(Case("token", 8, 4, V)) == [(8, 8)]
    assert shape(Case("race", 8, 4, V)) == [(40, 2), (8, 8)] and shape(Case("sample", 256, 0, V)) == [(256, 1)]
    names = {
        f: [len(plan.launches(Case("token", 64, 4, V, 0.7, f))[0].passes)] for f in ("plain", "top-k", "top-p", "min-p", "all")
    }
    # Eight laws with a mass, one without, and a race. A filtered law: its maximum; a bound and three digits for top-k; a mass and three
    # digits for top-p; its mass.
    each = {"top-k": 1 + 4, "top-p": 1 + 4, "min-p": 1, "all": 1 + 4 + 4}
    assert names == {"plain": [8 + 1]} | {f: [8 * (n + 1) + n + 1] for f, n in each.items()}

    class Same:  # every pass takes a team a microsecond, and has 700 instructions to its end
        kind, after = passes.PASSES[passes.STATISTICS], 700
        of_team = staticmethod(lambda *_: 1e-6)

    every = dict.fromkeys(passes.PASSES, Same)
    parts = plan.price([plan.Launch(1, [passes.STATISTICS], {"launch": 1, "barrier of a team": 1})], every, 1e-6)
    assert parts[0] == [3, 3] and parts[1] == pytest.approx([3 * 0.5 + 3 * 0.05, 3 * 1.0 + 3 * 0.05])
    assert parts[2] == pytest.approx([2.4, 2.4]) and parts[3] == pytest.approx([1, 1]) and parts[4] == [0, 0]
    two_waves = plan.price([plan.Launch(256, [passes.STATISTICS], {})], every, 1e-6)
    assert two_waves[3] == pytest.approx([2, 2]) and two_waves[1] == pytest.approx([2 * 5 * 0.05] * 2)


@needs_cpu
def test_the_runner_and_its_figure(tmp_path):
    pytest.importorskip("matplotlib", reason="needs specsample[bench]")
    bench, out = load("cpu.run"), tmp_path / "cpu.json"
    assert bench.main(["--quick", "--filter", "token-peaked-float32-B1", "--threads", "1", "--plot", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["rows"] and result["agreement"]["differing"] == 0 and out.with_suffix(".png").stat().st_size > 1000
    assert all(row["case"] in out.with_suffix(".md").read_text() for row in result["rows"])


@needs_cpu
def test_scratch_memory_of_a_call():
    memory = load("cpu.memory")
    if not memory.STATUS.exists():
        pytest.skip("needs Linux")
    rows = memory.rows(8, 4, 32000, "float32")
    assert rows["peak_cpu"]["peak_kb"] < 2048 < rows["peak_torch"]["peak_kb"], rows  # eager torch writes probabilities
