"""Activation quantizers: values are rounded to an integer grid and come back as float32 (fake quantization).

| granularity | values that share a range | inputs |
|---|---|---|
| `token` | the channels of one token (last axis) | linear |
| `group` | `group` neighbouring channels of one token | linear |
| `tensor` | everything of one sample (axis 0) | linear, convolution |

The mode says where a range comes from: `dynamic` from the values themselves, `static` from one stored range,
`per_step` from one stored range per sampling step, the step being given from outside (the temporal quantizer
of EfficientDM and MPQ-DM, with the step explicit instead of counted). A dynamic `tensor` range is per sample,
never per batch: what an image becomes does not depend on its neighbours.
"""

from __future__ import annotations

from typing import Literal, Self, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.kernels.codes import ActCodes
from harness.kernels.quantizers.grid import divided
from harness.kernels.quantizers.nvfp4 import GROUP, fake_nvfp4, scaled_nvfp4
from harness.kernels.quantizers.scales import (
    SCALE_FORMATS,
    ScaleFormat,
    check_scale_format,
    e8m0_group_scales,
    group_multiplier,
    integer_group_scales,
    largest_multiplier,
)
from harness.kernels.stored import Spec, StoredModule, nbytes, spec_bool, spec_choice, spec_int

Granularity = Literal["token", "tensor", "group"]
Mode = Literal["dynamic", "static", "per_step"]
Format = Literal["integer", "nvfp4"]
LARGEST_HALF = 65504.0
MOST_STEPS = 100_000


class StepIndex:
    """The sampling step a denoiser is at, shared by all its per-step quantizers.

    Attributes:
        value: position in the schedule, from 0; None outside sampling.
        steps: length of that schedule; None where nobody said, e.g. when one forward is timed.
    """

    def __init__(self, value: int | None = None, steps: int | None = None) -> None:
        self.value, self.steps = value, steps


class ActQuantizer(StoredModule):
    """Rounds activations to a grid of `2**bits` levels.

    Asymmetric: `(code - zero) * scale`, codes 0..2^b-1, zero an integer, the range extended to include 0.
    Symmetric: `code * scale`, codes -(2^(b-1)-1)..2^(b-1)-1.
    Symmetric with a shift: `code * scale - shift`, codes 0..2^b-1: for inputs known to be above `-shift`,
    e.g. 0.171875 after GELU, this doubles the resolution (SVDQuant's unsigned activations).

    NVFP4: E2M1 floats in groups of 16 with an FP8 scale each, dynamic (`harness.kernels.quantizers.nvfp4`).

    Symmetric groups may have scales of two levels (`harness.kernels.quantizers.scales`), one float scale per
    token and an integer k or a power of two per group. For a token x float32 [channels], `largest` being
    2^(b-1) - 1, or 2^b - 1 with a shift, and `kmax = 127 // largest`:

        x         = x / smooth                      where the layer smooths
        x         = x + shift / smooth              with a shift
        absmax[g] = max over the group of |x|, of max(x, 0) with a shift
        s, k      = integer_group_scales(absmax, largest, kmax)     (or s, e: e8m0_group_scales)
        step[g]   = s * float32(k[g])                               (or s * 2^e[g])
        code      = min(max(round(x / step[g]), -largest), largest)     from 0 on with a shift
        product   = k[g] * code                                     (or 2^e[g] * code)
        value     = s * product  [- shift / smooth]

    in this order, in float32, every operation rounded to nearest with ties to even, divisions included;
    `round` also goes to the even code. Products of `integer` fit int8, those of `e8m0` float8 e4m3.

    Scales are float32 and never stored when dynamic; stored ranges are float16 (lo, hi).

    Attributes:
        range: float16 [1, 2] (`static`), [steps, 2] (`per_step`), absent when dynamic.
        step_index: set by `bind_step_index` for `per_step`.
    """

    range: Tensor | None

    def __init__(
        self,
        bits: int,
        granularity: Granularity = "token",
        mode: Mode = "dynamic",
        symmetric: bool = False,
        *,
        group: int = 64,
        shift: float = 0.0,
        range: Tensor | None = None,
        format: Format = "integer",
        scale_format: ScaleFormat = "float",
    ) -> None:
        """Check the combination.

        Args:
            bits: 1-8 (2-8 when symmetric without shift).
            granularity: what shares a range.
            mode: where a range comes from.
            symmetric: grid, see above.
            group: channels that share a range, for `group`; the last group may be short.
            shift: added before rounding and taken off again; needs `symmetric`.
            range: lo and hi of the unshifted input, float [2] or [1, 2] for `static`, [steps, 2] for
                `per_step`.
            format: numbers of the grid; `nvfp4` is 4 bits, dynamic, symmetric, in groups of 16.
            scale_format: how groups are scaled; other than `float` needs symmetric groups of integers.

        Raises:
            ValueError: a combination that makes no sense, or a range that is missing, of a wrong shape or not
                finite.
        """
        super().__init__()
        if not 1 <= bits <= 8 or (symmetric and not shift and bits == 1):
            raise ValueError(f"activations cannot be quantized to {bits} bits on this grid")
        if granularity not in get_args(Granularity) or mode not in get_args(Mode):
            raise ValueError(f"no such activation quantizer: {granularity!r}, {mode!r}")
        if mode != "dynamic" and granularity != "tensor":
            raise ValueError(f"a {mode} range is one for the whole tensor, not per {granularity}")
        if shift and not symmetric:
            raise ValueError("a shift needs symmetric=True (an asymmetric grid has a zero point instead)")
        if group < 1:
            raise ValueError(f"a group has at least one channel, not {group}")
        as_nvfp4 = (4, "group", "dynamic", True, GROUP, 0.0)
        fits = format == "integer" or (bits, granularity, mode, symmetric, group, shift) == as_nvfp4
        if format not in get_args(Format) or not fits:
            raise ValueError(f"no such activation format: {format!r} with {bits} bits per {granularity}")
        largest = 2**bits - 1 if shift else max(1, 2 ** (bits - 1) - 1)
        check_scale_format(scale_format, largest, f"an activation of {bits} bits")
        if scale_format != "float" and (granularity, symmetric, format) != ("group", True, "integer"):
            raise ValueError(f"{scale_format} scales are for symmetric integer groups of a token")
        self.format: Format = format
        self.scale_format: ScaleFormat = scale_format
        self.bits, self.group, self.shift, self.symmetric = bits, group, float(shift), symmetric
        self.granularity: Granularity = granularity
        self.mode: Mode = mode
        self.step_index: StepIndex | None = None
        self.register_buffer("range", self._stored_range(range))

    def _stored_range(self, given: Tensor | None) -> Tensor | None:
        if (given is None) != (self.mode == "dynamic"):
            raise ValueError(f"a {self.mode} quantizer takes {'no' if given is not None else 'a'} range")
        if given is None:
            return None
        given = given.detach().reshape(1, 2) if given.dim() == 1 and given.numel() == 2 else given.detach()
        if given.dim() != 2 or given.shape[1] != 2 or given.shape[0] < 1:
            raise ValueError(f"a range has the shape [steps, 2], not {tuple(given.shape)}")
        if self.mode == "static" and given.shape[0] != 1:
            raise ValueError(f"a static quantizer has one range, not {given.shape[0]}")
        if not bool(torch.isfinite(given).all()):
            raise ValueError("the range is not finite")
        return given.clamp(-LARGEST_HALF, LARGEST_HALF).to(torch.float16).clone()

    @property
    def steps(self) -> int:
        """Number of stored ranges, 0 when dynamic."""
        return 0 if self.range is None else self.range.shape[0]

    def forward(self, x: Tensor, smooth: Tensor | None = None) -> Tensor:
        """Round `x` to the grid.

        Args:
            x: any float dtype; linear inputs [..., channels], convolution inputs [n, c, h, w] (`tensor`
                only).
            smooth: float [channels], what the channels were divided by. The shift is one of the input before
                that, so a dynamic quantizer divides it alike; nothing else depends on it.

        Returns:
            float32 of the shape of `x`.

        Raises:
            RuntimeError: `per_step` without a step index, with one outside the stored steps, or on a schedule
                of another length.
        """
        x = x.to(torch.float32)
        if not self.shift:
            return self._plain(x, 0.0)
        if smooth is None or self.mode != "dynamic":
            return self._plain(x + self.shift, self.shift).sub_(self.shift)
        shift = self._smoothed_shift(smooth, x.dim())
        return self._plain(x + shift, 0.0).sub_(shift)

    @property
    def largest_multiplier(self) -> int:
        """The largest multiplier of a group with integer scales (see `scales`), 1 for other formats."""
        largest = 2**self.bits - 1 if self.shift else 2 ** (self.bits - 1) - 1
        return largest_multiplier(largest) if self.scale_format == "integer" else 1

    def codes(self, x: Tensor, smooth: Tensor | None = None) -> ActCodes:
        """Return what `forward` rounds to as codes and their parameters; arguments and errors as there.

        Raises:
            ValueError: there are no values.
        """
        if x.numel() == 0:
            raise ValueError("codes of no values")
        x, shift, moved = x.to(torch.float32), None, 0.0
        if self.shift and (smooth is None or self.mode != "dynamic"):
            shift, moved = torch.tensor([self.shift], device=x.device), self.shift
        elif self.shift and smooth is not None:
            shift = self._smoothed_shift(smooth, x.dim())
        x = x if shift is None else x + shift
        if self.scale_format != "float":
            products, scale, multiplier = self._two_levels(x)
            held = torch.float8_e4m3fn if self.scale_format == "e8m0" else torch.int8
            return ActCodes(products.to(held), scale, None, shift, None, multiplier)
        group = min(self.group, x.shape[-1]) if self.granularity == "group" else None
        codes, scale, zero = self._coded(x, moved)
        # Unsigned codes of 8 bits lie above int8: they are held 128 lower.
        lowered = 128.0 if self.bits == 8 and (self.shift or not self.symmetric) else 0.0
        offset = None
        if zero is not None or lowered:
            offset = torch.full_like(scale, lowered) if zero is None else lowered - zero
        return ActCodes(codes.sub_(lowered).to(torch.int8), scale, offset, shift, group)

    def _smoothed_shift(self, smooth: Tensor, dims: int) -> Tensor:
        shift = self.shift / smooth.to(torch.float32)
        return shift.view(-1, 1, 1) if dims == 4 else shift

    def _plain(self, x: Tensor, shift: float) -> Tensor:
        """Round values that are shifted already; `shift` moves a stored range alike."""
        if self.range is not None:
            return self._round(x, *self.stored_range(shift))
        return x if x.numel() == 0 else self._ranged(x)

    def stored_range(self, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the stored range of this step, moved by `shift`: two float32 scalars.

        Raises:
            RuntimeError: as `forward`.
        """
        assert self.range is not None
        lo, hi = (self.range[self._step()].to(torch.float32) + shift).unbind()
        return lo, hi

    def _ranged(self, x: Tensor) -> Tensor:
        """Round with ranges of the values themselves."""
        if self.scale_format != "float":
            products, scale, _ = self._two_levels(x)
            return products.mul_(scale)
        if self.granularity == "tensor":
            return self._dynamic(x.reshape(x.shape[0], -1) if x.dim() > 1 else x).view(x.shape)
        if self.granularity == "token" or self.group >= x.shape[-1]:
            return self._dynamic(x)
        full = x.shape[-1] - x.shape[-1] % self.group
        grouped = self._dynamic(x[..., :full].reshape(*x.shape[:-1], -1, self.group)).flatten(-2)
        return grouped if full == x.shape[-1] else torch.cat([grouped, self._dynamic(x[..., full:])], dim=-1)

    def _dynamic(self, x: Tensor) -> Tensor:
        """Round with one range per run of the last axis."""
        if self.format == "nvfp4":
            return fake_nvfp4(x)
        return self._round(x, x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True))

    def _round(self, x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        codes, scale, zero = self._grid(x, lo, hi)
        return (codes if zero is None else codes.sub_(zero)).mul_(scale)

    def _grid(self, x: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return codes, scale and zero point (None for 0) for a range, all float32."""
        levels = 2**self.bits - 1
        if self.symmetric and not self.shift:
            largest = 2 ** (self.bits - 1) - 1
            scale = _divisor(divided(torch.maximum(lo.abs(), hi.abs()), largest))
            return (x / scale).round_().clamp_(-largest, largest), scale, None
        if self.symmetric:
            scale = _divisor(divided(hi.clamp(min=0), levels))
            return (x / scale).round_().clamp_(0, levels), scale, None
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
        scale = _divisor(divided(hi, levels) - divided(lo, levels))
        zero = (-lo / scale).round_().clamp_(0, levels)
        return (x / scale).add_(zero).round_().clamp_(0, levels), scale, zero

    def _coded(self, x: Tensor, shift: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return codes of the shape of `x`, scales and zero points, for one level of scales."""
        if self.range is not None:
            codes, scale, zero = self._grid(x, *self.stored_range(shift))
            ones = (1,) * x.dim()
            return codes, scale.view(ones), None if zero is None else zero.view(ones)
        if self.granularity == "tensor":
            runs = x.reshape(x.shape[0], -1) if x.dim() > 1 else x
            codes, scale, zero = self._grid_of(runs)
            each = (len(scale), *(1,) * (x.dim() - 1))
            return codes.view(x.shape), scale.view(each), None if zero is None else zero.view(each)
        if self.granularity == "token":
            return self._grid_of(x)
        size = min(self.group, x.shape[-1])
        full = x.shape[-1] - x.shape[-1] % size
        parts = [self._grid_of(x[..., :full].reshape(*x.shape[:-1], -1, size))]
        if full < x.shape[-1]:
            parts.append(self._grid_of(x[..., None, full:]))
        codes = torch.cat([part[0].flatten(-2) for part in parts], dim=-1)
        scale = torch.cat([part[1].squeeze(-1) for part in parts], dim=-1)
        zeros = [part[2].squeeze(-1) for part in parts if part[2] is not None]
        return codes, scale, torch.cat(zeros, dim=-1) if zeros else None

    def _grid_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return codes, scale and zero point with one range per run of the last axis."""
        if self.format == "nvfp4":
            numbers, scale = scaled_nvfp4(x)
            return numbers * 2, scale / 2, None
        return self._grid(x, x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True))

    def _two_levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return products of the shape of `x`, the tokens' scales [..., 1] and the groups' multipliers."""
        channels = x.shape[-1]
        size = min(self.group, channels)
        grouped = F.pad(x, (0, -channels % size)).reshape(*x.shape[:-1], -1, size)
        largest = 2**self.bits - 1 if self.shift else 2 ** (self.bits - 1) - 1
        absmax = (grouped.clamp(min=0) if self.shift else grouped.abs()).amax(dim=-1)
        if self.scale_format == "e8m0":
            scale, multiplier = e8m0_group_scales(absmax, largest)
        else:
            scale, multiplier = integer_group_scales(absmax, largest, largest_multiplier(largest))
        factor = group_multiplier(self.scale_format, multiplier)
        codes = (grouped / (scale * factor).unsqueeze(-1)).round_()
        products = codes.clamp_(0 if self.shift else -largest, largest).mul_(factor.unsqueeze(-1))
        return products.flatten(-2)[..., :channels], scale, multiplier

    def _step(self) -> int:
        if self.mode == "static":
            return 0
        step = None if self.step_index is None else self.step_index.value
        if step is None:
            raise RuntimeError(
                "a per-step activation quantizer ran without a step index (bind_step_index, then set value)"
            )
        schedule = None if self.step_index is None else self.step_index.steps
        if schedule not in {None, self.steps}:
            raise RuntimeError(
                f"activation ranges of a schedule of {self.steps} steps on one of {schedule}; quantize anew"
            )
        if not 0 <= step < self.steps:
            raise RuntimeError(f"step {step} of a per-step activation quantizer with {self.steps} steps")
        return step

    def table_bytes(self) -> int:
        """Return the bytes of the stored ranges."""
        return nbytes(self.range)

    def spec(self) -> Spec:
        """Return the JSON object `from_spec` builds an empty copy from; `float` scales are not named."""
        two_level = {} if self.scale_format == "float" else {"scale_format": self.scale_format}
        return {
            **two_level,
            "bits": self.bits,
            "granularity": self.granularity,
            "mode": self.mode,
            "symmetric": self.symmetric,
            "group": self.group,
            "shift": self.shift,
            "steps": self.steps,
            "format": self.format,
        }

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        """Build a quantizer with empty ranges; raises ValueError on a wrong spec."""
        shift = spec.get("shift")
        if isinstance(shift, bool) or not isinstance(shift, int | float) or not abs(shift) <= LARGEST_HALF:
            raise ValueError(f"shift must be a finite number, not {shift!r}")
        steps = spec_int(spec, "steps", 0, MOST_STEPS)
        return cls(
            spec_int(spec, "bits", 1, 8),
            cast(Granularity, spec_choice(spec, "granularity", get_args(Granularity))),
            cast(Mode, spec_choice(spec, "mode", get_args(Mode))),
            spec_bool(spec, "symmetric"),
            group=spec_int(spec, "group", 1, 1 << 24),
            shift=shift,
            range=torch.zeros(steps, 2) if steps else None,
            # Absent in checkpoints from before there was a second format.
            format=cast(Format, spec_choice({"format": "integer", **spec}, "format", get_args(Format))),
            scale_format=cast(
                ScaleFormat, spec_choice({"scale_format": "float", **spec}, "scale_format", SCALE_FORMATS)
            ),
        )


def bind_step_index(module: nn.Module, index: StepIndex) -> int:
    """Give every per-step quantizer inside `module` the same step index.

    Returns:
        How many quantizers read it.
    """
    quantizers = [m for m in module.modules() if isinstance(m, ActQuantizer) and m.mode == "per_step"]
    for quantizer in quantizers:
        quantizer.step_index = index
    return len(quantizers)


def _divisor(scale: Tensor) -> Tensor:
    """Return the scale, one where it is zero (a constant zero input); NaN stays NaN, so that it shows."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
