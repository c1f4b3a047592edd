"""The embedded latent UNet."""

from __future__ import annotations

from harness.models.card import ModelCard, Sampling

CARD = ModelCard(
    name="tiny-unet",
    pipeline="StableDiffusionPipeline",
    denoiser="unet",
    family="sd-unet",
    sampling=Sampling(steps=10, guidance=3.0, height=64, width=64),
    embedded=True,
    summary="latent UNet with cross-attention, trained on rendered scenes, 64x64",
)
