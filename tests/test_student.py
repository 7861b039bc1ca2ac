"""The demo's draft model in its file: matrices of 4 bits per weight come back as stored, and nothing else is lost."""

from pathlib import Path

import pytest
import torch
from models import tiny_llama

pytest.importorskip("safetensors", reason="needs specsample[demo]")
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def student(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import student

    return student


def test_packed_levels_come_back(student):
    levels = torch.arange(-8, 8).repeat(2, 4).float()
    scales = torch.tensor([[0.5, -2.0], [0.0, 1e-3]]).half()
    assert student.packed(levels).shape == (2, 32) and student.packed(levels).dtype == torch.uint8
    expected = levels * scales.float().repeat_interleave(student.GROUP, 1)
    assert torch.equal(student.unpacked(student.packed(levels), scales), expected)


def test_a_scale_fits_its_group(student):
    groups = torch.randn(50, student.GROUP, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 1, 50)[:, None]
    groups[7] = 0
    scales = student.best_scales(groups).float()[:, None]
    back = student.levels_of(groups, scales) * scales
    inside = groups.abs() < 7 * scales.abs()
    assert ((back - groups).abs() <= 0.501 * scales.abs())[inside].all() and inside.float().mean() > 0.9
    assert (back - groups).norm() / groups.norm() < 0.1 and not back[7].any()


def test_rounding_keeps_what_a_layer_gives(student):
    """On independent inputs each weight is rounded to the nearest level; on others this brings the outputs closer than that."""
    from distill.quantise import rounded

    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(24, 64, generator=generator)
    nearest = [student.best_scales(part) for part in matrix.split(student.GROUP, 1)]
    nearest = torch.stack(nearest, 1).float().repeat_interleave(student.GROUP, 1)
    nearest = student.levels_of(matrix, nearest) * nearest
    assert torch.equal(student.scaled(*rounded(matrix, torch.eye(64, dtype=torch.float64))), nearest)
    x = torch.randn(500, 8, generator=generator) @ torch.randn(8, 64, generator=generator) + 0.1 * torch.randn(500, 64)
    ours = student.scaled(*rounded(matrix, (x.T @ x).double()))
    error = lambda other: ((other - matrix) @ x.T).norm()
    assert error(ours) < 0.5 * error(nearest)


def test_a_student_comes_back_from_its_file(student, tmp_path):
    from distill.quantise import quantise
    from distill.train import save_student

    target = tiny_llama(1, dtype=torch.float32, inner=64)
    model = student.new_student(target, 2, 40)
    before = {name: value.clone() for name, value in student.own_parameters(model).items()}
    path, text = tmp_path / "student.safetensors", torch.arange(40).view(2, 20)
    for bits in (16, 4):
        quantised = None if bits == 16 else quantise(model, text.split(1))
        save_student(path, model, {"acceptance_t1": 0.5}, quantised)
        read = student.load_student(path, target)
        assert read.lm_head.weight.data_ptr() == target.get_input_embeddings().weight.data_ptr()
        for name, value in student.own_parameters(read).items():
            if quantised and value.ndim == 2:
                assert torch.equal(value, student.own_parameters(model)[name]), name
            else:
                torch.testing.assert_close(value, before[name], rtol=4e-3, atol=0)
    assert path.stat().st_size < 0.5 * sum(2 * value.numel() for value in before.values()) + 8192
    assert read(input_ids=torch.tensor([[5, 59]])).logits.shape == (1, 2, 40)


def test_the_file_is_small_and_complete(student):
    """The shipped file: every weight of three layers, in less than six million bytes"""
    from safetensors import safe_open

    path = EXAMPLES / "smollm2_student.safetensors"
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    scales = {name for name in shapes if name.endswith(".scales")}
    assert len(scales) == 21 and len(shapes) == 49 and path.stat().st_size < 6_000_000
    for name in scales:
        (rows, groups), (again, half) = shapes[name], shapes[name.removesuffix(".scales")]
        assert rows == again and groups * student.GROUP == 2 * half
