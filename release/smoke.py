"""Whether an installed specsample works: run by release/check.py in fresh environments, with nothing of the checkout on the path.

    python release/smoke.py EXPECTED README.md      EXPECTED: {"cuda": "12.4" or null, "version": "0.1.0+cu124", "fits": true}

Prints one line for each check; the first failure ends it.
"""

import importlib.metadata
import json
import re
import sys
import time
from pathlib import Path

START = time.perf_counter()
import torch  # noqa: E402

import specsample as ss  # noqa: E402
from specsample import backends, ops  # noqa: E402


def case(scheme):
    """Arguments of `verify`: three requests with a small vocabulary, drafts drawn from the draft's laws"""
    kind, make = ss.schemes()[scheme].draft_kind, torch.Generator().manual_seed(1)
    target = torch.randn(3, 4, 500, generator=make)
    draft = target[:, :3] + 0.5 * torch.randn(3, 3, 500, generator=make)
    at = {"seed": 7, "position": 11}
    tokens = [ss.draft(draft[:, i], kind=kind, depth=i, node=i, backend="reference", **at) for i in range(3)]
    tokens = torch.cat([token[:, :1] for token in tokens], 1)
    return {"target_logits": target, "draft_tokens": tokens, "draft_logits": draft, "scheme": scheme, **at}


def information(expected):
    info = ss.build_info()
    assert info["cuda"] == expected["cuda"] and "cpu" in info["backends"], info
    assert importlib.metadata.version("specsample") == expected["version"]
    assert expected["folder"] in ss.__file__, ss.__file__
    why = info["unavailable"].get("cuda")
    if expected["cuda"] and expected["fits"]:
        assert why is None or "no NVIDIA GPU" in why or "compute capability" in why, why
    elif expected["cuda"]:
        assert f"built with CUDA {expected['cuda']}" in why or "without CUDA" in why, why
    return f"torch {torch.__version__}, CUDA kernels {info['cuda'] or 'none'} for {' '.join(info['architectures']) or '-'}: {why or 'available'}"


def first_token():
    logits = torch.randn(1, 3, 1000)
    ss.verify(logits, torch.tensor([[1, 2]]), logits[:, :2], seed=1, position=0)
    return f"{time.perf_counter() - START:.1f} s from the start of Python's imports to the first verified token"


def same_tokens():
    for scheme in ss.schemes():
        arguments = case(scheme)
        got, wanted = (ss.verify(**arguments, backend=name) for name in ("cpu", "reference"))
        assert torch.equal(got.tokens, wanted.tokens), scheme
    return f"{len(ss.schemes())} schemes give the reference's tokens"


def checked_ops():
    """torch's own check of each op, with the arguments that the public functions pass"""
    passed = {}

    class Recorder:
        def __getattr__(self, name):
            op = getattr(torch.ops.specsample, name)
            return lambda *arguments: (passed.__setitem__(name, arguments), op(*arguments))[1]

    usual = backends.BACKENDS["cpu"]
    backends.BACKENDS["cpu"] = usual._replace(functions=Recorder())
    try:
        ss.verify(**case("block"))
        ss.sample(torch.randn(2, 50), seed=1, position=2)
        ss.draft(torch.randn(2, 50), 2, seed=1, position=2)
        ss.row_stats(torch.randn(2, 50))
    finally:
        backends.BACKENDS["cpu"] = usual
    assert set(passed) == set(ops.SCHEMAS)
    for name, arguments in passed.items():
        torch.library.opcheck(getattr(torch.ops.specsample, name), arguments)
    return f"opcheck: {', '.join(passed)}"


def examples(readme):
    """Those that need only torch; the others' models come from a hub."""
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    runnable = [block for block in blocks if "from_pretrained" not in block]
    assert runnable
    for block in runnable:
        exec(compile(block, "README.md", "exec"), {})
    return f"{len(runnable)} of the README's {len(blocks)} examples"


if __name__ == "__main__":
    stated, page = json.loads(sys.argv[1]), Path(sys.argv[2]).read_text()
    for step in (lambda: information(stated), first_token, same_tokens, checked_ops, lambda: examples(page)):
        print(f"    {step()}", flush=True)
