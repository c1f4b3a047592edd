"""State of an interrupted training: what is kept, and how it is written and read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Stateful(Protocol):
    """A module, an optimiser or an average."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Set the state."""


class Stream(Protocol):
    """A source of random draws whose position can be read and set, such as a torch.Generator."""

    def get_state(self) -> Tensor:
        """Return the position, uint8."""

    def set_state(self, state: Tensor, /) -> object:
        """Go to a position."""


class Batches(Iterator[Tensor]):
    """Index batches int64 [size] of 0 ... n - 1, without end, reshuffled each epoch; a `Stream`.

    The rest of an epoch that does not fill a batch is left out.
    """

    def __init__(self, n: int, size: int, seed: int, device: torch.device) -> None:
        self.n, self.size = n, size
        self.generator = torch.Generator(device).manual_seed(seed)
        self._shuffle()

    def _shuffle(self) -> None:
        self.before = self.generator.get_state()
        order = torch.randperm(self.n, generator=self.generator, device=self.generator.device)
        self.rows, self.at = torch.split(order[: self.n - self.n % self.size], self.size), 0

    def __next__(self) -> Tensor:
        """Return the next batch."""
        if self.at == len(self.rows):
            self._shuffle()
        self.at += 1
        return self.rows[self.at - 1]

    def get_state(self) -> Tensor:
        """Return the place in the epoch and the generator's state before it was shuffled, uint8."""
        return torch.cat([torch.tensor([self.at]).view(torch.uint8), self.before])

    def set_state(self, state: Tensor, /) -> None:
        """Shuffle as then and go to the place."""
        self.generator.set_state(state[8:].clone())
        self._shuffle()
        self.at = int(state[:8].clone().view(torch.int64).item())


@dataclass
class Progress:
    """How far an optimisation is.

    Attributes:
        steps: how many steps it will take.
        step: how many it has taken.
        seconds: time spent on them.
        losses: loss at every 50th step, scalars.
    """

    steps: int
    step: int = 0
    seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """The state of one optimisation and its file.

    Attributes:
        path: the file; it is replaced as a whole.
        purpose: what was asked for. A file written for another purpose is not used.
        parts: modules, optimiser and average.
        streams: sources of the random draws.
    """

    path: Path
    purpose: dict[str, Any]
    parts: list[Stateful]
    streams: list[Stream]

    def save(self, progress: Progress) -> None:
        """Write everything that the next step depends on."""
        state = {
            "purpose": self.purpose,
            "progress": vars(progress) | {"losses": [loss.item() for loss in progress.losses]},
            "parts": [part.state_dict() for part in self.parts],
            "streams": [stream.get_state() for stream in self.streams],
        }
        unfinished = self.path.with_suffix(".part")
        torch.save(state, unfinished)
        os.replace(unfinished, self.path)

    def load(self) -> Progress | None:
        """Set everything to what the file holds; None, with nothing set, where there is no usable file."""
        if not self.path.exists():
            return None
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["purpose"] != self.purpose:
            print(f"{self.path.name}: written with other settings, not used", flush=True)
            return None
        for part, kept in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(kept)
        for stream, position in zip(self.streams, state["streams"], strict=True):
            stream.set_state(position)
        losses = [torch.tensor(loss) for loss in state["progress"]["losses"]]
        return Progress(**state["progress"] | {"losses": losses})
