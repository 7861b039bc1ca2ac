"""Known answers of the streams, which every backend runs: tests/data/philox.json (words), tests/data/clocks.json (clocks, races).

`check_races(backend)` is the part that applies to a backend; `check_odd_rows(backend)` tests rows whose groups contain values that
bounds may mishandle. `python tests/support/known_answers.py` rewrites both files from the reference; that is legitimate only
together with a new STREAM_VERSION, or to add answers that the files lacked.
"""

import json
from pathlib import Path

import torch

import specsample as ss
from specsample import backends
from specsample.reference import rng

DATA = Path(__file__).parents[1] / "data"
WORDS, CLOCKS = (json.loads((DATA / name).read_text()) for name in ("philox.json", "clocks.json"))

GROUPS = (0, 1, 30, 31, 32, 63, 64, 96, 127, 128, 129, 255, 1000, 4031)  # ends of tiles, of four tiles, and of V = 128 256
TOKENS = (0, 1, 7, 8, 255, 256, 264, 1023, 1024, 4095, 4096, 5000, 128_255)
ENDS = (0, 1, 5, 4095, 4096, 4097, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 4097, (1 << 32) - 2, (1 << 32) - 1)
STREAMS = (  # seed, position, purpose, slot: of the clocks
    (0, 0, rng.CLOCK, 0), (-5, 2**40 + 3, rng.CLOCK, 1023), (2**62, 7, rng.RESIDUAL, 0),
    (1, 2**33, rng.DRAFT, 77), (-(2**63), 2**31, rng.DISTINCT, 12),
)  # fmt: skip

# -- races -------------------------------------------------------------------------------------------------------------

DTYPES = {"float32": 12, "float16": 12, "bfloat16": 8}  # bits of the logits: exact in each


def logits(vocab, salt, dtype, heavy=None, without=None):
    """Logits that any language can compute exactly, [1, vocab]: bits of a hash of the id, in [−8, 8); `heavy`: the id of a token with
    logit 16; `without` n: every n-th token has logit −inf."""
    i, bits, low = torch.arange(vocab), DTYPES[dtype], (1 << 32) - 1
    h = (i * 0x9E3779B1 + salt * 0x85EBCA77) & low
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & low
    h ^= h >> 12
    z = (h >> (32 - bits)).double() * 2.0 ** (4 - bits) - 8
    if heavy is not None:
        z[heavy] = 16.0
    if without is not None:
        z[::without] = -torch.inf
    assert torch.equal(z.to(getattr(torch, dtype)).double(), z)
    return z.to(getattr(torch, dtype))[None]


def calls(case):
    """{name: backend -> tokens} for one case of the file; calls of `draft` are named after the kind."""
    row = logits(case["vocab"], case["salt"], case["dtype"], case.get("heavy"), case.get("without"))
    at = {"seed": torch.tensor([case["seed"]]), "position": case["position"]}
    draft = {"iid": 6, "distinct": 5, "arrivals": 8, "lists": 3, "top": 3}
    out = {name: lambda backend, name=name, k=k: ss.draft(row, k, kind=name, depth=1, node=3, backend=backend, **at)
           for name, k in draft.items()}  # fmt: skip
    # A one-hot draft whose token is hardly ever the target's: one race over the rest of the target.
    token = torch.tensor([[case["vocab"] // 2]])
    residual = lambda backend: ss.verify(row.expand(2, -1)[None], token, scheme="token", backend=backend, **at).tokens
    return {"sample": lambda backend: ss.sample(row, backend=backend, **at)[:, None], **out, "residual": residual}


def check_races(backend, vocabs=None):
    """Assert that a backend gives the file's tokens; vocabs: only for vocabularies of these sizes (28 calls each)."""
    has = backends.BACKENDS[backend].kinds
    for case in CLOCKS["races"]:
        if vocabs is None or case["vocab"] in vocabs:
            for name, call in calls(case).items():
                if name in ("sample", "residual") or has is None or name in has:
                    assert call(backend)[0].tolist() == case[name], (name, case)


# -- rows that bounds of groups may mishandle --------------------------------------------------------------------------

INF, NAN = float("inf"), float("nan")
ODD = 2100  # two tiles, and groups of eight, four and no tokens in the third


def odd_rows(dtype=torch.float32):
    """(rows, the same without NaN and +inf): [11, ODD] each"""
    i = torch.arange(ODD)
    base = logits(ODD, 1, "float32")[0]
    only = lambda ids, value: torch.where(torch.isin(i, torch.tensor(ids)), value, -INF)
    heavy = torch.where(torch.isin(i, torch.tensor([8, 256])), 20.0, base)  # groups 1 and 0: not in the order of ids
    rows = {
        "NaN at every place in turn": (torch.where(i % 9 == 0, NAN, base), torch.where(i % 9 == 0, -INF, base)),
        "NaN before and behind the heavy tokens": (torch.where(heavy.roll(1) + heavy.roll(-1) > 19, NAN, heavy),
                                                   torch.where(heavy.roll(1) + heavy.roll(-1) > 19, -INF, heavy)),
        "groups and a tile of NaN": (torch.where((i // 8 % 4 == 1) | (i // 1024 == 1), NAN, base),
                                     torch.where((i // 8 % 4 == 1) | (i // 1024 == 1), -INF, base)),
        "+inf in three groups": (torch.where(only([8, 256, 2099], 0.0) == 0, INF, base), only([8, 256, 2099], 0.0)),
        "+inf beside NaN and -inf": (
            torch.where(i % 3 == 0, torch.where(i % 2 == 0, NAN, -INF), torch.where(i % 5 == 0, INF, base)),
            torch.where((i % 3 != 0) & (i % 5 == 0), 0.0, -INF)),
        "three tokens": (only([5, 1500, 2099], 1.0),) * 2,
        "the last token": (only([2099], -3.0),) * 2,
        "none": (torch.full((ODD,), NAN), torch.full((ODD,), -INF)),
        "flat": (torch.zeros(ODD),) * 2,
        "two equal heavy ones": (heavy,) * 2,
        "one heavy one": (torch.where(i == 2098, 30.0, base),) * 2,
    }  # fmt: skip
    return tuple(torch.stack(x).to(dtype) for x in zip(*rows.values()))


def odd_calls(rows, backend):
    """{name: tokens} of calls on every row; the drafts are heavy tokens, so that residuals exclude them."""
    at = {"seed": 77, "position": 5, "backend": backend}
    few, greedy = ss.Sampling(0.7, top_k=3, min_p=0.01), ss.Sampling(0.0)
    out = {f"sample {n}": ss.sample(rows, sampling=x, **at)[:, None] for n, x in enumerate((ss.Sampling(), few, greedy))}
    has = backends.BACKENDS[backend].kinds
    for kind, k in {"iid": 3, "distinct": 4, "arrivals": 4, "lists": 2, "top": 3, "topk": 4}.items():
        if has is None or kind in has:
            out[kind] = ss.draft(rows, k, kind=kind, **at)
    target = rows[:, None].expand(-1, 3, -1)
    tokens = torch.tensor([[2098, 8]]).expand(len(rows), -1)
    drafts = target[:, :2].flip(0)  # each from a different law
    for scheme in ("token", "block", "race", "lists", "top", "recursive_distinct"):
        siblings = scheme in ("lists", "top", "recursive_distinct")
        for law in (drafts,) if siblings else (drafts, None):
            tree = {"parents": [-1, -1], "draft_rows": [0, 0]} if siblings else {}
            out[scheme, law is None] = ss.verify(target, tokens, law, scheme=scheme, **tree, **at).tokens
    return out


def check_odd_rows(backend, dtype=torch.float32):
    """Assert that NaN is treated as −inf, that +inf tokens share all mass, and the reference's tokens for ties, tails and exclusions."""
    odd, clean = odd_rows(dtype)
    want, got = odd_calls(clean, "reference"), odd_calls(odd, backend)
    for name in want.keys() & got.keys():
        assert torch.equal(got[name], want[name]), (name, got[name].tolist(), want[name].tolist())
    assert got["sample 2"][9].tolist() == [8] and got["sample 0"][6].tolist() == [2099] and got["sample 0"][7].tolist() == [-1]
    return got


# -- writing -----------------------------------------------------------------------------------------------------------


def _hex(words):
    return [f"{w:08x}" for w in words]


def _stream(seed, position, purpose, slot):
    return torch.tensor([seed]), torch.tensor([position]), purpose, torch.tensor([slot])


def words():
    """The streams of philox.json, recomputed by the reference."""
    out = []
    for old in WORDS["streams"]:
        name = {k: old[k] for k in ("seed", "position", "purpose", "slot")}
        stream = _stream(**name)
        new = {"words": rng.words(*stream, 10)[0].tolist(), "refine": rng.words(*stream, 10, refine=True)[0].tolist()}
        if name["purpose"] not in (rng.ACCEPT, rng.SELECT):
            for key, second in (("group_words", False), ("second_group_words", True)):
                new[key] = rng.group_words(*stream, GROUPS[-1] + 1, second)[0, list(GROUPS)].tolist()
        out.append(name | {key: _hex(value) for key, value in new.items()})
    return out


def least(a, s):
    """(M, place) of given words, by the reference: (float, int)"""
    original = rng.group_words
    rng.group_words = lambda *stream, second=False: torch.tensor([[s if second else a]])
    try:
        clock, place = rng.least_clocks(*_stream(0, 0, 0, 0), 1)
    finally:
        rng.group_words = original
    return clock.item(), place.item()


def clock(seed, position, purpose, slot, token, word=None):
    """The clock of a token by the reference, or with `word` in place of its own: float"""
    original = rng.words
    rng.words = lambda *stream, refine=False: (
        original(*stream, refine=refine) if refine or word is None else torch.full((1, stream[-1]), word)
    )
    try:
        return rng.clocks(*_stream(seed, position, purpose, slot), token + 1)[0, token].item()
    finally:
        rng.words = original


def clocks():
    """Every section of clocks.json."""
    ends = [(a, s) for a in ENDS for s in (0, (1 << 27) - 1, (31 << 27) + 12345, (1 << 32) - 1)]
    lines = {"least": [], "clocks": [], "of_words": [], "races": []}
    for a, s in ends:
        m, place = least(a, s)
        lines["least"].append({"a": f"{a:08x}", "s": f"{s:08x}", "place": place, "clock": m.hex()})
    for stream in STREAMS:
        name = dict(zip(("seed", "position", "purpose", "slot"), stream))
        lines["clocks"].append(name | {"clocks": [clock(*stream, token).hex() for token in TOKENS]})
    seed, position, purpose, slot = STREAMS[1]
    for word in ENDS:
        name = {"seed": seed, "position": position, "purpose": purpose, "slot": slot, "token": 17}  # not at its group's place
        lines["of_words"].append(name | {"word": f"{word:08x}", "clock": clock(**name, word=word).hex()})
    for n, vocab in enumerate((1, 2, 31, 32, 33, 255, 1000, 1023, 1024, 1025, 8193, 128_256)):
        for m, odd in enumerate(({}, {"heavy": vocab - 1}, {"without": 3}, {})):
            case = {"vocab": vocab, "dtype": list(DTYPES)[(n + m) % 3], "salt": 5 * n + m} | odd
            case |= {"seed": (3 * n + m - 8) * 0x123456789ABCD, "position": (n * m) << 31 | 40 * n}
            if vocab < 10_000 or m < 3:
                lines["races"].append(case | {name: call("reference")[0].tolist() for name, call in calls(case).items()})
    return lines


def write():
    """Write both files, one case per line."""
    about = WORDS["about"], CLOCKS["about"]
    for name, text, lines in (
        ("philox.json", about[0], {"philox4x32_10": WORDS["philox4x32_10"], "streams": words()}),
        ("clocks.json", about[1], clocks()),
    ):
        head = [f' "about": {json.dumps(text)}', f' "stream_version": {ss.STREAM_VERSION}']
        sections = [f' "{key}": [\n  ' + ",\n  ".join(map(json.dumps, value)) + "\n ]" for key, value in lines.items()]
        (DATA / name).write_text("{\n" + ",\n".join(head + sections) + "\n}\n")


if __name__ == "__main__":
    write()
