"""Packed weights and input quantizers for checks and benchmarks, in any scale format."""

from __future__ import annotations

from torch import Tensor

from harness.kernels.activations import ActQuantizer, Granularity
from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.scales import ScaleFormat
from harness.kernels.quantizers.uniform import Group, quantize_uniform
from harness.kernels.weights import UniformWeight


def uniform_weight(
    w: Tensor, bits: int, grid: Grid, group: Group, scales: ScaleFormat = "float"
) -> UniformWeight:
    """Round a matrix to the nearest values of a grid and pack it.

    Args:
        w: float [rows, cols].
        bits: width of a code.
        grid: see `harness.kernels.quantizers.grid`.
        group: columns that share a scale.
        scales: format of the scales of groups.
    """
    codes = quantize_uniform(w, bits, grid=grid, group=group, scale_format=scales)
    return UniformWeight.pack(codes, bits, grid, group)


def dynamic_inputs(
    bits: int,
    granularity: Granularity,
    *,
    group: int = 64,
    shift: float = 0.0,
    scales: ScaleFormat = "float",
) -> ActQuantizer:
    """Return a symmetric quantizer of inputs with ranges of their own."""
    return ActQuantizer(bits, granularity, "dynamic", True, group=group, shift=shift, scale_format=scales)
