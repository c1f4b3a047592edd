"""Stable Diffusion 1.4, 859.5 M parameters.

Sampling as in MPQ-DM and the works it compares with: PLMS (the repository's scheduler), 50 steps, guidance
7.5. The policy is MPQ-DM's: the time embedding, the first and the last layer at 8 bits (here with 16-bit
inputs), the rest quantized.
"""

from __future__ import annotations

from harness.models.card import Hub, ModelCard, Sampling

CARD = ModelCard(
    name="sd-1.4",
    pipeline="StableDiffusionPipeline",
    denoiser="unet",
    family="sd-unet",
    sampling=Sampling(steps=50, guidance=7.5, height=512, width=512),
    embedded=False,
    summary="Stable Diffusion 1.4, 0.9 B, 512x512",
    components=("scheduler", "text_encoder", "tokenizer", "unet", "vae"),
    hub=Hub("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"),
    published={
        "conv.in": "8-bit",
        "final": "8-bit",
        "time": "8-bit",
        "time.proj": "quantize",
        "conv.skip": "quantize",
        "conv.sample": "quantize",
    },
)
