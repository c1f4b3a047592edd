"""Learned rounding against autograd, an exhaustive search and rounding to nearest."""

from __future__ import annotations

import itertools

import layer_jobs as jobs
import pytest
import torch

from harness.methods.adaround import AdaroundConfig, learn_rounding, output_error, rounding_gradient
from harness.methods.hessian import second_moment
from harness.methods.rounding import UniformRows, round_uniform


def problem(rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(cols, cols, generator=generator) / cols**0.5 + 0.5 * torch.eye(cols)
    x = torch.randn(300, cols, generator=generator) @ mix
    return torch.randn(rows, cols, generator=generator), second_moment(x).float()


@pytest.mark.parametrize("beta", [None, 2.0, 11.0])
def test_the_gradient_is_autograds(beta: float | None) -> None:
    weight, hessian = problem(3, 7)
    generator = torch.Generator().manual_seed(1)
    v = (2 * torch.randn(3, 7, generator=generator)).requires_grad_()
    scale = torch.rand(3, 1, generator=generator) + 0.1
    h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
    difference = weight + scale * h
    loss = torch.einsum("ri,ij,rj->", difference, hessian, difference)
    if beta is not None:
        loss = loss + 0.3 * (1 - (2 * h - 1).abs().pow(beta)).sum()
    loss.backward()
    with torch.no_grad():
        got = rounding_gradient(v, weight, scale, hessian, 0.3, beta)
    torch.testing.assert_close(got, v.grad, rtol=1e-4, atol=1e-5)


def test_it_comes_close_to_the_best_of_all_roundings() -> None:
    weight, hessian = problem(6, 8)
    rows = round_uniform(weight, 3, ranges="minmax")
    assert isinstance(rows, UniformRows)
    got = learn_rounding(weight, rows, hessian, AdaroundConfig())
    assert rows.codes.zero is not None
    scale, zero = rows.codes.scale.double(), rows.codes.zero.double()
    w, h = weight.double(), hessian.double()
    floor = (w / scale + zero).floor()
    best = torch.full((6,), float("inf"), dtype=torch.float64)
    for ups in itertools.product((0, 1), repeat=8):
        codes = (floor + torch.tensor(ups)).clamp(0, 7)
        best = torch.minimum(best, output_error((codes - zero) * scale - w, h))
    learned = output_error(got.values().double() - w, h)
    nearest = output_error(rows.values().double() - w, h)
    assert bool((learned >= best * (1 - 1e-6)).all())
    assert float(nearest.sum()) > 1.2 * float(best.sum())
    # A relaxation finds a good rounding, not the best of 256.
    assert float(learned.sum()) < float(nearest.sum()) - 0.3 * float((nearest - best).sum())


def test_codes_stay_within_one_of_the_weights_own_place() -> None:
    weight, hessian = problem(16, 24)
    rows = round_uniform(weight, 2, ranges="mse")
    assert isinstance(rows, UniformRows)
    got = learn_rounding(weight, rows, hessian, AdaroundConfig(steps=100))
    assert got.codes.scale is rows.codes.scale
    assert int((got.codes.codes.int() - rows.codes.codes.int()).abs().max()) == 1
    before, after = (output_error(r.values() - weight, hessian) for r in (rows, got))
    assert bool((after <= before).all())
    assert float(after.sum()) < 0.9 * float(before.sum())


def test_zero_rows_and_dead_inputs_survive() -> None:
    weight, hessian = problem(4, 8)
    weight[0] = 0
    hessian[2] = 0
    hessian[:, 2] = 0
    for second in (hessian, torch.zeros_like(hessian)):
        rows = round_uniform(weight, 2, ranges="mse")
        assert isinstance(rows, UniformRows)
        got = learn_rounding(weight, rows, second, AdaroundConfig(steps=20)).values()
        assert bool(torch.isfinite(got).all())
        assert not got[0].any()


@pytest.mark.parametrize("bits", [2, 3])
def test_the_method_beats_rounding_to_nearest_at_equal_bytes(bits: int) -> None:
    x = jobs.inputs()
    nearest, learned = (
        jobs.run(name, jobs.job(name, bits), **settings)
        for name, settings in (("ptq", {}), ("adaround", {"steps": "150"}))
    )
    before, after = (jobs.output_error(done, x, jobs.Net()) for done in (nearest, learned))
    for name in jobs.NAMES:
        assert after[name] < 0.97 * before[name], name
        first, second = (d.denoiser.get_submodule(name) for d in (nearest, learned))
        assert first.bytes_by_part() == second.bytes_by_part()
