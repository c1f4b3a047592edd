"""Inputs of the layers of one block, all of them, as the calibration stream that methods are handed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.methods.contract import LayerTarget


class BlockStream:
    """A `CalibrationStream` over the targets of one block.

    Every call of the denoiser counts as one sampling step: calls differ in their timestep.
    """

    def __init__(self, inputs: Mapping[str, Sequence[Tensor]], groups: Mapping[str, str]) -> None:
        """Keep recorded inputs.

        Args:
            inputs: by input group, one tensor per call: [tokens, in_features] or [n, channels, h, w].
            groups: layer name -> the input group it consumes.
        """
        self._inputs = {group: list(tensors) for group, tensors in inputs.items()}
        self._groups = dict(groups)
        self._absmax: dict[str, Tensor] = {}

    def _of(self, name: str) -> list[Tensor]:
        return self._inputs[self._groups[name]]

    @property
    def steps(self) -> int:
        """Number of recorded calls."""
        return min(len(tensors) for tensors in self._inputs.values())

    def absmax(self, name: str) -> Tensor:
        """Largest |x| per input channel: float32 [channels]."""
        group = self._groups[name]
        if group not in self._absmax:  # searches ask for it again and again
            peaks = [x.abs().amax(dim=(0, *range(2, x.dim()))) for x in self._of(name)]
            self._absmax[group] = torch.stack(peaks).amax(dim=0).float()
        return self._absmax[group]

    def step_range(self, name: str) -> Tensor:
        """Smallest and largest value of the input in each call: float32 [calls, 2]."""
        return torch.stack([torch.stack(x.aminmax()) for x in self._of(name)]).float()

    def samples(self, name: str) -> Tensor:
        """All inputs: float32 [tokens, in_features] or [n, channels, h, w]."""
        return torch.cat([x.float() for x in self._of(name)])


class Recorder:
    """Keeps the inputs of layers while the denoiser runs: once per input group, in the dtype they come in."""

    def __init__(self, targets: Sequence[LayerTarget]) -> None:
        """Record for these targets."""
        self._groups = {target.name: target.input_group for target in targets}
        self._first = {target.input_group: target.name for target in reversed(targets)}
        self._inputs: dict[str, list[Tensor]] = {group: [] for group in self._first}

    @contextmanager
    def attached(self, denoiser: nn.Module) -> Iterator[None]:
        """Record what runs inside the block."""
        handles = [
            denoiser.get_submodule(name).register_forward_pre_hook(self._hook(group))
            for group, name in self._first.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, group: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach()
            self._inputs[group].append(x if isinstance(module, nn.Conv2d) else x.reshape(-1, x.shape[-1]))

        return keep

    def stream(self) -> BlockStream:
        """Return what was recorded; ValueError when a layer did not run."""
        idle = [self._first[group] for group, kept in self._inputs.items() if not kept]
        if idle:
            raise ValueError(f"layers that do not run: {', '.join(idle)}")
        return BlockStream(self._inputs, self._groups)
