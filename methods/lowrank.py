"""Low-rank factors: the rank rule, truncated SVD, and SVD weighted by the second moment of the inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PUBLISHED_RANK = 32
PUBLISHED_WIDTH = 3072
RANK_MULTIPLE = 4
# Above this the exact decomposition takes longer than quantizing the layer.
EXACT_LIMIT = 1024
OVERSAMPLING = 8
POWER_ITERATIONS = 4


def rank_rule(width: int, embedded: bool) -> int:
    """Rank of the low-rank branch: 32; on an embedded model 32 * width / 3072, up to a multiple of 4.

    Rank 32 on a 192-wide layer would add 5.3 bits to every weight: the comparison would be won by size.

    Args:
        width: hidden width of the denoiser.
        embedded: whether it is one of the small embedded models.
    """
    if not embedded:
        return PUBLISHED_RANK
    return max(1, math.ceil(PUBLISHED_RANK * width / PUBLISHED_WIDTH / RANK_MULTIPLE)) * RANK_MULTIPLE


def branch_rank(rank: int, rows: int, cols: int, max_bits: float) -> int:
    """Largest rank up to `rank` whose two float16 factors cost at most `max_bits` per weight of the layer.

    Args:
        rank: what the rank rule or the config asks for.
        rows: output channels.
        cols: inputs per output.
        max_bits: ceiling in bits per weight; 0 means none.
    """
    rank = min(rank, rows, cols)
    if max_bits <= 0:
        return rank
    return min(rank, int(max_bits * rows * cols / (16 * (rows + cols))))


def truncated_svd(matrix: Tensor, rank: int, *, fast: bool = False) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` approximation `up @ down`, the singular values shared evenly between the factors.

    Args:
        matrix: float [rows, cols].
        rank: at least 1, at most min(rows, cols).
        fast: allow a block power iteration from a fixed start (deterministic; a few per cent from the
            optimum on flat spectra) in place of the exact decomposition. Very large matrices always use it.

    Returns:
        down float32 [rank, cols] and up float32 [rows, rank].
    """
    if fast or min(matrix.shape) > EXACT_LIMIT:
        left = _range_finder(matrix.float(), rank)
        small = left.T @ matrix.float()
        vectors, values = _left_vectors(small, rank)
        up = left @ vectors.float()
    else:
        vectors, values = _left_vectors(matrix, rank)
        up = vectors.float()
    down = up.T @ matrix.float()
    # down holds singular values times right vectors; an even split keeps both factors inside float16.
    root = values.clamp_min(0).sqrt().float()
    safe = torch.where(root > 0, root, torch.ones_like(root))
    return down / safe[:, None], up * root


def second_moment_factor(inputs: Tensor, damping: float) -> Tensor:
    """Lower Cholesky factor L of E[x x^T] + damping * mean(E[x^2]) I, so that E|E x|^2 is about |E L|_F^2.

    Args:
        inputs: float [n, cols].
        damping: relative to the mean diagonal; what keeps a small sample from being trusted too far.

    Returns:
        float32 [cols, cols].

    Raises:
        ValueError: the inputs are not finite.
    """
    moment = (inputs.T @ inputs) / max(1, len(inputs))
    level = float(moment.diagonal().mean())
    if not math.isfinite(level):
        raise ValueError(f"the second moment of the {inputs.shape[1]} inputs is not finite")
    moment.diagonal().add_(damping * level if level > 0 else 1.0)
    factor: Tensor = torch.linalg.cholesky(moment)
    return factor


def weighted_svd(error: Tensor, rank: int, factor: Tensor, *, fast: bool = False) -> tuple[Tensor, Tensor]:
    """Rank-`rank` approximation of `error` that minimises |(error - up @ down) L|_F (QERA's closed form).

    Args:
        error: float32 [rows, cols].
        rank: at least 1.
        factor: L, lower triangular float32 [cols, cols], or a vector [cols] for a diagonal one.
        fast: as in `truncated_svd`.

    Returns:
        down float32 [rank, cols] and up float32 [rows, rank].
    """
    if factor.dim() == 1:
        down, up = truncated_svd(error * factor, rank, fast=fast)
        return down / factor, up
    down, up = truncated_svd(error @ factor, rank, fast=fast)
    solved: Tensor = torch.linalg.solve_triangular(factor, down, upper=False, left=False)
    return solved, up


def _left_vectors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Leading left singular vectors [rows, rank] and values [rank], float64, from the smaller Gram matrix."""
    m = matrix.double()
    if m.shape[0] <= m.shape[1]:
        squares, vectors = torch.linalg.eigh(m @ m.T)
        return vectors[:, -rank:].flip(1), squares[-rank:].flip(0).clamp_min(0).sqrt()
    squares, right = torch.linalg.eigh(m.T @ m)
    values = squares[-rank:].flip(0).clamp_min(0).sqrt()
    left = m @ right[:, -rank:].flip(1)
    # Directions that are only rounding noise must not be blown up to unit length.
    real = values > 1e-7 * values[0]
    return torch.where(real, left / torch.where(real, values, 1.0), 0.0), values * real


def _range_finder(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal [rows, rank + a few] nearly containing the leading left singular vectors."""
    width = min(rank + OVERSAMPLING, *matrix.shape)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    basis: Tensor = torch.linalg.qr(matrix @ start)[0]
    for _ in range(POWER_ITERATIONS):
        across = torch.linalg.qr(matrix.T @ basis)[0]
        basis = torch.linalg.qr(matrix @ across)[0]
    return basis
