"""Configs of the published denoisers, as diffusers stores them: what a model of true size is built from.

With them a denoiser of the right shape exists without its weights; latency and memory do not depend on these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.errors import unknown


@dataclass(frozen=True)
class DenoiserConfig:
    """What a denoiser is built from.

    Attributes:
        class_name: its class in diffusers.
        config: keyword arguments of the class.
    """

    class_name: str
    config: dict[str, Any]


_FLUX = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": [16, 56, 56],
}
_PIXART = {
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
    # Left out, it would be switched on at this sample size.
    "use_additional_conditions": False,
    "upcast_attention": False,
}
_DIT = {
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
_SANA = {
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
    "dropout": 0.0,
    "attention_bias": False,
    "sample_size": 32,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "interpolation_scale": None,
}
_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}
_SD = {
    **_UNET,
    "sample_size": 64,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_SDXL = {
    **_UNET,
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

CONFIGS: dict[str, DenoiserConfig] = {
    "flux.1-dev": DenoiserConfig("FluxTransformer2DModel", {**_FLUX, "guidance_embeds": True}),
    "flux.1-schnell": DenoiserConfig("FluxTransformer2DModel", {**_FLUX, "guidance_embeds": False}),
    "pixart-sigma": DenoiserConfig("PixArtTransformer2DModel", _PIXART),
    "sana-1.6b": DenoiserConfig("SanaTransformer2DModel", _SANA),
    "sdxl": DenoiserConfig("UNet2DConditionModel", _SDXL),
    "sdxl-turbo": DenoiserConfig("UNet2DConditionModel", {**_SDXL, "sample_size": 64}),
    "sd-1.4": DenoiserConfig("UNet2DConditionModel", _SD),
    "sd-1.5": DenoiserConfig("UNet2DConditionModel", _SD),
    "dit-xl-2": DenoiserConfig("DiTTransformer2DModel", _DIT),
}
"""By the name of the model's card."""


def denoiser_config(name: str) -> DenoiserConfig:
    """Return the config of model `name`; raises UserError, naming the nearest, when there is none."""
    if name not in CONFIGS:
        raise unknown("model with a config", name, CONFIGS)
    return CONFIGS[name]
