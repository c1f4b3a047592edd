"""Error of a quantized denoiser at each step of the sampler, asked what the 16-bit one was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.datasets.contract import Prompt
from harness.generate import sample
from harness.kernels.activations import StepIndex, bind_step_index
from harness.models.card import ModelCard


def step_errors(
    pipeline: Any, card: ModelCard, quantized: nn.Module, prompts: Sequence[Prompt], seed: int
) -> list[float | None]:
    """Return the relative squared error of a denoiser's prediction at each sampling step.

    The 16-bit model samples, and at every call the quantized denoiser is handed the same inputs. So a step's
    figure holds the error made there, not what earlier ones left in the latents. Under guidance both rows of
    the batch, with and without the prompt, count alike.

    Args:
        pipeline: of the 16-bit model.
        card: the model, with the sampling to use.
        quantized: the quantized denoiser.
        prompts: one batch.
        seed: the protocol's seed; the noise is that of the images of these prompts.

    Returns:
        |prediction - reference|² / |reference|² over the batch, by step in the order of sampling; None where
        it is not finite.

    Raises:
        CellError: state `nan`, when a prediction of the 16-bit model is not finite.
        RuntimeError: the denoiser is called at a timestep that is not in the schedule.
    """
    index = StepIndex()
    error: dict[int, float] = {}
    signal: dict[int, float] = {}
    bind_step_index(quantized, index)

    def compare(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        wanted, found = _prediction(output), _prediction(quantized(*args, **kwargs))
        step = index.value if index.value is not None else 0
        error[step] = error.get(step, 0.0) + _square(found.double() - wanted.double())
        signal[step] = signal.get(step, 0.0) + _square(wanted.double())

    handle = getattr(pipeline, card.denoiser).register_forward_hook(compare, with_kwargs=True)
    try:
        sample(pipeline, card, prompts, seed, "latent", index)
    finally:
        handle.remove()
    return [_ratio(error[step], signal[step]) for step in sorted(error)]


def _prediction(output: Any) -> Tensor:
    """The prediction in a denoiser's output: the output itself or its first item."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def _square(values: Tensor) -> float:
    return float(torch.sum(values * values))


def _ratio(error: float, signal: float) -> float | None:
    found = error / signal if signal > 0.0 else math.inf
    return float(f"{found:.6g}") if math.isfinite(found) else None
