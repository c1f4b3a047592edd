"""Randomness as a function of prompt and seed alone, never of order, batch or anything drawn before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.datasets.contract import Prompt


def hash_seed(*parts: str | int) -> int:
    """Return a seed in 0 ... 2^63-1 from `parts`, the same on every machine."""
    text = json.dumps(parts, ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def prompt_seed(prompt: Prompt, seed: int) -> int:
    """Return the seed of one image: the prompt's own, else from its id and text and the protocol's seed."""
    if prompt.seed is not None:
        return prompt.seed
    return hash_seed("prompt", prompt.id, prompt.text, seed)


def prompt_generators(prompts: Sequence[Prompt], seed: int) -> list[torch.Generator]:
    """Return one CPU generator per prompt, for its latents and then for a stochastic sampler's noise."""
    return [torch.Generator("cpu").manual_seed(prompt_seed(prompt, seed)) for prompt in prompts]


def initial_latents(generators: Sequence[torch.Generator], shape: tuple[int, int, int]) -> Tensor:
    """Draw standard normal latents, each from its own generator.

    Drawn in float32 on the CPU whatever the model runs on, so that every device and dtype starts alike.

    Args:
        generators: one per image (`prompt_generators`).
        shape: channels, height, width of one latent.

    Returns:
        float32 [n, channels, height, width].
    """
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def pack_latents(latents: Tensor) -> Tensor:
    """Turn maps into tokens of 2x2 patches, as FLUX's transformer takes them.

    Args:
        latents: [n, channels, height, width]; an odd last row or column is an error.

    Returns:
        [n, height/2 * width/2, channels * 4]; a token holds, for each channel, its patch row by row.
    """
    n, channels, height, width = latents.shape
    patches = latents.reshape(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, (height // 2) * (width // 2), channels * 4)
