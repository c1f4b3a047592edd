"""Normal-float: a code book of normal quantiles, scaled by the largest magnitude of each block.

(QLoRA, Dettmers et al. 2023, arXiv 2305.14314, section 3.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 4-bit code book exactly as bitsandbytes ships it."""

BLOCK = 64
CHUNK = 1 << 18


@dataclass(frozen=True)
class NormalFloatCodes:
    """A matrix in normal-float.

    Attributes:
        codes: uint8 [rows, cols], indices into `nf_codebook(bits)`.
        absmax: float32 [blocks], the largest magnitude of each run of `block` values of the row-major
            flattened matrix.
    """

    codes: Tensor
    absmax: Tensor


def nf_codebook(bits: int) -> Tensor:
    """Return the ascending code book of `bits` bits: float32 [2**bits] from -1 to 1 with an exact zero.

    At 4 bits it is the published table. Elsewhere its construction is repeated: 2^(b-1) - 1 negative, zero
    and 2^(b-1) positive quantiles of the normal distribution, equally spaced in probability from 1/2 to
    `p = 1 - (1/(2(2^b - 1)) + 1/(2*2^b))/2` (at 4 bits p = 0.9677083), divided by the largest.

    Raises:
        ValueError: `bits` is not 2-8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"normal-float has 2 to 8 bits, not {bits}")
    if bits == 4:
        return torch.tensor(NF4, dtype=torch.float32)
    levels = 2**bits
    outermost = 1 - (1 / (2 * (levels - 1)) + 1 / (2 * levels)) / 2
    return normal_quantiles(levels, outermost).to(torch.float32)


def normal_quantiles(levels: int, outermost: float) -> Tensor:
    """Build a normal-float code book from its outermost probability: float64 [levels], ascending."""
    half = levels // 2
    negative = -torch.special.ndtri(torch.linspace(outermost, 0.5, half, dtype=torch.float64)[:-1])
    positive = torch.special.ndtri(torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64)[:-1])
    values = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    return values / values.max()


def quantize_normal_float(w: Tensor, bits: int, block: int = BLOCK) -> NormalFloatCodes:
    """Give every value the nearest entry of the code book times its block's largest magnitude.

    The normalised value is `x * (1/absmax)` and blocks run over the row-major flattened matrix regardless of
    rows, both as in bitsandbytes, so that 4-bit codes equal its codes.

    Args:
        w: float [rows, cols].
        bits: 2-8.
        block: values that share a magnitude; the last block may be short.

    Returns:
        The codes. A block of zeros gets the code of zero and magnitude 0.

    Raises:
        ValueError: a wrong width or block, or weights that are not finite.
    """
    book = nf_codebook(bits).to(w.device)
    if block < 1:
        raise ValueError(f"a block has at least one value, not {block}")
    w = w.detach().to(torch.float32)
    if not bool(torch.isfinite(w).all()):
        raise ValueError("the weights are not finite")
    flat = w.reshape(-1)
    grouped = F.pad(flat, (0, -flat.numel() % block)).view(-1, block)
    absmax = grouped.abs().amax(dim=1)
    # The reciprocal of a magnitude below 2^-128 would be infinite; such a block is zero for every purpose.
    absmax = torch.where(absmax < torch.finfo(torch.float32).tiny, torch.zeros_like(absmax), absmax)
    inverse = torch.where(absmax > 0, 1 / absmax, torch.zeros_like(absmax)).unsqueeze(1)
    boundaries = (book[1:] + book[:-1]) / 2
    rows = max(1, CHUNK // block)
    codes = torch.cat(
        [
            torch.bucketize(part * scale, boundaries, out_int32=True).to(torch.uint8)
            for part, scale in zip(torch.split(grouped, rows), torch.split(inverse, rows), strict=True)
        ]
    )
    return NormalFloatCodes(codes.view(-1)[: flat.numel()].view(w.shape), absmax)


def dequantize_normal_float(codes: NormalFloatCodes, book: Tensor, block: int = BLOCK) -> Tensor:
    """Return the float32 values [rows, cols].

    Args:
        codes: from `quantize_normal_float`.
        book: float32 [2**bits].
        block: values that share a magnitude.
    """
    values = book.index_select(0, codes.codes.reshape(-1).to(torch.int32))
    full = values.numel() - values.numel() % block
    values[:full].view(-1, block).mul_(codes.absmax[: full // block].unsqueeze(1))
    values[full:].mul_(codes.absmax[full // block :])
    return values.view(codes.codes.shape)
