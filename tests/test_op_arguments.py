"""Messages for callers of torch.ops that bypass the Python functions: the same on every device, since their ops share the checks
(csrc/arguments.h). Whatever is rejected here would otherwise be read out of bounds."""

import re

import cuda_on_cpu
import pytest
import torch
from conftest import numbers

B, N, V = 3, 2, 9
TARGET, DRAFT = numbers(B, N + 1, V, seed=1), numbers(B, N, V, seed=2)
TOKENS = torch.zeros(B, N, dtype=torch.int64)
OFF = [1.0, 0.0, 1.0, 0.0]
INTS = torch.zeros(B, dtype=torch.int64)
VERIFY = {
    "target_logits": TARGET, "draft_tokens": TOKENS, "draft_logits": DRAFT, "parents": None, "rows": None, "draft_rows": None,
    "lists": None, "max_depth": N, "scheme": "token", "options": [], "sampling": OFF, "sampling_rows": None,
    "draft_sampling": OFF, "draft_sampling_rows": None, "draft_max": None, "draft_logsumexp": None, "draft_cutoff": None,
    "seed": 1, "seeds": None, "position": 2, "positions": None, "cu_rows": None, "logprobs": 0,
}  # fmt: skip
PACKED = {**VERIFY, "target_logits": TARGET.flatten(0, 1), "draft_tokens": TOKENS.flatten(), "draft_logits": None}
PACKED["cu_rows"] = torch.tensor([0, 3, 6, 9], dtype=torch.int32)
SAMPLE = {
    "logits": TARGET[:, 0],
    "sampling": OFF,
    "sampling_rows": None,
    "seed": 1,
    "seeds": None,
    "position": 2,
    "positions": None,
}
KIND = {"depth": 0, "depths": None, "node": 0, "nodes": None}
DRAFTS = {"logits": TARGET[:, 0], "k": 2, "kind": "iid", **{k: v for k, v in SAMPLE.items() if k != "logits"}, **KIND}
STATS = {"draft_max": INTS.float(), "draft_logsumexp": INTS.float(), "draft_cutoff": INTS.float()}
WIDE = torch.zeros(4, B + 1, dtype=torch.float64)
REFUSED = [  # op, the good value, the bad one, the argument named
    ("verify", VERIFY, {"target_logits": TARGET[0]}, "target_logits"),
    ("verify", VERIFY, {"target_logits": TARGET.double()}, "target_logits"),
    ("verify", VERIFY, {"target_logits": TARGET.transpose(1, 2)}, "target_logits"),
    ("verify", VERIFY, {"draft_tokens": TOKENS.flatten()}, "draft_tokens"),
    ("verify", VERIFY, {"draft_tokens": TOKENS[:2]}, "draft_tokens"),
    ("verify", VERIFY, {"draft_tokens": TOKENS.float()}, "draft_tokens"),
    ("verify", VERIFY, {"draft_logits": DRAFT[0]}, "draft_logits"),
    ("verify", VERIFY, {"draft_logits": DRAFT[:2]}, "draft_logits"),
    ("verify", VERIFY, {"draft_logits": DRAFT.bfloat16()}, "draft_logits"),
    ("verify", VERIFY, {"parents": torch.zeros(N - 1, dtype=torch.int64)}, "parents"),
    ("verify", VERIFY, {"parents": torch.zeros(B - 1, N, dtype=torch.int64)}, "parents"),
    ("verify", VERIFY, {"rows": torch.zeros(N, dtype=torch.int64)}, "rows"),
    ("verify", VERIFY, {"draft_rows": TOKENS.float()}, "draft_rows"),
    ("verify", VERIFY, {"scheme": "lists", "lists": torch.zeros(1, dtype=torch.int32)}, "lists"),
    ("verify", VERIFY, {"max_depth": -1}, "max_depth"),
    ("verify", VERIFY, {"scheme": "tokens"}, "scheme"),
    ("verify", VERIFY, {"options": [1.0] * 5}, "options"),
    ("verify", VERIFY, {"scheme": "optimal"}, "options"),
    ("verify", VERIFY, {"scheme": "kseq", "options": [2.0**21]}, "options"),
    ("verify", VERIFY, {"sampling": OFF[:3]}, "sampling"),
    ("verify", VERIFY, {"sampling_rows": WIDE}, "sampling"),
    ("verify", VERIFY, {"draft_sampling_rows": WIDE}, "draft_sampling"),
    ("verify", VERIFY, STATS, "draft_stats"),
    ("verify", VERIFY, {"seeds": INTS[:2]}, "seed"),
    ("verify", VERIFY, {"positions": INTS.int()}, "position"),
    ("verify", PACKED, {"cu_rows": PACKED["cu_rows"].long()}, "cu_rows"),
    ("verify", PACKED, {"cu_rows": PACKED["cu_rows"][:0]}, "cu_rows"),
    ("verify", PACKED, {"draft_tokens": TOKENS}, "draft_tokens"),
    ("verify", PACKED, {"parents": torch.zeros(B * N - 1, dtype=torch.int64)}, "parents"),
    ("verify", PACKED, {"parents": TOKENS}, "parents"),
    ("sample", SAMPLE, {"logits": TARGET}, "logits"),
    ("sample", SAMPLE, {"sampling_rows": WIDE[:, :2]}, "sampling"),
    ("sample", SAMPLE, {"seeds": INTS[:1]}, "seed"),
    ("draft", DRAFTS, {"k": 1025}, "k"),
    ("draft", DRAFTS, {"kind": "best"}, "kind"),
    ("draft", DRAFTS, {"depths": INTS[:1]}, "depth"),
    ("draft", DRAFTS, {"nodes": INTS.float()}, "node"),
    ("row_stats", {"logits": TARGET[:, 0], "sampling": OFF, "sampling_rows": None}, {"sampling_rows": WIDE}, "sampling"),
]  # fmt: skip


def libraries():
    cuda_on_cpu.load()
    return {name: getattr(torch.ops, library) for name, library in cuda_on_cpu.LIBRARIES.items()}


@pytest.mark.parametrize("op, good, bad, name", REFUSED, ids=[f"{op}-{name}-{i}" for i, (op, _, _, name) in enumerate(REFUSED)])
def test_the_same_is_said_on_every_device(op, good, bad, name):
    said = set()
    for ops in libraries().values():
        getattr(ops, op)(*good.values())
        with pytest.raises(RuntimeError) as caught:
            getattr(ops, op)(*{**good, **bad}.values())
        said.add(re.sub(r"^\w+(\(\))?, \S+:\d+, ", "", str(caught.value).splitlines()[0]))  # without the location in the source
    (text,) = said
    assert text.startswith(f"{name}: ")


def test_packed_requests_beyond_the_rows_have_no_rows():
    """No row number of theirs is read: they have none."""
    beyond = torch.tensor([0, 3, 100, 103], dtype=torch.int32)
    good = {**PACKED, "cu_rows": beyond, "rows": torch.arange(9)}
    out = [ops.verify(*good.values()) for ops in libraries().values()]
    for tokens, count, nodes, _ in out:
        assert (tokens[2] == -1).all() and int(count[2]) == 0 and (nodes[2] == -1).all()
    assert all(torch.equal(x, y) for x, y in zip(out[0], out[1]))
