"""Turns an original LDM-4 checkpoint into a folder of `LatentDiffusionPipeline`.

The original is one pickle of tensors (Rombach et al. 2022); it is read with `weights_only`, so nothing in it
is executed. Its names are mapped to those of diffusers, and every tensor must find its place. Averaged
weights are taken where it holds them, as the authors sample with those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.compat import ensure_torchvision, quiet_imports
from harness.errors import UserError
from harness.models.latent_diffusion import ClassEmbedder, LatentDiffusionPipeline

State = dict[str, Tensor]

_UNET = "model.diffusion_model."
_AVERAGED = "model_ema."
_FIRST_STAGE = "first_stage_model."
_CLASSES = "cond_stage_model.embedding.weight"
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION_VQ = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


@dataclass(frozen=True)
class Architecture:
    """What the original configuration files say of a model.

    Attributes:
        channels: of the UNet at each resolution.
        head_width: channels per attention head, where attention is plain; transformer blocks have one head.
        context: width of a class vector, or None for an unconditional model.
        classes: vectors in the table, that of no class included.
        layers: residual blocks per resolution.
        autoencoder: further settings of the VQModel.
        sample: side of a latent.
    """

    channels: tuple[int, ...]
    head_width: int = 32
    context: int | None = None
    classes: int = 1001
    layers: int = 2
    autoencoder: Mapping[str, Any] = field(default_factory=dict)
    sample: int = 64


ARCHITECTURES = {
    "ldm-4-imagenet": Architecture((192, 384, 576, 960), context=512),
    "ldm-4-bedroom": Architecture((224, 448, 672, 896)),
}
_VQ_F4: dict[str, Any] = {
    "block_out_channels": (128, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "scaling_factor": 1.0,
}


def build(architecture: Architecture) -> LatentDiffusionPipeline:
    """Build the pipeline of an architecture, its weights not yet those of a checkpoint."""
    ensure_torchvision()
    with quiet_imports():
        from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel, VQModel
    common = {
        "sample_size": architecture.sample,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": architecture.layers,
        "block_out_channels": architecture.channels,
    }
    deeper = len(architecture.channels) - 1
    embedder = None
    unet: Any
    if architecture.context is None:
        unet = UNet2DModel(
            **common,
            attention_head_dim=architecture.head_width,
            down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * deeper,
            up_block_types=("AttnUpBlock2D",) * deeper + ("UpBlock2D",),
        )
    else:
        unet = UNet2DConditionModel(
            **common,
            attention_head_dim=1,  # the library's name for the number of heads
            cross_attention_dim=architecture.context,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
            up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        )
        embedder = ClassEmbedder(architecture.classes, architecture.context)
    settings = {**_VQ_F4, **architecture.autoencoder}
    depth = len(settings["block_out_channels"])
    vae = VQModel(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        **settings,
    )
    with torch.device("cpu"):  # also where the networks are built without memory: its tables are no weights
        scheduler = DDIMScheduler(
            beta_start=0.0015,
            beta_end=0.0195,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
    return LatentDiffusionPipeline(vae, unet, scheduler, embedder)


def convert(original: Mapping[str, Tensor], architecture: Architecture) -> LatentDiffusionPipeline:
    """Build the pipeline that an original checkpoint holds.

    Args:
        original: its `state_dict`.
        architecture: of the model.

    Raises:
        harness.errors.UserError: a tensor is missing, has another shape, or finds no place.
    """
    with torch.device("meta"):
        pipeline = build(architecture)
    parts = {"unet": unet_state(original, architecture), "vae": vq_state(original)}
    if architecture.context is not None:
        if _CLASSES not in original:
            raise UserError(f"the checkpoint has no {_CLASSES}")
        parts["class_embedder"] = {"embedding.weight": original[_CLASSES]}
    for name, state in parts.items():
        _assign(name, getattr(pipeline, name), state)
    return pipeline


def _assign(name: str, module: nn.Module, state: State) -> None:
    """Give a module on the meta device its weights, all of them and no others."""
    wanted = module.state_dict()
    odd = sorted(wanted.keys() ^ state.keys())
    if odd:
        raise UserError(f"the checkpoint lacks or adds {len(odd)} tensors of the {name}, e.g. {odd[0]}")
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(wanted[key].shape)}"
            raise UserError(f"{key} of the {name} has the shape {shapes}")
    module.load_state_dict(state, assign=True)


def unet_state(original: Mapping[str, Tensor], architecture: Architecture) -> State:
    """Return the UNet's tensors of a checkpoint under diffusers' names, averaged where it has such."""
    state: State = {}
    for key, value in original.items():
        if not key.startswith(_UNET):
            continue
        averaged = _AVERAGED + key.removeprefix("model.").replace(".", "")
        for name, tensor in _unet_tensor(
            key.removeprefix(_UNET), original.get(averaged, value), architecture
        ):
            state[name] = tensor
    return state


def _unet_tensor(key: str, value: Tensor, architecture: Architecture) -> Iterable[tuple[str, Tensor]]:
    """Yield the diffusers name and tensor, or tensors, of one tensor of the original UNet."""
    outer = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    outer |= {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
    module, _, kind = key.rpartition(".")
    if module in outer:
        yield f"{outer[module]}.{kind}", value
        return
    found = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.(\d+))?\.(.+)", key)
    if found is None:
        raise UserError(f"the checkpoint's {key} has no place in the UNet")
    rest: str | None
    if found[1] == "middle_block":
        part = int(found[2])
        rest = key.removeprefix(f"middle_block.{part}.")
        prefix, attention = f"mid_block.{'attentions.0' if part == 1 else f'resnets.{part // 2}'}", part == 1
    else:
        prefix, attention, rest = _block(found[1], int(found[2]), int(found[3] or 0), found[4], architecture)
    if rest is None:
        yield f"{prefix}.{kind}", value
    elif attention:
        yield from _attention(prefix, rest, value, architecture)
    else:
        name = next((new for old, new in _RESIDUAL.items() if rest == f"{old}.{kind}"), None)
        if name is None:
            raise UserError(f"the checkpoint's {key} has no place in the UNet")
        yield f"{prefix}.{name}.{kind}", value


def _block(
    side: str, index: int, part: int, rest: str, architecture: Architecture
) -> tuple[str, bool, str | None]:
    """Where a module of an input or output block lies: its prefix, whether it is attention, and what follows.

    What follows is None for the convolution of a down- or upsampler.
    """
    n = architecture.layers
    if side == "input_blocks":
        level, k = divmod(index - 1, n + 1)
        if rest.startswith("op."):
            return f"down_blocks.{level}.downsamplers.0.conv", False, None
        stage = f"down_blocks.{level}"
    else:
        level, k = divmod(index, n + 1)
        if rest.startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.conv", False, None
        stage = f"up_blocks.{level}"
    if part == 1:
        return f"{stage}.attentions.{k}", True, rest
    return f"{stage}.resnets.{k}", False, rest


def _attention(
    prefix: str, rest: str, value: Tensor, architecture: Architecture
) -> Iterable[tuple[str, Tensor]]:
    """Yield the tensors of a transformer block, or those of plain self-attention.

    The plain one holds q, k and v in one convolution over positions, head by head: [heads, 3, head width].
    """
    if architecture.context is not None:
        yield f"{prefix}.{rest}", value
        return
    module, _, kind = rest.rpartition(".")
    flat = value.squeeze(-1) if value.dim() == 3 else value
    if module == "qkv":
        by_head = flat.reshape(-1, 3, architecture.head_width, *flat.shape[1:])
        for i, letter in enumerate("qkv"):
            yield f"{prefix}.to_{letter}.{kind}", by_head[:, i].reshape(-1, *flat.shape[1:]).contiguous()
    elif module in ("norm", "proj_out"):
        yield f"{prefix}.{'group_norm' if module == 'norm' else 'to_out.0'}.{kind}", flat
    else:
        raise UserError(f"the checkpoint's {prefix}.{rest} has no place in the UNet")


def vq_state(original: Mapping[str, Tensor]) -> State:
    """Return the autoencoder's tensors of a checkpoint under diffusers' names; losses are left out."""
    inside = {
        key.removeprefix(_FIRST_STAGE): value
        for key, value in original.items()
        if key.startswith(_FIRST_STAGE) and not key.startswith(f"{_FIRST_STAGE}loss.")
    }
    found = (re.match(r"decoder\.up\.(\d+)\.", key) for key in inside)
    last = max((int(match[1]) for match in found if match), default=0)
    return dict(_vq_tensor(key, value, last) for key, value in inside.items())


def _vq_tensor(key: str, value: Tensor, last: int) -> tuple[str, Tensor]:
    """Return the diffusers name and tensor of one tensor of the original autoencoder.

    The original counts the decoder's resolutions from the finest, diffusers from the coarsest; its attention
    is of 1x1 convolutions, that of diffusers of linear layers.
    """
    attention = re.fullmatch(r"((?:en|de)coder)\.mid\.attn_1\.(norm|q|k|v|proj_out)\.(\w+)", key)
    if attention:
        name = f"{attention[1]}.mid_block.attentions.0.{_ATTENTION_VQ[attention[2]]}.{attention[3]}"
        return name, value.flatten(1) if value.dim() == 4 else value
    name = re.sub(r"mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", key)
    name = re.sub(r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"up\.(\d+)\.block\.", lambda m: f"up_blocks.{last - int(m[1])}.resnets.", name)
    name = re.sub(r"up\.(\d+)\.upsample\.", lambda m: f"up_blocks.{last - int(m[1])}.upsamplers.0.", name)
    name = name.replace("nin_shortcut", "conv_shortcut")
    return re.sub(r"^((?:en|de)coder)\.norm_out", r"\1.conv_norm_out", name), value


def read_checkpoint(path: Path) -> State:
    """Read the tensors of an original checkpoint without executing anything in it.

    Raises:
        harness.errors.UserError: the file is no such checkpoint, or holds more than tensors and numbers.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged or hostile pickle raises whatever its bytes lead to
        raise UserError(
            f"{path} is no checkpoint that can be read safely: it is damaged, or holds objects that could "
            "run code; only tensors are read"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(str(key).startswith(_UNET) for key in state):
        raise UserError(f"{path} holds no weights of a latent diffusion model ({_UNET}...)")
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
