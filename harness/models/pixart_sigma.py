"""PixArt-Sigma XL/2 1024-MS, 610.9 M parameters.

Sampling and policy as published with SVDQuant (arXiv 2411.05007, deepcompressor's configuration).
"""

from __future__ import annotations

from harness.models.card import Hub, ModelCard, Sampling

CARD = ModelCard(
    name="pixart-sigma",
    pipeline="PixArtSigmaPipeline",
    denoiser="transformer",
    family="pixart",
    # The pipeline's caption length, not the tokenizer's. 1024x1024 is one of the binned resolutions, so
    # binning would change nothing; caption cleaning needs two more packages.
    sampling=Sampling(
        steps=20,
        guidance=4.5,
        height=1024,
        width=1024,
        call={"max_sequence_length": 300, "use_resolution_binning": False, "clean_caption": False},
    ),
    embedded=False,
    summary="PixArt-Sigma XL/2, 0.6 B, 1024x1024",
    components=("scheduler", "text_encoder", "tokenizer", "transformer", "vae"),
    hub=Hub("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "e102b3591cc82e97071b8b4cb90d834d0c487207"),
    # Keys and values of the caption stay at 16 bits.
    published={"cross.k": "keep", "cross.v": "keep"},
)
