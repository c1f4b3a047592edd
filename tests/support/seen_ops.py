"""A dispatch mode that notes which of this package's ops it gets to see."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Seen(TorchDispatchMode):
    """The ops of this package that a dispatch mode gets to see."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "harness":
            self.names.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))
