"""What the 16-bit teacher did on its own sampling trajectories: inputs, predictions, features.

A batch row is one call's row: with classifier-free guidance a trajectory has two of them at every step, the
empty caption's first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectories:
    """Recorded trajectories of one model, on the CPU.

    Attributes:
        sample_name: the denoiser's argument that holds the noisy latents.
        timesteps: what the denoiser was handed as `timestep` at each step: [steps].
        guidance: classifier-free guidance scale; it means something only with two rows per step.
        samples: noisy latents [n, halves, steps, ...].
        predictions: what the denoiser returned, [n, halves, steps, ...].
        features: the input of the final projection, float16 [n, halves, steps, ...]; None if not recorded.
        feature_layer: module path of the final projection.
        conditions: further tensor arguments, one row per trajectory and half: [n, halves, ...]. A path with
            slashes leads into nested arguments.
        constants: all other arguments, by path.
    """

    sample_name: str
    timesteps: Tensor
    guidance: float
    samples: Tensor
    predictions: Tensor
    features: Tensor | None
    feature_layer: str
    conditions: Mapping[str, Tensor]
    constants: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Number of trajectories."""
        return self.samples.shape[0]

    @property
    def halves(self) -> int:
        """Rows per trajectory and step: 2 with classifier-free guidance, else 1."""
        return self.samples.shape[1]

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return self.samples.shape[2]

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    def digest(self) -> str:
        """Return the sha256 of everything recorded, in hex."""
        digest = hashlib.sha256(repr((self.sample_name, self.guidance, self.feature_layer)).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        found = {"timesteps": self.timesteps, "samples": self.samples, "predictions": self.predictions}
        if self.features is not None:
            found["features"] = self.features
        found.update({f"condition {name}": value for name, value in self.conditions.items()})
        constants = {f"constant {n}": v for n, v in self.constants.items() if isinstance(v, Tensor)}
        return {**found, **constants}

    def batch(self, which: Tensor, first: Tensor, window: int, device: torch.device) -> Batch:
        """Return `window` consecutive steps of some trajectories.

        Args:
            which: int64 [b], trajectories.
            first: int64 [b], the first step of each.
            window: number of steps.
            device: where the batch goes.
        """
        steps = first[:, None] + torch.arange(window)
        half = torch.arange(self.halves)
        rows = (which[:, None, None], half[None, :, None], steps[:, None, :])
        layout = (len(which), self.halves, window)

        def put(values: Tensor) -> Tensor:
            return values.flatten(0, 2).to(device)

        def condition(values: Tensor) -> Tensor:
            each = values[which].unsqueeze(2)
            return put(each.expand(*layout, *each.shape[3:]))

        step_rows = steps[:, None, :].expand(layout)
        arguments: dict[str, Any] = {self.sample_name: put(self.samples[rows])}
        arguments["timestep"] = put(self.timesteps[step_rows])
        for path, values in self.conditions.items():
            place(arguments, path, condition(values))
        for path, value in self.constants.items():
            place(arguments, path, value.to(device) if isinstance(value, Tensor) else value)
        return Batch(
            arguments=arguments,
            steps=put(step_rows),
            layout=layout,
            predictions=put(self.predictions[rows]),
            features=None if self.features is None else put(self.features[rows]).float(),
        )


@dataclass(frozen=True)
class Batch:
    """Some rows of recorded trajectories, in the order [trajectory, half, step].

    Attributes:
        arguments: keyword arguments of the denoiser.
        steps: int64 [rows], the sampling step of every row.
        layout: trajectories, halves, steps; their product is the number of rows.
        predictions: the teacher's, [rows, ...].
        features: the teacher's, float32 [rows, ...], or None.
    """

    arguments: dict[str, Any]
    steps: Tensor
    layout: tuple[int, int, int]
    predictions: Tensor
    features: Tensor | None


class Teacher(Protocol):
    """The 16-bit model as its method may sample from it. Only before its layers are replaced."""

    def record(self, count: int, budget_bytes: int, features: bool) -> Trajectories:
        """Sample trajectories on prompts that no image of the evaluation is made from.

        Args:
            count: trajectories wanted; fewer come back when the budget does not hold them.
            budget_bytes: for all that is recorded.
            features: whether the input of the final projection is recorded.

        Raises:
            ValueError: the budget does not hold two trajectories, or the denoiser's arguments change from
                step to step in a way that is not understood.
        """
        ...


def place(arguments: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` at a slash-separated path of nested arguments."""
    *parents, last = path.split("/")
    for parent in parents:
        arguments = arguments.setdefault(parent, {})
    arguments[last] = value


def leaves(arguments: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested arguments by slash-separated path."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and value:
            found.update(leaves(value, f"{prefix}{name}/"))
        else:
            found[f"{prefix}{name}"] = value
    return found


def guided(predictions: Tensor, layout: tuple[int, int, int], guidance: float, channels: int) -> Tensor:
    """Combine the halves as the sampler does: u + g (c - u).

    Args:
        predictions: [rows, c, ...], rows in the order [trajectory, half, step].
        layout: trajectories, halves, steps.
        guidance: g.
        channels: how many leading channels are the prediction of the noise (a learned variance follows).

    Returns:
        float32 [trajectories * steps, channels, ...].
    """
    split = predictions.float().reshape(*layout, *predictions.shape[1:])
    if predictions.dim() > 3:
        split = split[:, :, :, :channels]
    combined = split[:, 0] if layout[1] == 1 else split[:, 0] + guidance * (split[:, 1] - split[:, 0])
    flat: Tensor = combined.flatten(0, 1)
    return flat
