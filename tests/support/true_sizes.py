"""Published models at reduced size, for tests of what runs at true size."""

from __future__ import annotations

from typing import Any

import torch

from harness.models.configs import CONFIGS, DenoiserConfig
from harness.models.registry import get
from harness.truesize.quantize import Recipe

CPU = torch.device("cpu")
REDUCED: dict[str, dict[str, Any]] = {
    "flux.1-dev": {
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": [4, 6, 6],
    },
    "pixart-sigma": {
        "sample_size": 8,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "cross_attention_dim": 64,
        "caption_channels": 32,
    },
    "sana-1.6b": {
        "sample_size": 4,
        "num_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 64,
        "caption_channels": 32,
    },
    "dit-xl-2": {"sample_size": 8, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4},
    "sd-1.5": {
        "sample_size": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [16, 32],
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
    "sdxl": {
        "sample_size": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [16, 32],
        "cross_attention_dim": 32,
        "attention_head_dim": [2, 2],
        "transformer_layers_per_block": [1, 2],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
}
SIDE = {"sana-1.6b": 128}
TEXT = 8


def reduced_recipe(name: str, method: str = "ptq", **changes: Any) -> Recipe:
    """A recipe of three calibration calls; every other weight-and-activation width is 4 and 8."""
    published = CONFIGS[name]
    shape = {**published.config, **REDUCED[name], **changes.pop("shape", {})}
    given = {
        "card": get(name),
        "config": DenoiserConfig(published.class_name, shape),
        "method": method,
        "w_bits": 4,
        "a_bits": 8,
        "policy": "harness",
        "calls": 3,
        "side": SIDE.get(name, 64),
        "text_tokens": TEXT,
    }
    return Recipe(**{**given, **changes})
