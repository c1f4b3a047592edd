"""What every stored piece of a packed layer shares: buffers that keep their dtype, and checked JSON specs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

Spec = dict[str, Any]


class StoredModule(nn.Module):
    """A module whose buffers are the storage format itself.

    `pipeline.to(torch.float16)` and the like move it to a device but never change a dtype: a code book in
    half precision would be another code book.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


def held(module: nn.Module, *names: str) -> tuple[Any, ...]:
    """Return attributes of a module that are buffers as a rule, faster than torch finds them.

    Not while compiling: there torch has its own way to know a buffer again.
    """
    if not torch.compiler.is_compiling():
        buffers = module._buffers
        try:
            return tuple([buffers[name] for name in names])
        except KeyError:  # something else has taken the place of a buffer
            pass
    return tuple([getattr(module, name) for name in names])


def nbytes(tensor: Tensor | None) -> int:
    """Return the bytes a tensor's values take, 0 for None."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def spec_int(spec: Spec, key: str, smallest: int, largest: int) -> int:
    """Return an integer of a spec; raises ValueError when it is missing, no integer or out of range."""
    value = spec.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise ValueError(f"{key} must be an integer in {smallest}..{largest}, not {value!r}")
    return value


def spec_choice(spec: Spec, key: str, valid: tuple[str, ...]) -> str:
    """Return a name of a spec; raises ValueError when it is missing or not one of `valid`."""
    value = spec.get(key)
    if not isinstance(value, str) or value not in valid:
        raise ValueError(f"{key} must be one of {', '.join(valid)}, not {value!r}")
    return value


def spec_bool(spec: Spec, key: str) -> bool:
    """Return a truth value of a spec; raises ValueError when it is missing or something else."""
    value = spec.get(key)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, not {value!r}")
    return value


def spec_dict(value: Any, what: str) -> Spec:
    """Return `value` as a spec; raises ValueError when it is not a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, not {value!r}")
    return value
