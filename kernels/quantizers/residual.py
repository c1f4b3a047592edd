"""Residual binary planes: w ~ sum_j alpha_j * (2*bit_j - 1), one alpha per row and plane.

The greedy start is residual binarisation (Guo et al. 2017, "Network Sketching", and the order-2 form of
BinaryDM): alpha_j = mean|r_j|, bit_j = sign(r_j). From two planes on it is not optimal, and from three on it
loses to a uniform grid, so alphas and codes are then refitted in turn (alternating multi-bit quantization, Xu
et al. 2018, ICLR).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_PLANES = 8
RIDGE = 1e-9
"""Share of the row length added to the diagonal of the normal equations: planes may coincide."""


@dataclass(frozen=True)
class BinaryPlanes:
    """A matrix as a sum of signed binary planes.

    Attributes:
        codes: uint8 [rows, cols]; bit j is the sign of plane j (1 = plus).
        alphas: float16 [rows, planes], not negative.
    """

    codes: Tensor
    alphas: Tensor


def plane_signs(planes: int, device: torch.device | None = None) -> Tensor:
    """Return the signs of every code: float32 [2**planes, planes] of -1 and 1."""
    codes = torch.arange(2**planes, device=device).unsqueeze(1)
    bits = (codes >> torch.arange(planes, device=device)) & 1
    return bits.to(torch.float32) * 2 - 1


def level_table(alphas: Tensor) -> Tensor:
    """Return the value of every code in every row: float32 [rows, 2**planes] from alphas [rows, planes].

    The planes are added one by one in order, so that the sum is the same on every backend.
    """
    signs = plane_signs(alphas.shape[1], alphas.device)
    alphas = alphas.to(torch.float32)
    table = torch.zeros(alphas.shape[0], signs.shape[0], device=alphas.device)
    for plane in range(alphas.shape[1]):
        table += alphas[:, plane : plane + 1] * signs[:, plane]
    return table


def fit_binary_planes(w: Tensor, planes: int, iterations: int = 15) -> BinaryPlanes:
    """Fit binary planes to every row by least squares.

    Greedy residual binarisation, then `iterations` rounds of the exact least-squares alphas for the codes and
    the nearest level (of all `2**planes`) for every weight. Neither step can raise the squared error. The
    codes are assigned once more for the alphas as stored. One plane is the sign times mean|w|.

    Args:
        w: float [rows, cols].
        planes: 1-8.
        iterations: rounds of refitting; 0 leaves the greedy alphas.

    Raises:
        ValueError: a wrong number of planes or iterations, or weights that are not finite.
    """
    if not 1 <= planes <= MAX_PLANES:
        raise ValueError(f"a matrix takes 1 to {MAX_PLANES} planes, not {planes}")
    if iterations < 0:
        raise ValueError(f"{iterations} is not a number of iterations")
    w = w.detach().to(torch.float32)
    if not bool(torch.isfinite(w).all()):
        raise ValueError("the weights are not finite")
    alphas = _greedy_alphas(w, planes)
    for _ in range(iterations):
        refitted = _least_squares(w, nearest_codes(w, alphas), planes)
        if torch.equal(refitted, alphas):
            break
        alphas = refitted
    stored = alphas.clamp(max=65504.0).to(torch.float16)
    return BinaryPlanes(nearest_codes(w, stored), stored)


def nearest_codes(w: Tensor, alphas: Tensor) -> Tensor:
    """Return the code of the nearest level of each weight: uint8 [rows, cols]."""
    levels, order = level_table(alphas).sort(dim=1, stable=True)
    boundaries = (levels[:, 1:] + levels[:, :-1]) / 2
    position = torch.searchsorted(boundaries, w.contiguous())
    return order.to(torch.uint8).gather(1, position)


def dequantize_planes(codes: Tensor, alphas: Tensor) -> Tensor:
    """Return the float32 values [rows, cols] of codes uint8 [rows, cols] under alphas [rows, planes]."""
    table = level_table(alphas)
    rows, levels = table.shape
    first = torch.arange(0, rows * levels, levels, dtype=torch.int32, device=codes.device).unsqueeze(1)
    index = codes.to(torch.int32) + first
    return table.view(-1).index_select(0, index.view(-1)).view(codes.shape)


def _greedy_alphas(w: Tensor, planes: int) -> Tensor:
    residual, alphas = w.clone(), []
    for _ in range(planes):
        alpha = residual.abs().mean(dim=1, keepdim=True)
        residual -= torch.where(residual >= 0, alpha, -alpha)
        alphas.append(alpha)
    return torch.cat(alphas, dim=1)


def _least_squares(w: Tensor, codes: Tensor, planes: int) -> Tensor:
    """Return the alphas [rows, planes] that minimise the squared error for given codes, made positive.

    The sum over columns is taken once per level (how many weights chose it, and their sum), so that the
    normal equations are `planes` wide however long a row is.
    """
    signs = plane_signs(planes, w.device).to(torch.float64)
    levels = signs.shape[0]
    index = codes.to(torch.int64)
    count = torch.zeros(w.shape[0], levels, dtype=torch.float64, device=w.device)
    total = torch.zeros_like(count)
    values = w.to(torch.float64)
    count.scatter_add_(1, index, torch.ones_like(values))
    total.scatter_add_(1, index, values)
    gram = torch.einsum("lp,rl,lq->rpq", signs, count, signs)
    gram += RIDGE * w.shape[1] * torch.eye(planes, dtype=torch.float64, device=w.device)
    solution: Tensor = torch.linalg.solve(gram, (total @ signs).unsqueeze(-1)).squeeze(-1)
    return solution.abs().to(torch.float32)
