"""Generates one block of images, bit-identically on one machine whatever was generated before it.

Noise comes from one CPU float32 generator per prompt. Nothing here reads or moves a global random state. The
sampling step is looked up from the timestep the pipeline hands the denoiser, never counted, so a sampler that
repeats or skips a forward cannot put it out of step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from harness.datasets.contract import Prompt
from harness.errors import CellError
from harness.kernels.activations import StepIndex, bind_step_index
from harness.models.card import ModelCard
from harness.noise import initial_latents, pack_latents, prompt_generators

_LONGEST_CAPTION = 4096
"""A tokenizer without a limit says so by a huge model_max_length."""


def schedule(pipeline: Any, card: ModelCard) -> Tensor:
    """Return the distinct timesteps that the denoiser is handed, in order: float64 [steps].

    A step is one noise level. PNDM calls the denoiser twice at its second one, which is one step here.

    Args:
        pipeline: its scheduler's timesteps are set.
        card: the model. FLUX's pipeline rounds a timestep to the type of its weights and divides by 1000.
    """
    timesteps: Tensor = pipeline.scheduler.timesteps
    if card.timestep_unit != 1.0:
        dtype = next(getattr(pipeline, card.denoiser).parameters()).dtype
        timesteps = timesteps.to(dtype) / card.timestep_unit
    values = timesteps.double().cpu().tolist()
    return torch.tensor(list(dict.fromkeys(values)), dtype=torch.float64)


def step_of(steps: Tensor, timestep: Tensor | float) -> int:
    """Return which sampling step a timestep belongs to.

    Args:
        steps: distinct timesteps in order (`schedule`).
        timestep: what the denoiser was handed: a number, or one tensor of equal numbers.

    Returns:
        The index of the timestep in `steps`.

    Raises:
        RuntimeError: the schedule does not hold the timestep exactly once, or the tensor's numbers differ.
    """
    given = torch.as_tensor(timestep).reshape(-1).double().cpu()
    if given.numel() == 0 or bool((given != given[0]).any()):
        raise RuntimeError(f"one denoiser call at several timesteps: {given.tolist()}")
    found = torch.nonzero(steps == given[0]).reshape(-1).tolist()
    if len(found) != 1:
        raise RuntimeError(f"timestep {given[0].item()} occurs {len(found)} times in the schedule, not once")
    return int(found[0])


def _require_finite(tensor: Tensor, what: str) -> None:
    """Raise CellError("nan") if a value is infinite or not a number."""
    if not bool(torch.isfinite(tensor).all()):
        raise CellError("nan", f"{what} is not finite")


def _first_tensor(output: Any) -> Tensor:
    """The prediction in a denoiser's or decoder's output: the output itself or its first item."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def tracked_steps(pipeline: Any, card: ModelCard, index: StepIndex) -> Iterator[None]:
    """Keep `index`, shared by every per-step quantizer of the denoiser, at the step being computed.

    The index is None outside a denoiser call.

    Also stops at the first non-finite prediction of the denoiser, which later steps could hide: latents that
    are not a number decode to a plausible black picture.

    Raises:
        CellError: state `nan`, at the step whose prediction is not finite.
        RuntimeError: the denoiser is called at a timestep that is not in the schedule.
    """
    denoiser: nn.Module = getattr(pipeline, card.denoiser)
    signature = inspect.signature(denoiser.forward)
    bind_step_index(denoiser, index)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = signature.bind(*args, **kwargs).arguments["timestep"]
        timesteps = schedule(pipeline, card)
        index.value, index.steps = step_of(timesteps, timestep), len(timesteps)

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        _require_finite(_first_tensor(output), f"the prediction at step {index.value}")
        index.value = None

    handles = [
        denoiser.register_forward_pre_hook(before, with_kwargs=True),
        denoiser.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        index.value = None
        for handle in handles:
            handle.remove()


def _condition(card: ModelCard, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the pipeline is asked to draw: captions, classes, or a number of pictures."""
    if card.condition == "text":
        return {"prompt": [prompt.text for prompt in prompts]}
    if card.condition == "class":
        return {"class_labels": [int(prompt.facts["class"]) for prompt in prompts]}
    return {"batch_size": len(prompts)}


def _noise(
    pipeline: Any, card: ModelCard, generators: Sequence[torch.Generator], dtype: torch.dtype
) -> Tensor:
    """The noise a picture starts from, in the form its pipeline takes."""
    channels = getattr(pipeline, card.denoiser).config.in_channels
    scale = pipeline.vae_scale_factor
    height, width = card.sampling.height // scale, card.sampling.width // scale
    if card.latents == "packed":
        return pack_latents(initial_latents(generators, (channels // 4, height, width))).to(dtype)
    return initial_latents(generators, (channels, height, width)).to(dtype)


def _call_arguments(pipeline: Any, card: ModelCard, prompts: Sequence[Prompt], seed: int) -> dict[str, Any]:
    """Keyword arguments of the pipeline's call for one batch of prompts."""
    sampling = card.sampling
    generators = prompt_generators(prompts, seed)
    arguments: dict[str, Any] = {
        **_condition(card, prompts),
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "generator": generators,
        **sampling.call,
    }
    if card.latents != "drawn":
        dtype = next(getattr(pipeline, card.denoiser).parameters()).dtype
        noise = _noise(pipeline, card, generators, dtype)
        arguments |= {"height": sampling.height, "width": sampling.width, "latents": noise}
    accepted = inspect.signature(pipeline.__call__).parameters
    if "max_sequence_length" in accepted and "max_sequence_length" not in arguments:
        longest = pipeline.tokenizer.model_max_length
        if longest <= _LONGEST_CAPTION:
            arguments["max_sequence_length"] = longest
    return arguments


def sample(
    pipeline: Any,
    card: ModelCard,
    prompts: Sequence[Prompt],
    seed: int,
    output: Literal["pt", "latent"],
    index: StepIndex | None = None,
) -> Tensor:
    """Run the pipeline on one batch.

    Args:
        pipeline: as `harness.models.load.load_pipeline` returns it; its denoiser may be quantized.
        card: the model, with the sampling to use.
        prompts: the batch.
        seed: the protocol's seed.
        output: `pt` for images in 0..1, `latent` for the final latents (images where the pipeline draws its
            own noise: it gives nothing else).
        index: tells the caller's hooks the step while the denoiser runs; by default nobody is told.

    Returns:
        [n, channels, height, width] on the pipeline's device.

    Raises:
        CellError: state `nan`, when a prediction, the latents or the images are not finite.
    """

    def decoded(_module: nn.Module, _args: tuple[Any, ...], image: Tensor) -> None:
        _require_finite(image, "the decoded image")  # before the pipeline clamps it

    handle = pipeline.vae.decoder.register_forward_hook(decoded)
    try:
        with torch.inference_mode(), tracked_steps(pipeline, card, index or StepIndex()):
            arguments = _call_arguments(pipeline, card, prompts, seed)
            if card.latents == "drawn":
                output = "pt"  # such a pipeline has no other tensors to give
            result: Tensor = pipeline(**arguments, output_type=output).images
    finally:
        handle.remove()
    _require_finite(result, "the result")
    return result


def to_bytes(images: Tensor) -> npt.NDArray[np.uint8]:
    """Round images in 0..1 to bytes: 255 times the float32 value, to the nearest integer, halves to even.

    This is the rule by which diffusers makes its own pictures.

    Args:
        images: [n, 3, height, width] in 0..1.

    Returns:
        uint8 [n, height, width, 3].
    """
    scaled = images.detach().float().cpu().mul(255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def generate_block(
    pipeline: Any, card: ModelCard, prompts: Sequence[Prompt], seed: int
) -> npt.NDArray[np.uint8]:
    """Generate one block of images as one batch.

    Args:
        pipeline: as `harness.models.load.load_pipeline` returns it; its denoiser may be quantized.
        card: the model, with the sampling to use.
        prompts: the block; its composition and size are the protocol's, since another batch size may round
            differently.
        seed: the protocol's seed; each image's noise follows from it and its own prompt.

    Returns:
        uint8 [n, height, width, 3], rounded as `to_bytes` says.

    Raises:
        CellError: state `nan`, when a prediction, the latents or the images are not finite.
        RuntimeError: the denoiser is called at a timestep that is not in the schedule.
    """
    return to_bytes(sample(pipeline, card, prompts, seed, "pt"))


class _CapturedError(Exception):
    """Carries the arguments of the first denoiser call out of the pipeline."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call = args, kwargs


def denoiser_call(pipeline: Any, card: ModelCard, prompts: Sequence[Prompt], seed: int) -> Callable[[], None]:
    """Return a function that runs the denoiser once on what the pipeline hands it at its first step.

    With guidance the denoiser's batch is twice the number of prompts. The function is for timing and for
    memory: it synchronizes nothing, checks nothing, and keeps no result. Generating on the same pipeline
    takes its step index away; build another function afterwards.

    Raises:
        RuntimeError: the pipeline never calls its denoiser.
    """
    denoiser: nn.Module = getattr(pipeline, card.denoiser)

    def capture(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _CapturedError(args, kwargs)

    handle = denoiser.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with torch.inference_mode():
            pipeline(**_call_arguments(pipeline, card, prompts, seed), output_type="latent")
    except _CapturedError as captured:
        args, kwargs = captured.call
    else:
        raise RuntimeError(f"{card.pipeline} never called its {card.denoiser}")
    finally:
        handle.remove()
    index = StepIndex()
    index.value = 0
    bind_step_index(denoiser, index)

    def call() -> None:
        with torch.inference_mode():
            denoiser(*args, **kwargs)

    return call
