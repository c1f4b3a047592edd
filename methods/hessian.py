"""Rounding with error feedback through the second moment of the inputs (GPTQ, Frantar et al. 2023).

Columns are rounded one after another; what a column loses is made up for in the columns not yet rounded,
along the inverse of the second moment H = X^T X (OBQ's update, arXiv 2208.11580 eq. 3, in GPTQ's order).
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.kernels.quantizers.grid import decode, encode
from harness.methods.rounding import UniformRows

DAMPING = 0.01
BLOCK = 128
HESSIAN_ROWS = 4096
"""Input rows the second moment is taken over, where the calibration holds as many."""


def second_moment(inputs: Tensor) -> Tensor:
    """Return X^T X / n: float64 [cols, cols].

    Args:
        inputs: float [n, cols], what the quantized weight multiplies.
    """
    total = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64, device=inputs.device)
    for part in torch.split(inputs, 512):  # in float64 only a part at a time
        values = part.double()
        total += values.T @ values
    return total / len(inputs)


def feedback_factor(hessian: Tensor, damping: float, order: Tensor) -> Tensor:
    """Return the upper Cholesky factor U of the inverse of the damped second moment, H^-1 = U^T U.

    Row i of U over its diagonal says how the loss of column i spreads over the columns after it.

    Args:
        hessian: float64 [cols, cols].
        damping: added to the diagonal, relative to its mean. A dead column gets diagonal 1.
        order: int64 [cols], the columns in the order in which they are rounded.

    Raises:
        ValueError: the second moment is not finite.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the second moment of the inputs is not finite")
    damped = hessian[order][:, order].clone()
    diagonal = damped.diagonal()
    level = damping * float(diagonal.mean())
    diagonal += level
    diagonal[diagonal <= 0] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def round_with_feedback(
    weight: Tensor,
    rows: UniformRows,
    hessian: Tensor,
    *,
    damping: float = DAMPING,
    block: int = BLOCK,
    descending: bool = True,
) -> UniformRows:
    """Round a matrix to the grids of `rows`, column by column with error feedback.

    Args:
        weight: float32 [rows, cols].
        rows: whose scales and zero points are kept; a weight of the same shape.
        hessian: float64 [cols, cols], see `second_moment`.
        damping: relative to the mean diagonal.
        block: columns after which the columns behind are brought up to date; the result does not depend on
            it but for rounding errors.
        descending: round the columns with the largest diagonal first (else in their own order).

    Returns:
        the same grids with other codes.
    """
    cols = weight.shape[1]
    own = torch.arange(cols, device=weight.device)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if descending else own
    factor = feedback_factor(hessian, damping, order).float()
    left, steps = weight[:, order].clone(), rows.codes.steps
    codes = torch.zeros_like(rows.codes.codes)
    for start in range(0, cols, block):
        end = min(start + block, cols)
        lost = torch.zeros(len(weight), end - start, device=weight.device)
        for i in range(start, end):
            code, value = _column(left[:, i], int(order[i]), rows, steps)
            codes[:, order[i]] = code.to(torch.uint8)
            lost[:, i - start] = (left[:, i] - value) / factor[i, i]
            left[:, i + 1 : end] -= lost[:, i - start, None] * factor[i, i + 1 : end]
        left[:, end:] -= lost @ factor[start:end, end:]
    return rows.with_codes(codes)


def _column(values: Tensor, column: int, rows: UniformRows, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes of one column, and what they stand for: float32 [rows] each."""
    index = 0 if rows.group is None else column // rows.group
    scale = steps[:, index]
    zero = None if rows.codes.zero is None else rows.codes.zero[:, index]
    code = encode(values, scale, zero, rows.bits, rows.grid)
    return code, decode(code.clone(), scale, zero, rows.bits, rows.grid)
