"""DiT-XL/2 at 256 pixels, class-conditional, 749.8 M parameters.

That is in diffusers, whose blocks hold a copy of the timestep embedding each; the original has 675 M.
Sampling as in the works that quantize it (PTQ4DiT and after): 250 steps, guidance 1.5. The pipeline takes no
noise: it draws it from the generator of each picture, in the type of its weights.
"""

from __future__ import annotations

from harness.models.card import Hub, ModelCard, Sampling

CARD = ModelCard(
    name="dit-xl-2",
    pipeline="DiTPipeline",
    denoiser="transformer",
    family="dit",
    sampling=Sampling(steps=250, guidance=1.5, height=256, width=256),
    embedded=False,
    summary="DiT-XL/2, 0.7 B, ImageNet classes, 256x256; non-commercial licence",
    components=("scheduler", "transformer", "vae"),
    hub=Hub("facebook/DiT-XL-2-256", "eab87f77abd5aef071a632f08807fbaab0b704d0"),
    condition="class",
    latents="drawn",
)
