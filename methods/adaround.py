"""AdaRound (Nagel et al., ICML 2020): whether each weight rounds up or down is learned on the output error.

With W' = s * clip(floor(W / s) + h(V) + z, 0, 2^b - 1) and h the rectified sigmoid, minimise by Adam

    error + weight * sum(1 - |2 h(V) - 1|^beta)

beta falling so that every h ends at 0 or 1. The error is that of a block's output, the rounding of all its
layers learned together (BRECQ, Li et al., ICLR 2021; `methods/block_rounding.py`), or layer by layer
tr((W' - W) H (W' - W)^T) with H = X^T X / n of the quantized inputs. There the gradient is written out: the
loss is quadratic in W'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.methods.block_rounding import learn_block
from harness.methods.blocks import block_calls, by_block, denoiser_batches
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob, method
from harness.methods.hessian import HESSIAN_ROWS, second_moment
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix
from harness.methods.objective import LayerSample
from harness.methods.rounding import PLAIN_BITS, UniformRows, round_plain, round_uniform
from harness.methods.soft_rounding import (
    annealed,
    decoded,
    down_and_free,
    hardened,
    soft_rounding,
    spread,
    starting_values,
)

MOMENTS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
CALLS, TRAJECTORIES = 8, 4
"""Calls of the denoiser that a block is reconstructed on, and trajectories in each."""
RECORDED, CACHE_BYTES = 16, 256 * 2**20


@dataclass(frozen=True)
class AdaroundConfig(MethodConfig):
    """Settings of `adaround`.

    Attributes:
        range: how the ends of a weight grid are found; the published start is `mse`.
        reconstruct: whose output error is minimised: of a transformer or residual `block` with all its
            layers, or of each `layer`. Layers outside such blocks are always on their own.
        steps: Adam steps per block or layer.
        rate: learning rate.
        weight: of the regulariser, relative to the mean error that rounding to nearest makes.
    """

    range: Literal["mse", "minmax"] = "mse"
    reconstruct: Literal["block", "layer"] = "block"
    steps: int = 120
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
    version=2,
    needs_calibration=True,
    in_all=False,
    summary="learned rounding up or down, block by block",
)
def quantize(job: QuantizeJob, config: AdaroundConfig) -> None:
    """Learn the rounding of every target.

    Raises:
        ValueError: blocks are to be reconstructed, and the job has no teacher to record their inputs from.
    """
    low = [target for target in job.targets if target.w_bits < PLAIN_BITS]
    groups = by_block(low) if config.reconstruct == "block" else [(None, [target]) for target in low]
    batches = []
    if any(block is not None for block, _ in groups):
        if job.teacher is None:
            raise ValueError(
                "a block is reconstructed on the model's own trajectories; set reconstruct=layer"
            )
        recorded = job.teacher.record(RECORDED, CACHE_BYTES, False)
        device = next(job.denoiser.parameters()).device
        batches = denoiser_batches(recorded, CALLS, TRAJECTORIES, job.seed, device)
    for block, targets in groups:
        if block is None:
            _quantize_layer(job, targets[0], config)
            continue
        calls = block_calls(job.denoiser, block, batches)
        starts = {target.name: _start(job, target, config) for target in targets}
        module = job.denoiser.get_submodule(block)
        learned = learn_block(job, module, targets, starts, calls, config)
        for target in targets:
            _replace(job, target, starts[target.name], learned[target.name])
    # Last: what stays at 8 bits lets no gradient through.
    round_plain(job, [target for target in job.targets if target.w_bits >= PLAIN_BITS])


def _start(job: QuantizeJob, target: LayerTarget, config: AdaroundConfig) -> UniformRows:
    """Return the grid of a layer with its nearest codes."""
    rows = round_uniform(weight_matrix(job.layer(target.name)), target.w_bits, ranges=config.range)
    if not isinstance(rows, UniformRows):
        raise TypeError(f"{target.w_bits} bits have no uniform grid per channel")
    return rows


def _quantize_layer(job: QuantizeJob, target: LayerTarget, config: AdaroundConfig) -> None:
    layer, rows = job.layer(target.name), _start(job, target, config)
    sample = LayerSample(layer, job.stream().samples(target.name), HESSIAN_ROWS)
    hessian = second_moment(sample.rows(None, activation_quantizer(target))).float()
    _replace(job, target, rows, learn_rounding(weight_matrix(layer), rows, hessian, config))


def _replace(job: QuantizeJob, target: LayerTarget, nearest: UniformRows, learned: UniformRows) -> None:
    changed = float((learned.codes.codes != nearest.codes.codes).float().mean())
    layer = job.layer(target.name)
    job.replace(target.name, packed_layer(layer, learned.pack(), activation_quantizer(target)))
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
    scale = spread(rows)
    floor, free = down_and_free(weight, rows)
    v = starting_values(weight, rows, floor)
    start = output_error(nearest - weight, hessian)
    unit = max(float(start.mean()), 1e-30)
    strength = config.weight * unit
    first, second = torch.zeros_like(v), torch.zeros_like(v)
    offset = decoded(rows, floor) - weight
    for step in range(config.steps):
        beta = annealed(step, config.steps)
        gradient = rounding_gradient(v, offset, scale, hessian, strength, beta, free) / unit
        first.mul_(MOMENTS[0]).add_(gradient, alpha=1 - MOMENTS[0])
        second.mul_(MOMENTS[1]).addcmul_(gradient, gradient, value=1 - MOMENTS[1])
        mean = first / (1 - MOMENTS[0] ** (step + 1))
        root = (second / (1 - MOMENTS[1] ** (step + 1))).sqrt_().add_(ADAM_EPSILON)
        v -= config.rate * mean / root
    learned = hardened(rows, floor, free, v)
    worse = output_error(learned.values() - weight, hessian) >= start
    learned.codes.codes[worse] = rows.codes.codes[worse]
    return learned


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
