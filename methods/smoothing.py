"""Per-input-channel smoothing: moves range between activations and weights without changing the product.

With x' = x / s and W' = W * s (columns), x' W'^T equals x W^T; only what the quantizers see changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Relative to the geometric mean: keeps dead channels and float16 storage out of trouble.
LIMIT = 2.0**10
FULL_GRID = 39


def input_channel_absmax(weights: Sequence[Tensor], taps: int) -> Tensor:
    """Largest |w| per input channel over all weights that consume it.

    Args:
        weights: float matrices [rows, channels * taps] that share the input.
        taps: kernel positions per channel, k*k of a convolution or 1.

    Returns:
        float32 [channels].
    """
    peaks = [w.abs().amax(dim=0).view(-1, taps).amax(dim=1) for w in weights]
    return torch.stack(peaks).amax(dim=0).float()


def smoothing_scale(x_absmax: Tensor, w_absmax: Tensor, alpha: float, beta: float) -> Tensor:
    """Smoothing vector s = max|x|^alpha / max|w|^beta (SVDQuant; both 1/2: MPQ-DM's pre-scale).

    Normalised to geometric mean 1, which changes no result (all quantizers here commute with a common
    factor), and clamped; channels dead on either side get 1.

    Args:
        x_absmax: [channels], largest |x| in the calibration data.
        w_absmax: [channels], largest |w|.
        alpha: exponent of the activations.
        beta: exponent of the weights.

    Returns:
        float16 [channels], finite and positive.
    """
    x, w = x_absmax.double(), w_absmax.double()
    alive = (x > 0) & (w > 0) & torch.isfinite(x) & torch.isfinite(w)
    one = torch.ones_like(x)
    log = alpha * torch.log(torch.where(alive, x, one)) - beta * torch.log(torch.where(alive, w, one))
    if alive.any():
        log = log - log[alive].mean()
    scale = torch.exp(log).clamp(1 / LIMIT, LIMIT)
    return torch.where(alive, scale, one).half()


def smoothing_grid(size: int) -> list[tuple[float, float]]:
    """Candidate exponents (alpha, beta): (0, 0), then for a = k/K, k = 1..K-1, both (a, 0) and (a, 1 - a).

    `size` 39 is the published grid (K = 20); 1 means no smoothing.

    Raises:
        ValueError: `size` is not an odd number of at least 1.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"a smoothing grid has an odd number of candidates, not {size}")
    steps = (size + 1) // 2
    ratios = [k / steps for k in range(1, steps)]
    return [(0.0, 0.0), *((a, b) for a in ratios for b in (0.0, 1 - a))]
