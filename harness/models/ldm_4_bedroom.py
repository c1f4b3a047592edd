"""LDM-4 on LSUN bedrooms at 256 pixels (Rombach et al. 2022), unconditional, 274.1 M parameters.

Sampling as in EfficientDM and MPQ-DM: DDIM, 100 steps, eta 1.0 (QuEST and Q-Diffusion take 200 steps).
Policy and checkpoint as of `ldm-4-imagenet`.
"""

from __future__ import annotations

from dataclasses import replace

from harness.models import ldm_4_imagenet
from harness.models.card import Sampling

CARD = replace(
    ldm_4_imagenet.CARD,
    name="ldm-4-bedroom",
    sampling=Sampling(steps=100, guidance=1.0, height=256, width=256, call={"eta": 1.0}),
    summary="LDM-4, 0.3 B, LSUN bedrooms, 256x256; convert the original checkpoint with `harness convert`",
    components=("scheduler", "unet", "vae"),
    condition="none",
)
