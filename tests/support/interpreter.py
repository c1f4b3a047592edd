"""What tests share that run kernels on a CPU, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.kernels import dispatch

needs_interpreter = pytest.mark.skipif(
    not dispatch.HAS_TRITON or not dispatch.INTERPRETED,
    reason="Triton's interpreter is chosen when Triton is imported: TRITON_INTERPRET=1",
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Draw from the normal distribution, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
