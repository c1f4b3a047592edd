"""A driver that stands in for CUDA's: Triton's whole way to a launch without a GPU, but for the launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver

STREAM = 7
"""The first device's stream, one less than the second's."""


class Launcher:
    """Takes the place of the C function that launches; `code` is which machine code of which device."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.code = metadata.hash, triton.runtime.driver.active.get_current_device()

    def __call__(self, *given: Any) -> None:
        """Do nothing."""


class Loaded:
    """What a driver does besides launching."""

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        """Return module, function, registers, spills and threads."""
        return 1, 2, 32, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        """Return what kernels are held against."""
        return {"max_shared_mem": 232448}


class Driver(GPUDriver):
    """CUDA's driver on a Hopper, as far as launches need it."""

    def __init__(self, launcher: type[Launcher] = Launcher) -> None:
        self.utils, self.launcher_cls, self.device = Loaded(), launcher, 0
        self.get_current_device = lambda: self.device
        self.get_current_stream = lambda device: STREAM + device

    def get_current_target(self) -> GPUTarget:
        """Return Hopper."""
        return GPUTarget("cuda", 90, 32)

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return a type's name as it is: nothing is compiled from it."""
        return ty

    def get_active_torch_device(self) -> torch.device:
        """Return where tensors lie."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """Return nothing: nothing is timed."""

    @staticmethod
    def is_active() -> bool:
        """Whether it can be used: always."""
        return True
