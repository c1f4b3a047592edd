"""Launching a kernel again without working out again which machine code its arguments need.

Triton binds, inspects and formats all arguments at every launch, which takes it longer than the launch. What
it makes of them depends on what `Ready` looks its machine code up by: the device, the arguments' types, the
tensors' element types and whether their addresses are multiples of 16, the values of all numbers (Triton asks
which are 1, multiples of 16 or wide) and every constant and option. The first launch of each kind is Triton's
own, and so is every launch in its interpreter.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton import JITFunction
from triton.compiler import CompiledKernel
from triton.runtime import driver

MOST_KINDS = 4096
"""Launches of one kernel that are remembered: more than any model's layers and sizes make."""


def cdiv(a: int, b: int) -> int:
    """Return `a / b` rounded up: `triton.cdiv` takes ten times as long outside of a kernel."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the least power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


class Ready:
    """A kernel, and the machine code of the launches it has seen.

    Triton's switches (`TRITON_DEBUG` and the like) are read when a launch is new, not each time.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiles = isinstance(kernel, JITFunction)
        self.known: dict[Any, tuple[CompiledKernel, tuple[Any, ...]]] = {}

    def __call__(self, grid: tuple[int, int], args: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """Launch on the current device and stream, as `kernel[grid](*args, **constants)`.

        Args:
            grid: programs along both axes.
            args: everything the kernel takes before its constants.
            constants: all its constants by name, and options of the launch.
        """
        if not self.compiles:
            self.kernel[grid](*args, **constants)
            return
        device = driver.active.get_current_device()
        kind = (
            device,
            tuple(map(type, args)),
            tuple([(a.dtype, a.data_ptr() % 16 == 0) if isinstance(a, Tensor) else a for a in args]),
            tuple(constants.items()),
        )
        found = self.known.get(kind)
        if found is None:
            self._first(kind, grid, args, constants)
            return
        compiled, rest = found
        compiled[(*grid, 1)](*args, *rest, stream=driver.active.get_current_stream(device))

    def _first(
        self, kind: Any, grid: tuple[int, int], args: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """Launch through Triton and remember what it launched."""
        compiled = self.kernel[grid](*args, **constants)
        if len(self.known) >= MOST_KINDS:
            self.known.clear()
        if isinstance(compiled, CompiledKernel):
            rest = tuple(constants[name] for name in self.kernel.arg_names[len(args) :])
            self.known[kind] = compiled, rest
