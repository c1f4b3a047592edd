"""Weight and activation grids whose parameters are learned: LSQ gradients through the stored values.

Every forward rounds with the parameters *as they would be stored* (16-bit scales, integer zero points), by
the very operations of the kernels, so that what is trained is what is packed. The rounding of a parameter to
its stored value is passed straight through.

Step size gradients: Esser et al. 2020 (LSQ), eq. 3; zero points: Bhalgat et al. 2020 (LSQ+). LSQ's gradient
scale is left out: AdamW divides every gradient by its own magnitude.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.kernels.activations import LARGEST_HALF, ActQuantizer
from harness.kernels.quantizers.grid import Grid, code_range, decode, encode, fixed_offset, half_scale
from harness.kernels.quantizers.grid import safe_divisor as divisor
from harness.kernels.quantizers.residual import (
    BinaryPlanes,
    dequantize_planes,
    nearest_codes,
    plane_signs,
)
from harness.kernels.quantizers.uniform import UniformCodes, blocks, encode_uniform
from harness.kernels.weights import BinaryPlanesWeight, PackedWeight, RowMixedWeight, UniformWeight


class _Stored(torch.autograd.Function):
    """The stored value forward, the learned one's gradient backward."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor, stored: Tensor) -> Tensor:
        return stored.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


def stored_value(learned: Tensor, stored: Tensor) -> Tensor:
    """Return `stored` as float32; its gradient goes to `learned` unchanged."""
    return cast(Tensor, _Stored.apply(learned, stored))  # type: ignore[no-untyped-call]


class _Uniform(torch.autograd.Function):
    """Round to a uniform grid.

    With position = x / scale + offset, and `inside` = position within the codes: d/dx = 1 inside;
    d/dscale = code - position inside, code - offset outside; d/dzero = -scale outside; all else is 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, bits: int, grid: Grid) -> Tensor:
        codes = encode(x, scale, zero, bits, grid)
        ctx.save_for_backward(x, codes, scale, zero)
        ctx.bits, ctx.grid = bits, grid
        return decode(codes.clone(), scale, zero, bits, grid)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        x, codes, scale, zero = ctx.saved_tensors
        offset = fixed_offset(ctx.bits, ctx.grid) if zero is None else zero
        smallest, largest = code_range(ctx.bits, ctx.grid)
        position = (x / divisor(scale)).add_(offset)
        inside = (position >= smallest).logical_and_(position <= largest)
        grad_x = grad * inside
        grad_scale = grad_zero = None
        if ctx.needs_input_grad[1]:
            slope = codes - torch.where(inside, position, offset)
            grad_scale = _sum_to(slope.mul_(grad), scale)
        if zero is not None and ctx.needs_input_grad[2]:
            grad_zero = _sum_to((grad - grad_x).mul_(-scale), zero)
        return grad_x, grad_scale, grad_zero, None, None


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    """Sum `values` over the axes that `like` was broadcast along."""
    return values.sum_to_size(like.shape) if values.shape != like.shape else values


def round_learned(x: Tensor, scale: Tensor, zero: Tensor | None, bits: int, grid: Grid) -> Tensor:
    """Round to a uniform grid with LSQ gradients.

    Args:
        x: float32.
        scale: stored scales as float32, broadcastable to `x`.
        zero: integer zero points as float32, broadcastable to `x`; None for the symmetric grids.
        bits: width of a code.
        grid: which grid.
    """
    return cast(Tensor, _Uniform.apply(x, scale, zero, bits, grid))  # type: ignore[no-untyped-call]


class _Planes(torch.autograd.Function):
    """Round to the nearest sum of signed amplitudes.

    d/dx = 1 up to the outermost level, d/dalpha_j = the sign of plane j: the codes are piecewise constant.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alphas: Tensor) -> Tensor:
        codes = nearest_codes(x, alphas)
        ctx.save_for_backward(x, alphas, codes)
        return dequantize_planes(codes, alphas)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        grad = grads[0]
        x, alphas, codes = ctx.saved_tensors
        count = alphas.shape[1]
        per_code = grad.new_zeros(len(x), 2**count).scatter_add_(1, codes.to(torch.int64), grad)
        inside = x.abs() <= alphas.sum(dim=1, keepdim=True)
        return grad * inside, per_code @ plane_signs(count, x.device)


def round_learned_planes(x: Tensor, alphas: Tensor) -> Tensor:
    """Round rows [rows, cols] to binary planes of stored alphas [rows, planes] (float32), with gradients."""
    return cast(Tensor, _Planes.apply(x, alphas))  # type: ignore[no-untyped-call]


class UniformGrid(nn.Module):
    """Learned scales and zero points of rows on a uniform grid.

    Attributes:
        scale: float32 [rows, groups].
        zero: float32 [rows, groups], rounded to an integer when used; None for symmetric grids.
    """

    def __init__(self, weight: UniformWeight) -> None:
        """Start from the parameters of a packed weight; raises ValueError for scales of two levels."""
        super().__init__()
        if weight.scale_format != "float":
            raise ValueError(f"{weight.scale_format} scales are not learned, only float ones")
        self.bits, self.grid, self.group = weight.bits, weight.grid, weight.group
        self.scale = nn.Parameter(weight.scale.to(torch.float32, copy=True))
        zero = weight.zero
        self.zero = None if zero is None else nn.Parameter(zero.to(torch.float32, copy=True))

    def stored(self) -> tuple[Tensor, Tensor | None]:
        """Return the scale float16 and the zero point uint8 as they would be packed."""
        scale = half_scale(self.scale.detach())
        if self.zero is None:
            return scale, None
        return scale, self.zero.detach().round().clamp_(0, 2**self.bits - 1).to(torch.uint8)

    def forward(self, rows: Tensor) -> Tensor:
        """Round rows float32 [rows, cols]."""
        held_scale, held_zero = self.stored()
        scale = stored_value(self.scale, held_scale)
        zero = None
        if self.zero is not None and held_zero is not None:
            zero = stored_value(self.zero, held_zero)
        done, first = [], 0
        for block in blocks(rows, self.group):
            last = first + block.shape[1]
            part_zero = None if zero is None else zero[:, first:last, None]
            rounded = round_learned(block, scale[:, first:last, None], part_zero, self.bits, self.grid)
            done.append(rounded.flatten(1))
            first = last
        return (done[0] if len(done) == 1 else torch.cat(done, dim=1)).view(rows.shape)

    def codes(self, rows: Tensor) -> UniformCodes:
        """Return rows float32 [rows, cols] as codes."""
        scale, zero = self.stored()
        codes = encode_uniform(rows, scale, zero, self.bits, grid=self.grid, group=self.group)
        return UniformCodes(codes, scale, zero)

    def pack(self, rows: Tensor) -> PackedWeight:
        """Return rows float32 [rows, cols] in packed storage."""
        return UniformWeight.pack(self.codes(rows), self.bits, self.grid, self.group)

    def step(self) -> float:
        """Return the mean scale, the distance of two neighbouring levels."""
        return float(self.scale.detach().mean())

    def rates(self, relative: float) -> list[tuple[nn.Parameter, float]]:
        """Return each parameter with its learning rate for a `relative` change per step."""
        rates = [(self.scale, relative * self.step())]
        return rates if self.zero is None else [*rates, (self.zero, relative * 2**self.bits)]


class PlaneGrid(nn.Module):
    """Learned amplitudes of rows stored as signed binary planes.

    Attributes:
        alphas: float32 [rows, planes].
    """

    def __init__(self, weight: BinaryPlanesWeight) -> None:
        """Start from the amplitudes of a packed weight."""
        super().__init__()
        self.alphas = nn.Parameter(weight.alphas.to(torch.float32, copy=True))

    def stored(self) -> Tensor:
        """Return the amplitudes as they would be packed: float16, not negative."""
        return self.alphas.detach().clamp(0, LARGEST_HALF).to(torch.float16)

    def forward(self, rows: Tensor) -> Tensor:
        """Round rows float32 [rows, cols]."""
        return round_learned_planes(rows, stored_value(self.alphas, self.stored()))

    def pack(self, rows: Tensor) -> PackedWeight:
        """Return rows float32 [rows, cols] in packed storage."""
        alphas = self.stored()
        return BinaryPlanesWeight.pack(BinaryPlanes(nearest_codes(rows, alphas), alphas))

    def step(self) -> float:
        """Return twice the mean smallest amplitude, the distance of two neighbouring levels."""
        return 2 * float(self.alphas.detach().amin(dim=1).mean())

    def rates(self, relative: float) -> list[tuple[nn.Parameter, float]]:
        """Return the amplitudes with their learning rate for a `relative` change per step."""
        return [(self.alphas, relative * float(self.alphas.detach().mean()))]


class MixedGrid(nn.Module):
    """Learned grids of a weight matrix, each for some of its rows.

    Attributes:
        parts: one grid, or those of a row-mixed weight in its order.
        row_part: uint8 [rows], which grid a row is on; None when there is one.
    """

    def __init__(self, weight: PackedWeight) -> None:
        """Start from the parameters of a packed weight.

        Raises:
            ValueError: it is of a kind whose parameters are not learned.
        """
        super().__init__()
        self.row_part: Tensor | None
        packed, self.row_part = [weight], None
        if isinstance(weight, RowMixedWeight):
            packed = [cast(PackedWeight, part) for part in weight.parts]
            self.row_part = weight.row_part.clone()
            self._order = torch.argsort(self.row_part, stable=True)
            self._back = torch.argsort(self._order)
        self.parts = nn.ModuleList([_grid_of(part) for part in packed])

    def grids(self) -> list[UniformGrid | PlaneGrid]:
        """Return the grids in order."""
        return [cast(UniformGrid | PlaneGrid, part) for part in self.parts]

    def _split(self, matrix: Tensor) -> list[Tensor]:
        """Return the rows of each grid."""
        if self.row_part is None:
            return [matrix]
        counts = torch.bincount(self.row_part.to(torch.int64), minlength=len(self.parts)).tolist()
        return list(torch.split(matrix[self._order], counts))

    def forward(self, matrix: Tensor) -> Tensor:
        """Round a matrix float32 [rows, cols], every row on its grid."""
        done = [grid(rows) for grid, rows in zip(self.grids(), self._split(matrix), strict=True)]
        return cast(Tensor, done[0]) if self.row_part is None else torch.cat(done)[self._back]

    def pack(self, matrix: Tensor) -> PackedWeight:
        """Return a matrix float32 [rows, cols] in packed storage."""
        packed = [grid.pack(rows) for grid, rows in zip(self.grids(), self._split(matrix), strict=True)]
        return packed[0] if self.row_part is None else RowMixedWeight(packed, self.row_part)

    def step(self) -> float:
        """Return the mean distance of two neighbouring levels over the grids."""
        steps = [grid.step() for grid in self.grids()]
        return sum(steps) / len(steps)


def _grid_of(weight: PackedWeight) -> UniformGrid | PlaneGrid:
    if isinstance(weight, UniformWeight):
        return UniformGrid(weight)
    if isinstance(weight, BinaryPlanesWeight):
        return PlaneGrid(weight)
    raise ValueError(f"weights stored as {weight.kind!r} have no parameters to learn")


class StepRows:
    """The sampling step of every row of the batch that a student is computing.

    Attributes:
        value: int64 [rows]; None outside a forward.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None


class LearnedActivation(nn.Module):
    """Learned scale and zero point of a per-tensor activation quantizer, one pair per stored range.

    MPQ-DM's temporal quantizer (from EfficientDM): one pair per sampling step, the step given from outside.

    Attributes:
        scale: float32 [steps], or [1] for a static range.
        zero: float32 [steps], in units of a code.
    """

    def __init__(self, act: ActQuantizer, steps: StepRows) -> None:
        """Start from the ranges of an asymmetric quantizer; raises ValueError for another one."""
        super().__init__()
        if act.range is None or act.symmetric:
            raise ValueError("only stored asymmetric ranges have a scale and a zero point to learn")
        self.bits, self.mode = act.bits, act.mode
        self._levels = 2**act.bits - 1
        self._steps = steps
        lo, hi = act.range.to(torch.float32).unbind(dim=1)
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
        scale = hi / self._levels - lo / self._levels
        self.scale = nn.Parameter(torch.where(scale == 0, 1.0, scale))
        self.zero = nn.Parameter((-lo / self.scale.detach()).clamp(0, self._levels))

    def ranges(self) -> Tensor:
        """Return the ranges as they would be stored: float16 [steps, 2]."""
        scale = self.scale.detach().clamp(min=2.0**-14)
        zero = self.zero.detach().clamp(0, self._levels)
        ranges = torch.stack([-zero * scale, (self._levels - zero) * scale], dim=1)
        return ranges.clamp(-LARGEST_HALF, LARGEST_HALF).to(torch.float16)

    def forward(self, x: Tensor) -> Tensor:
        """Round `x` [rows, ...] with the range of each row's step.

        Raises:
            RuntimeError: no steps are set, or not one per row.
        """
        lo, hi = self.ranges().to(torch.float32).unbind(dim=1)
        scale = divisor(hi / self._levels - lo / self._levels)
        zero = (-lo / scale).round_().clamp_(0, self._levels)
        scale, zero = stored_value(self.scale, scale), stored_value(self.zero, zero)
        if self.mode == "per_step":
            if self._steps.value is None or len(self._steps.value) != len(x):
                raise RuntimeError("a per-step activation range needs the step of every row of its input")
            shape = (-1, *[1] * (x.dim() - 1))
            scale, zero = (p[self._steps.value].view(shape) for p in (scale, zero))
        return round_learned(x, scale, zero, self.bits, "asymmetric")

    def pack(self) -> ActQuantizer:
        """Return the quantizer with the learned ranges."""
        return ActQuantizer(self.bits, "tensor", self.mode, range=self.ranges())


class StraightThrough(nn.Module):
    """A quantizer without learned parameters: its value forward, the identity's gradient backward."""

    def __init__(self, act: ActQuantizer) -> None:
        """Round as `act` does."""
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Round `x`."""
        with torch.no_grad():
            rounded = self.act(x)
        return stored_value(x, rounded)

    def pack(self) -> ActQuantizer:
        """Return the quantizer."""
        return self.act
