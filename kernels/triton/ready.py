"""Launching a kernel again without working out again which machine code its arguments need.

Triton binds, inspects and formats all arguments at every launch, which takes it longer than the launch. What
it makes of them depends on the device, on every number (Triton asks which are 1, multiples of 16 or wide),
constant and option, and on the tensors' element types and whether their addresses are multiples of 16, for
descriptors of tiles also on the tiles. A `Launch` is one set of the former; it looks its machine code up by
the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from triton import JITFunction
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

ON_CPU = -1
MOST_LAUNCHES = 4096
"""Launches of a kind that are kept: more than the layers and input sizes of a model make."""

Made = TypeVar("Made")


def kept(make: Callable[..., Made]) -> functools._lru_cache_wrapper[Made]:
    """Let what a function makes of numbers, names and types (not of tensors) be made once.

    Tile sizes are among what is made: who tries others has to clear the function's cache (`cache_clear`).
    """
    return functools.lru_cache(MOST_LAUNCHES, typed=True)(make)


def cdiv(a: int, b: int) -> int:
    """Return `a / b` rounded up: `triton.cdiv` takes ten times as long outside of a kernel."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the least power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return a CUDA device's compute capability."""
    return torch.cuda.get_device_capability(device)


class Launch:
    """A kernel with everything it is launched with but its tensors.

    The first launch with tensors of a kind is Triton's own, and so is every launch in its interpreter.
    Triton's switches (`TRITON_DEBUG` and the like) are read in those alone.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, int], numbers: tuple[int | float, ...], constants: dict[str, Any]
    ) -> None:
        """Settle a launch.

        Args:
            kernel: takes its tensors, or descriptors of them, first (one it writes before all), then numbers,
                then constants.
            grid: programs along both axes.
            numbers: its numbers, in order.
            constants: all its constants by name, and options of the launch.
        """
        self.kernel, self.grid, self.numbers, self.constants = kernel, (*grid, 1), numbers, constants
        self.rest = (*numbers, *(constants[name] for name in kernel.arg_names if name in constants))
        self.compiles = isinstance(kernel, JITFunction)
        self.known: dict[Any, Callable[..., None]] = {}

    def __call__(self, *tensors: Tensor | TensorDescriptor | None) -> None:
        """Launch as `kernel[grid](*tensors, *numbers, **constants)`, on the first tensor's device."""
        if not self.compiles:
            self._by_triton(tensors)
            return
        device, place = driver.active.get_current_device(), cast(Tensor, tensors[0]).get_device()
        if place not in {device, ON_CPU}:  # Triton launches where the process is, wherever tensors are
            with torch.cuda.device(place):
                self(*tensors)
            return
        kinds = [
            (each.dtype, each.data_ptr() % 16 == 0) if isinstance(each, Tensor) else _kind_of(each)
            for each in tensors
        ]
        kind = (device, *kinds)
        run = self.known.get(kind)
        if run is not None:
            run(*tensors, *self.rest, stream=driver.active.get_current_stream(device))
            return
        compiled = self._by_triton(tensors)
        if isinstance(compiled, CompiledKernel):
            self.known[kind] = compiled[self.grid]

    def _by_triton(self, tensors: tuple[Any, ...]) -> Any:
        return self.kernel[self.grid](*tensors, *self.numbers, **self.constants)


def _kind_of(given: TensorDescriptor | None) -> Any:
    return None if given is None else (given.base.dtype, *given.block_shape, given.padding)
