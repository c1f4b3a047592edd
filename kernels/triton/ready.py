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
from triton import JITFunction, knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

ON_CPU = -1
HOPPER = 9
"""Major compute capability."""
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


def from_hopper(device: torch.device) -> bool:
    """Whether a device copies tiles by descriptor, and launches kernels before the one ahead has ended."""
    return device.type == "cuda" and capability(device)[0] >= HOPPER


def hooked() -> bool:
    """Whether something wants to be called before or after launches, as profilers of Triton's do."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter)) or bool(getattr(leave, "calls", leave))


class Launch:
    """A kernel with everything it is launched with but its tensors.

    The first launch with tensors of a kind is Triton's own, and so is every launch in its interpreter.
    Triton's switches (`TRITON_DEBUG` and the like) are read in those alone. Those that are looked up give
    addresses to the launcher, which it takes as they are: tensors it would ask each for its address, and
    the driver whether a kernel can read there. They pass over Triton's hooks where there are none: Triton
    would describe the launch to empty lists of them.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int],
        numbers: tuple[int | float, ...],
        constants: dict[str, Any],
        *,
        read_as: dict[int, torch.dtype] | None = None,
        fresh: int = 0,
    ) -> None:
        """Settle a launch.

        Args:
            kernel: takes its tensors, or descriptors of them, first (one it writes before all), then numbers,
                then constants.
            grid: programs along both axes.
            numbers: its numbers, in order.
            constants: all its constants by name, and options of the launch.
            read_as: by their places, element types that tensors are read as instead of their own.
            fresh: how many of the first tensors are always allocated for the launch, on one device and with
                element types that follow from all else it is made for: they are aligned, and not looked at.
        """
        self.kernel, self.grid, self.numbers, self.constants = kernel, (*grid, 1), numbers, constants
        self.rest = (*numbers, *(constants[name] for name in kernel.arg_names if name in constants))
        self.read_as, self.fresh = read_as or {}, fresh
        self.compiles = isinstance(kernel, JITFunction)
        self.known: dict[Any, tuple[Callable[..., None], tuple[Any, ...]]] = {}

    def __call__(self, *tensors: Tensor | TensorDescriptor | None) -> None:
        """Launch as `kernel[grid](*tensors, *numbers, **constants)`, on the first tensor's device."""
        if not self.compiles:
            self._by_triton(tensors)
            return
        active = driver.active
        device, place = active.get_current_device(), cast(Tensor, tensors[0]).get_device()
        if place not in (device, ON_CPU):  # Triton launches where the process is, wherever tensors are
            with torch.cuda.device(place):
                self(*tensors)
            return
        fresh = self.fresh
        kind: list[Any] = [device, place]  # of tensors that Triton has launched with there
        given: list[Any] = [each if each is None else each.data_ptr() for each in tensors[:fresh]]
        for each in tensors[fresh:] if fresh else tensors:
            if each is None:
                kind.append(None)
                given.append(None)
            elif isinstance(each, Tensor):
                address = each.data_ptr()
                kind.append(each.dtype)
                kind.append(address & 15)
                given.append(address)
                if each.get_device() != place:  # Triton says whether a kernel can read it
                    self._by_triton(tensors)
                    return
            else:
                kind.append(_kind_of(each))
                given.append(each)
        key = tuple(kind)
        known = self.known.get(key)
        if known is not None and not hooked():
            run, code = known
            run(*self.grid, active.get_current_stream(device), *code, *given, *self.rest)
            return
        compiled = self._by_triton(tensors)
        if isinstance(compiled, CompiledKernel):  # as which it calls itself, with nothing for hooks
            self.known[key] = compiled.run, (compiled.function, compiled.packed_metadata, None, None, None)

    def _by_triton(self, tensors: tuple[Any, ...]) -> Any:
        if self.read_as:
            views = list(tensors)
            for place, kind in self.read_as.items():
                views[place] = views[place].view(kind)
            tensors = tuple(views)
        return self.kernel[self.grid](*tensors, *self.numbers, **self.constants)


def _kind_of(given: TensorDescriptor) -> Any:
    return given.base.dtype, *given.block_shape, given.padding
