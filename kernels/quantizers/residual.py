"""Residual binary planes: w ~ sum_j alpha_j * (2*bit_j - 1), one alpha per row and plane.

Residual binarisation (alpha_j = mean|r_j|, bit_j = sign(r_j); Guo et al. 2017, "Network Sketching", and the
order-2 form of BinaryDM) is not optimal from two planes on, and from three on it loses to a uniform grid. So
alphas and codes are refitted in turn (alternating multi-bit quantization, Xu et al. 2018).

Which level a weight takes depends on its value alone, so a row is sorted once and every set of codes is a set
of cuts through it: a round of refitting looks up prefix sums and costs 2^planes searches per row, however
long the row is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PLANES = 8
RIDGE = 1e-9
"""Share of the row length added to the diagonal of the normal equations: planes may coincide."""
UNIFORM_STARTS = 16
CHUNK = 1 << 20


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

    From two starts (greedy residual binarisation, and the best of 16 uniform grids, which is what alphas in
    ratio 1:2:4... are) `iterations` rounds of the exact least-squares alphas for the codes and the nearest
    level, of all `2**planes`, for every weight. Neither step can raise the squared error; per row the better
    end is kept. The codes are assigned once more for the alphas as stored. One plane is the sign times
    mean|w|.

    Args:
        w: float [rows, cols].
        planes: 1-8.
        iterations: rounds of refitting; 0 leaves the starts.

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
    rows = max(1, CHUNK // w.shape[1])
    alphas = torch.cat([_fit_alphas(part, planes, iterations) for part in torch.split(w, rows)])
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


class _SortedRows:
    """Rows sorted once, with prefix sums: the count and the sum of the weights between any two cuts."""

    def __init__(self, w: Tensor) -> None:
        self.values = w.sort(dim=1).values
        start = torch.zeros(w.shape[0], 1, dtype=torch.float64, device=w.device)
        self.prefix = torch.cat([start, self.values.to(torch.float64).cumsum(dim=1)], dim=1)

    def assign(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many weights are nearest to each ascending level, and their sum.

        Both float64 [rows, levels].
        """
        cuts = torch.searchsorted(self.values, (levels[:, 1:] + levels[:, :-1]) / 2, right=True)
        cuts = F.pad(F.pad(cuts, (1, 0)), (0, 1), value=self.values.shape[1])
        return cuts.diff(dim=1).to(torch.float64), self.prefix.gather(1, cuts).diff(dim=1)

    def error(self, alphas: Tensor) -> Tensor:
        """Return the squared error of the nearest levels less the constant sum of squares: float64 [rows]."""
        levels = level_table(alphas).sort(dim=1).values
        count, total = self.assign(levels)
        exact = levels.to(torch.float64)
        return (exact * (exact * count - 2 * total)).sum(dim=1)

    def refit(self, alphas: Tensor) -> Tensor:
        """Return the least-squares alphas [rows, planes] for the nearest codes under `alphas`, made positive.

        Flipping the sign of an alpha with its plane changes no level.
        """
        levels, order = level_table(alphas).sort(dim=1, stable=True)
        count, total = self.assign(levels)
        planes = alphas.shape[1]
        signs = plane_signs(planes, alphas.device).to(torch.float64)[order]
        gram = torch.einsum("rlp,rl,rlq->rpq", signs, count, signs)
        eye = torch.eye(planes, dtype=torch.float64, device=alphas.device)
        gram += RIDGE * self.values.shape[1] * eye
        rhs = torch.einsum("rlp,rl->rp", signs, total)
        solution: Tensor = torch.linalg.solve(gram, rhs.unsqueeze(-1)).squeeze(-1)
        return solution.abs().to(torch.float32)


def _fit_alphas(w: Tensor, planes: int, iterations: int) -> Tensor:
    """Return the best alphas of both starts: float32 [rows, planes]."""
    data = _SortedRows(w)
    starts = [_greedy_alphas(w, planes)]
    if planes > 1:
        starts.append(_best(data, list(_uniform_alphas(w, planes))))
    return _best(data, [_refined(data, alphas, iterations) for alphas in starts])


def _refined(data: _SortedRows, alphas: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        refitted = data.refit(alphas)
        if torch.equal(refitted, alphas):
            break
        alphas = refitted
    return alphas


def _best(data: _SortedRows, candidates: list[Tensor]) -> Tensor:
    """Return per row the candidate with the least error, the first of equals."""
    errors = torch.stack([data.error(alphas) for alphas in candidates])
    choice = errors.argmin(dim=0).view(1, -1, 1).expand(1, -1, candidates[0].shape[1])
    return torch.stack(candidates).gather(0, choice).squeeze(0)


def _greedy_alphas(w: Tensor, planes: int) -> Tensor:
    residual, alphas = w.clone(), []
    for _ in range(planes):
        alpha = residual.abs().mean(dim=1, keepdim=True)
        residual -= torch.where(residual >= 0, alpha, -alpha)
        alphas.append(alpha)
    return torch.cat(alphas, dim=1)


def _uniform_alphas(w: Tensor, planes: int) -> Iterator[Tensor]:
    """Yield the alphas of mid-rise uniform grids that reach to a fraction of the largest magnitude."""
    ratios = 2.0 ** torch.arange(planes - 1, -1, -1, device=w.device)
    outermost = w.abs().amax(dim=1, keepdim=True)
    for step in range(1, UNIFORM_STARTS + 1):
        yield outermost * (step / UNIFORM_STARTS) * (ratios / ratios.sum())
