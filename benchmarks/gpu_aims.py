"""What the GPU kernels were meant to reach, held against a result of the benchmarks: one line an aim, with its worst case."""

import operator
from typing import NamedTuple


class Aim(NamedTuple):
    text: str
    least: bool  # whether the value must be at least the bound, or at most
    bound: float
    values: list  # (value, case), of the cases that the aim is about


def aims(rows):
    """rows: those of the JSON, none of them failed -> [Aim]"""
    by_name = {row["case"]: row for row in rows}
    ours = {row["case"]: next(iter(row["ours"].values())) for row in rows}

    def of(key, *schemes, when=lambda row: True):
        return [(ours[r["case"]][key], r["case"]) for r in rows if r["scheme"] in schemes and when(r) and ours[r["case"]].get(key)]

    def times_slower(name, when=lambda row: True):
        found = [(row["others"].get(name, {}).get("ratio"), row["case"]) for row in rows if when(row)]
        return [(ratio, case) for ratio, case in found if ratio is not None]

    def over_plain(*filters):
        found = []
        for row in rows:
            plain = by_name.get(row["case"].removesuffix(row["filters"]) + "plain")
            if row["filters"] in filters and plain:
                found.append((ours[row["case"]]["us_cold"] / ours[plain["case"]]["us_cold"], row["case"]))
        return found

    def over_temperature_one():
        found = []
        for row in rows:
            plain = by_name.get(row["case"].replace("-T0.7-", "-T1-"))
            if plain and row["temperature"] != 1 and row["filters"] == "plain" and row["K"] == 1:
                found.append((ours[row["case"]]["us_cold"] / ours[plain["case"]]["us_cold"], row["case"]))
        return found

    one = lambda row: (row["B"], row["L"], row["V"]) == (1, 4, 128_256) and row["filters"] == "plain"
    plain = lambda row: row["filters"] == "plain" and row["bytes_needed"] >= 512 << 20
    triton = [
        (row["ours"]["triton"]["us_cold"] / row["ours"]["cuda"]["us_cold"], row["case"])
        for row in rows if row["B"] >= 64 and {"cuda", "triton"} <= set(row["ours"])
    ]  # fmt: skip
    return [
        Aim("`token`, 512 MiB or more read: % of the copy", True, 85, of("percent_of_copy", "token", when=plain)),
        Aim("`race`, 512 MiB or more read: % of the copy", True, 60, of("percent_of_copy", "race", when=plain)),
        Aim("`race`, B = 1, L = 4, V = 128 256: µs", False, 12, of("us_cold", "race", when=one)),
        Aim("`token`, B = 1, L = 4, V = 128 256: µs", False, 15, of("us_cold", "token", when=one)),
        Aim("the same: launches", False, 2, of("launches", "token", "race", when=one)),
        Aim("softmax and FlashInfer's chain kernel: ×", True, 3, times_slower("FlashInfer")),
        Aim("vLLM V2 at temperature 0.7: ×", True, 4, times_slower("vLLM V2", lambda row: row["temperature"] == 0.7)),
        Aim("eager torch: ×", True, 20, times_slower("torch", lambda row: row["scheme"] != "sample")),
        Aim("Triton over CUDA, B of 64 and more: ×", False, 1.5, triton),
        Aim("top-k, top-p or all filters over none: ×", False, 1.5, over_plain("top-k", "top-p", "all")),
        Aim("min-p over none: ×", False, 1.1, over_plain("min-p")),
        Aim("temperature 0.7 over 1: ×", False, 1.1, over_temperature_one()),
    ]


def lines(rows):
    """[aim, bound, worst value, reached, worst case] of the table"""
    out = []
    for aim in aims(rows):
        sign, reached = ("≥", operator.ge) if aim.least else ("≤", operator.le)
        if not aim.values:
            out.append([aim.text, f"{sign} {aim.bound:g}", "", "not measured", ""])
            continue
        value, case = (min if aim.least else max)(aim.values)
        met = sum(reached(v, aim.bound) for v, _ in aim.values)
        out.append([aim.text, f"{sign} {aim.bound:g}", f"{value:.3g}", f"{met} of {len(aim.values)}", case])
    return out
