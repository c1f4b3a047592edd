"""Low-rank factors: the rank rule, truncated SVD, and SVD weighted by the second moment of the inputs."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

PUBLISHED_RANK = 32
PUBLISHED_WIDTH = 3072
RANK_MULTIPLE = 4
# Above this the exact decomposition takes longer than quantizing the layer.
EXACT_LIMIT = 256
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


Algorithm = Literal["auto", "exact", "randomized"]
"""How a truncated SVD is computed, see `decompose`."""
RANDOMIZED_OVERSAMPLING = 10
RANDOMIZED_ITERATIONS = 4


def decompose(matrix: Tensor, rank: int, algorithm: Algorithm) -> tuple[Tensor, Tensor]:
    """Truncated SVD by a named algorithm, the singular values shared evenly between the factors.

    Args:
        matrix: float [rows, cols].
        rank: at least 1, at most min(rows, cols).
        algorithm: `exact` is the full decomposition in float64, as deepcompressor computes it;
            `randomized` is `torch.svd_lowrank` (Halko et al. 2011) with 10 further directions and 4 power
            iterations from a fixed seed; `auto` is `truncated_svd`.

    Returns:
        down float32 [rank, cols] and up float32 [rows, rank].
    """
    if algorithm == "auto":
        return truncated_svd(matrix, rank)
    if algorithm == "exact":
        u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    else:
        width = min(rank + RANDOMIZED_OVERSAMPLING, *matrix.shape)
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix.float(), q=width, niter=RANDOMIZED_ITERATIONS)
        vt = v.T
    root = s[:rank].sqrt()
    return (root[:, None] * vt[:rank]).float(), (u[:, :rank] * root).float()


def truncated_svd(matrix: Tensor, rank: int, *, fast: bool = False) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` approximation `up @ down`, the singular values shared evenly between the factors.

    Args:
        matrix: float [rows, cols].
        rank: at least 1, at most min(rows, cols).
        fast: allow a block power iteration from a fixed start (deterministic; a few per cent from the
            optimum on flat spectra) in place of the exact decomposition. Large matrices always use it.

    Returns:
        down float32 [rank, cols] and up float32 [rows, rank].
    """
    return output_svd(matrix, matrix, rank, fast=fast)


def output_svd(error: Tensor, seen: Tensor, rank: int, *, fast: bool = False) -> tuple[Tensor, Tensor]:
    """Rank-`rank` approximation of `error` minimising |(error - up @ down) L|_F, with `seen` = error @ L.

    The best left factor is the leading left singular vectors U of error @ L; then down = U^T error, so
    neither L's inverse nor a second moment of the inputs is ever formed (the closed form of QERA and LQER).

    Args:
        error: float [rows, cols].
        seen: float [rows, n], what the inputs make of the error, see `seen_error`.
        rank: at least 1.
        fast: as in `truncated_svd`.

    Returns:
        down float32 [rank, cols] and up float32 [rows, rank].
    """
    exact = not fast and min(seen.shape) <= EXACT_LIMIT
    up = (_left_vectors(seen, rank) if exact else _power_iteration(seen.float(), rank)).float()
    down = up.T @ error.float()
    # A direction of singular value s has norms (1, s): sqrt(s) on both sides keeps both inside float16.
    root = down.norm(dim=1).sqrt()
    return down / torch.where(root > 0, root, 1.0)[:, None], up * root


def seen_error(error: Tensor, inputs: Tensor, damping: float) -> Tensor:
    """Return `error @ L` for L L^T = E[x x^T] + damping * mean(E[x^2]) I, up to an orthogonal factor.

    Args:
        error: float32 [rows, cols].
        inputs: float32 [n, cols], calibration samples.
        damping: relative to the mean second moment; what keeps a small sample from being trusted too far.

    Returns:
        float32 [rows, n + cols].
    """
    level = float(inputs.square().mean())
    outputs = error @ inputs.T / math.sqrt(len(inputs))
    return torch.cat([outputs, error * math.sqrt(damping * level if level > 0 else 1.0)], dim=1)


def _left_vectors(matrix: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors, float64 [rows, rank], from the smaller Gram matrix."""
    m = matrix.double()
    if m.shape[0] <= m.shape[1]:
        vectors: Tensor = torch.linalg.eigh(m @ m.T)[1]
        return vectors[:, -rank:].flip(1)
    squares, right = torch.linalg.eigh(m.T @ m)
    values = squares[-rank:].flip(0).clamp_min(0).sqrt()
    left = m @ right[:, -rank:].flip(1)
    # Directions that are only rounding noise must not be blown up to unit length.
    real = values > 1e-7 * values[0]
    return torch.where(real, left / torch.where(real, values, 1.0), 0.0)


def _power_iteration(matrix: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors, nearly: float32 [rows, rank].

    On a GPU by matrix products alone: its QR and SVD of narrow matrices take longer than all the rest.
    """
    found = _gram_iteration(matrix, rank) if matrix.is_cuda else None
    return _qr_iteration(matrix, rank) if found is None else found


def _qr_iteration(matrix: Tensor, rank: int) -> Tensor:
    basis: Tensor = torch.linalg.qr(matrix @ _start(matrix, rank))[0]
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis))[0]
    small: Tensor = torch.linalg.svd(basis.T @ matrix, full_matrices=False)[0]
    return basis @ small[:, :rank]


def _gram_iteration(matrix: Tensor, rank: int) -> Tensor | None:
    """`_qr_iteration` with Cholesky factors and eigenvectors of small Gram matrices; None where one fails."""
    basis = _orthonormal(matrix @ _start(matrix, rank))
    for _ in range(POWER_ITERATIONS):
        basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
    small = (basis.T @ matrix).double()
    # Of 40 x 40 numbers, the eigenvectors are found sooner by the CPU.
    gram = (small @ small.T).cpu()
    if not bool(torch.isfinite(gram).all()):
        return None
    vectors: Tensor = torch.linalg.eigh(gram)[1].flip(1)[:, :rank]
    return basis @ vectors.to(basis)


def _start(matrix: Tensor, rank: int) -> Tensor:
    return _fixed_noise(matrix.shape[1], min(rank + OVERSAMPLING, *matrix.shape), matrix.device)


@lru_cache(maxsize=16)
def _fixed_noise(rows: int, cols: int, device: torch.device) -> Tensor:
    """Normal values, the same ones every time. Kept: drawing them takes longer than an iteration on a GPU."""
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)).to(device)


def _orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns of a tall float32 matrix (CholeskyQR, done twice).

    Columns of unit length keep the Gram matrix well conditioned, since after one power iteration they point
    in the directions of different singular vectors (Yamamoto et al. 2015; shifts: Fukaya et al. 2020).
    """
    for shift in (1e-5, 1e-7):
        columns = columns / columns.norm(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        gram = (columns.T @ columns).double()
        eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
        lower = torch.linalg.cholesky_ex(gram + shift * eye)[0]
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
        columns = columns @ inverse.T.float()
    return columns
