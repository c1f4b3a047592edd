"""One packed layer for q, k and v of an attention, where diffusers' attention can run from one.

Its `fused_projections` tells the attention's processor to call `to_qkv` (and `to_added_qkv`, of the caption)
and to cut the result in three with `chunk`: the input is smoothed, quantized and projected once instead of
three times. A joined layer gives q, k and v in a tensor each (`harness.kernels.joined.Pieces`): norms would
copy q and k out of a wide one. In a compiled graph one wide product takes the place of three.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.kernels.joined import join_linear

_HEED = frozenset({"FluxAttention"})
"""Attentions whose processors look at `fused_projections`; q, k and v of each read one input.

Those of diffusers' older class `Attention` (Stable Diffusion, PixArt, SANA, DiT) do not look.
"""
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
    count = 0
    found: list[Any] = [module for module in denoiser.modules() if type(module).__name__ in _HEED]
    for attention in found:
        if attention.fused_projections:
            continue
        wanted = {"to_qkv": _IMAGE}
        if hasattr(attention, _CAPTION[0]):
            wanted["to_added_qkv"] = _CAPTION
        joined = {to: join_linear([getattr(attention, name) for name in of]) for to, of in wanted.items()}
        if not all(joined.values()):
            continue
        for to, of in wanted.items():
            setattr(attention, to, joined[to])
            for name in of:
                delattr(attention, name)
        attention.fused_projections = True
        count += 1
    return count
