"""What each layer of a denoiser is for, and which layers a method is handed.

One ordered table per family maps module paths to roles; a policy maps roles to `quantize`, `weight-only`,
`8-bit` or `keep`. Both belong to the harness, so that every method is compared on the same layers.

Policy, and why:

* Attention, cross-attention, feed-forward, the two convolutions of a residual block and the projections into
  and out of a transformer block hold nearly all weights: `quantize`.
* `conv.skip` (the 1x1 shortcut of a residual block) and `conv.sample` (down- and up-samplers) carry the
  residual stream itself, so an error there reaches every later layer undiluted. They hold 9 % of the weights
  of Stable Diffusion 1.5. deepcompressor leaves them at 16 bits; here their weights take 8, which costs
  little and keeps a low-bit model low-bit, while their inputs stay at 16: rounding the residual stream of
  tiny-unet to 8 bits moves its prediction nearly as much as rounding all its weights to 4.
* The first and the last layer, the time embedding with its projection into each residual block, the caption
  projection and a global AdaLN layer (PixArt, SANA) stay at 16 bits (`keep`), as in deepcompressor: they are
  small and read or write quantities of another scale than the rest.
* `adaln.block`, the AdaLN layer that FLUX and DiT have in every block, holds 27 and 30 % of their weights, so
  it cannot stay. It reads one row per image: its weight is quantized, its input is not (`weight-only`).
* `conv.depth`, the depth-wise convolution inside SANA's feed-forward, has 0.1 % of the weights: `keep`.

`published` policies differ from these in the rows that a model card lists (`ModelCard.published`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from harness.errors import UserError, unknown
from harness.methods.contract import LayerKind, LayerTarget
from harness.models.card import ModelCard, Policy

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
    "fused.out": "quantize",
    "context.q": "quantize",
    "context.k": "quantize",
    "context.v": "quantize",
    "context.out": "quantize",
    "context.up": "quantize",
    "context.down": "quantize",
    "conv.res": "quantize",
    "proj.in": "quantize",
    "proj.out": "quantize",
    "adaln.block": "weight-only",
    "conv.skip": "8-bit",
    "conv.sample": "8-bit",
    "conv.in": "keep",
    "embed": "keep",
    "time": "keep",
    "time.proj": "keep",
    "caption": "keep",
    "adaln": "keep",
    "conv.depth": "keep",
    "final": "keep",
}
POLICIES = ("harness", "published")
"""`harness` is `POLICY`; `published` is what the paper that the model's card names did."""

_BLOCK = r"(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\."
_UNET_TRANSFORMER = _BLOCK + r"attentions\.\d+\.transformer_blocks\.\d+\."
_TRANSFORMER = r"transformer_blocks\.\d+\."
_SINGLE = r"single_transformer_blocks\.\d+\."


def _attention(prefix: str, kind: str) -> list[tuple[str, str]]:
    """Patterns of the four projections of one diffusers `Attention`."""
    projections = [(prefix + rf"to_{letter}", f"{kind}.{letter}") for letter in "qkv"]
    return [*projections, (prefix + r"to_out\.0", f"{kind}.out")]


def _transformer_block(prefix: str) -> list[tuple[str, str]]:
    """Patterns of one diffusers `BasicTransformerBlock`: attn1 attends to the image, attn2 to the caption."""
    return [
        *_attention(prefix + r"attn1\.", "attn"),
        *_attention(prefix + r"attn2\.", "cross"),
        (prefix + r"ff\.net\.0\.proj", "ffn.up"),
        (prefix + r"ff\.net\.2", "ffn.down"),
    ]


_TABLES: dict[str, list[tuple[str, str]]] = {
    "sd-unet": [
        (r"conv_in", "conv.in"),
        # add_embedding: SDXL's pooled caption and picture sizes, added to the time embedding.
        (r"(?:time|add)_embedding\.linear_[12]", "time"),
        *_transformer_block(_UNET_TRANSFORMER),
        # The UNet without captions has plain self-attention in the place of transformer blocks.
        *_attention(_BLOCK + r"attentions\.\d+\.", "attn"),
        (_BLOCK + r"attentions\.\d+\.proj_in", "proj.in"),
        (_BLOCK + r"attentions\.\d+\.proj_out", "proj.out"),
        (_BLOCK + r"resnets\.\d+\.conv[12]", "conv.res"),
        (_BLOCK + r"resnets\.\d+\.conv_shortcut", "conv.skip"),
        (_BLOCK + r"resnets\.\d+\.time_emb_proj", "time.proj"),
        (_BLOCK + r"(?:downsamplers|upsamplers)\.\d+\.conv", "conv.sample"),
        (r"conv_out", "final"),
    ],
    "pixart": [
        (r"pos_embed\.proj", "embed"),
        *_transformer_block(_TRANSFORMER),
        (r"adaln_single\.emb\.(?:timestep|resolution|aspect_ratio)_embedder\.linear_[12]", "time"),
        (r"adaln_single\.linear", "adaln"),
        (r"caption_projection\.linear_[12]", "caption"),
        (r"proj_out", "final"),
    ],
    "flux": [
        (r"x_embedder", "embed"),
        (r"context_embedder", "caption"),
        (r"time_text_embed\.(?:timestep|guidance|text)_embedder\.linear_[12]", "time"),
        (_TRANSFORMER + r"norm1(?:_context)?\.linear", "adaln.block"),
        *_attention(_TRANSFORMER + r"attn\.", "attn"),
        *((_TRANSFORMER + rf"attn\.add_{letter}_proj", f"context.{letter}") for letter in "qkv"),
        (_TRANSFORMER + r"attn\.to_add_out", "context.out"),
        (_TRANSFORMER + r"ff\.net\.0\.proj", "ffn.up"),
        (_TRANSFORMER + r"ff\.net\.2", "ffn.down"),
        (_TRANSFORMER + r"ff_context\.net\.0\.proj", "context.up"),
        (_TRANSFORMER + r"ff_context\.net\.2", "context.down"),
        (_SINGLE + r"norm\.linear", "adaln.block"),
        *((_SINGLE + rf"attn\.to_{letter}", f"attn.{letter}") for letter in "qkv"),
        (_SINGLE + r"proj_mlp", "ffn.up"),
        (_SINGLE + r"proj_out", "fused.out"),
        (r"norm_out\.linear", "adaln"),
        (r"proj_out", "final"),
    ],
    "dit": [
        (r"pos_embed\.proj", "embed"),
        (_TRANSFORMER + r"norm1\.emb\.timestep_embedder\.linear_[12]", "time"),
        (_TRANSFORMER + r"norm1\.linear", "adaln.block"),
        *_transformer_block(_TRANSFORMER),
        (r"proj_out_[12]", "final"),
    ],
    "sana": [
        (r"patch_embed\.proj", "embed"),
        (r"time_embed\.emb\.timestep_embedder\.linear_[12]", "time"),
        (r"time_embed\.linear", "adaln"),
        (r"caption_projection\.linear_[12]", "caption"),
        *_attention(_TRANSFORMER + r"attn1\.", "attn"),
        *_attention(_TRANSFORMER + r"attn2\.", "cross"),
        (_TRANSFORMER + r"ff\.conv_inverted", "ffn.up"),
        (_TRANSFORMER + r"ff\.conv_depth", "conv.depth"),
        (_TRANSFORMER + r"ff\.conv_point", "ffn.down"),
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
    """Return a label shared by those layers that consume the same input tensor.

    q, k and v of self-attention read the image tokens, and so does the feed-forward of FLUX's single blocks;
    k and v of cross-attention read the caption; q, k and v of FLUX's caption stream read the caption tokens.
    """
    parent, _, own = name.rpartition(".")
    if own == "proj_mlp":
        return f"{parent}.attn.qkv"
    if role in {"attn.q", "attn.k", "attn.v"}:
        return f"{parent}.qkv"
    if role in {"context.q", "context.k", "context.v"}:
        return f"{parent}.added_qkv"
    if role in {"cross.k", "cross.v"}:
        return f"{parent}.kv"
    return name


def policy_of(card: ModelCard, name: str) -> dict[str, Policy]:
    """Return the policy `name` for a model: role -> what is done with its layers.

    Raises:
        harness.errors.UserError: there is no policy of that name, or nothing was published for the model.
    """
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    if name == "harness":
        return dict(POLICY)
    if card.embedded:  # the harness published it
        return dict(POLICY)
    if card.published is None:
        raise UserError(f"no policy was published for {card.name}; use the policy `harness`")
    return POLICY | dict(card.published)


def layer_bits(role: str, w_bits: int, a_bits: int, policy: Mapping[str, Policy] = POLICY) -> tuple[int, int]:
    """Return the weight and activation bits a policy gives a role; (16, 16) means that it is kept.

    Raises:
        KeyError: the policy has no row for the role.
    """
    treatment = policy[role]
    if treatment == "keep" or w_bits == UNQUANTIZED_BITS:
        return UNQUANTIZED_BITS, UNQUANTIZED_BITS
    if treatment == "8-bit":
        return EIGHT_BITS, UNQUANTIZED_BITS
    return w_bits, UNQUANTIZED_BITS if treatment == "weight-only" else a_bits


def targets(
    card: ModelCard, denoiser: nn.Module, w_bits: int, a_bits: int, policy: str = "harness"
) -> tuple[LayerTarget, ...]:
    """Return the layers a method is handed, in module order.

    Args:
        card: the model.
        denoiser: its denoiser, not quantized.
        w_bits: weight bits asked for, 1-8, or 16 (nothing is quantized then).
        a_bits: activation bits asked for, 1-8, or 16.
        policy: one of `POLICIES`.

    Raises:
        harness.errors.UserError: there is no such policy for the model.
        ValueError: a Linear or Conv2d of the denoiser has no role, or several.
    """
    found = []
    rules = policy_of(card, policy)
    for name, role in layer_roles(card.family, denoiser).items():
        w, a = layer_bits(role, w_bits, a_bits, rules)
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
    block = denoiser.get_submodule(name.rpartition(".")[0])
    if role in {"ffn.down", "context.down"}:
        first = dict(block.named_children()).get("0")
        # torch's and diffusers' class of that name; GEGLU multiplies by a gate of either sign.
        return "gelu" if type(first).__name__ == "GELU" else ""
    if role == "conv.res":
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
