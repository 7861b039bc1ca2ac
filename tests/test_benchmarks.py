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


def test_instructions_of_the_common_way():
    """A loop over bfloat16 or float32 rows with random words every fourth turn, in nvdisasm's notation"""
    pytest.importorskip("triton", reason="needs specsample[triton]")
    predict = load("gpu.predict")
    of_16_bits, of_float32 = ["@P1 LDG.E.128.CONSTANT R0, [R2]"] * 4, ["@!P1 LDG.E.128.CONSTANT R0, [R2]"] * 8
    lines = [".L_x_1:", *of_16_bits, *of_float32, *["HMNMX2.BF16_V2 R1, R2, R3"] * 4, "@P0 BRA `(.L_x_2)",
             *["IMAD.WIDE.U32 R4, R5, 0x9, RZ"] * 18, ".L_x_2:", "MUFU.LG2 R1, R1", "@P3 BRA `(.L_x_1)",
             ".L_x_3:", "LDG.E.U16 R1, [R2]", "SHFL.BFLY R1, R2", "@P4 BRA `(.L_x_3)", "EXIT"]  # fmt: skip
    text = "\n".join(line if line.startswith(".L") else f"        /*0010*/    {line} ;" for line in lines)
    way = predict.common_way(text, [predict.LOADS, predict.LOG2])
    assert len(way) == 19 and predict.loads_of(way) == 4 and predict.loads_of(of_float32) == 8
    one = predict.Pass(text, 1, [predict.LOADS, predict.LOG2], [predict.PHILOX], 128)
    assert one.turn == 32 and one.instructions == (37 + 3 * 19) / 128 and one.wide == 18 / 128 and one.special == 4 / 128
    assert one.in_flight == 4 * 16 * predict.CREW * predict.BLOCKS
    assert len(predict.common_way(text, [("LDG.E.U16", 1), ("SHFL", 1)], loads=False)) == 3
    with pytest.raises(RuntimeError, match="no loop does all of"):
        predict.common_way(text, [("ATOMS", 1)])
    assert predict.rounds(88) == [1, 2] and predict.rounds(11) == [3, 4]
