"""One packed layer for layers of one input, where diffusers' FLUX can run from one.

An attention's `fused_projections` tells its processor to call `to_qkv` (and `to_added_qkv`, of the caption)
and to cut the result in three with `chunk`: the input is smoothed, quantized and projected once instead of
three times. A joined layer gives q, k and v in a tensor each (`harness.kernels.joined.Pieces`): norms would
copy q and k out of a wide one. In a compiled graph one wide product takes the place of three.

A single block gives the same input to its feed-forward first. Where that was smoothed with q, k and v, all
four are one layer, and the attention takes what is left of it (`FirstOfTwo`).

GELU is applied by the layer after it (`harness.kernels.gelu`). That of a single block is given the output of
the attention and the feed-forward's apart, which the block would first copy into one tensor.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from harness.kernels.gelu import LinearAfterGelu
from harness.kernels.joined import FirstOfTwo, JoinedLinear, SecondOfTwo, join_linear
from harness.kernels.layers import PackedLinear

_HEED = frozenset({"FluxAttention"})
"""Attentions whose processors look at `fused_projections`; q, k and v of each read one input.

Those of diffusers' older class `Attention` (Stable Diffusion, PixArt, SANA, DiT) do not look.
"""
_SINGLE = "FluxSingleTransformerBlock"
"""Blocks that give what their attention reads to `proj_mlp` before."""
_DOUBLE = "FluxTransformerBlock"
_IMAGE = ("to_q", "to_k", "to_v")
_CAPTION = ("add_q_proj", "add_k_proj", "add_v_proj")


def fuse_projections(denoiser: nn.Module) -> int:
    """Join the packed q, k and v of every attention that can run from one layer.

    An attention is left as it is unless all its projections can be joined (`join_linear`). Layers keep their
    values; names inside the attention change, so this is for a denoiser that is run, not saved.

    Args:
        denoiser: packed, on the device where it stays.

    Returns:
        How many attentions run from joined layers now.
    """
    singles: list[Any] = [module for module in denoiser.modules() if type(module).__name__ == _SINGLE]
    count = sum(_fuse_single(block) for block in singles)
    found: list[Any] = [module for module in denoiser.modules() if type(module).__name__ in _HEED]
    for attention in found:
        if attention.fused_projections:
            continue
        wanted = {"to_qkv": _IMAGE}
        if hasattr(attention, _CAPTION[0]):
            wanted["to_added_qkv"] = _CAPTION
        joined = {to: _joined(attention, of) for to, of in wanted.items()}
        if not all(joined.values()):
            continue
        for to, of in wanted.items():
            _put(attention, to, joined[to], of)
        count += 1
    return count


def _fuse_single(block: Any) -> bool:
    """Join q, k, v and the feed-forward's first layer of a single block, if that can be."""
    attention = block.attn
    if type(attention).__name__ not in _HEED or attention.fused_projections:
        return False
    joined = _joined(attention, _IMAGE, block.proj_mlp)
    if joined is None:
        return False
    block.proj_mlp = FirstOfTwo(joined).train(block.training)
    _put(attention, "to_qkv", SecondOfTwo(block.proj_mlp).train(block.training), _IMAGE)
    return True


def _joined(attention: Any, of: tuple[str, ...], *others: nn.Module) -> JoinedLinear | None:
    return join_linear([*(getattr(attention, name) for name in of), *others])


def _put(attention: Any, to: str, joined: nn.Module | None, of: tuple[str, ...]) -> None:
    """Let an attention run from a joined layer."""
    setattr(attention, to, joined)
    for name in of:
        delattr(attention, name)
    attention.fused_projections = True


def fuse_activations(denoiser: nn.Module) -> int:
    """Let packed layers of FLUX's blocks that are given the output of GELU apply it themselves.

    As `fuse_projections`, for a denoiser that is run, not saved.

    Returns:
        How many layers do so now.
    """
    found: list[Any] = list(denoiser.modules())
    singles = [_fuse_output(module) for module in found if type(module).__name__ == _SINGLE]
    doubles = [module for module in found if type(module).__name__ == _DOUBLE]
    forwards = [each for block in doubles for each in (block.ff, block.ff_context)]
    return sum(singles) + sum(map(_fuse_feed_forward, forwards))


def _fuse_feed_forward(forward: Any) -> bool:
    """Take GELU out of a feed-forward: [layer and GELU, dropout, layer]."""
    if len(forward.net) != 3:
        return False
    first, middle, last = forward.net
    if not isinstance(last, PackedLinear) or not isinstance(middle, nn.Dropout) or middle.training:
        return False
    if type(first).__name__ != "GELU" or first.approximate != "tanh":
        return False
    forward.net[0], forward.net[2] = first.proj, LinearAfterGelu.of(last)
    return True


def _fuse_output(block: Any) -> bool:
    """Give the output layer of a single block its input in two parts."""
    gelu, last = block.act_mlp, block.proj_out
    if not isinstance(last, PackedLinear) or not isinstance(gelu, nn.GELU) or gelu.approximate != "tanh":
        return False
    ours, theirs = (list(inspect.signature(each).parameters) for each in (_single_block, type(block).forward))
    if ours != theirs or "forward" in vars(block):
        return False  # another version of the block, or one that something else runs
    block.proj_out, block.act_mlp = LinearAfterGelu.of(last), nn.Identity().train(block.training)
    block.forward = MethodType(_single_block, block)
    return True


def _single_block(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Any = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a single block of FLUX: attention and feed-forward beside each other on caption and image tokens.

    Takes and gives [batch, caption tokens, channels] and [batch, image tokens, channels].
    """
    caption = encoder_hidden_states.shape[1]
    tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
    normed, gate = self.norm(tokens, emb=temb)
    wide = self.proj_mlp(normed)
    seen = self.attn(
        hidden_states=normed, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {})
    )
    tokens = tokens + gate.unsqueeze(1) * self.proj_out(wide, seen)
    if tokens.dtype == torch.float16:
        tokens = tokens.clip(-65504, 65504)
    return tokens[:, :caption], tokens[:, caption:]
