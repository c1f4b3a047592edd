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
from torch import Tensor, nn

from harness.kernels.quantizers.nvfp4 import GROUP, fake_nvfp4
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
        self.format: Format = format
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
        shift = self.shift / smooth.to(torch.float32)
        shift = shift.view(-1, 1, 1) if x.dim() == 4 else shift
        return self._plain(x + shift, 0.0).sub_(shift)

    def _plain(self, x: Tensor, shift: float) -> Tensor:
        """Round values that are shifted already; `shift` moves a stored range alike."""
        if self.range is not None:
            lo, hi = (self.range[self._step()].to(torch.float32) + shift).unbind()
            return self._round(x, lo, hi)
        return x if x.numel() == 0 else self._ranged(x)

    def _ranged(self, x: Tensor) -> Tensor:
        """Round with ranges of the values themselves."""
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
        levels = 2**self.bits - 1
        if self.symmetric and not self.shift:
            largest = 2 ** (self.bits - 1) - 1
            scale = _divisor(torch.maximum(lo.abs(), hi.abs()) / largest)
            return (x / scale).round_().clamp_(-largest, largest).mul_(scale)
        if self.symmetric:
            scale = _divisor(hi.clamp(min=0) / levels)
            return (x / scale).round_().clamp_(0, levels).mul_(scale)
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
        scale = _divisor(hi / levels - lo / levels)
        zero = (-lo / scale).round_().clamp_(0, levels)
        return (x / scale).add_(zero).round_().clamp_(0, levels).sub_(zero).mul_(scale)

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
        """Return the JSON object `from_spec` builds an empty copy from."""
        return {
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
