"""Four bits per weight, chosen to preserve the layers' outputs rather than the weights (Frantar et al. 2023, GPTQ, 2210.17323).

A matrix is rounded column by column; the columns that are not rounded yet compensate for a column's error, as far as the inputs
seen on some text allow: with H = Σ x xᵀ, by −error · U[j, j+1:] / U[j, j], U the upper Cholesky factor of H⁻¹.
"""

import torch
from student import GROUP, best_scales, levels_of, packed, scaled

DAMPING = 0.01  # as a fraction of H's mean diagonal, added to the diagonal


@torch.no_grad()
def quantise(student, batches):
    """Replaces the student's matrices by rounded ones. batches: int64 [rows, length] of text
    -> {name: (levels packed, scales)} as `student.saved_parameters` takes them"""
    found = {}
    for i, layer in enumerate(student.model.layers):
        # Matrices that read the same inputs are rounded together, in the order of the computation: later ones see earlier errors.
        for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
                      ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)):  # fmt: skip
            linears = {name: layer.get_submodule(name) for name in names}
            seen = inputs_of(student, linears[names[0]], batches)
            for name, linear in linears.items():
                levels, scales = rounded(linear.weight.float(), seen)
                linear.weight.copy_(scaled(levels, scales))
                found[f"model.layers.{i}.{name}.weight"] = packed(levels), scales
    return found


def inputs_of(student, linear, batches):
    """Σ x xᵀ over all inputs x of a linear layer: float64 [columns, columns]"""
    total = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)

    def see(module, inputs):
        x = inputs[0].flatten(0, -2).float()
        total.add_((x.T @ x).double())

    handle = linear.register_forward_pre_hook(see)
    for ids in batches:
        student.model(input_ids=ids, use_cache=False)
    handle.remove()
    return total


def rounded(matrix, seen):
    """-> (levels −8..7 float32 [rows, columns], scales float16 [rows, columns / GROUP])"""
    rest, columns = matrix.clone(), matrix.shape[1]
    damped = seen + DAMPING * seen.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).float()
    levels, scales = torch.empty_like(matrix), torch.empty(len(matrix), columns // GROUP, dtype=torch.float16)
    for j in range(columns):
        if j % GROUP == 0:
            scales[:, j // GROUP] = best_scales(rest[:, j : j + GROUP])
        scale = scales[:, j // GROUP].float()
        levels[:, j] = levels_of(rest[:, j], scale)
        error = (rest[:, j] - levels[:, j] * scale) / factor[j, j]
        rest[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
    return levels, scales
