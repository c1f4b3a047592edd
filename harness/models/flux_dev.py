"""FLUX.1-dev, 11.9 B parameters, guidance-distilled.

Sampling and policy as published with SVDQuant (arXiv 2411.05007, deepcompressor's configuration).
"""

from __future__ import annotations

from harness.models.card import Hub, ModelCard, Sampling

COMPONENTS = (
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "transformer",
    "vae",
)

CARD = ModelCard(
    name="flux.1-dev",
    pipeline="FluxPipeline",
    denoiser="transformer",
    family="flux",
    sampling=Sampling(steps=50, guidance=3.5, height=1024, width=1024, call={"max_sequence_length": 512}),
    embedded=False,
    summary="FLUX.1-dev, 11.9 B, 1024x1024; gated on the hub, non-commercial licence",
    components=COMPONENTS,
    hub=Hub("black-forest-labs/FLUX.1-dev", "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"),
    latents="packed",
    timestep_unit=1000.0,
    # AdaLN inputs stay at 16 bits, everything else inside the blocks is quantized.
    published={"adaln.block": "weight-only"},
)
