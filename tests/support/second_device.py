"""A second device made of host memory, so that code can be caught mixing devices without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# The one device type of which torch is built everywhere and that neither code nor tests use otherwise.
AWAY = torch.device("meta")
HOST = torch.device("cpu")
# As on a GPU, positions may lie in host memory.
POSITIONAL = {"index", "index_put", "index_put_", "_unsafe_index"}


class AwayTensor(torch.Tensor):
    """A tensor that says it lies on `AWAY`; what it holds lies in host memory."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> AwayTensor:
        """Wrap a tensor of the host."""
        made: AwayTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=AWAY, requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:
        """Return the values, as a GPU's tensor does."""
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"AwayTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator where its arguments lie, as a GPU would.

    Raises:
        RuntimeError: tensors of both devices.
    """
    name = func._schema.name.split("::")[1]
    target = _target(name, [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)], kwargs)
    if "device" in kwargs:
        kwargs = kwargs | {"device": HOST}
    made = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
    if func._schema.is_mutable and "out" not in kwargs:
        return args[0]
    if target == HOST or name == "_local_scalar_dense":
        return made
    return tree_map(lambda v: AwayTensor(v) if isinstance(v, Tensor) else v, made)


def _bare(value: Any) -> Any:
    return value.held if isinstance(value, AwayTensor) else value


def _target(name: str, tensors: list[Tensor], kwargs: dict[str, Any]) -> torch.device:
    """Device of what an operator makes; raises RuntimeError where a GPU would refuse the arguments."""
    device = kwargs.get("device")
    if name == "copy_":
        return tensors[0].device
    if device is not None:
        return torch.device(device)
    away = [isinstance(v, AwayTensor) for v in tensors]
    if name in POSITIONAL:
        if away and any(away) and not away[0]:
            raise RuntimeError(f"{name}: positions on {AWAY.type} into a tensor of the host")
    elif any(v.dim() and far != any(away) for v, far in zip(tensors, away, strict=True)):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    return AWAY if any(away) else HOST


class _Mode(TorchDispatchMode):
    """Catches what is made on `AWAY` from nothing, and copies to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


@contextlib.contextmanager
def second_device() -> Iterator[torch.device]:
    """Let `AWAY` be a device for as long as the block lasts."""
    with _Mode():
        yield AWAY
