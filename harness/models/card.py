"""What the harness must know of a model before it loads anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Policy = Literal["quantize", "weight-only", "8-bit", "keep"]
"""What is done with the layers of a role: weights and inputs at the bits asked for, weights only, weights at
8 bits, or nothing."""
Condition = Literal["text", "class", "none"]
"""What a model draws: a caption, a class given by its number, or whatever it was trained on."""
Latents = Literal["grid", "packed", "drawn"]
"""How noise is handed over: as maps; as tokens of 2x2 patches (FLUX); or the pipeline takes none and draws it
itself from the prompts' generators."""


@dataclass(frozen=True)
class Hub:
    """Where a model's weights lie on the Hugging Face hub.

    Attributes:
        repo: its id, `owner/name`.
        revision: the commit.
        variant: of the weight files, e.g. `bf16`, where the repository holds no others.
    """

    repo: str
    revision: str
    variant: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How a model samples unless the protocol says otherwise.

    Attributes:
        steps: sampling steps of the pipeline's own scheduler.
        guidance: classifier-free guidance scale; 1 or less turns guidance off.
        height: image height in pixels.
        width: image width in pixels.
        call: further keyword arguments of the pipeline's call.
    """

    steps: int
    guidance: float
    height: int
    width: int
    call: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """One model of the grid.

    Attributes:
        name: the name on the command line.
        pipeline: name of its pipeline class in diffusers, or in `harness.models.latent_diffusion`.
        denoiser: attribute of the pipeline that holds the denoiser.
        family: key of its role table in `harness.models.roles`.
        sampling: how it samples unless the protocol says otherwise; of a published model, as published.
        embedded: whether its weights ship with the package.
        summary: one line for `harness list models`.
        components: folders of the pipeline that are needed, in diffusers format.
        hub: where its weights can be had, or None for a model that lies in a local folder.
        condition: what it draws.
        latents: how the noise is handed to its pipeline.
        timestep_unit: what the pipeline divides the scheduler's timestep by for the denoiser.
        published: rows in which the policy of the paper named in the card's file differs from
            `harness.models.roles.POLICY`; None when there is no such paper.
    """

    name: str
    pipeline: str
    denoiser: Literal["unet", "transformer"]
    family: str
    sampling: Sampling
    embedded: bool
    summary: str
    components: tuple[str, ...] = ()
    hub: Hub | None = None
    condition: Condition = "text"
    latents: Latents = "grid"
    timestep_unit: float = 1.0
    published: Mapping[str, Policy] | None = None
