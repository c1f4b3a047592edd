"""SANA 1.6B at 1024 pixels, 1,604.5 M parameters.

Sampling and policy as published with SVDQuant (arXiv 2411.05007, deepcompressor's configuration).
"""

from __future__ import annotations

from harness.models.card import Hub, ModelCard, Sampling

CARD = ModelCard(
    name="sana-1.6b",
    pipeline="SanaPipeline",
    denoiser="transformer",
    family="sana",
    sampling=Sampling(
        steps=20,
        guidance=4.5,
        height=1024,
        width=1024,
        call={"max_sequence_length": 300, "use_resolution_binning": False, "clean_caption": False},
    ),
    embedded=False,
    summary="SANA 1.6B, linear attention, 32x32 latents of 1024x1024 pictures",
    components=("scheduler", "text_encoder", "tokenizer", "transformer", "vae"),
    hub=Hub(
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        "e18f82ddb8233fa4d979c2613f41a3ca4c5fc730",
        variant="bf16",
    ),
    # Keys and values of the caption stay at 16 bits.
    published={"cross.k": "keep", "cross.v": "keep"},
)
