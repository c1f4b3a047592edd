"""Learned grids against difference quotients, explicit loops and the packed layers themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from layer_jobs import NAMES, inputs, job, run
from torch import Tensor

from harness.kernels.activations import ActQuantizer, StepIndex, bind_step_index
from harness.kernels.quantizers.residual import fit_binary_planes
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import BinaryPlanesWeight, NormalFloatWeight, UniformWeight
from harness.methods.training.grids import (
    LearnedActivation,
    MixedGrid,
    StepRows,
    UniformGrid,
    round_learned,
    round_learned_planes,
)
from harness.methods.training.student import Student


def lsq_by_hand(x: float, scale: float, zero: float, levels: int) -> tuple[float, float, float, float]:
    """Value and derivatives of LSQ+ for one number, written out from the papers."""
    position = x / scale + zero
    if position < 0:
        return (0 - zero) * scale, 0.0, 0 - zero, -scale
    if position > levels:
        return (levels - zero) * scale, 0.0, levels - zero, -scale
    code = round(position)
    return (code - zero) * scale, 1.0, (code - zero) - x / scale, 0.0


def test_lsq_gradients_equal_the_formulas_number_by_number():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 12, generator=generator).requires_grad_()
    scale = torch.rand(5, 1, generator=generator).add(0.2).requires_grad_()
    zero = torch.tensor([[0.0], [1.0], [2.0], [3.0], [1.0]], requires_grad=True)
    grad = torch.randn(5, 12, generator=generator)
    value = round_learned(x, scale, zero, 2, "asymmetric")
    value.backward(grad)
    want_value, want_x = torch.zeros(5, 12), torch.zeros(5, 12)
    want_scale, want_zero = torch.zeros(5, 1), torch.zeros(5, 1)
    for row in range(5):
        for column in range(12):
            arguments = x[row, column].item(), scale[row, 0].item(), zero[row, 0].item()
            v, dx, ds, dz = lsq_by_hand(*arguments, levels=3)
            g = float(grad[row, column])
            want_value[row, column], want_x[row, column] = v, dx * g
            want_scale[row, 0] += ds * g
            want_zero[row, 0] += dz * g
    torch.testing.assert_close(value, want_value)
    torch.testing.assert_close(x.grad, want_x)
    torch.testing.assert_close(scale.grad, want_scale)
    torch.testing.assert_close(zero.grad, want_zero)
    assert want_zero.abs().sum() > 0, "no number was clipped: nothing was tested"


@pytest.mark.parametrize("grid", ["narrow", "midrise"])
def test_outside_a_symmetric_grid_the_scale_gradient_is_the_difference_quotient(grid):
    x = torch.tensor([[-9.0, 8.0, -7.5]])

    def value(scale: float) -> Tensor:
        return round_learned(x, torch.tensor([[scale]]), None, 3, grid).sum()

    scale = torch.tensor([[0.5]], requires_grad=True)
    round_learned(x, scale, None, 3, grid).sum().backward()
    quotient = (value(0.505) - value(0.495)) / 0.01
    assert scale.grad.item() == pytest.approx(quotient.item(), rel=1e-3)


def test_plane_amplitude_gradients_are_difference_quotients_where_codes_stay():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 20, generator=generator, dtype=torch.float32)
    alphas = torch.tensor([[0.9, 0.3], [1.2, 0.5], [0.7, 0.6]], requires_grad=True)
    weight = torch.randn(3, 20, generator=generator)
    points = x.clone().requires_grad_()
    (round_learned_planes(points, alphas) * weight).sum().backward()
    for row in range(3):
        for plane in range(2):
            moved = []
            for delta in (1e-4, -1e-4):
                other = alphas.detach().clone()
                other[row, plane] += delta
                moved.append((round_learned_planes(x, other).double() * weight).sum())
            assert alphas.grad[row, plane].item() == pytest.approx(
                ((moved[0] - moved[1]) / 2e-4).item(), abs=2e-2
            )
    reach = alphas.detach().sum(dim=1, keepdim=True)
    assert torch.equal(points.grad, torch.where(x.abs() <= reach, weight, 0.0))


def test_groups_get_their_own_gradients():
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(2))
    packed = UniformWeight.pack(quantize_uniform(weight, 3, group=8), 3, "asymmetric", 8)
    grid = UniformGrid(packed)
    grad = torch.randn(6, 20, generator=torch.Generator().manual_seed(3))
    grid(weight).backward(grad)
    for group, columns in enumerate((slice(0, 8), slice(8, 16), slice(16, 20))):
        scale = packed.scale[:, group : group + 1].float().requires_grad_()
        zero = packed.zero[:, group : group + 1].float()
        alone = weight[:, columns]
        round_learned(alone, scale, zero, 3, "asymmetric").backward(grad[:, columns])
        torch.testing.assert_close(grid.scale.grad[:, group : group + 1], scale.grad)
    assert torch.equal(grid(weight), packed.dequantize())


def test_learned_parameters_round_as_they_are_packed():
    weight = torch.randn(8, 30, generator=torch.Generator().manual_seed(4))
    for packed in (
        UniformWeight.pack(quantize_uniform(weight, 2), 2, "asymmetric"),
        BinaryPlanesWeight.pack(fit_binary_planes(weight, 3)),
    ):
        grid = MixedGrid(packed)
        with torch.no_grad():
            for parameter in grid.parameters():
                parameter.mul_(
                    1 + 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(5))
                )
            moved = weight + 0.1
            assert torch.equal(grid(moved), grid.pack(moved).dequantize())
            assert not torch.equal(grid(moved), packed.dequantize())


def test_code_books_are_refused():
    with pytest.raises(ValueError, match="normal_float"):
        MixedGrid(NormalFloatWeight(4, 64, 4))


def test_learned_ranges_follow_the_step_of_each_row():
    generator = torch.Generator().manual_seed(6)
    ranges = torch.tensor([[-1.0, 2.0], [-0.5, 0.25], [0.0, 4.0]])
    act = ActQuantizer(4, "tensor", "per_step", range=ranges)
    rows = StepRows()
    learned = LearnedActivation(act, rows)
    with torch.no_grad():
        learned.scale.mul_(1.1)
        learned.zero.add_(0.7)
    x = torch.randn(4, 5, 7, generator=generator)
    rows.value = torch.tensor([2, 0, 1, 0])
    got = learned(x)
    packed = learned.pack()
    for row, step in enumerate([2, 0, 1, 0]):
        packed.step_index = StepIndex(step)
        assert torch.equal(got[row], packed(x[row]))
    (got * torch.arange(1.0, 5.0).view(-1, 1, 1)).sum().backward()
    assert learned.scale.grad.shape == (3,)
    assert bool((learned.scale.grad != 0).all())
    rows.value = torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match="step of every row"):
        learned(x)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("mpqdm", {"act": "per_step"}),
        ("mpqdm", {"prescale": "always"}),
        ("mpqdmv2", {"swap": "search"}),
        ("ptq", {"group": "64", "act": "static"}),
        ("svdquant", {}),
    ],
)
def test_a_student_computes_what_the_packed_layer_does_before_and_after_training(method, settings):
    given = inputs()
    done = job(method, 2, a_bits=6)
    originals = {target.name: done.layer(target.name) for target in done.targets}
    run(method, done, **settings)
    index = StepIndex(1)
    bind_step_index(done.denoiser, index)
    before = copy.deepcopy(done.denoiser)
    student = Student(done, originals, rank=3)
    with torch.no_grad():
        for name in NAMES:
            student.steps.value = torch.full((len(given[name]),), 1)
            layer = done.denoiser.get_submodule(name)
            assert torch.equal(layer(given[name]), before.get_submodule(name)(given[name])), name
        moves = torch.Generator().manual_seed(0)
        for parameter, rate in student.parameters(1.0, 0.2, 0.2).values():
            parameter.add_(rate * torch.randn(parameter.shape, generator=moves))
        trained = {}
        for name in NAMES:
            student.steps.value = torch.full((len(given[name]),), 1)
            trained[name] = done.denoiser.get_submodule(name)(given[name])
        student.pack()
        bind_step_index(done.denoiser, index)
        for name in NAMES:
            assert torch.equal(done.denoiser.get_submodule(name)(given[name]), trained[name]), name
            assert not torch.equal(trained[name], before.get_submodule(name)(given[name])), name


def test_another_schedule_is_refused():
    act = ActQuantizer(4, "tensor", "per_step", range=torch.tensor([[-1.0, 1.0]] * 4))
    act.step_index = StepIndex(1, steps=4)
    act(torch.zeros(1, 2))
    act.step_index = StepIndex(1, steps=2)
    with pytest.raises(RuntimeError, match="schedule of 4 steps on one of 2"):
        act(torch.zeros(1, 2))


def test_lora_is_merged_before_rounding():
    done = job("mpqdm", 3)
    originals = {target.name: done.layer(target.name) for target in done.targets}
    run("mpqdm", done, prescale="always")
    student = Student(done, originals, rank=4)
    generator = torch.Generator().manual_seed(0)
    for name in ("q", "conv"):
        layer = student.layers[name]
        with torch.no_grad():
            layer.up.copy_(torch.randn(layer.up.shape, generator=generator) * 0.1)
        float_weight = originals[name].weight
        scale = layer.packed.smooth.float().repeat_interleave(float_weight[0, 0].numel())
        merged = torch.zeros_like(layer.base)
        for row in range(len(merged)):
            for direction in range(4):
                merged[row] += layer.up[row, direction] * layer.down[direction]
        want = float_weight.flatten(1) * scale + merged
        torch.testing.assert_close(layer.matrix(), want, rtol=1e-4, atol=1e-5)
        packed = layer.pack()
        assert packed.branch is None
        spacing = torch.cat([g.scale for g in layer.grid.parts if isinstance(g, UniformGrid)]).max()
        inside = (packed.weight.dequantize() - want).abs() <= spacing / 2 + 1e-4
        assert inside.float().mean() > 0.9
