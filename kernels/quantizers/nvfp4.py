"""NVFP4: E2M1 floats in groups of 16 with an FP8 (E4M3) scale per group.

Weights have a second, per-tensor scale that brings the group scales into the range of FP8; activations have
the group scale alone. A code is sign (bit 3) and magnitude (bits 0-2, index into `MAGNITUDES`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 16
BITS = 4
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST = 6.0
LARGEST_E4M3 = 448.0
_NAN_BYTES = (0x7F, 0xFF)


@dataclass(frozen=True)
class Nvfp4Codes:
    """A matrix in NVFP4.

    Attributes:
        codes: uint8 [rows, cols], 0-15.
        scale: uint8 [rows, groups], the bytes of E4M3 numbers.
        tensor_scale: float32 [1]; a value is `magnitude * scale * tensor_scale` with its sign.
    """

    codes: Tensor
    scale: Tensor
    tensor_scale: Tensor


def encode_e2m1(x: Tensor) -> Tensor:
    """Return the codes of the nearest E2M1 numbers, ties to the even code, saturating at 6: uint8."""
    table = torch.tensor(MAGNITUDES, device=x.device)
    middles = (table[1:] + table[:-1]) / 2
    size = x.abs()
    below, above = (torch.bucketize(size, middles, right=right) for right in (False, True))
    magnitude = torch.where(below % 2 == 0, below, above)
    return (magnitude + 8 * (x < 0)).to(torch.uint8)


def decode_e2m1(codes: Tensor) -> Tensor:
    """Return the float32 values of E2M1 codes."""
    table = torch.tensor((*MAGNITUDES, *(-m for m in MAGNITUDES)), device=codes.device)
    return table[codes.to(torch.int64)]


def round_e4m3(x: Tensor) -> Tensor:
    """Round non-negative values to E4M3, saturating at 448: float32."""
    return x.clamp(max=LARGEST_E4M3).to(torch.float8_e4m3fn).to(torch.float32)


def e4m3_values(stored: Tensor) -> Tensor:
    """Return the float32 values of E4M3 bytes (uint8)."""
    return stored.view(torch.float8_e4m3fn).to(torch.float32)


def finite_e4m3(stored: Tensor) -> bool:
    """Whether no byte (uint8) is E4M3's NaN."""
    return not any(bool((stored == byte).any()) for byte in _NAN_BYTES)


def quantize_nvfp4(w: Tensor) -> Nvfp4Codes:
    """Round a matrix to NVFP4 with two-level scales.

    The tensor's scale is `max_g(absmax_g / 6) / 448`, a group's is `absmax_g / 6` in units of it, in E4M3.

    Args:
        w: float [rows, cols]; a last group may be short.

    Raises:
        ValueError: the weights are not finite.
    """
    w = w.detach().to(torch.float32)
    if not bool(torch.isfinite(w).all()):
        raise ValueError("the weights are not finite")
    grouped = F.pad(w, (0, -w.shape[1] % GROUP)).view(len(w), -1, GROUP)
    wanted = grouped.abs().amax(dim=2) / LARGEST
    tensor_scale = (wanted.max() / LARGEST_E4M3).reshape(1)
    unit = torch.where(tensor_scale > 0, tensor_scale, 1.0)
    scale = (wanted / unit).clamp(max=LARGEST_E4M3).to(torch.float8_e4m3fn).view(torch.uint8)
    return Nvfp4Codes(encode_nvfp4(w, scale, tensor_scale), scale, tensor_scale)


def encode_nvfp4(w: Tensor, scale: Tensor, tensor_scale: Tensor) -> Tensor:
    """Return the codes of a matrix for scales as in `Nvfp4Codes`: uint8 [rows, cols]."""
    step = _steps(scale, tensor_scale, w.shape[1])
    return encode_e2m1(torch.where(step > 0, w / torch.where(step > 0, step, 1.0), 0.0))


def dequantize_nvfp4(codes: Nvfp4Codes) -> Tensor:
    """Return the float32 values [rows, cols]."""
    return decode_e2m1(codes.codes) * _steps(codes.scale, codes.tensor_scale, codes.codes.shape[1])


def fake_nvfp4(x: Tensor) -> Tensor:
    """Round each run of the last axis to E2M1 times its own E4M3 scale, and return the values: float32.

    Args:
        x: float32 [..., values of one group].
    """
    magnitudes, scale = scaled_nvfp4(x)
    return magnitudes * scale


def scaled_nvfp4(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the signed E2M1 numbers [..., n] that `fake_nvfp4` rounds to, and their scales [..., 1]."""
    scale = round_e4m3(x.abs().amax(dim=-1, keepdim=True) / LARGEST)
    return decode_e2m1(encode_e2m1(x / torch.where(scale > 0, scale, 1.0))), scale


def _steps(scale: Tensor, tensor_scale: Tensor, cols: int) -> Tensor:
    """The step of every value: float32 [rows, cols]."""
    return (e4m3_values(scale) * tensor_scale).repeat_interleave(GROUP, dim=1)[:, :cols]
