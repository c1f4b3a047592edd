"""Stable Diffusion 1.5: the network, sampling and policy of 1.4."""

from __future__ import annotations

from dataclasses import replace

from harness.models import sd_14
from harness.models.card import Hub

CARD = replace(
    sd_14.CARD,
    name="sd-1.5",
    summary="Stable Diffusion 1.5, 0.9 B, 512x512",
    hub=Hub("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
)
