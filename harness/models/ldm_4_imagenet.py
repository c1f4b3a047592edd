"""LDM-4 on ImageNet at 256 pixels (Rombach et al. 2022), class-conditional, 400.9 M parameters.

Sampling as in MPQ-DM and the works it compares with: DDIM, 20 steps, eta 0, guidance 3.0. The policy is
MPQ-DM's: the time embedding, the first and the last layer at 8 bits (here with 16-bit inputs), the rest
quantized. The original checkpoint is one pickle; `harness convert` turns it into a folder of this pipeline.
"""

from __future__ import annotations

from harness.models.card import ModelCard, Sampling

CARD = ModelCard(
    name="ldm-4-imagenet",
    pipeline="LatentDiffusionPipeline",
    denoiser="unet",
    family="sd-unet",
    sampling=Sampling(steps=20, guidance=3.0, height=256, width=256, call={"eta": 0.0}),
    embedded=False,
    summary="LDM-4, 0.4 B, ImageNet classes, 256x256; convert the original checkpoint with `harness convert`",
    components=("class_embedder", "scheduler", "unet", "vae"),
    condition="class",
    published={
        "conv.in": "8-bit",
        "final": "8-bit",
        "time": "8-bit",
        "time.proj": "quantize",
        "conv.skip": "quantize",
        "conv.sample": "quantize",
    },
)
