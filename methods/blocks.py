"""Blocks of a denoiser: which layers belong to one, and what it is handed while the denoiser runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.methods.contract import LayerTarget
from harness.methods.training.trajectories import Trajectories

LISTS = ("transformer_blocks", "single_transformer_blocks", "resnets")
"""Names that diffusers gives the lists of transformer and residual blocks."""


@dataclass(frozen=True)
class Call:
    """One call of a block: its arguments, and what it returned before any of its layers was rounded."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    wanted: Tensor


class _ReachedError(Exception):
    """Ends a forward at the block that was waited for."""


def block_of(name: str) -> str | None:
    """Return the path of the innermost block a layer is part of, or None.

    Args:
        name: module path of a layer, e.g. `transformer_blocks.0.attn1.to_q`.
    """
    parts = name.split(".")
    for end in range(len(parts) - 1, 1, -1):
        if parts[end - 2] in LISTS and parts[end - 1].isdigit():
            return ".".join(parts[:end])
    return None


def by_block(targets: Iterable[LayerTarget]) -> list[tuple[str | None, list[LayerTarget]]]:
    """Group layers by their block, in the order of each block's first layer; a layer outside stands alone."""
    groups: dict[str, tuple[str | None, list[LayerTarget]]] = {}
    for target in targets:
        block = block_of(target.name)
        groups.setdefault(block or target.name, (block, []))[1].append(target)
    return list(groups.values())


def denoiser_batches(
    recorded: Trajectories, count: int, trajectories: int, seed: int, device: torch.device
) -> list[dict[str, Any]]:
    """Return arguments for `count` calls of the denoiser, each of some trajectories at steps of their own."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        which = torch.randperm(recorded.count, generator=generator)[:trajectories]
        first = torch.randint(recorded.steps, (len(which),), generator=generator)
        found.append(recorded.batch(which, first, 1, device).arguments)
    return found


@torch.no_grad()
def block_calls(denoiser: nn.Module, block: str, batches: Sequence[Mapping[str, Any]]) -> list[Call]:
    """Run the denoiser up to a block and return what the block was handed and what it makes of it."""
    module = denoiser.get_submodule(block)
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _ReachedError

    handle = module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in batches:
            try:
                denoiser(**batch)
            except _ReachedError:
                continue
            raise ValueError(f"the denoiser never calls {block}")
    finally:
        handle.remove()
    return [Call(args, kwargs, joined(module(*args, **kwargs))) for args, kwargs in seen]


def joined(output: Any) -> Tensor:
    """Return a block's output as one tensor; the streams of a joint block one after the other, flat."""
    if isinstance(output, Tensor):
        return output
    tensors = [item for item in output if isinstance(item, Tensor)]
    return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten(1) for t in tensors], dim=1)
