"""The 16-bit low-rank branch beside a packed weight.

(SVDQuant, arXiv 2411.05007, section 4.2; also the side branch of LQER and of EfficientDM.)
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.kernels.stored import StoredModule, nbytes


class LowRankBranch(StoredModule):
    """Computes `(x @ down.T) @ up.T` in float32 from float16 factors.

    Attributes:
        down: float16 [rank, in]; for a convolution [rank, in*kh*kw], a kernel of `rank` output channels.
        up: float16 [out, rank]; for a convolution a 1x1 kernel.
    """

    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor) -> None:
        """Round the factors to float16.

        Args:
            down: float [rank, in].
            up: float [out, rank].

        Raises:
            ValueError: the ranks differ or are zero, or a factor is not finite in float16.
        """
        super().__init__()
        if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
            raise ValueError(f"factors of shape {tuple(down.shape)} and {tuple(up.shape)} make no branch")
        for name, factor in (("down", down), ("up", up)):
            half = factor.detach().to(torch.float16).contiguous()
            if not bool(torch.isfinite(half).all()):
                raise ValueError(f"the branch's {name} factor is not finite in 16 bits")
            self.register_buffer(name, half)

    @classmethod
    def empty(cls, rank: int, in_features: int, out_features: int) -> Self:
        """Build a branch of zeros whose state can then be loaded."""
        return cls(torch.zeros(rank, in_features), torch.zeros(out_features, rank))

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.down.shape[0]

    def product(self) -> Tensor:
        """Return `up @ down`, the matrix the branch stands for: float32 [out, in]."""
        return self.up.to(torch.float32) @ self.down.to(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the branch to linear inputs: float32 [..., in] -> float32 [..., out]."""
        return F.linear(F.linear(x, self.down.to(torch.float32)), self.up.to(torch.float32))

    def stored_bytes(self) -> int:
        """Return the bytes of both factors."""
        return nbytes(self.down) + nbytes(self.up)
