"""The embedded diffusion transformer."""

from __future__ import annotations

from harness.models.card import ModelCard, Sampling

CARD = ModelCard(
    name="tiny-dit",
    pipeline="PixArtSigmaPipeline",
    denoiser="transformer",
    family="pixart",
    # Binning would round 64x64 up to the nearest published resolution; caption cleaning needs two more
    # packages and leaves captions like ours as they are.
    sampling=Sampling(
        steps=10,
        guidance=3.0,
        height=64,
        width=64,
        call={"use_resolution_binning": False, "clean_caption": False},
    ),
    embedded=True,
    summary="PixArt transformer, 8 blocks of width 192, trained on rendered scenes, 64x64",
)
