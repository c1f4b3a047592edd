"""Makes third-party packages importable on the stacks they were not tested on, and keeps their imports quiet.

Importing this module touches none of them; call `ensure_torchvision()` before diffusers, transformers, lpips
or torch_fidelity, all of which import torchvision.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MISSING_OPERATOR = "torchvision::nms does not exist"
_keep_alive: list[Any] = []
"""Operator libraries defined here: torch drops the operators when the library object is collected."""


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide warnings and log lines below ERROR that libraries emit while they are imported or constructed."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "torch", "torchvision")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _forget(package: str) -> None:
    """Drop a package whose import failed half-way, so that it can be imported again."""
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        del sys.modules[name]


def ensure_torchvision() -> bool:
    """Import torchvision, also a CUDA build of it beside a CPU build of torch.

    Such a build cannot load its compiled operators, and then fails when it describes one of them (`nms`) to
    torch. Declaring the missing operators lets the import pass: models and transforms work,
    `torchvision.ops.nms` and `torchvision.io` do not. Where torchvision imports by itself nothing is
    declared.

    Returns:
        False when torchvision is not installed.

    Raises:
        RuntimeError: torchvision fails for another reason.
    """
    if "torchvision" in sys.modules:
        return True
    if importlib.util.find_spec("torchvision") is None:
        return False
    with quiet_imports():
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if _MISSING_OPERATOR not in str(error):
                raise
            _forget("torchvision")
            _declare_torchvision_operators()
            importlib.import_module("torchvision")
    return True


def _declare_torchvision_operators() -> None:
    """Declare the operators for which torchvision registers shape functions on import."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _keep_alive.append(library)


def import_image_reward() -> types.ModuleType:
    """Import `ImageReward.ImageReward` (image-reward 1.5) under current transformers.

    The package's own `__init__` needs an undeclared module (`clip`) and names that transformers has since
    moved or removed; here its `__init__` is skipped and the names are supplied. Scores are the same as with
    the transformers version it was written for.

    Returns:
        The module that holds the class `ImageReward`.

    Raises:
        ModuleNotFoundError: image-reward is not installed.
    """
    found = importlib.util.find_spec("ImageReward") if "ImageReward" not in sys.modules else None
    if found is None and "ImageReward" not in sys.modules:
        raise ModuleNotFoundError("No module named 'ImageReward'", name="ImageReward")
    ensure_torchvision()
    with quiet_imports():
        _supply_moved_functions()
        if found is not None and found.submodule_search_locations:
            root = next(iter(found.submodule_search_locations))
            _bare_package("ImageReward", root)
            _bare_package("ImageReward.models", os.path.join(root, "models"))
        if "fairscale" not in sys.modules and importlib.util.find_spec("fairscale") is None:
            _stand_in_for_fairscale()
        module = importlib.import_module("ImageReward.ImageReward")
        _supply_bert_methods(importlib.import_module("ImageReward.models.BLIP.med").BertPreTrainedModel)
    return module


def _bare_package(name: str, path: str) -> types.ModuleType:
    """Register a package of which only the submodules can be imported; its own `__init__` never runs."""
    package = types.ModuleType(name)
    package.__path__ = [path]
    sys.modules[name] = package
    return package


def _head_pruning_unsupported(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("pruning of attention heads is not supported by the installed transformers")


def _supply_moved_functions() -> None:
    """Put functions that transformers moved or removed back where BLIP's BERT looks for them."""
    modeling = importlib.import_module("transformers.modeling_utils")
    moved_to = importlib.import_module("transformers.pytorch_utils")
    for name in ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer"):
        if not hasattr(modeling, name):
            setattr(modeling, name, getattr(moved_to, name, _head_pruning_unsupported))


def _stand_in_for_fairscale() -> None:
    """Stand in for fairscale, of which BLIP imports one training-time wrapper."""
    name = "fairscale"
    for part in ("", ".nn", ".checkpoint", ".checkpoint_activations"):
        name += part
        package = _bare_package(name, "")
    package.checkpoint_wrapper = lambda module, *_args, **_kwargs: module  # type: ignore[attr-defined]


def _supply_bert_methods(base: type[Any]) -> None:
    """Add the members of BERT's base class that transformers 5 removed."""
    import torch

    def no_head_mask(_self: Any, _mask: Any, layers: int, *_args: Any) -> list[None]:
        return [None] * layers

    def additive_mask(self: Any, mask: torch.Tensor) -> torch.Tensor:
        shaped = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None, :, :]
        return (1.0 - shaped.to(self.dtype)) * torch.finfo(self.dtype).min

    members = {
        "all_tied_weights_keys": {},
        "get_head_mask": no_head_mask,
        "invert_attention_mask": additive_mask,
    }
    for name, member in members.items():
        if not hasattr(base, name):
            setattr(base, name, member)
