"""Rank rule, truncated SVD and its weighted form, against numpy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.methods.lowrank import (
    branch_rank,
    rank_rule,
    second_moment_factor,
    truncated_svd,
    weighted_svd,
)


@pytest.mark.parametrize(
    ("width", "rank"), [(64, 4), (144, 4), (192, 4), (384, 4), (385, 8), (768, 8), (1536, 16), (3072, 32)]
)
def test_rank_rule_of_embedded_models(width: int, rank: int) -> None:
    assert rank_rule(width, embedded=True) == rank
    assert rank_rule(width, embedded=False) == 32


def test_branch_rank_is_bounded_by_the_layer_and_by_its_cost() -> None:
    assert branch_rank(32, 8, 192, 0) == 8
    assert branch_rank(4, 192, 192, 0) == 4
    # 16 bits * 4 * (192 + 192) / (192 * 192) = 0.667 bits per weight.
    assert branch_rank(4, 192, 192, 0.67) == 4
    assert branch_rank(4, 192, 192, 0.66) == 3


def _matrix(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, min(rows, cols))
    left = torch.linalg.qr(torch.randn(rows, len(spread), generator=generator))[0]
    right = torch.linalg.qr(torch.randn(cols, len(spread), generator=generator))[0]
    return (left * spread) @ right.T


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (1, 5)])
@pytest.mark.parametrize("fast", [False, True])
def test_truncated_svd_is_numpys(shape: tuple[int, int], fast: bool) -> None:
    matrix = _matrix(*shape)
    rank = min(4, *shape)
    u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ vt[:rank]
    down, up = truncated_svd(matrix, rank, fast=fast)
    assert down.shape == (rank, shape[1])
    assert up.shape == (shape[0], rank)
    np.testing.assert_allclose((up @ down).numpy(), expected, atol=2e-2 if fast else 1e-5)
    residual = float((matrix - up @ down).norm())
    assert residual <= float(np.sqrt((s[rank:] ** 2).sum())) * 1.01 + 1e-6
    # The singular values are shared evenly.
    np.testing.assert_allclose(down.norm(dim=1).numpy(), up.norm(dim=0).numpy(), rtol=1e-3)


@pytest.mark.parametrize("fast", [False, True])
def test_matrices_of_lower_rank_stay_finite(fast: bool) -> None:
    outer = torch.arange(1.0, 9)[:, None] * torch.linspace(-1, 1, 16)[None]
    for matrix in (torch.zeros(8, 16), outer, torch.zeros(16, 8), outer.T):
        down, up = truncated_svd(matrix, 4, fast=fast)
        torch.testing.assert_close(up @ down, matrix, atol=1e-4, rtol=1e-4)


def test_decompositions_are_deterministic() -> None:
    matrix = _matrix(64, 32)
    for fast in (False, True):
        first, second = (truncated_svd(matrix, 4, fast=fast) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_second_moment_factor_reproduces_the_damped_moment() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
    factor = second_moment_factor(x, 0.1)
    moment = x.double().T @ x.double() / 200
    moment += 0.1 * moment.diagonal().mean() * torch.eye(12)
    torch.testing.assert_close((factor @ factor.T).double(), moment, rtol=1e-4, atol=1e-5)


def test_a_dead_input_has_a_usable_factor_and_nan_is_refused() -> None:
    assert torch.equal(second_moment_factor(torch.zeros(5, 3), 0.1), torch.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        second_moment_factor(torch.full((5, 3), float("nan")), 0.1)


@pytest.mark.parametrize("diagonal", [False, True])
def test_weighted_svd_minimises_the_output_error(diagonal: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    error = torch.randn(20, 30, generator=generator)
    x = torch.randn(400, 30, generator=generator) * torch.logspace(-1, 1, 30)
    factor = second_moment_factor(x, 1e-6)
    if diagonal:
        factor = factor.diag().abs()
    root = torch.diag(factor) if diagonal else factor
    down, up = weighted_svd(error, 5, factor)
    reached = float(((error - up @ down) @ root).double().square().sum())
    singular = torch.linalg.svdvals((error @ root).double())
    assert reached == pytest.approx(float(singular[5:].square().sum()), rel=1e-3)
    plain_down, plain_up = truncated_svd(error, 5)
    plain = float(((error - plain_up @ plain_down) @ root).double().square().sum())
    assert reached < 0.8 * plain
