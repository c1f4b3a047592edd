"""SDXL-Turbo, four steps without guidance at 512 pixels; the network is that of SDXL.

Sampling and policy as published with SVDQuant (arXiv 2411.05007, deepcompressor's configuration).
"""

from __future__ import annotations

from dataclasses import replace

from harness.models import sdxl
from harness.models.card import Hub, Sampling

CARD = replace(
    sdxl.CARD,
    name="sdxl-turbo",
    sampling=Sampling(steps=4, guidance=0.0, height=512, width=512),
    summary="SDXL-Turbo, 2.6 B, four steps, 512x512",
    hub=Hub("stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304"),
)
