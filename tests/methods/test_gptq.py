"""Error feedback against the textbook update with an explicit inverse for every column, in float64."""

from __future__ import annotations

import layer_jobs as jobs
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harness.methods.hessian import feedback_factor, round_with_feedback, second_moment
from harness.methods.rounding import UniformRows, round_uniform

Array = NDArray[np.float64]


def textbook(weight: Array, hessian: Array, scale: Array, zero: Array, bits: int, order: list[int]) -> Array:
    """OBQ with a given order: after each column the rest is moved by the inverse over the rest alone."""
    left, codes = weight.copy(), np.zeros(weight.shape)
    waiting = list(order)
    while waiting:
        inverse = np.linalg.inv(hessian[np.ix_(waiting, waiting)])
        column = waiting[0]
        code = np.clip(np.round(left[:, column] / scale[:, column] + zero[:, column]), 0, 2**bits - 1)
        codes[:, column] = code
        loss = left[:, column] - (code - zero[:, column]) * scale[:, column]
        left[:, waiting] -= np.outer(loss / inverse[0, 0], inverse[0])
        waiting = waiting[1:]
    return codes


def problem(rows: int = 12, cols: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=generator) / cols**0.5 + torch.eye(cols)
    x = torch.randn(200, cols, generator=generator) @ mix * torch.linspace(0.2, 2, cols)
    return torch.randn(rows, cols, generator=generator), x


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize(("group", "block"), [(None, 7), (16, 128), (16, 1)])
@pytest.mark.parametrize("bits", [2, 4])
def test_codes_are_those_of_the_textbook(descending: bool, group: int | None, block: int, bits: int) -> None:
    weight, x = problem()
    rows = round_uniform(weight, bits, group=group, ranges="minmax")
    assert isinstance(rows, UniformRows)
    hessian = second_moment(x)
    np.testing.assert_allclose(
        hessian.numpy(),
        np.cov(x.double().numpy().T, bias=True) + np.outer(x.double().mean(0), x.double().mean(0)),
        atol=1e-9,
    )
    got = round_with_feedback(weight, rows, hessian, block=block, descending=descending)
    damped = hessian.numpy() + 0.01 * np.diag(hessian.numpy()).mean() * np.eye(40)
    order = np.argsort(-np.diag(hessian.numpy()), kind="stable") if descending else np.arange(40)
    columns = np.arange(40) // (group or 40)
    assert rows.codes.zero is not None
    scale, zero = (t.double().numpy()[:, columns] for t in (rows.codes.scale, rows.codes.zero))
    expected = textbook(weight.double().numpy(), damped, scale, zero, bits, order.tolist())
    # A value within float32 rounding of the middle of two codes may go either way, and then moves others.
    wrong = (got.codes.codes.numpy() != expected).any(axis=1)
    assert wrong.sum() <= 1, wrong
    assert got.codes.scale is rows.codes.scale


def test_the_output_error_falls_also_on_inputs_it_has_not_seen() -> None:
    weight, x = problem(rows=24, cols=48)
    _, fresh = problem(rows=24, cols=48)
    fresh = fresh[torch.randperm(200, generator=torch.Generator().manual_seed(1))][:60]
    rows = round_uniform(weight, 3, ranges="mse")
    assert isinstance(rows, UniformRows)
    got = round_with_feedback(weight, rows, second_moment(x))
    for inputs in (x, fresh):
        before, after = (float(((r.values() - weight) @ inputs.T).square().sum()) for r in (rows, got))
        assert after < 0.75 * before


def test_uncorrelated_inputs_leave_rounding_to_nearest() -> None:
    weight, _ = problem()
    rows = round_uniform(weight, 3, ranges="minmax")
    assert isinstance(rows, UniformRows)
    got = round_with_feedback(weight, rows, torch.diag(torch.linspace(1, 3, 40).double()))
    assert torch.equal(got.codes.codes, rows.codes.codes)


def test_dead_inputs_are_rounded_to_nearest_and_disturb_nothing() -> None:
    weight, x = problem()
    x[:, 5] = 0
    rows = round_uniform(weight, 3, ranges="minmax")
    assert isinstance(rows, UniformRows)
    got = round_with_feedback(weight, rows, second_moment(x))
    assert torch.equal(got.codes.codes[:, 5], rows.codes.codes[:, 5])
    nothing = round_with_feedback(weight, rows, second_moment(torch.zeros_like(x)))
    assert torch.equal(nothing.codes.codes, rows.codes.codes)
    with pytest.raises(ValueError, match="not finite"):
        feedback_factor(torch.full((3, 3), float("nan")).double(), 0.01, torch.arange(3))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_method_beats_rounding_to_nearest_at_equal_bytes(bits: int) -> None:
    x = jobs.inputs()
    nearest, feedback = (jobs.run(name, jobs.job(name, bits)) for name in ("ptq", "gptq"))
    before, after = (jobs.output_error(done, x, jobs.Net()) for done in (nearest, feedback))
    for name in jobs.NAMES:
        assert after[name] < 0.95 * before[name], name
        first, second = (d.denoiser.get_submodule(name) for d in (nearest, feedback))
        assert first.bytes_by_part() == second.bytes_by_part()
        assert torch.equal(first.weight.scale, second.weight.scale)
