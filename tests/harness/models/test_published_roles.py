"""The role tables against the module trees of the published models at full size, on the meta device."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from pipelines import diffusers
from torch import nn

from harness.errors import UserError
from harness.models import roles
from harness.models.registry import get

SD_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SDXL_UNET = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FLUX = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 56, 56),
}
PIXART = {
    "sample_size": 128,
    "num_layers": 28,
    "attention_head_dim": 72,
    "num_attention_heads": 16,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "attention_bias": True,
    "cross_attention_dim": 1152,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
    "interpolation_scale": 2,
    "use_additional_conditions": False,
}
SANA = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "attention_bias": False,
    "sample_size": 32,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "interpolation_scale": None,
}
DIT = {
    "sample_size": 32,
    "num_layers": 28,
    "attention_head_dim": 72,
    "num_attention_heads": 16,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
LDM_IMAGENET = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "cross_attention_dim": 512,
    "block_out_channels": (192, 384, 576, 960),
    "attention_head_dim": 1,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
}
LDM_BEDROOM = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "attention_head_dim": 32,
    "block_out_channels": (224, 448, 672, 896),
    "down_block_types": ("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
    "up_block_types": ("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
}

# Parameters, Linear and Conv2d layers of the published models.
PUBLISHED: dict[str, tuple[str, dict[str, Any], int, int | None, int | None]] = {
    "flux.1-dev": ("FluxTransformer2DModel", {**FLUX, "guidance_embeds": True}, 11_901_408_320, 504, 0),
    "flux.1-schnell": ("FluxTransformer2DModel", {**FLUX, "guidance_embeds": False}, 11_891_178_560, 502, 0),
    "pixart-sigma": ("PixArtTransformer2DModel", PIXART, 610_856_096, 286, 1),
    "sana-1.6b": ("SanaTransformer2DModel", SANA, 1_604_462_752, 166, 61),
    "sdxl": ("UNet2DConditionModel", SDXL_UNET, 2_567_463_684, 743, 51),
    "sdxl-turbo": ("UNet2DConditionModel", {**SDXL_UNET, "sample_size": 64}, 2_567_463_684, 743, 51),
    "sd-1.4": ("UNet2DConditionModel", SD_UNET, 859_520_964, 184, 98),
    "sd-1.5": ("UNet2DConditionModel", SD_UNET, 859_520_964, 184, 98),
    "dit-xl-2": ("DiTTransformer2DModel", DIT, 749_826_464, None, 1),
    "ldm-4-imagenet": ("UNet2DConditionModel", LDM_IMAGENET, 400_920_579, None, None),
    "ldm-4-bedroom": ("UNet2DModel", LDM_BEDROOM, 274_056_163, None, None),
}


@cache
def full_size(name: str) -> Any:
    class_name, config, *_ = PUBLISHED[name]
    with torch.device("meta"):
        return getattr(diffusers, class_name)(**config)


def shares(name: str) -> dict[str, float]:
    """Share of all parameters that the weights of each role hold."""
    denoiser = full_size(name)
    total = sum(parameter.numel() for parameter in denoiser.parameters())
    held: Counter[str] = Counter()
    for layer, role in roles.layer_roles(get(name).family, denoiser).items():
        held[role] += denoiser.get_submodule(layer).weight.numel()
    return {role: count / total for role, count in held.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_layer_of_the_full_size_model_has_one_role(name: str) -> None:
    _, _, parameters, linear, conv = PUBLISHED[name]
    denoiser = full_size(name)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters
    assert all(parameter.is_meta for parameter in denoiser.parameters())
    layers = [module for module in denoiser.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert len(roles.layer_roles(get(name).family, denoiser)) == len(layers)
    kinds = Counter(type(module) for module in layers)
    assert linear is None or kinds[nn.Linear] == linear
    assert conv is None or kinds[nn.Conv2d] == conv


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_policy_reaches_nearly_all_weights(name: str) -> None:
    denoiser = full_size(name)
    handed = roles.targets(get(name), denoiser, 4, 4)
    weights = sum(denoiser.get_submodule(target.name).weight.numel() for target in handed)
    assert weights > 0.89 * sum(parameter.numel() for parameter in denoiser.parameters())


@pytest.mark.parametrize(
    ("name", "share"),
    [
        (
            "flux.1-dev",
            {"adaln.block": 0.2712, "fused.out": 0.1507, "ffn.up": 0.0603 + 0.1205, "context.q": 0.0151},
        ),
        (
            "pixart-sigma",
            {"attn.q": 0.0608, "cross.out": 0.0608, "ffn.up": 0.2433, "adaln": 0.0130, "caption": 0.0099},
        ),
        (
            "sana-1.6b",
            {"attn.q": 0.0625, "cross.v": 0.0625, "ffn.up": 0.3127, "ffn.down": 0.1564, "conv.depth": 0.0013},
        ),
        ("dit-xl-2", {"adaln.block": 0.2973, "attn.v": 0.0496, "ffn.up": 0.1982, "time": 0.0606}),
        ("sdxl", {"ffn.up": 0.3191, "cross.k": 0.0664, "conv.res": 0.0664 + 0.0492, "conv.sample": 0.0090}),
        (
            "sd-1.4",
            {"conv.res": 0.3356 + 0.2327, "ffn.up": 0.1153, "conv.sample": 0.0611, "time.proj": 0.0300},
        ),
    ],
)
def test_the_roles_hold_the_published_shares_of_the_parameters(name: str, share: dict[str, float]) -> None:
    found = shares(name)
    assert {role: found[role] for role in share} == pytest.approx(share, abs=3e-4)


def kept(name: str, policy: str) -> set[str]:
    """Roles whose weights are left alone under a policy, at W4A4."""
    denoiser = full_size(name)
    handed = {target.name for target in roles.targets(get(name), denoiser, 4, 4, policy)}
    return {
        role for layer, role in roles.layer_roles(get(name).family, denoiser).items() if layer not in handed
    }


def test_the_published_policies() -> None:
    flux = {
        t.role: (t.w_bits, t.a_bits)
        for t in roles.targets(get("flux.1-dev"), full_size("flux.1-dev"), 4, 4, "published")
    }
    assert flux["adaln.block"] == (4, 16)
    assert flux["attn.q"] == flux["context.up"] == flux["fused.out"] == (4, 4)
    assert kept("flux.1-dev", "published") == {"embed", "caption", "time", "adaln", "final"}
    for name in ("pixart-sigma", "sana-1.6b"):
        assert kept(name, "published") - kept(name, "harness") == {"cross.k", "cross.v"}
    added = {"conv.skip", "conv.sample", "proj.in", "proj.out", "cross.k", "cross.v"}
    assert kept("sdxl", "published") - kept("sdxl", "harness") == added
    assert kept("sd-1.4", "published") == set()
    with pytest.raises(UserError, match="no policy was published for dit-xl-2"):
        roles.policy_of(get("dit-xl-2"), "published")
    with pytest.raises(UserError, match="unknown policy 'publishd'; did you mean published"):
        roles.policy_of(get("sdxl"), "publishd")
