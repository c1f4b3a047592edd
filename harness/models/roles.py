"""What each layer of a denoiser is for, and which layers a method is handed.

One ordered table per family maps module paths to roles; the policy maps roles to `quantize`, `8-bit` or
`keep`. Both belong to the harness, so that every method is compared on the same layers.

Policy, and why:

* Attention, cross-attention, feed-forward, the two convolutions of a residual block and the projections into
  and out of a transformer block hold nearly all weights: `quantize`.
* `conv.skip` (the 1x1 shortcut of a residual block) and `conv.sample` (down- and up-samplers) carry the
  residual stream itself, so an error there reaches every later layer undiluted. They hold 9 % of the weights
  of Stable Diffusion 1.5. deepcompressor leaves them at 16 bits; here their weights take 8, which costs
  little and keeps a low-bit model low-bit, while their inputs stay at 16: rounding the residual stream of
  tiny-unet to 8 bits moves its prediction nearly as much as rounding all its weights to 4.
* The first and the last layer, the time embedding with its projection into each residual block, the caption
  projection and PixArt's global AdaLN layer stay at 16 bits (`keep`), as in deepcompressor: they are small
  and read or write quantities of another scale than the rest.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from torch import nn

from harness.methods.contract import LayerKind, LayerTarget
from harness.models.card import ModelCard

Policy = Literal["quantize", "8-bit", "keep"]

EIGHT_BITS = 8
UNQUANTIZED_BITS = 16

POLICY: dict[str, Policy] = {
    "attn.q": "quantize",
    "attn.k": "quantize",
    "attn.v": "quantize",
    "attn.out": "quantize",
    "cross.q": "quantize",
    "cross.k": "quantize",
    "cross.v": "quantize",
    "cross.out": "quantize",
    "ffn.up": "quantize",
    "ffn.down": "quantize",
    "conv.res": "quantize",
    "proj.in": "quantize",
    "proj.out": "quantize",
    "conv.skip": "8-bit",
    "conv.sample": "8-bit",
    "conv.in": "keep",
    "embed": "keep",
    "time": "keep",
    "caption": "keep",
    "adaln": "keep",
    "final": "keep",
}

_BLOCK = r"(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\."
_UNET_TRANSFORMER = _BLOCK + r"attentions\.\d+\.transformer_blocks\.\d+\."
_PIXART_TRANSFORMER = r"transformer_blocks\.\d+\."


def _transformer_block(prefix: str) -> list[tuple[str, str]]:
    """Patterns of one diffusers `BasicTransformerBlock`: attn1 attends to the image, attn2 to the caption."""
    return [
        *((prefix + rf"attn1\.to_{letter}", f"attn.{letter}") for letter in "qkv"),
        (prefix + r"attn1\.to_out\.0", "attn.out"),
        *((prefix + rf"attn2\.to_{letter}", f"cross.{letter}") for letter in "qkv"),
        (prefix + r"attn2\.to_out\.0", "cross.out"),
        (prefix + r"ff\.net\.0\.proj", "ffn.up"),
        (prefix + r"ff\.net\.2", "ffn.down"),
    ]


_TABLES: dict[str, list[tuple[str, str]]] = {
    "sd-unet": [
        (r"conv_in", "conv.in"),
        (r"time_embedding\.linear_[12]", "time"),
        *_transformer_block(_UNET_TRANSFORMER),
        (_BLOCK + r"attentions\.\d+\.proj_in", "proj.in"),
        (_BLOCK + r"attentions\.\d+\.proj_out", "proj.out"),
        (_BLOCK + r"resnets\.\d+\.conv[12]", "conv.res"),
        (_BLOCK + r"resnets\.\d+\.conv_shortcut", "conv.skip"),
        (_BLOCK + r"resnets\.\d+\.time_emb_proj", "time"),
        (_BLOCK + r"(?:downsamplers|upsamplers)\.\d+\.conv", "conv.sample"),
        (r"conv_out", "final"),
    ],
    "pixart": [
        (r"pos_embed\.proj", "embed"),
        *_transformer_block(_PIXART_TRANSFORMER),
        (r"adaln_single\.emb\.(?:timestep|resolution|aspect_ratio)_embedder\.linear_[12]", "time"),
        (r"adaln_single\.linear", "adaln"),
        (r"caption_projection\.linear_[12]", "caption"),
        (r"proj_out", "final"),
    ],
}


def _matches(family: str, module_name: str) -> list[str]:
    """Every role whose pattern matches the whole module path; KeyError for an unknown family."""
    return [role for pattern, role in _TABLES[family] if re.fullmatch(pattern, module_name)]


def role_of(family: str, module_name: str) -> str:
    """Return the role of a Linear or Conv2d of a denoiser.

    Args:
        family: key of the role table, e.g. `pixart`.
        module_name: module path inside the denoiser.

    Raises:
        ValueError: no pattern of the table matches, or more than one does.
    """
    roles = _matches(family, module_name)
    if len(roles) != 1:
        found = f"{len(roles)} roles ({', '.join(roles)})" if roles else "no role"
        raise ValueError(f"{module_name} has {found} in the role table {family!r}")
    return roles[0]


def layer_roles(family: str, denoiser: nn.Module) -> dict[str, str]:
    """Return the role of every Linear and Conv2d of a denoiser, by module path in module order.

    Raises:
        ValueError: some layers match no pattern of the table, or several; the message lists all of them.
    """
    found: dict[str, str] = {}
    wrong: list[str] = []
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            candidates = _matches(family, name)
            if len(candidates) == 1:
                found[name] = candidates[0]
            else:
                wrong.append(f"{name} ({', '.join(candidates) or 'no role'})")
    if wrong:
        raise ValueError(f"role table {family!r} does not give exactly one role to: {'; '.join(wrong)}")
    return found


def input_group(name: str, role: str) -> str:
    """Return a label shared by exactly those layers that consume the same input tensor.

    q, k and v of self-attention read the image tokens; k and v of cross-attention read the caption.
    """
    parent = name.rpartition(".")[0]
    if role in {"attn.q", "attn.k", "attn.v"}:
        return f"{parent}.qkv"
    if role in {"cross.k", "cross.v"}:
        return f"{parent}.kv"
    return name


def layer_bits(role: str, w_bits: int, a_bits: int) -> tuple[int, int]:
    """Return the weight and activation bits the policy gives a role; (16, 16) means that it is kept.

    Raises:
        KeyError: the policy has no row for the role.
    """
    policy = POLICY[role]
    if policy == "keep" or w_bits == UNQUANTIZED_BITS:
        return UNQUANTIZED_BITS, UNQUANTIZED_BITS
    if policy == "8-bit":
        return EIGHT_BITS, UNQUANTIZED_BITS
    return w_bits, a_bits


def targets(card: ModelCard, denoiser: nn.Module, w_bits: int, a_bits: int) -> tuple[LayerTarget, ...]:
    """Return the layers a method is handed, in module order.

    Args:
        card: the model.
        denoiser: its denoiser, not quantized.
        w_bits: weight bits asked for, 1-8, or 16 (nothing is quantized then).
        a_bits: activation bits asked for, 1-8, or 16.

    Raises:
        ValueError: a Linear or Conv2d of the denoiser has no role, or several.
    """
    found = []
    for name, role in layer_roles(card.family, denoiser).items():
        w, a = layer_bits(role, w_bits, a_bits)
        if w == UNQUANTIZED_BITS:
            continue
        kind: LayerKind = "linear" if isinstance(denoiser.get_submodule(name), nn.Linear) else "conv2d"
        after = activation_before(denoiser, name, role)
        found.append(LayerTarget(name, role, kind, w, a, input_group(name, role), after))
    return tuple(found)


def activation_before(denoiser: nn.Module, name: str, role: str) -> Literal["", "gelu", "silu"]:
    """Return the activation function whose output a layer reads; empty when there is none.

    The second linear layer of a feed-forward block reads the output of its first module, which is GELU unless
    it is gated; a convolution of a residual block reads the block's nonlinearity.
    """
    if role == "ffn.down":
        first = denoiser.get_submodule(f"{name.rpartition('.')[0]}.0")
        # torch's and diffusers' class of that name; GEGLU multiplies by a gate of either sign.
        return "gelu" if type(first).__name__ == "GELU" else ""
    if role == "conv.res":
        block = denoiser.get_submodule(name.rpartition(".")[0])
        return "silu" if isinstance(getattr(block, "nonlinearity", None), nn.SiLU) else ""
    return ""


def hidden_width(denoiser: Any) -> int:
    """Return the width that rules such as the rank of a low-rank branch scale with.

    For a transformer its inner dimension (heads x head width), for a UNet its largest number of channels.

    Args:
        denoiser: a diffusers model.

    Raises:
        TypeError: its config names neither.
    """
    config = denoiser.config
    if "block_out_channels" in config:
        return int(max(config["block_out_channels"]))
    if "num_attention_heads" in config and "attention_head_dim" in config:
        return int(config["num_attention_heads"] * config["attention_head_dim"])
    raise TypeError(f"{type(denoiser).__name__} names no hidden width in its config")
