"""Stable Diffusion XL base 1.0, 2,567.5 M parameters.

Steps and policy as published with SVDQuant (arXiv 2411.05007); the guidance, which the paper leaves out, is
the pipeline's default.
"""

from __future__ import annotations

from harness.models.card import Hub, ModelCard, Sampling

CARD = ModelCard(
    name="sdxl",
    pipeline="StableDiffusionXLPipeline",
    denoiser="unet",
    family="sd-unet",
    sampling=Sampling(steps=30, guidance=5.0, height=1024, width=1024),
    embedded=False,
    summary="Stable Diffusion XL base 1.0, 2.6 B, 1024x1024",
    components=("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"),
    hub=Hub("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),
    # Shortcuts, samplers, projections into and out of the transformers, and the caption's keys and values
    # stay at 16 bits; the convolutions of the residual blocks are quantized.
    published={
        "conv.skip": "keep",
        "conv.sample": "keep",
        "proj.in": "keep",
        "proj.out": "keep",
        "cross.k": "keep",
        "cross.v": "keep",
    },
)
