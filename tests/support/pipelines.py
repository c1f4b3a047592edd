"""Tiny random pipelines of the real classes, as diffusers folders. Built offline, from configs alone."""

from __future__ import annotations

import importlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.compat import ensure_torchvision
from harness.datasets.contract import Prompt
from harness.models.card import ModelCard
from harness.models.registry import get

ensure_torchvision()

# After `ensure_torchvision`, and untyped: most of what they export carries no annotations.
diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

WORDS = (
    "a", "the", "small", "large", "red", "blue", "green", "yellow", "circle", "square", "star", "ring",
    "left", "right", "of", "to", "above", "below", "on", "white", "black", "background",
)  # fmt: skip
TEXT_WIDTH = 16
TEXT_LENGTH = 24
STEPS = 3


def prompts(n: int) -> list[Prompt]:
    """`n` different captions in the words of the tiny tokenizers."""
    colours, shapes, sizes = (
        ("red", "blue", "green", "yellow"),
        ("circle", "square", "star", "ring"),
        ("small", "large"),
    )
    return [
        Prompt(f"p{i:03d}", f"a {sizes[i % 2]} {colours[i % 4]} {shapes[i // 4 % 4]} on a white background")
        for i in range(n)
    ]


def tiny_card(name: str, **sampling: Any) -> ModelCard:
    """The card of embedded model `name` for a tiny pipeline: 32x32, three steps unless `sampling` says."""
    card = get(name)
    settings = {"steps": STEPS, "height": 32, "width": 32, **sampling}
    return replace(card, sampling=replace(card.sampling, **settings))


def _clip() -> tuple[Any, Any]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=2 * TEXT_LENGTH
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=2 * TEXT_LENGTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer, transformers.CLIPTextModel(config)


def _t5() -> tuple[Any, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS]
    pieces += [(letter, -12.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return tokenizer, transformers.T5EncoderModel(config)


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 16), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    )  # fmt: skip


def _scheduler() -> Any:
    return diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", solver_order=2
    )


def tiny_unet() -> Any:
    """A UNet with every kind of layer of Stable Diffusion's: skips, samplers, cross-attention."""
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn", attention_head_dim=2, cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
    )  # fmt: skip


def tiny_dit() -> Any:
    """A PixArt transformer of two blocks, width 32."""
    return diffusers.PixArtTransformer2DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        patch_size=2, sample_size=8, cross_attention_dim=32, caption_channels=TEXT_WIDTH,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, use_additional_conditions=False, interpolation_scale=1,
    )  # fmt: skip


def save_tiny(name: str, folder: Path, seed: int = 0) -> Path:
    """Save a tiny random pipeline for embedded model `name` (`tiny-unet`, `tiny-dit`) to `folder`; return it.

    torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "tiny-unet":
            tokenizer, encoder = _clip()
            pipeline = diffusers.StableDiffusionPipeline(
                vae=_vae(), text_encoder=encoder, tokenizer=tokenizer, unet=tiny_unet(),
                scheduler=_scheduler(), safety_checker=None, feature_extractor=None,
                requires_safety_checker=False,
            )  # fmt: skip
        else:
            tokenizer, encoder = _t5()
            pipeline = diffusers.PixArtSigmaPipeline(
                tokenizer=tokenizer,
                text_encoder=encoder,
                vae=_vae(),
                transformer=tiny_dit(),
                scheduler=_scheduler(),
            )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
