"""What `harness bench model` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from harness.bench.peers import WHOLE_MODEL_PEERS
from harness.truesize.inputs import default_batch
from harness.truesize.quantize import Recipe

REFERENCE = "bf16"
SIXTEEN_BIT = "W16A16"


@dataclass(frozen=True)
class BenchRequest:
    """What is measured.

    Attributes:
        recipe: the model, and how it is quantized.
        quantized: whether it is; else only the 16-bit model and the peers are measured.
        folder: of the finished blocks.
        device: where.
        dtype: of the 16-bit model.
        batch: samples of a step; None for one image's.
        compile: whether steps are timed under `torch.compile` too.
        reference: whether the 16-bit model is built and timed beside.
        peers: names of `WHOLE_MODEL_PEERS`, in the order in which they are built and run; those not installed
            are rows that say so.
        caps: sizes of cards in GiB for "fits in", ascending.
        rounds: timed runs of each model.
        warm_up: untimed runs of each before.
        quantize_only: stop when the model is quantized.
        image: whether one whole image is made too.
        steps: its sampling steps; None for the card's.
    """

    recipe: Recipe
    quantized: bool
    folder: Path
    device: torch.device
    dtype: torch.dtype
    batch: int | None = None
    compile: bool = False
    reference: bool = True
    peers: tuple[str, ...] = tuple(peer.name for peer in WHOLE_MODEL_PEERS)
    caps: tuple[int, ...] = (8, 12, 16, 24)
    rounds: int = 20
    warm_up: int = 3
    quantize_only: bool = False
    image: bool = False
    steps: int | None = None

    @property
    def name(self) -> str:
        """Name of the quantized model's row."""
        return f"{self.recipe.method} W{self.recipe.w_bits}A{self.recipe.a_bits}"

    @property
    def step_batch(self) -> int:
        """Samples of a step."""
        return self.batch or default_batch(self.recipe.card)
