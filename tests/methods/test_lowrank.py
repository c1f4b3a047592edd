"""Rank rule, truncated SVD and its weighted form, against numpy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.methods.lowrank import output_svd, rank_rule, seen_error, truncated_svd


@pytest.mark.parametrize(
    ("width", "rank"), [(64, 4), (144, 4), (192, 4), (384, 4), (385, 8), (768, 8), (1536, 16), (3072, 32)]
)
def test_rank_rule_of_embedded_models(width: int, rank: int) -> None:
    assert rank_rule(width, embedded=True) == rank
    assert rank_rule(width, embedded=False) == 32


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


def test_seen_error_is_the_damped_output_error() -> None:
    generator = torch.Generator().manual_seed(1)
    x, error = torch.randn(200, 12, generator=generator), torch.randn(5, 12, generator=generator)
    seen = seen_error(error, x, 0.1).double()
    moment = x.double().T @ x.double() / 200
    moment += 0.1 * moment.diagonal().mean() * torch.eye(12)
    torch.testing.assert_close(
        seen @ seen.T, error.double() @ moment @ error.double().T, rtol=1e-4, atol=1e-4
    )


def test_a_dead_input_leaves_the_plain_decomposition() -> None:
    error = _matrix(8, 12)
    seen = seen_error(error, torch.zeros(5, 12), 0.1)
    for got, expected in zip(output_svd(error, seen, 3), truncated_svd(error, 3), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("shape", [(20, 30), (40, 10)])
def test_output_svd_minimises_the_output_error(shape: tuple[int, int], fast: bool) -> None:
    """Against the closed form with an explicit root of the second moment, and against random competitors."""
    generator = torch.Generator().manual_seed(2)
    error = torch.randn(*shape, generator=generator)
    x = torch.randn(400, shape[1], generator=generator) * torch.logspace(-1, 1, shape[1])
    down, up = output_svd(error, seen_error(error, x, 1e-6), 5, fast=fast)
    moment = x.double().T @ x.double() / 400 + 1e-6 * float(x.square().mean()) * torch.eye(shape[1])
    root = torch.linalg.cholesky(moment)
    reached = float(((error - up @ down).double() @ root).square().sum())
    singular = torch.linalg.svdvals(error.double() @ root)
    assert reached == pytest.approx(float(singular[5:].square().sum()), rel=1e-3)
    plain_down, plain_up = truncated_svd(error, 5)
    assert reached < 0.8 * float(((error - plain_up @ plain_down).double() @ root).square().sum())
