"""Packed weights and input quantizers for checks and benchmarks, in any scale format this version has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from harness.errors import UserError
from harness.kernels.activations import ActQuantizer, Granularity
from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.uniform import Group, quantize_uniform
from harness.kernels.weights import UniformWeight

FLOAT_SCALES = "float"


def uniform_weight(
    w: Tensor, bits: int, grid: Grid, group: Group, scales: str = FLOAT_SCALES
) -> UniformWeight:
    """Round a matrix to the nearest values of a grid and pack it.

    Args:
        w: float [rows, cols].
        bits: width of a code.
        grid: see `harness.kernels.quantizers.grid`.
        group: columns that share a scale.
        scales: scale format of the groups.

    Raises:
        UserError: this version has no such scale format.
    """
    codes = quantize_uniform(w, bits, grid=grid, group=group, **scale_options(quantize_uniform, scales))
    return UniformWeight.pack(codes, bits, grid, group)


def dynamic_inputs(
    bits: int, granularity: Granularity, *, group: int = 64, shift: float = 0.0, scales: str = FLOAT_SCALES
) -> ActQuantizer:
    """Return a symmetric quantizer of inputs with ranges of their own; raises UserError as above."""
    options = scale_options(ActQuantizer.__init__, scales)
    return ActQuantizer(bits, granularity, "dynamic", True, group=group, shift=shift, **options)


def scale_options(function: Callable[..., Any], scales: str) -> dict[str, Any]:
    """Return the argument that asks `function` for a scale format; nothing for the first one, `float`."""
    if scales == FLOAT_SCALES:
        return {}
    if not has_scale_formats(function):
        raise UserError(f"--scales {scales}: {function.__qualname__} has float scales only")
    return {"scale_format": scales}


def has_scale_formats(function: Callable[..., Any]) -> bool:
    """Whether a function can be asked for a scale format."""
    return "scale_format" in inspect.signature(function).parameters
