"""The student: a denoiser whose target layers hold float weights and learned grids until they are packed.

A student layer starts from a packed layer and its float original, and at first computes exactly what the
packed one does. LoRA is merged *before* rounding, Q((W + B A) s), so nothing of it is left after packing; a
16-bit branch, where the method put one beside the weight, is trained as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedLayer
from harness.kernels.weights import UniformWeight
from harness.methods.contract import QuantizeJob
from harness.methods.layers import kernel_taps, packed_layer, per_column, weight_matrix
from harness.methods.rounding import PLAIN_BITS
from harness.methods.training.grids import (
    LearnedActivation,
    MixedGrid,
    StepRows,
    StraightThrough,
    stored_value,
)


class LearnedBranch(nn.Module):
    """The factors of a side branch, float32, used as they would be stored (float16)."""

    def __init__(self, branch: LowRankBranch) -> None:
        """Start from a stored branch."""
        super().__init__()
        self.down = nn.Parameter(branch.down.to(torch.float32, copy=True))
        self.up = nn.Parameter(branch.up.to(torch.float32, copy=True))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return down [rank, cols] and up [rows, rank] as stored, float32, gradients straight through."""
        down = stored_value(self.down, self.down.detach().to(torch.float16))
        return down, stored_value(self.up, self.up.detach().to(torch.float16))

    def pack(self) -> LowRankBranch:
        """Return the branch in 16 bits."""
        return LowRankBranch(self.down.detach(), self.up.detach())


class StudentLayer(nn.Module):
    """A target layer while it is trained.

    Attributes:
        base: the matrix that is rounded, without LoRA, float32 [rows, cols]; frozen.
        down: LoRA's A, float32 [rank, cols]; None without LoRA. A convolution's cols are channels * taps.
        up: LoRA's B, float32 [rows, rank], zero at the start.
        grid: learned weight grids; None for a layer that stays at 8 bits, which is frozen as published.
    """

    base: Tensor

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        packed: PackedLayer,
        rank: int,
        steps: StepRows,
        generator: torch.Generator,
    ) -> None:
        """Take over a packed layer.

        Args:
            layer: the float original.
            packed: what the method put in its place.
            rank: LoRA's rank, 0 for none.
            steps: the step of every row of the batch.
            generator: draws LoRA's A (Kaiming uniform, a = sqrt 5).

        Raises:
            ValueError: the weight is stored in a way whose parameters are not learned.
        """
        super().__init__()
        self.layer, self.packed = layer, packed
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        self.act = _activation(packed.act, steps)
        self.branch = None if packed.branch is None else LearnedBranch(packed.branch)
        self.grid: MixedGrid | None = None
        self.down: nn.Parameter | None = None
        self.up: nn.Parameter | None = None
        held = packed.weight.dequantize()
        if isinstance(packed.weight, UniformWeight) and packed.weight.bits >= PLAIN_BITS:
            self.register_buffer("base", held)
            return
        self.grid = MixedGrid(packed.weight)
        self.register_buffer("base", self._rounded_to(held))
        if rank:
            rows, cols = held.shape
            rank = min(rank, rows, cols)
            down = torch.rand(rank, cols, generator=generator) * 2 - 1
            self.down = nn.Parameter(down.div_(math.sqrt(cols)).to(held.device))
            self.up = nn.Parameter(torch.zeros(rows, rank, device=held.device))

    def _rounded_to(self, held: Tensor) -> Tensor:
        """Return the float matrix, but the stored value where the method chose another than the nearest.

        Rounding that looks beyond one weight (GPTQ, a refitted branch) is so kept as the start.
        """
        matrix = weight_matrix(self.layer)
        if self.packed.smooth is not None:
            matrix = matrix * per_column(self.packed.smooth, kernel_taps(self.layer))
        if self.packed.branch is not None:
            matrix = matrix - self.packed.branch.product()
        with torch.no_grad():
            nearest = cast(MixedGrid, self.grid)(matrix)
        return torch.where(nearest == held, matrix, held)

    def matrix(self) -> Tensor:
        """Return the matrix before rounding, LoRA merged: float32 [rows, cols]."""
        if self.down is None or self.up is None:
            return self.base
        return torch.addmm(self.base, self.up, self.down)

    def weight(self) -> Tensor:
        """Return the rounded matrix, float32 [rows, cols], with LSQ gradients."""
        if self.grid is None:
            return self.base
        with torch.autocast("cuda", enabled=False):  # what is rounded in training is what will be packed
            return cast(Tensor, self.grid(self.matrix()))

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the packed layer would, with gradients to what is learned."""
        values = x.to(torch.float32)
        packed = self.packed
        if packed.smooth is not None:
            channels = packed.smooth.to(torch.float32)
            values = values / (channels if isinstance(self.layer, nn.Linear) else channels.view(-1, 1, 1))
        quantized = values if self.act is None else self.act(values)
        bias = None if packed.bias is None else packed.bias.to(torch.float32)
        y = self._apply_matrix(quantized, self.weight(), bias)
        if self.branch is not None:
            down, up = self.branch.factors()
            low = self._apply_matrix(values, down, None)
            y = y + (
                F.linear(low, up) if isinstance(self.layer, nn.Linear) else F.conv2d(low, up[..., None, None])
            )
        return y.to(x.dtype)

    def _apply_matrix(self, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, matrix, bias)
        kernel = matrix.view(-1, *layer.weight.shape[1:])
        return F.conv2d(x, kernel, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def pack(self) -> nn.Module:
        """Return the packed layer that computes the same."""
        if self.grid is None:
            return self.packed
        with torch.no_grad():
            weight = self.grid.pack(self.matrix())
        act = None if self.act is None else self.act.pack()
        branch = None if self.branch is None else self.branch.pack()
        return packed_layer(self.layer, weight, act, smooth=self.packed.smooth, branch=branch)

    def rates(self, lora: float, scales: float, act: float) -> list[tuple[str, nn.Parameter, float]]:
        """Return the learned parameters: name, parameter, learning rate.

        Args:
            lora: rate of LoRA in units of the layer's mean weight scale.
            scales: rate of weight scales, zero points and branch factors, relative to their size.
            act: the same for activation scales and zero points.
        """
        found: list[tuple[nn.Parameter, float]] = []
        if self.grid is None:
            return []
        if self.down is not None and self.up is not None:
            found += [(self.down, lora * self.grid.step()), (self.up, lora * self.grid.step())]
        for grid in self.grid.grids():
            found += grid.rates(scales)
        if isinstance(self.act, LearnedActivation):
            found += [(self.act.scale, act * float(self.act.scale.detach().mean()))]
            found += [(self.act.zero, act * 2**self.act.bits)]
        if self.branch is not None:
            found += [(p, scales * float(p.detach().abs().mean())) for p in self.branch.parameters()]
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        return [(names[id(parameter)], parameter, rate) for parameter, rate in found]


def _activation(act: ActQuantizer | None, steps: StepRows) -> LearnedActivation | StraightThrough | None:
    if act is None:
        return None
    if act.range is None or act.symmetric:
        return StraightThrough(act)
    return LearnedActivation(act, steps)


class Student:
    """The student layers of a denoiser, in the places of the packed ones.

    Attributes:
        layers: by target name.
        steps: to be set to the step of every row before a forward.
    """

    def __init__(self, job: QuantizeJob, originals: Mapping[str, nn.Linear | nn.Conv2d], rank: int) -> None:
        """Replace every packed target of the job's denoiser by its student.

        Args:
            job: a job whose targets are packed.
            originals: the float layers that stood there.
            rank: LoRA's rank, 0 for none.

        Raises:
            TypeError: a target is not packed.
        """
        self._job = job
        self.steps = StepRows()
        self.layers: dict[str, StudentLayer] = {}
        generator = torch.Generator().manual_seed(job.seed)
        for parameter in job.denoiser.parameters():
            parameter.requires_grad_(False)
        for target in job.targets:
            packed = job.denoiser.get_submodule(target.name)
            if not isinstance(packed, PackedLayer):
                raise TypeError(f"{target.name} is a {type(packed).__name__}, not a packed layer")
            layer = StudentLayer(originals[target.name], packed, rank, self.steps, generator)
            self.layers[target.name] = layer
            job.replace(target.name, layer)

    def parameters(self, lora: float, scales: float, act: float) -> dict[str, tuple[nn.Parameter, float]]:
        """Return every learned parameter with its learning rate by `LAYER/NAME`; see `StudentLayer.rates`."""
        return {
            f"{layer_name}/{name}": (parameter, rate)
            for layer_name, layer in self.layers.items()
            for name, parameter, rate in layer.rates(lora, scales, act)
        }

    def pack(self) -> None:
        """Put packed layers in the places of the students."""
        for name, layer in self.layers.items():
            self._job.replace(name, layer.pack())
