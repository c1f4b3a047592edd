"""FLUX.1-schnell, 11.9 B parameters, four steps without guidance.

Sampling and policy as published with SVDQuant (arXiv 2411.05007, deepcompressor's configuration).
"""

from __future__ import annotations

from dataclasses import replace

from harness.models import flux_dev
from harness.models.card import Hub, Sampling

CARD = replace(
    flux_dev.CARD,
    name="flux.1-schnell",
    sampling=Sampling(steps=4, guidance=0.0, height=1024, width=1024, call={"max_sequence_length": 256}),
    summary="FLUX.1-schnell, 11.9 B, four steps, 1024x1024; gated on the hub, Apache-2.0",
    hub=Hub("black-forest-labs/FLUX.1-schnell", "741f7c3ce8b383c54771c7003378a50191e9efe9"),
)
