"""Laws with gaps of many temperatures, beyond the range of float exponentials: the inputs of test_cold_laws.py, for every scheme."""

import torch

GAPS = (1, 10, 60, 90, 150, 745, 1500)  # float32 exponentials end at 87 to 103, float64's at 708 to 745
MOST = 4  # children of a node

_WARM = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
_SPACED, _BACK = (-1.0, 0.0, -2.0, -4.0, -3.0, -5.0), (-4.0, -5.0, -3.0, -1.0, -2.0, 0.0)

# name: logits of the target and of the draft, each as a multiple of the gap plus a multiple of the temperature
SHAPES = {
    "cold draft": ((), _WARM, _SPACED, ()),
    "tied below": ((), _WARM, (0.0, -1.0, -1.0, -1.0, -1.0, -1.0), ()),
    "warm below": ((), _WARM, (-1.0, -1.0, 0.0, -1.0, -2.0, -2.0), (0.0, 1.0, 0.0, 0.5, 0.3, 0.0)),
    "cold target": (_SPACED, (), (), _WARM),
    "two targets": ((-1.0, 0.0, -1.0, 0.0, -1.0, -2.0), _WARM, (), _WARM),
    "far apart": (_SPACED, _WARM, _BACK, ()),
    "near": (_SPACED, (), _SPACED, _WARM),
}


def rows(shape, gap):
    """(target, draft): logits float64 [V]"""
    zero = torch.zeros(len(_WARM), dtype=torch.float64)
    part = lambda x: torch.tensor(x, dtype=torch.float64) if x else zero
    target_gaps, target, draft_gaps, draft = (part(x) for x in SHAPES[shape])
    return gap * target_gaps + target, gap * draft_gaps + draft
