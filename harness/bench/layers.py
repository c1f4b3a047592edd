"""Packed linear layers on random numbers, as a method would leave them."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.bench.shapes import GROUP, NumberFormat, Shape
from harness.conformance.packed import dynamic_inputs, uniform_weight
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.scales import ScaleFormat

REFERENCE_ROAD = "reference"
_ITERATIONS = 2
_BIAS, _LOG_SMOOTH = 0.1, 0.25


def random_linear(shape: Shape, device: torch.device | str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a weight bfloat16 [n, k] of unit gain and a bias bfloat16 [n], from a seed."""
    generator = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(shape.n, shape.k, device=device, generator=generator).mul_(shape.k**-0.5)
    bias = torch.randn(shape.n, device=device, generator=generator).mul_(_BIAS)
    return weight.to(torch.bfloat16), bias.to(torch.bfloat16)


def random_input(rows: int, k: int, device: torch.device | str, seed: int = 1) -> Tensor:
    """Return an input bfloat16 [rows, k] from a seed."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(rows, k, device=device, generator=generator).to(torch.bfloat16)


def packed_linear(
    weight: Tensor, bias: Tensor, numbers: NumberFormat, scales: ScaleFormat = "float", seed: int = 2
) -> PackedLinear:
    """Pack a random linear layer.

    With quantized inputs it has all that SVDQuant's layer has: a smoothing vector, the input's quantizer
    (groups of 64 up to 4 bits, tokens above) and, at 4 bits, the low-rank branch taken off the weight before
    rounding. Without, it is the weight-only layer: groups of 64, with zero points below 4 bits.

    Args:
        weight: float [n, k].
        bias: float [n].
        numbers: widths.
        scales: scale format of groups of weights and inputs.
        seed: of the smoothing vector.
    """
    w = weight.to(torch.float32)
    smooth = None
    if not numbers.weight_only:
        generator = torch.Generator(w.device).manual_seed(seed)
        noise = torch.randn(w.shape[1], device=w.device, generator=generator)
        smooth = noise.mul_(_LOG_SMOOTH).exp_().to(torch.float16)
        w = w * smooth.to(torch.float32)
    branch = None if not numbers.rank else _leading_branch(w, numbers.rank)
    residual = w if branch is None else w - branch.product()
    packed = uniform_weight(residual, numbers.w_bits, weight_grid(numbers), GROUP, scales)
    return PackedLinear(packed, bias=bias, act=input_quantizer(numbers, scales), smooth=smooth, branch=branch)


def weight_grid(numbers: NumberFormat) -> Grid:
    """Return the grid of a layer's weights: with zero points below 4 bits."""
    return "narrow" if numbers.w_bits >= 4 else "asymmetric"


def input_quantizer(numbers: NumberFormat, scales: ScaleFormat = "float") -> ActQuantizer | None:
    """Return the quantizer of a linear layer's inputs, symmetric; None for 16 bits."""
    if numbers.weight_only:
        return None
    if numbers.a_bits > 4:
        return dynamic_inputs(numbers.a_bits, "token")
    return dynamic_inputs(numbers.a_bits, "group", group=GROUP, scales=scales)


def road_of(layer: object, x: Tensor) -> str:
    """Return the kernels that a packed layer ran last, or those it would run on an input if it has not run.

    `reference` where it has one way.
    """
    taken, road = getattr(layer, "road_taken", None), getattr(layer, "road", None)
    if isinstance(taken, str) and taken:
        return taken
    return str(road(x)) if callable(road) else REFERENCE_ROAD


def _leading_branch(w: Tensor, rank: int) -> LowRankBranch:
    """Return a branch close to the leading `rank` directions of a matrix, by random projection."""
    rank = min(rank, *w.shape)
    with torch.random.fork_rng(devices=[w.device] if w.device.type == "cuda" else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(w, q=min(rank + 10, *w.shape), niter=_ITERATIONS)
    root = s[:rank].sqrt()
    return LowRankBranch((v[:, :rank] * root).T, u[:, :rank] * root)
