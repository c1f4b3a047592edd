"""What tests share that run kernels on a CPU, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.kernels import dispatch
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight

needs_interpreter = pytest.mark.skipif(
    not dispatch.HAS_TRITON or not dispatch.INTERPRETED,
    reason="Triton's interpreter is chosen when Triton is imported: TRITON_INTERPRET=1",
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Draw from the normal distribution, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(w: Tensor, bits: int, grid="asymmetric", group=None, scale_format="float") -> UniformWeight:
    """Quantize rows on a uniform grid, and pack them."""
    codes = quantize_uniform(w, bits, grid=grid, group=group, scale_format=scale_format)
    return UniformWeight.pack(codes, bits, grid, group)


def relative(y: Tensor, wanted: Tensor) -> float:
    """Return the relative Frobenius error."""
    return float((y.double() - wanted.double()).norm() / wanted.double().norm())
