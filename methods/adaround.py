"""AdaRound (Nagel et al., ICML 2020): whether each weight rounds up or down is learned on the output error.

With W' = s * clip(floor(W / s) + h(V) + z, 0, 2^b - 1) and h the rectified sigmoid, minimise per layer

    tr((W' - W) H (W' - W)^T) + weight * sum(1 - |2 h(V) - 1|^beta)

by Adam, H = X^T X / n of the quantized inputs, beta falling so that every h ends at 0 or 1. The gradient is
written out: the loss is quadratic in W'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.methods.contract import MethodConfig, QuantizeJob, method
from harness.methods.hessian import HESSIAN_ROWS, second_moment
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix
from harness.methods.objective import LayerSample
from harness.methods.rounding import UniformRows, round_plain, round_uniform

GAMMA, ZETA = -0.1, 1.1
"""The sigmoid is stretched to these ends and clipped, so that 0 and 1 are reached (eq. 23)."""
BETA_FIRST, BETA_LAST = 20.0, 2.0
WARM_UP = 0.2
"""Share of the steps without the regulariser."""
MOMENTS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class AdaroundConfig(MethodConfig):
    """Settings of `adaround`.

    Attributes:
        range: how the ends of a weight grid are found; the published start is `mse`.
        steps: Adam steps per layer.
        rate: learning rate.
        weight: of the regulariser, relative to the mean error that rounding to nearest makes.
    """

    range: Literal["mse", "minmax"] = "mse"
    steps: int = 400
    rate: float = 0.05
    weight: float = 0.1

    def __post_init__(self) -> None:
        """Check the numbers; raises ValueError."""
        if self.steps < 1:
            raise ValueError(f"steps is at least 1, not {self.steps}")
        if self.rate <= 0 or self.weight < 0:
            raise ValueError("rate is above 0 and weight at least 0")


@method(
    "adaround",
    AdaroundConfig,
    version=1,
    needs_calibration=True,
    in_all=False,
    summary="learned rounding up or down, per layer",
)
def quantize(job: QuantizeJob, config: AdaroundConfig) -> None:
    """Learn the rounding of every target."""
    for target in round_plain(job, job.targets):
        layer = job.layer(target.name)
        weight = weight_matrix(layer)
        rows = round_uniform(weight, target.w_bits, ranges=config.range)
        if not isinstance(rows, UniformRows):
            raise TypeError(f"{target.w_bits} bits have no uniform grid per channel")
        act = activation_quantizer(target)
        sample = LayerSample(layer, job.stream().samples(target.name), HESSIAN_ROWS)
        hessian = second_moment(sample.rows(None, act)).float()
        learned = learn_rounding(weight, rows, hessian, config)
        changed = float((learned.codes.codes != rows.codes.codes).float().mean())
        job.replace(target.name, packed_layer(layer, learned.pack(), act))
        job.note(target.name, rounded_otherwise=round(changed, 4))


def learn_rounding(weight: Tensor, rows: UniformRows, hessian: Tensor, config: AdaroundConfig) -> UniformRows:
    """Choose up or down for every weight of a matrix.

    Args:
        weight: float32 [rows, cols].
        rows: `asymmetric` grids per row, kept, and the rounding to compare with.
        hessian: float32 [cols, cols], second moment of the inputs.
        config: settings.

    Returns:
        the same grids with other codes; rows whose error the learned rounding does not lower keep theirs.
    """
    nearest = rows.values()
    scale = _spread(rows, rows.codes.scale)
    zero, top = rows.codes.zero, 2**rows.bits - 1
    assert zero is not None
    floor = (weight / scale + zero.float()).floor_().clamp_(0, top).to(torch.uint8)
    fraction = ((weight - _decoded(rows, floor)) / scale).clamp(0.01, 0.99)
    v = torch.logit((fraction - GAMMA) / (ZETA - GAMMA))
    start = output_error(nearest - weight, hessian)
    unit = max(float(start.mean()), 1e-30)
    strength = config.weight * unit
    first, second = torch.zeros_like(v), torch.zeros_like(v)
    offset = _decoded(rows, floor) - weight
    free = (floor < top).float()  # nothing rounds up from the last level
    for step in range(config.steps):
        beta = _beta(step, config.steps)
        gradient = rounding_gradient(v, offset, scale, hessian, strength, beta, free) / unit
        first.mul_(MOMENTS[0]).add_(gradient, alpha=1 - MOMENTS[0])
        second.mul_(MOMENTS[1]).addcmul_(gradient, gradient, value=1 - MOMENTS[1])
        mean = first / (1 - MOMENTS[0] ** (step + 1))
        root = (second / (1 - MOMENTS[1] ** (step + 1))).sqrt_().add_(ADAM_EPSILON)
        v -= config.rate * mean / root
    codes = (floor.float() + free * (v > 0)).to(torch.uint8)
    worse = output_error(_decoded(rows, codes) - weight, hessian) >= start
    codes[worse] = rows.codes.codes[worse]
    return rows.with_codes(codes)


def soft_rounding(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rectified sigmoid h(v) and its derivative."""
    sigmoid = torch.sigmoid(v)
    stretched = sigmoid * (ZETA - GAMMA) + GAMMA
    inside = (stretched > 0) & (stretched < 1)
    return stretched.clamp(0, 1), torch.where(inside, sigmoid * (1 - sigmoid) * (ZETA - GAMMA), 0.0)


def rounding_gradient(
    v: Tensor,
    offset: Tensor,
    scale: Tensor,
    hessian: Tensor,
    strength: float,
    beta: float | None,
    free: Tensor | float = 1.0,
) -> Tensor:
    """Gradient of the loss with respect to `v`.

    Args:
        v: float32 [rows, cols].
        offset: what rounding everything down is off by, [rows, cols].
        scale: [rows, 1].
        hessian: [cols, cols].
        strength: of the regulariser.
        beta: its exponent, None for no regulariser.
        free: 1 where rounding up is possible, 0 elsewhere.
    """
    h, slope = soft_rounding(v)
    gradient = 2 * ((offset + scale * h * free) @ hessian) * scale * free
    if beta is not None:
        centred = 2 * h - 1
        gradient = gradient - strength * 2 * beta * centred.sign() * centred.abs().pow(beta - 1)
    return gradient * slope


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """Mean squared output error of every row, d H d^T: [rows]."""
    return ((difference @ hessian) * difference).sum(dim=1)


def _beta(step: int, steps: int) -> float | None:
    """Exponent of the regulariser: none at first, then from 20 to 2 along a cosine."""
    share = (step / steps - WARM_UP) / (1 - WARM_UP)
    if share < 0:
        return None
    return BETA_LAST + (BETA_FIRST - BETA_LAST) * 0.5 * (1 + math.cos(share * math.pi))


def _spread(rows: UniformRows, scale: Tensor) -> Tensor:
    """The scale of every row, one where it is zero: float32 [rows, 1]."""
    values = scale.float()
    return torch.where(values > 0, values, torch.ones_like(values))


def _decoded(rows: UniformRows, codes: Tensor) -> Tensor:
    return rows.with_codes(codes).values()
